"""The older layout of FP8 files, ``fp8_scaled``: its names, its marker, what it can hold.

A marker ``scaled_fp8`` has the weights' dtype; 2 elements ask for full-precision products, 0 or 1
do not. A layer has ``scale_weight`` and may have ``scale_input``; there is no JSON.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch

from ..errors import FormatError
from ..layouts import Format

MARKER = "scaled_fp8"
OLD_NAMES = {"scale_weight": "weight_scale", "scale_input": "input_scale"}
"""Today's suffix by the older one."""
NEW_NAMES = {new: old for old, new in OLD_NAMES.items()}
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
FULL = "full_precision_matrix_mult"
_MODELS = ("model.diffusion_model.", "model.model.", "net.")
_ENCODERS = ("text_encoders.", "conditioner.", "cond_stage_model.")
NOT_E4M3 = "ComfyUI 0.29 and newer take the weights of this layout for E4M3"
NO_INPUT_SCALES = (
    "without input scales the marker gets 2 elements: full-precision products "
    "(full_precision_matrix_mult: false for products of codes)"
)


def holds(fmt: Format) -> bool:
    """Whether the layout can hold unrotated layers of a format: FP8 with plain float32 scales."""
    return fmt.weight_dtype in FLOAT8 and fmt.plain


def marker_names(layers: Iterable[str]) -> list[str]:
    """Where ComfyUI looks for the marker of these layers: one in front of the diffusion model's
    names, one in front of the text encoders'."""
    known = (*_MODELS, *_ENCODERS)
    prefixes = {next((p for p in known if layer.startswith(p)), "") for layer in layers}
    return [f"{prefix}{MARKER}" for prefix in sorted(prefixes)]


def marker_elements(
    layers: Collection[str], full: Collection[str], scaled: bool, asked: bool | None
) -> tuple[int, list[str]]:
    """Elements of the marker, and what a person should know of the choice.

    Args:
        layers: all layers of the file.
        full: those that ask for full-precision products.
        scaled: the file has input scales.
        asked: what was asked for the whole file.

    Raises:
        FormatError: some layers ask for full-precision products, and others do not.
    """
    if asked is not None:
        return 2 if asked else 0, []
    if full and len(full) < len(layers):
        one, other = next(iter(full)), next(x for x in layers if x not in full)
        raise FormatError(
            f"layer {one!r} asks for full-precision products and {other!r} does not; the older "
            f"layout has one answer for the file: set {FULL}, or marker"
        )
    if full or not scaled:
        return 2, [] if full else [NO_INPUT_SCALES]
    return 0, []


def several_scales(layers: Collection[str]) -> str:
    """What to know of layers with more than one scale."""
    return (
        f"{len(layers)} layers have more than one scale ({next(iter(layers))}): in this layout "
        "only Roundsmith reads them"
    )
