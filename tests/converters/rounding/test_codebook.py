"""Codebooks fitted to layers."""

import pytest
import torch
from torch import Tensor

from roundsmith.converters.rounding import fit_codebook, scale_search
from roundsmith.errors import Cancelled
from roundsmith.layouts import get_format
from roundsmith.layouts.codec import decode
from roundsmith.layouts.geometries import ROW_LEVELS, Geometry
from roundsmith.layouts.grids import CodebookGrid

FORMAT = get_format("asym_w4a8_int8")
GRID = FORMAT.grid_for(FORMAT.bind())
assert isinstance(GRID, CodebookGrid)
GEOMETRY = Geometry(1, 16, ROW_LEVELS)


def weights(kind: str, m: int = 256, n: int = 256) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    w = torch.randn(m, n, generator=draw)
    return w.sign() * w.abs() ** 3 if kind == "heavy" else w


def lost(w: Tensor, grid: CodebookGrid, importance: Tensor | None = None) -> float:
    """Squared error under searched scales, float64."""
    codes, scales = scale_search(w.clone(), grid, GEOMETRY, importance=importance)
    error = (decode(codes, grid, scales) - w).double().square()
    return float((error if importance is None else error * importance).sum())


def test_normal_weights_keep_the_formats_own() -> None:
    """Which the kernels that run it have built in."""
    assert fit_codebook(weights("normal"), GRID, GEOMETRY) is GRID


def test_heavy_tails_get_their_own() -> None:
    w = weights("heavy")
    kept = w.clone()
    found = fit_codebook(w, GRID, GEOMETRY)
    assert torch.equal(w, kept)
    assert found is not GRID
    assert list(found.values) == sorted(found.values)
    assert len(found.values) == 16
    assert found.max == pytest.approx(GRID.max, rel=1e-6)
    assert lost(w, found) < 0.95 * lost(w, GRID)


def test_inputs_that_matter_decide() -> None:
    """Columns of unlike distributions: the codebook serves those that are weighted."""
    w = torch.cat((weights("normal", 256, 128), weights("heavy", 256, 128)), dim=1)
    first = torch.cat((torch.full((128,), 1.0), torch.full((128,), 1e-4)))
    normal = fit_codebook(w, GRID, GEOMETRY, first)
    heavy = fit_codebook(w, GRID, GEOMETRY, first.flip(0))
    assert lost(w, heavy, first.flip(0)) < 0.97 * lost(w, GRID, first.flip(0))
    assert lost(w, heavy, first.flip(0)) < 0.97 * lost(w, normal, first.flip(0))
    assert lost(w, normal, first) < 0.97 * lost(w, heavy, first)


@pytest.mark.parametrize("kind", ["zero", "nan", "constant", "one row", "no importance"])
def test_what_cannot_be_fitted_keeps_the_formats_own(kind: str) -> None:
    w, importance = weights("normal", 64, 64), None
    if kind == "zero":
        w.zero_()
    if kind == "nan":
        w.fill_(torch.nan)
    if kind == "constant":
        w.fill_(-0.3)
    if kind == "one row":
        w = w[:1]
    if kind == "no importance":
        importance = torch.zeros(64)
    found = fit_codebook(w, GRID, GEOMETRY, importance)
    assert len(found.values) == 16
    assert lost(w.nan_to_num(), found) <= lost(w.nan_to_num(), GRID) * (1 + 1e-6)


def test_it_can_be_cancelled() -> None:
    def stop() -> None:
        raise Cancelled("enough")

    with pytest.raises(Cancelled):
        fit_codebook(weights("heavy"), GRID, GEOMETRY, poll=stop)
