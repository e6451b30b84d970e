"""Packings against the library whose kernels read them."""

import pytest
import torch
from comfy_kitchen.float_utils import from_blocked, to_blocked

from roundsmith.layouts.packing import (
    block_scales,
    blocked_shape,
    unblock_scales,
    unpack_flat,
    unpack_high_first,
    unpack_low_first,
)


@pytest.mark.parametrize("shape", [(1, 1), (128, 4), (130, 5), (96, 2), (512, 96), (257, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.float8_e4m3fn])
def test_tiled_scales_are_comfy_kitchens(shape, dtype):
    scales = (torch.rand(shape) * 200).to(dtype)
    stored = block_scales(scales)
    assert stored.shape == blocked_shape(*shape)
    assert torch.equal(stored.float(), to_blocked(scales, flatten=False).float())
    assert torch.equal(unblock_scales(stored, *shape).float(), scales.float())
    assert torch.equal(from_blocked(stored, *shape).float(), scales.float())


def test_no_scales_at_all():
    assert block_scales(torch.zeros(0, 3)).shape == (0, 4)
    assert unblock_scales(torch.zeros(0, 4), 0, 3).shape == (0, 3)


def test_shapes_need_no_values():
    """And no compiler: bit operations on tensors without values import torch's."""
    packed = torch.empty(6, 8, dtype=torch.uint8, device="meta")
    assert unpack_high_first(packed).shape == unpack_low_first(packed).shape == (6, 16)
    assert unpack_flat(packed, (7, 13)).shape == (7, 13)
