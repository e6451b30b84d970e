"""Learned rounding as a whole: what it promises for every grid, geometry and rule."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from roundsmith.converters.rounding import Activations, LearnedOptions, learned, nearest
from roundsmith.converters.rounding.learned.solver import make_objective
from roundsmith.errors import Cancelled, RecipeError
from roundsmith.layouts.codec import decode
from roundsmith.layouts.geometries import (
    ABSMAX_SCALES,
    PER_ROW,
    PER_TENSOR,
    POWERS_OF_TWO,
    TWO_LEVELS,
    Geometry,
)
from roundsmith.layouts.grids import E2M1, E4M3, E5M2, INT8

from .test_calibrated import CODEBOOK

PAIRS = {
    "fp8 tensor": (E4M3, PER_TENSOR),
    "e5m2 tensor": (E5M2, PER_TENSOR),
    "fp8 row": (E4M3, PER_ROW),
    "fp8 block": (E4M3, Geometry(16, 16)),
    "int8 row": (INT8, PER_ROW),
    "int8 row block": (INT8, Geometry(1, 16)),
    "mxfp8": (E4M3, Geometry(1, 32, POWERS_OF_TWO)),
    "nvfp4": (E2M1, Geometry(1, 16, TWO_LEVELS)),
    "4 bits, free scales": (E2M1, Geometry(1, 32)),
    "codebook": (CODEBOOK, Geometry(1, 32)),
    "flat blocks": (CODEBOOK, Geometry.in_order(40, ABSMAX_SCALES)),
}
QUICK = {"min_k": 8, "iterations": 60}


def layer(m=48, n=64, tokens=2000, seed=0):
    """Weights, and inputs with a few strong directions, as real ones have."""
    draw = torch.Generator().manual_seed(seed)
    w = torch.randn(m, n, generator=draw) * 0.05
    mix = torch.randn(n, n, generator=draw) * torch.logspace(0, -1.5, n)[:, None]
    x = torch.randn(tokens, n, generator=draw) @ mix
    fit, held = x[: tokens * 3 // 4], x[tokens * 3 // 4 :]
    return w, Activations(fit.T @ fit / len(fit), len(fit), held)


def output_error(w, grid, codes, scales, x):
    return float((x @ (decode(codes, grid, scales) - w).T).double().square().sum())


@pytest.mark.parametrize("pair", PAIRS)
def test_activations_gain_on_held_out_tokens(pair):
    grid, geometry = PAIRS[pair]
    w, activations = layer()
    before = w.clone()
    plain = nearest(w.clone(), grid, geometry)
    made = learned(w, grid, geometry, activations, options=LearnedOptions(**QUICK))
    assert made.method == "learned", made.note
    assert made.codes.dtype == grid.dtype
    assert made.codes.shape == w.shape
    assert torch.equal(w, before), "the weights were changed"
    gain = output_error(w, grid, *plain, activations.held) / output_error(
        w, grid, made.codes, made.scales, activations.held
    )
    assert gain > 1.58, f"{pair}: less than 2 dB"


@pytest.mark.parametrize("pair", PAIRS)
def test_svd_lowers_what_singular_vectors_see(pair):
    grid, geometry = PAIRS[pair]
    w, _ = layer()
    options = LearnedOptions(objective="svd", **QUICK)
    objective = make_objective(w, None, options, seed=0)
    made = learned(w, grid, geometry, None, options=options)
    codes, scales = nearest(w.clone(), grid, geometry)
    ours = objective(decode(made.codes, grid, made.scales) - w).parts.sum()
    theirs = objective(decode(codes, grid, scales) - w).parts.sum()
    assert made.method == "learned"
    assert ours < theirs * 0.5


@pytest.mark.parametrize("pair", PAIRS)
def test_scales_are_storable(pair):
    """Learned scales are what the format's rule would store: snapping changes nothing."""
    grid, geometry = PAIRS[pair]
    w, activations = layer()
    for changed in ({"learn_scales": True}, {"joint_scales": True}, {"refine_rounds": 2}):
        options = LearnedOptions(**QUICK, **changed)
        made = learned(w, grid, geometry, activations, options=options)
        again = geometry.rule.snap(made.scales.effective, made.scales.tensor)
        torch.testing.assert_close(again.block, made.scales.block, rtol=1e-6, atol=0)
        assert made.scales.block.shape == geometry.grid_shape((48, 64))


