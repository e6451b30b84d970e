"""Grids: what a code stands for, and which one a value gets."""

from __future__ import annotations

import pytest
import torch

from roundsmith.converters.rounding.quantizer import rounder
from roundsmith.layouts.grids import E2M1, CodebookGrid

TABLE = (0.0, 0.5, -1.5, 2.0, -0.25, 0.0, 1.0, -1.0)  # by code; code 0 and code 5 are zero
GRID = CodebookGrid.of("table", TABLE)


def test_a_codebook_takes_the_nearest_of_its_values() -> None:
    x = torch.linspace(-3, 3, 4001)
    found = GRID.decode(GRID.round(x.clone()))
    distance = (x[:, None].double() - torch.tensor(TABLE).double()).abs()
    assert torch.equal((x.double() - found.double()).abs(), distance.amin(dim=1))
    assert GRID.max == 2.0
    assert torch.equal(rounder(GRID)(x.clone()), found)


def test_ties_go_down_and_two_codes_of_a_value_share_it() -> None:
    assert GRID.round(torch.tensor([0.75, -1.25, 1.5])).tolist() == [1, 2, 6]
    assert GRID.round(torch.tensor([-0.01, 0.0, 0.01])).tolist() == [0, 0, 5]


def test_a_codebook_of_e2m1s_values_is_e2m1() -> None:
    same = CodebookGrid.of("e2m1", E2M1.decode(torch.arange(16)))
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 3
    assert torch.equal(same.decode(same.round(x.clone())), E2M1.decode(E2M1.round(x.clone())))


def test_stochastic_rounding_keeps_the_mean_and_takes_a_neighbour() -> None:
    for exact, low, high in ((0.3, 0.0, 0.5), (-1.2, -1.5, -1.0), (1.9, 1.0, 2.0)):
        x = torch.full((40000,), exact)
        values = GRID.decode(GRID.round_stochastic(x, torch.Generator().manual_seed(1)))
        assert set(values.tolist()) == {low, high}
        assert abs(float(values.double().mean()) - exact) < 0.01
    beyond = torch.tensor([-9.0, -1.5, 2.0, 9.0])
    values = GRID.decode(GRID.round_stochastic(beyond, torch.Generator().manual_seed(1)))
    assert values.tolist() == [-1.5, -1.5, 2.0, 2.0]


def test_codebooks_are_equal_by_value_and_refuse_nonsense() -> None:
    assert CodebookGrid.of("table", torch.tensor(TABLE)) == GRID
    assert hash(GRID) == hash(CodebookGrid.of("table", torch.tensor(TABLE)))
    for values in ((), (1.0,), (0.0, 0.0), (0.0, float("nan")), (1.0, float("inf")), range(257)):
        with pytest.raises(ValueError, match="2 to 256 finite"):
            CodebookGrid.of("bad", values)


def test_tables_made_under_inference_mode_serve_outside() -> None:
    grid = CodebookGrid.of("fresh", (-1.0, 0.0, 3.5))
    with torch.inference_mode():
        grid.round(torch.randn(4))
    assert not grid.tables(torch.device("cpu")).values.is_inference()
