"""Calibrated rounding against a float64 reference, and what it promises on any statistics."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from roundsmith.converters.rounding import (
    Activations,
    CalibratedOptions,
    Solution,
    calibrated,
    nearest,
)
from roundsmith.converters.rounding.hessian import damped, expected_error, factor
from roundsmith.errors import Cancelled, RecipeError, RoundsmithError
from roundsmith.layouts import formats
from roundsmith.layouts.codec import decode
from roundsmith.layouts.geometries import (
    ABSMAX_SCALES,
    FLOAT_SCALES,
    PER_ROW,
    PER_TENSOR,
    POWERS_OF_TWO,
    ROW_LEVELS,
    TWO_LEVELS,
    Geometry,
)
from roundsmith.layouts.grids import E2M1, E4M3, E5M2, INT8, CodebookGrid, Grid

# Uneven, lopsided, in no order, one value twice: what a table fitted to a layer may look like.
CODEBOOK = CodebookGrid.of(
    "codebook",
    (0.0, -0.7, 0.11, 1.3, 0.26, 0.0, -1.1, -0.33, 0.42, 0.6, -0.18, 0.85, -0.5, 1.05, -0.06, 0.05),
)
GRIDS = (E4M3, E5M2, INT8, E2M1, CODEBOOK)
GEOMETRIES = (
    PER_TENSOR,
    PER_ROW,
    Geometry(1, 16),
    Geometry(16, 16),
    Geometry(16, None),
    Geometry(1, 16, POWERS_OF_TWO),
    Geometry(1, 16, TWO_LEVELS),
    Geometry.in_order(40, ABSMAX_SCALES),
    Geometry(1, 16, ROW_LEVELS),
)


def inputs(tokens: int, n: int, seed: int = 0) -> Tensor:
    """Correlated inputs of unlike sizes."""
    g = torch.Generator().manual_seed(seed)
    rank = max(n // 8, 1)
    low = torch.randn(tokens, rank, generator=g) @ torch.randn(rank, n, generator=g)
    return (low + 0.3 * torch.randn(tokens, n, generator=g)) * (0.1 + torch.rand(n, generator=g))


def activations(x: Tensor, held: int) -> Activations:
    fit = x[held:]
    return Activations(fit.t() @ fit / max(len(fit), 1), len(fit), x[:held])


def weights(m: int, n: int, seed: int = 1) -> Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(seed)) * 0.02


def lost(w: Tensor, grid: Grid, found: Solution | tuple[Tensor, Any], x: Tensor) -> float:
    """Squared error of the outputs, float64."""
    error = decode(found[0], grid, found[1]).double() - w.double()
    return float((x.double() @ error.t()).square().sum())


def gain(w: Tensor, grid: Grid, geometry: Geometry, found: Solution, x: Tensor) -> float:
    """Over nearest rounding, dB."""
    plain = lost(w, grid, nearest(w.clone(), grid, geometry), x)
    return 10 * math.log10(plain / lost(w, grid, found, x))


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: g.name)
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
def test_every_grid_and_geometry_gains(grid: Grid, geometry: Geometry) -> None:
    x, w = inputs(1536, 64), weights(48, 64)
    kept = w.clone()
    found = calibrated(w, grid, geometry, activations(x[:1024], 128), w.abs().amax())
    assert torch.equal(w, kept), "the weights were overwritten"
    assert found.method == "calibrated"
    assert found.note == ""
    assert found.codes.dtype == grid.dtype
    assert found.scales.block.shape == geometry.grid_shape((48, 64))
    rule = geometry.rule.snap(found.scales.effective, found.scales.tensor)
    torch.testing.assert_close(rule.block, found.scales.block, rtol=1e-6, atol=0)
    assert gain(w, grid, geometry, found, x[1024:]) > 3


def cases() -> list[Any]:
    listed = []
    for name, fmt in formats().items():
        for variant in fmt.variants or (None,):
            for convrot in (None, 16) if fmt.rotates else (None,):
                title = " ".join(str(part) for part in (name, variant, convrot) if part)
                listed.append(pytest.param(name, variant, convrot, id=title))
    return listed


@pytest.mark.parametrize(("name", "variant", "convrot"), cases())
def test_every_format_gains(name: str, variant: str | None, convrot: int | None) -> None:
    """Rotated, padded, with blocks of zeros and an input that is always zero."""
    fmt = formats()[name]
    padded = fmt.padding != (1, 1)
    m, n = (250, 248) if padded else (256, 256)
    spec = fmt.fit(fmt.bind(features=n, variant=variant, convrot=convrot), (m, n)).spec
    assert spec is not None
    original, x = weights(m, n), inputs(3072, n)
    original[:128, :128] = 0
    x[:, 5] = 0
    w, x = fmt.transform(original, spec), fmt.transform_inputs(x, spec)
    grid, geometry = fmt.grid_for(spec), fmt.geometry(spec)
    found = calibrated(w, grid, geometry, activations(x[:2048], 256), w.abs().amax())
    assert found.method == "calibrated"
    assert bool(torch.isfinite(decode(found.codes, grid, found.scales)).all())
    assert not decode(found.codes, grid, found.scales)[m:].any(), "padding must stay zero"
    assert gain(w, grid, geometry, found, x[2048:]) > 2
    assert found.expected_gain is not None
    assert found.expected_gain > 2


def shapes() -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.sampled_from((1, 2, 7, 32)), st.sampled_from((1, 3, 16, 48)))


@settings(max_examples=80, deadline=None)
@given(
    shape=shapes(),
    grid=st.sampled_from(GRIDS),
    geometry=st.sampled_from((PER_TENSOR, PER_ROW, Geometry(1, 1, TWO_LEVELS))),
    held=st.sampled_from((0, 1, 5, 40)),
    count=st.sampled_from((1, 63, 64, 200)),
    kind=st.sampled_from(("same", "other", "opposed", "huge", "tiny", "nan", "rank 1", "lying")),
    seed=st.integers(0, 5),
    apart=st.booleans(),
)
def test_never_worse_than_nearest_on_the_tokens_set_aside(
    shape: tuple[int, int],
    grid: Grid,
    geometry: Geometry,
    held: int,
    count: int,
    kind: str,
    seed: int,
    apart: bool,
) -> None:
    m, n = shape
    w, x = weights(m, n, seed), inputs(count + held, n, seed)
    if kind == "other":
        x[:held] = inputs(held, n, seed + 100) * torch.linspace(5, 0.01, n)
    if kind == "opposed":  # correlations of the other sign
        x[:held] *= torch.ones(n).index_fill_(0, torch.arange(0, n, 2), -1.0)
    if kind == "huge":
        x *= 1e15
    if kind == "tiny":
        x *= 1e-20
    if kind == "nan":
        x[-1, 0] = math.nan
        x[0, 0] = math.inf
    if kind == "rank 1":
        x = x[:1].repeat(count + held, 1)
    given_ = activations(x, held)
    if kind == "lying":  # no moment at all: symmetric, but not positive
        given_ = Activations(-given_.moment, count, given_.held)
    given_ = replace(given_, apart=apart)
    found = calibrated(w, grid, geometry, given_, w.abs().amax())
    judged = given_.held[torch.isfinite(given_.held).all(dim=1)]
    plain = nearest(w.clone(), grid, geometry, w.abs().amax())
    assert lost(w, grid, found, judged) <= lost(w, grid, plain, judged)
    if found.method != "calibrated":
        assert found.note
    if count < 64 or kind == "nan":
        assert found.method != "calibrated"


def test_better_than_the_bare_sweep() -> None:
    x, w = inputs(6000, 96), weights(64, 96)
    given_ = activations(x[:4000], 400)
    bare = CalibratedOptions(passes=0, variants=1, refit=False)
    for grid in GRIDS:
        least = calibrated(w, grid, PER_ROW, given_, options=bare)
        found = calibrated(w, grid, PER_ROW, given_)
        assert lost(w, grid, found, x[4000:]) < lost(w, grid, least, x[4000:])


def alike(count: int, least: float, seed: int) -> Tensor:
    """Tokens of ``count`` sentences of 20 that resemble each other within a sentence; what they are
    made of is the same whatever the seed, of sizes from 1 down to ``least``."""
    g, same = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(99)
    parts = torch.linalg.qr(torch.randn(64, 64, generator=same))[0]
    parts *= torch.logspace(0, math.log10(least), 64)
    tokens = torch.randn(count, 64, generator=g).repeat_interleave(20, dim=0)
    return (tokens + 0.02 * torch.randn(tokens.shape, generator=g)) @ parts.t()


@pytest.mark.parametrize(
    ("sentences", "least", "bad"), [(15, 0.5, 0.0015), (3000, 0.001, 0.5)], ids=["few", "many"]
)
def test_calls_set_aside_say_how_far_to_trust_the_moment(
    sentences: int, least: float, bad: float
) -> None:
    """The damping that is expected to serve them best nearly does, of few tokens and many."""
    x, held, w = alike(sentences, least, 0), alike(40, least, 1), weights(48, 64)
    moment = x.t() @ x / len(x)
    expected, real = {}, {}
    for damping in (0.5, 0.15, 0.05, 0.015, 0.005, 0.0015):
        expected[damping] = expected_error(factor(damped(moment, damping)), held)
        options = CalibratedOptions(damping=damping, passes=0, variants=1, refit=False)
        found = calibrated(w, INT8, PER_ROW, Activations(moment, len(x), held[:0]), options=options)
        real[damping] = lost(w, INT8, found, held)
    chosen = min(expected, key=expected.__getitem__)
    assert real[chosen] < 1.05 * min(real.values()), (expected, real)
    assert real[bad] > 1.3 * min(real.values()), "else it would not matter"


def test_few_tokens_gain_still() -> None:
    """Fewer tokens than inputs: a singular moment, damped as the tokens set aside decide."""
    x, w = inputs(1000, 256), weights(64, 256)
    found = calibrated(w, INT8, PER_ROW, activations(x[:200], 25))
    assert found.method == "calibrated"
    assert gain(w, INT8, PER_ROW, found, x[200:]) > 1


@pytest.mark.parametrize("kind", ["few", "nan", "zero"])
@pytest.mark.parametrize("grid", [INT8, E4M3], ids=lambda g: g.name)
def test_without_usable_statistics(kind: str, grid: Grid) -> None:
    """A search; but unweighted not for a uniform grid whose scale serves several rows."""
    w, x = weights(32, 32), inputs(200, 32)
    if kind == "nan":
        x[150] = math.nan
    if kind == "zero":
        x = torch.zeros_like(x)
    given_ = activations(x[:60] if kind == "few" else x, 8)
    for geometry in (PER_ROW, PER_TENSOR):
        found = calibrated(w, grid, geometry, given_)
        assert found.method in ("nearest", "scale search")
        reason = {"few": "52 tokens are fewer than 64", "nan": "not finite", "zero": "were zero"}
        assert reason[kind] in found.note
        if kind != "few" and grid is INT8 and geometry is PER_TENSOR:
            assert found.method == "nearest"
    off = calibrated(w, grid, PER_ROW, given_, scale_search=False)
    assert off.method == "nearest"


def test_statistics_of_another_layer() -> None:
    with pytest.raises(RoundsmithError, match="16 inputs for a layer of 32"):
        calibrated(weights(8, 32), INT8, PER_ROW, activations(inputs(100, 16), 10))


def test_cancelling() -> None:
    calls = 0

    def poll() -> None:
        nonlocal calls
        calls += 1
        if calls == cancel_at:
            raise Cancelled("stop")

    cancel_at = 0
    w, given_ = weights(64, 256), activations(inputs(600, 256), 64)
    calibrated(w, E4M3, PER_ROW, given_, poll=poll)
    assert calls > 30
    for cancel_at in (1, calls // 2, calls):
        made, calls = calls, 0
        with pytest.raises(Cancelled):
            calibrated(w, E4M3, PER_ROW, given_, poll=poll)
        assert calls == cancel_at
        calls = made


def test_options_are_checked() -> None:
    for wrong in ({"damping": 0}, {"block": 1}, {"passes": -1}, {"variants": 0}, {"order": True}):
        with pytest.raises(RecipeError, match=next(iter(wrong))):
            CalibratedOptions(**wrong)


def test_same_result_twice_and_in_inference_mode() -> None:
    w, given_ = weights(32, 64), activations(inputs(500, 64), 60)
    first = calibrated(w, E4M3, Geometry(1, 16, FLOAT_SCALES), given_)
    with torch.inference_mode():
        second = calibrated(w, E4M3, Geometry(1, 16, FLOAT_SCALES), given_)
    assert torch.equal(first.codes.view(torch.uint8), second.codes.view(torch.uint8))
    assert torch.equal(first.scales.block, second.scales.block)
