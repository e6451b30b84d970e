"""What is made: workflows, the template browser's pictures, the help pages' pictures."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from roundsmith import dev

from .browser import Frontend
from .graph import Template

WORKFLOWS = dev.ROOT / "workflows"
PICTURES = dev.ROOT / "web" / "docs" / "pictures"
BUILD = Path(__file__).with_name("build.js")
SIDE = 720
"""Pixels of a template's picture, which is square."""
HEAVIEST = {"template": 60_000, "node": 25_000}


def make_template(frontend: Frontend, template: Template, run: bool = True) -> dict[str, int]:
    """Write a template's workflow; run it as it is saved, and write its picture.

    Returns the nodes' numbers by their keys. Raises :class:`RuntimeError` where nodes overlap, the
    frontend warns, or the run fails.
    """
    del frontend.console[:]
    made = frontend.page.evaluate(BUILD.read_text(encoding="utf-8"), template.plain())
    workflow = tidy(made["workflow"], template.name)
    path = WORKFLOWS / f"{template.name}.json"
    text = json.dumps(workflow, indent=2, ensure_ascii=False) + "\n"
    path.write_text(text, encoding="utf-8", newline="\n")
    frontend.show(workflow)
    if run:
        frontend.hurry()
        frontend.run()
        numbers = [made["numbers"][key] for key in template.picture]
        shots = [frontend.picture(number, scale=1.5, margin=12) for number in numbers]
        save(square(shots), path.with_suffix(".jpg"))
    crowded = frontend.overlaps()
    if crowded or frontend.console:
        raise RuntimeError(f"{template.name}: {crowded} {frontend.console}")
    return dict(made["numbers"])


def square(shots: Sequence[Image.Image]) -> Image.Image:
    """Pictures on one square, side by side or below each other: as large as they get."""
    across = sum(shot.width / shot.height for shot in shots)
    down = sum(shot.height / shot.width for shot in shots)
    beside = min(across, 1 / across) >= min(down, 1 / down)
    canvas = Image.new("RGB", (SIDE, SIDE), shots[0].getpixel((0, 0)))
    length = SIDE / max(across if beside else down, 1)  # the side that all have in common
    whole = length * (across if beside else down)
    place = (SIDE - whole) / 2
    for shot in shots:
        ratio = length / (shot.height if beside else shot.width)
        size = round(shot.width * ratio), round(shot.height * ratio)
        start, middle = round(place), round((SIDE - length) / 2)
        small = shot.resize(size, Image.Resampling.LANCZOS)
        canvas.paste(small, (start, middle) if beside else (middle, start))
        place += size[0] if beside else size[1]
    return canvas


def tidy(workflow: dict[str, Any], name: str) -> dict[str, Any]:
    """The workflow without what differs from run to run: its number, and where one looked."""
    kept = {key: value for key, value in workflow.items() if key not in ("id", "extra")}
    extra = {key: value for key, value in workflow.get("extra", {}).items() if key != "ds"}
    number = uuid.uuid5(uuid.NAMESPACE_URL, f"roundsmith/workflows/{name}")
    return {"id": str(number), **kept, "extra": extra}


def make_node_picture(frontend: Frontend, kind: str, number: int) -> None:
    """Write the picture of a node, as it stands on the canvas now, for its help page."""
    picture = frontend.picture(number, scale=1.25, margin=14)
    save(picture, PICTURES / f"{kind}.webp")


def save(picture: Image.Image, path: Path) -> None:
    """Write a picture as finely as its size allows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    heaviest = HEAVIEST["template" if path.suffix == ".jpg" else "node"]
    for quality in range(90, 20, -6):
        picture.save(path, quality=quality)
        if path.stat().st_size < heaviest:
            return
    raise RuntimeError(f"{path.name} does not get smaller than {heaviest} bytes")


def make_all(frontend: Frontend, templates: Sequence[Template], run: bool = True) -> list[str]:
    """Everything: returns the nodes whose pictures were made in a template that had run."""
    shown: list[str] = []
    for template in templates:
        make_template(frontend, template, run)
        print(template.name, flush=True)
        for kind, number in frontend.ours().items():
            if run and kind not in shown:
                make_node_picture(frontend, kind, number)
                shown.append(kind)
    return shown


def make_others(frontend: Frontend, shown: Sequence[str]) -> None:
    """The pictures of nodes that are in no template, as they come."""
    for kind in frontend.kinds():
        if kind not in shown:
            make_node_picture(frontend, kind, frontend.alone(kind))
