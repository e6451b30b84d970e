"""Flat blocks: consecutive weights of the row-major matrix share a scale, rows or no rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from roundsmith.converters.rounding import nearest, scale_search
from roundsmith.converters.rounding.scale_search import MULTIPLES
from roundsmith.layouts.codec import decode, encode
from roundsmith.layouts.geometries import ABSMAX_SCALES, Geometry, Scales
from roundsmith.layouts.grids import E2M1

SHAPES = ((48, 64), (7, 250), (250, 7), (1, 250), (250, 1), (3, 1000), (33, 96), (5, 16))


def weights(m: int, n: int) -> Tensor:
    return torch.randn(m, n, generator=torch.Generator().manual_seed(m * 1000 + n))


def one_a_block(scales: Scales, shape: tuple[int, int], geometry: Geometry) -> Tensor:
    """The scale of each weight, checked to be one a flat block."""
    rows, cols = geometry.block(shape)
    spread = scales.effective.repeat_interleave(rows, 0).repeat_interleave(cols, 1).flatten()
    for block in spread.split(geometry.cols):
        assert (block == block[0]).all()
    return spread


@pytest.mark.parametrize("size", [64, 40])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scales_are_the_largest_of_each_flat_block(shape: tuple[int, int], size: int) -> None:
    w, geometry = weights(*shape), Geometry.in_order(size, ABSMAX_SCALES)
    scales = geometry.scales(w, E2M1)
    assert scales.block.shape == geometry.grid_shape(shape)
    found = one_a_block(scales, shape, geometry)
    for values, mine in zip(w.flatten().split(size), found.split(size), strict=True):
        assert mine[0] == values.abs().max() / 6


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_that_make_whole_blocks_can_go_alone(shape: tuple[int, int]) -> None:
    w, geometry = weights(*shape), Geometry.in_order(40, ABSMAX_SCALES)
    codes, scales = nearest(w.clone(), E2M1, geometry)
    parts = [nearest(part.clone(), E2M1, geometry) for part in w.split(geometry.row_step)]
    assert torch.equal(torch.cat([c for c, _ in parts]), codes)
    assert torch.equal(torch.cat([s.block for _, s in parts]), scales.block)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_search_finds_each_flat_blocks_best(shape: tuple[int, int]) -> None:
    w, geometry = weights(*shape), Geometry.in_order(40, ABSMAX_SCALES)
    importance = torch.linspace(0.1, 3, shape[1])
    start = geometry.scales(w, E2M1)
    _, scales = scale_search(w.clone(), E2M1, geometry, importance=importance)
    one_a_block(scales, shape, geometry)

    def losses(tried: Scales) -> Tensor:
        lost = decode(encode(w, E2M1, tried), E2M1, tried).sub(w).square().mul(importance)
        return torch.stack([block.sum() for block in lost.flatten().split(40)])

    best = torch.stack([losses(Scales(start.block * k)) for k in (1.0, *MULTIPLES)]).amin(0)
    torch.testing.assert_close(losses(scales), best, rtol=1e-4, atol=1e-9)


def test_all_zero_blocks_have_scale_zero() -> None:
    w = weights(4, 100)
    w.view(-1)[80:160] = 0
    codes, scales = nearest(w.clone(), E2M1, Geometry.in_order(40, ABSMAX_SCALES))
    assert not decode(codes, E2M1, scales).view(-1)[80:160].any()
    assert int((scales.block == 0).sum()) == 4  # of 20 columns each