@pytest.mark.parametrize(
    "changed", [{"learn_scales": True}, {"joint_scales": True}, {"refine_rounds": 2}]
)
def test_learned_scales_pay_at_four_bits(changed):
    grid, geometry = E2M1, Geometry(1, 32)
    w, activations = layer()
    errors = []
    for settings in ({"learn_scales": False}, {"learn_scales": False, **changed}):
        options = LearnedOptions(**QUICK, **settings)
        made = learned(w, grid, geometry, activations, options=options)
        errors.append(output_error(w, grid, made.codes, made.scales, activations.held))
    assert errors[1] < errors[0] * 0.99


def test_four_bits_under_free_scales_learn_them_unasked():
    w, activations = layer()
    for geometry, changed in ((Geometry(1, 32), True), (Geometry(1, 16, TWO_LEVELS), False)):
        made = learned(w, E2M1, geometry, activations, options=LearnedOptions(**QUICK))
        start = geometry.scales(w, E2M1)
        assert torch.equal(made.scales.block, start.block) != changed


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("objective", ["svd", "activations"])
def test_never_worse_than_nearest_where_statistics_mislead(pair, objective):
    """Fitted to one direction, scored on another: nearest codes are kept, and the note says so."""
    grid, geometry = PAIRS[pair]
    w, _ = layer()
    draw = torch.Generator().manual_seed(3)
    direction = torch.randn(64, 1, generator=draw)
    held = torch.randn(300, 64, generator=draw)
    held -= (held @ direction) @ direction.T / direction.square().sum()
    misleading = Activations(direction @ direction.T, 1000, held)
    options = LearnedOptions(objective=objective, **QUICK)
    made = learned(w, grid, geometry, misleading, options=options)
    codes, scales = nearest(w.clone(), grid, geometry)
    ours = output_error(w, grid, made.codes, made.scales, held)
    assert ours <= output_error(w, grid, codes, scales, held)
    if objective == "activations":
        assert made.method == "nearest"
        assert "worse on held-out tokens" in made.note


@pytest.mark.parametrize("pair", PAIRS)
def test_zero_blocks_and_padding_stay_zero(pair):
    grid, geometry = PAIRS[pair]
    w, activations = layer()
    w[:16] = 0
    w[:, 32:] = 0  # padding: inputs are zero there too
    moment = activations.moment.clone()
    moment[32:] = moment[:, 32:] = 0
    held = activations.held.clone()
    held[:, 32:] = 0
    for given, objective in ((Activations(moment, 1500, held), "activations"), (None, "svd")):
        options = LearnedOptions(objective=objective, **QUICK)
        made = learned(w, grid, geometry, given, options=options)
        values = decode(made.codes, grid, made.scales)
        assert torch.isfinite(values).all()
        assert not values[:16].any()
        assert not values[:, 32:].any()


@pytest.mark.parametrize("shape", [(1, 64), (48, 1), (1, 1)])
@pytest.mark.parametrize("objective", ["svd", "auto"])
def test_thin_matrices(shape, objective):
    m, n = shape
    w, activations = layer(m, n)
    for optimizer in ("original", "adamw", "radam", "prodigy"):
        for schedule in ("exponential", "plateau", "adaptive"):
            options = LearnedOptions(
                objective=objective, optimizer=optimizer, schedule=schedule, iterations=30
            )
            made = learned(w, INT8, PER_ROW, activations, options=options)
            assert made.codes.shape == shape
            assert torch.isfinite(decode(made.codes, INT8, made.scales)).all()


@pytest.mark.parametrize("optimizer", ["original", "adamw", "radam", "prodigy"])
@pytest.mark.parametrize("schedule", ["exponential", "plateau", "adaptive"])
def test_every_optimizer_and_schedule_gains_by_itself(optimizer, schedule):
    """With no flips afterwards: the gradient steps alone."""
    w, activations = layer()
    options = LearnedOptions(
        optimizer=optimizer, schedule=schedule, flip_rounds=0, stop_gain=0, iterations=600
    )
    made = learned(w, INT8, PER_ROW, activations, options=options)
    plain = nearest(w.clone(), INT8, PER_ROW)
    gain = output_error(w, INT8, *plain, activations.held) / output_error(
        w, INT8, made.codes, made.scales, activations.held
    )
    assert gain > 1.1, f"{gain:.2f}"


def test_inference_mode_changes_nothing():
    w, activations = layer()
    options = LearnedOptions(**QUICK)
    outside = learned(w.clone().requires_grad_(), E4M3, PER_ROW, activations, options=options)
    assert torch.is_grad_enabled()
    with torch.inference_mode():
        inside = learned(w.clone(), E4M3, PER_ROW, activations, options=options)
    assert torch.equal(outside.codes.float(), inside.codes.float())
    assert not outside.codes.requires_grad
    assert not outside.scales.block.requires_grad


