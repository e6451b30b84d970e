"""Encoding and decoding under scales that round between their levels."""

import pytest
import torch

from roundsmith.layouts.codec import combine, decode, encode, nearest_values
from roundsmith.layouts.geometries import ROW_LEVELS, Geometry, Scales
from roundsmith.layouts.grids import E2M1, E4M3, INT4, INT6, INT8, CodebookGrid, Grid

from ..contract import weights

TABLE = CodebookGrid.of("table", (0.9, -1.0, -0.4, -0.1, 0.0, 0.05, 0.3, 0.0))
GRIDS = (INT8, INT6, INT4, E2M1, E4M3, TABLE)
GEOMETRY = Geometry(1, 16, ROW_LEVELS)


def codes_of(grid: Grid) -> list[torch.Tensor]:
    """Every code, by its value."""
    if isinstance(grid, CodebookGrid):
        return list(torch.arange(len(grid.values), dtype=torch.uint8))
    steps = torch.linspace(-grid.max, grid.max, 4 * int(grid.max) + 1)
    return list(torch.unique(grid.decode(grid.round(steps))))


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: g.name)
@pytest.mark.parametrize("kind", ["random", "outliers", "zero blocks", "zero", "constant", "tiny"])
def test_no_other_code_decodes_nearer(grid: Grid, kind: str) -> None:
    """Values are rounded between the levels, which moves the boundaries between codes."""
    w = weights(kind, 8, 64)
    scales = GEOMETRY.scales(w, grid)
    codes = encode(w, grid, scales)
    found = decode(codes, grid, scales)
    distance = (found.double() - w.double()).abs()
    for code in codes_of(grid):
        values = grid.decode(code) if isinstance(grid, CodebookGrid) else code
        other = combine(values.expand(8, 64), scales)
        nearer = (other.double() - w.double()).abs()
        assert bool((distance <= nearer * (1 + 1e-5) + 1e-30).all()), float(values)
    torch.testing.assert_close(nearest_values(w, grid, scales), found, rtol=1e-6, atol=0)


def test_decoded_values_are_whole_multiples_of_the_rows_scale() -> None:
    w = weights("outliers", 32, 64)
    scales = GEOMETRY.scales(w, INT6)
    assert scales.tensor is not None
    assert scales.tensor.shape == (32, 1)
    steps = decode(encode(w, INT6, scales), INT6, scales) / scales.tensor
    assert bool((steps.round() - steps).abs().max() < 1e-3)
    assert float(steps.abs().max()) <= 127


def test_stochastic_rounding_keeps_the_mean() -> None:
    w = torch.full((4096, 16), 0.37)
    w[:, 0] = 1.0
    scales = GEOMETRY.scales(w, INT4)
    draw = torch.Generator().manual_seed(0)
    found = decode(encode(w, INT4, scales, generator=draw), INT4, scales)
    assert abs(float(found[:, 1:].mean()) - 0.37) < 0.005
    assert len(torch.unique(found[:, 1:])) == 2


def test_rows_of_scales_join_again() -> None:
    for scales in (
        GEOMETRY.scales(weights("random", 8, 64), INT6),
        Scales(torch.rand(8, 2), torch.tensor(0.5)),
        Scales(torch.rand(8, 2)),
    ):
        again = Scales.join([scales.rows(slice(0, 3)), scales.rows(slice(3, 8))])
        assert torch.equal(again.effective, scales.effective)
        assert again.between == scales.between
