"""Pictures of both models, and what differs between them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_LARGEST_GAIN = 64
_SMALLEST = 256  # pixels a side; smaller pictures are shown enlarged
_STRIP, _GAP = 28, 4
_GROUND, _TEXT = (22, 23, 27), (236, 236, 240)


def side_by_side(reference: Tensor, quantized: Tensor, gain: int | None = None) -> Tensor:
    """The reference's pictures, the quantized model's, and their difference made visible.

    Args:
        reference, quantized: ``[B, H, W, 3]`` in 0..1.
        gain: what the difference is multiplied by; by default the largest power of two, at most
            64, at which it stays in range.

    Returns:
        ``[B, H', W', 3]`` float32 in 0..1 on the CPU, each with a line of text above.
    """
    a, b = (x.detach().float().cpu().clamp(0, 1) for x in (reference, quantized))
    difference = (a - b).abs().nan_to_num(1.0)
    if gain is None:
        gain = _gain(float(difference.max()))
    titles = ("reference", "quantized", f"difference x {gain}")
    pictures = []
    for parts in zip(a.nan_to_num(), b.nan_to_num(), (difference * gain).clamp(0, 1), strict=True):
        image = _row([to_image(part) for part in parts], titles)
        pictures.append(to_tensor(image))
    return torch.stack(pictures)


def to_image(picture: Tensor) -> Image.Image:
    """``[H, W, 3]`` in 0..1 as an image."""
    return Image.fromarray((picture * 255).round().byte().contiguous().numpy())


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB image as float32 ``[H, W, 3]`` in 0..1."""
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, 3).float() / 255


def _gain(largest: float) -> int:
    if largest <= 0:
        return _LARGEST_GAIN
    return int(2 ** min(max(math.floor(-math.log2(largest)), 0), math.log2(_LARGEST_GAIN)))


def _row(images: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    width, height = images[0].size
    times = -(-_SMALLEST // min(width, height)) if min(width, height) < _SMALLEST else 1
    size = (width * times, height * times)
    row = Image.new(
        "RGB", (len(images) * (size[0] + _GAP) - _GAP, size[1] + _STRIP), _GROUND
    )
    text, font = ImageDraw.Draw(row), ImageFont.load_default(15)
    for index, (image, title) in enumerate(zip(images, titles, strict=True)):
        left = index * (size[0] + _GAP)
        row.paste(image.resize(size, Image.Resampling.NEAREST), (left, _STRIP))
        text.text((left + 6, 5), title, _TEXT, font=font)
    return row
