"""The demo's picture: one row of digits a format, with its name and numbers beside them."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_CELL, _GAP, _MARGIN, _LABEL = 80, 4, 24, 300
_GROUND, _TITLE, _TEXT = (22, 23, 27), (236, 236, 240), (150, 153, 162)


def draw_grid(names: Sequence[str], captions: Sequence[str], rows: Sequence[Tensor]) -> Image.Image:
    """Draw ``rows`` of pictures ``[B, 3, H, W]`` in 0..1, each with its name and caption."""
    columns, step = rows[0].shape[0], _CELL + _GAP
    width = 2 * _MARGIN + _LABEL + columns * step
    image = Image.new("RGB", (width, 2 * _MARGIN + len(rows) * step), _GROUND)
    draw = ImageDraw.Draw(image)
    title, small = ImageFont.load_default(17), ImageFont.load_default(14)
    for index, (name, caption, pictures) in enumerate(zip(names, captions, rows, strict=True)):
        top = _MARGIN + index * step
        draw.text((_MARGIN, top + 20), name, _TITLE, font=title)
        draw.text((_MARGIN, top + 46), caption, _TEXT, font=small)
        for column, picture in enumerate(pictures):
            pixels = (picture.movedim(0, -1) * 255).round().byte().contiguous().numpy()
            cell = Image.fromarray(pixels).resize((_CELL, _CELL), Image.Resampling.BICUBIC)
            image.paste(cell, (_MARGIN + _LABEL + column * step, top))
    return image