def test_same_seed_same_codes_and_torchs_own_untouched():
    w, _ = layer(96, 96)
    options = LearnedOptions(objective="svd", min_k=8, max_k=20, iterations=40)
    state = torch.get_rng_state()
    first, again, other = (learned(w, INT8, PER_ROW, None, options=options, seed=s) for s in
                           (1, 1, 2))  # fmt: skip
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.codes, again.codes)
    assert not torch.equal(first.codes, other.codes)


def test_auto_takes_statistics_where_there_are_any():
    w, activations = layer()
    auto, asked = (
        learned(w, INT8, PER_ROW, activations, options=LearnedOptions(objective=name, **QUICK))
        for name in ("auto", "activations")
    )
    assert torch.equal(auto.codes, asked.codes)
    auto, asked = (
        learned(w, INT8, PER_ROW, None, options=LearnedOptions(objective=name, **QUICK))
        for name in ("auto", "svd")
    )
    assert torch.equal(auto.codes, asked.codes)


def test_activations_asked_for_and_missing():
    w, _ = layer()
    with pytest.raises(RecipeError, match="calibrat"):
        learned(w, INT8, PER_ROW, None, options=LearnedOptions(objective="activations"))


@pytest.mark.parametrize(
    ("change", "note"),
    [
        (lambda a: replace(a, count=63), "63 calibrated tokens"),
        (lambda a: replace(a, moment=a.moment * torch.nan), "not finite"),
        (lambda a: replace(a, moment=a.moment * 0), "every calibrated input is zero"),
    ],
)
def test_unusable_statistics_leave_nearest_codes(change, note):
    w, activations = layer()
    made = learned(w, INT8, PER_ROW, change(activations))
    codes, scales = nearest(w.clone(), INT8, PER_ROW)
    assert made.method == "nearest"
    assert note in made.note
    assert torch.equal(made.codes, codes)
    assert torch.equal(made.scales.block, scales.block)


def test_all_singular_vectors_leave_nearest_codes():
    """Where the projection keeps everything, nearest codes are the solution."""
    w, _ = layer(64, 64)
    made = learned(w, INT8, PER_ROW, None)
    assert made.method == "nearest"
    assert "alike" in made.note


def test_cancel_ends_it():
    w, activations = layer()
    calls = 0

    def poll():
        nonlocal calls
        calls += 1
        if calls == 5:
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        learned(w, INT8, PER_ROW, activations, poll=poll)
    assert calls == 5


def test_tensor_absmax_is_used():
    w, activations = layer()
    absmax = w.abs().amax() * 2
    made = learned(w, INT8, PER_TENSOR, activations, absmax, LearnedOptions(**QUICK))
    torch.testing.assert_close(made.scales.block, (absmax / 127).view(1, 1))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"lr": 0.0}, "lr"),
        ({"lr": float("inf")}, "lr"),
        ({"top_p": 0.0}, "top_p"),
        ({"min_k": 0}, "min_k"),
        ({"min_k": 300, "max_k": 200}, "min_k"),
        ({"gamma": 1.5}, "gamma"),
        ({"factor": 1.0}, "factor"),
        ({"shape_influence": 2.0}, "shape_influence"),
        ({"counter": "never"}, "counter"),
        ({"optimizer": "sgd"}, "optimizer"),
        ({"iterations": 0}, "iterations"),
        ({"stop_stall": 0}, "stop_stall"),
        ({"damping": -1}, "damping"),
        ({"joint_scales": True, "refine_rounds": 1}, "joint_scales"),
        ({"momentum": 0.9}, "momentum"),
    ],
)
def test_bad_settings_are_named(settings, named):
    with pytest.raises(RecipeError, match=named):
        LearnedOptions(**settings)


def test_defaults_are_the_documented_ones():
    options = LearnedOptions()
    assert options.rate == 8.0773e-3
    assert LearnedOptions(optimizer="prodigy").rate == 1.0
    expected = {
        "iterations": 1000, "top_p": 0.2, "min_k": 256, "max_k": 1280, "gamma": 0.99,
        "patience": 9, "factor": 0.92, "shape_influence": 1.0, "stop_loss": 1e-8,
        "stop_lr": 1e-10, "stop_stall": 1000, "refine_rounds": 0, "joint_scales": False,
    }  # fmt: skip
    assert {name: getattr(options, name) for name in expected} == expected
    assert all(field.description for field in LearnedOptions.model_fields.values())
