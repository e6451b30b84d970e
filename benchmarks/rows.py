"""The lines of the quality table: our recipe for each, and what others call the same format."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

E4M3, E5M2, INT8 = 448.0, 57344.0, 127.0
"""Largest values of the grids whose scales are real numbers."""


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        title: its name.
        recipe: our settings.
        largest: the grid's largest value, where scales are real numbers.
        block: rows and columns that share a scale, None for all.
        kitchen: comfy-kitchen's layout and options, where it has one.
        peer: the peer's options, where it has the format.
        gain: dB over nearest that calibrated rounding must reach, where there is a bar.
        stretch: dB hoped for.
    """

    title: str
    recipe: dict[str, object]
    largest: float | None = None
    block: tuple[int | None, int | None] = (None, None)
    kitchen: tuple[str, dict[str, object]] | None = None
    peer: tuple[str, ...] | None = None
    gain: float | None = field(default=None, kw_only=True)
    stretch: float | None = field(default=None, kw_only=True)


FP8 = "TensorCoreFP8Layout"
INT8_LAYOUT = "TensorWiseINT8Layout"
BLOCK = ("--scaling_mode", "block", "--block_size")
ROTATED = {"per_channel": True, "convrot": True, "convrot_groupsize": 64}
GROUPED = "AsymW4A8Int8Layout"
ROWS = (
    Row(
        "fp8 tensor",
        {"format": "float8_e4m3fn"},
        E4M3,
        (None, None),
        (FP8, {}),
        (),
        gain=4.6,
        stretch=5.5,
    ),
    Row(
        "fp8 e5m2 tensor",
        {"format": "float8_e5m2"},
        E5M2,
        (None, None),
        (FP8, {"dtype": torch.float8_e5m2}),
    ),
    Row(
        "fp8 row",
        {"format": "float8_e4m3fn_rowwise"},
        E4M3,
        (1, None),
        peer=("--scaling_mode", "row"),
        gain=4.8,
        stretch=5.5,
    ),
    Row(
        "fp8 block 128",
        {"format": "float8_e4m3fn_blockwise", "group_size": 128},
        E4M3,
        (128, 128),
        peer=(*BLOCK, "128"),
    ),
    Row(
        "fp8 block 64",
        {"format": "float8_e4m3fn_blockwise", "group_size": 64},
        E4M3,
        (64, 64),
        peer=(*BLOCK, "64"),
    ),
    Row("fp8 block3d 64", {"format": "float8_e4m3fn_block3d", "group_size": 64}, E4M3, (1, 64)),
    Row(
        "int8 tensor",
        {"format": "int8_tensorwise", "scaling": "tensor"},
        INT8,
        (None, None),
        (INT8_LAYOUT, {}),
        ("--int8", "--scaling_mode", "tensor"),
    ),
    Row(
        "int8 row",
        {"format": "int8_tensorwise", "scaling": "row"},
        INT8,
        (1, None),
        (INT8_LAYOUT, {"per_channel": True}),
        ("--int8", "--scaling_mode", "row"),
        gain=4.6,
        stretch=5.2,
    ),
    Row(
        "int8 row + ConvRot 64",
        {"format": "int8_tensorwise", "scaling": "row", "convrot": 64},
        kitchen=(INT8_LAYOUT, ROTATED),
        peer=("--int8", "--scaling_mode", "row", "--convrot", "--convrot-group-size", "64"),
        gain=4.7,
        stretch=5.2,
    ),
    Row(
        "int8 block 128",
        {"format": "int8_blockwise", "group_size": 128},
        INT8,
        (128, 128),
        peer=("--int8", *BLOCK, "128"),
        gain=4.8,
        stretch=5.5,
    ),
    Row("int8 lodewise 64", {"format": "int8_lodewise", "group_size": 64}, INT8, (1, 64)),
    Row(
        "mxfp8",
        {"format": "mxfp8"},
        kitchen=("TensorCoreMXFP8Layout", {}),
        peer=("--mxfp8",),
        gain=4.9,
        stretch=5.5,
    ),
    Row(
        "nvfp4",
        {"format": "nvfp4"},
        kitchen=("TensorCoreNVFP4Layout", {}),
        peer=("--nvfp4",),
        gain=4.7,
        stretch=5.5,
    ),
    Row(
        "w4a4 + ConvRot 64",
        {"format": "convrot_w4a4", "convrot": 64},
        kitchen=("TensorCoreConvRotW4A4Layout", {"convrot_groupsize": 64}),
        gain=4.7,
    ),
    Row(
        "w4a8 + ConvRot 64",
        {"format": "asym_w4a8_int8", "convrot": 64},
        kitchen=(GROUPED, {"convrot_groupsize": 64}),
        gain=4.8,
    ),
    Row(
        "w6a8 + ConvRot 64",
        {"format": "asym_w4a8_int8", "variant": "w6a8", "convrot": 64},
        kitchen=(GROUPED, {"convrot_groupsize": 64, "bits": 6}),
        gain=5.3,
    ),
    Row("hybrid mxfp8", {"format": "hybrid_mxfp8"}),
    Row("nf4", {"format": "bnb_nf4"}),
    Row("nf4 128", {"format": "bnb_nf4", "group_size": 128}),
    Row("bnb fp4", {"format": "bnb_fp4"}),
    Row("af4", {"format": "bnb_af4"}),
)
