"""Searched scales with statistics: weighted, and never worse than absmax ones on the tokens set
aside."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from roundsmith.converters.rounding import Activations, Solution, nearest, searched
from roundsmith.layouts.codec import decode
from roundsmith.layouts.geometries import PER_ROW, PER_TENSOR, Geometry
from roundsmith.layouts.grids import E2M1, E4M3, INT8, Grid

CASES = [(E4M3, PER_ROW), (INT8, PER_ROW), (INT8, PER_TENSOR), (E2M1, Geometry(1, 16))]


def layer(rows: int = 24, columns: int = 64) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(1))


def error(w: Tensor, grid: Grid, made: Solution, x: Tensor) -> float:
    lost = decode(made.codes, grid, made.scales) - w
    return float((x.double() @ lost.double().T).square().sum())


def activations(weights: Tensor, held: Tensor) -> Activations:
    return Activations(torch.diag(weights), 1000, held)


@pytest.mark.parametrize(("grid", "geometry"), [c for c in CASES if c[1] != PER_TENSOR])
def test_they_follow_the_inputs(grid: Grid, geometry: Geometry) -> None:
    """Where a few inputs are most of all, scales serve those."""
    w, loud = layer(), torch.full((64,), 1e-3)
    loud[::8] = 1.0
    x = torch.randn(500, 64, generator=torch.Generator().manual_seed(2)) * loud.sqrt()
    made = searched(w, grid, geometry, activations(loud, x[:100]))
    plain = Solution(*nearest(w.clone(), grid, geometry), "nearest")
    assert made.method == "scale search" and made.note == "weighted by the activations"
    assert error(w, grid, made, x[100:]) < 0.9 * error(w, grid, plain, x[100:])


@pytest.mark.parametrize(("grid", "geometry"), CASES)
def test_never_worse_where_statistics_mislead(grid: Grid, geometry: Geometry) -> None:
    """Weighted by some inputs, scored on others."""
    w, said = layer(), torch.full((64,), 1e-6)
    said[:4] = 1.0
    held = torch.randn(100, 64, generator=torch.Generator().manual_seed(2))
    held[:, :4] = 0
    made = searched(w, grid, geometry, activations(said, held))
    plain = Solution(*nearest(w.clone(), grid, geometry), "nearest")
    assert made.method == "nearest" and "no scales are better" in made.note
    assert error(w, grid, made, held) == error(w, grid, plain, held)


def test_nothing_known_of_the_inputs() -> None:
    """Without a weight a search is known to cost INT8 under one scale a tensor outputs."""
    w, nothing = layer(), activations(torch.zeros(64), torch.zeros(0, 64))
    assert searched(w, INT8, PER_TENSOR, nothing).method == "nearest"
    spoiled = activations(torch.full((64,), torch.nan), torch.zeros(0, 64))
    assert searched(w, INT8, PER_TENSOR, spoiled).method == "nearest"
