"""How long a prompt's slow nodes will take, before it runs: from the files they work on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..errors import CheckpointError
from .paths import resolve_source
from .timing import seconds_for

_FILE_INPUTS = (
    (re.compile(r"unet_name"), "diffusion_models/"),
    (re.compile(r"ckpt_name"), "checkpoints/"),
    (re.compile(r"(?:files\.)?clip_name\d*"), "text_encoders/"),
    (re.compile(r"source"), ""),
)
_QUANTIZE = {"RoundsmithQuantizeModel": "model", "RoundsmithQuantizeCLIP": "clip"}
_SAMPLE = {"RoundsmithCalibrateSampler": "model", "RoundsmithCompareModels": "reference"}

Prompt = Mapping[str, Any]


def estimate(prompt: Prompt, outputs: Sequence[str] = ()) -> dict[str, Any]:
    """What a prompt's Quantize, Calibrate and Compare nodes should take.

    Args:
        prompt: nodes by id, as the browser queues them.
        outputs: run only these nodes and what they need; empty for all.

    Returns:
        ``seconds`` of all, and ``steps``: of each ``node``, ``kind`` (its class), ``what``
        (see :data:`~.timing.FIRST_GUESS`), ``seconds``, and ``measured``: on this machine. A node
        whose model is not one of ComfyUI's files is not among them.
    """
    steps = []
    wanted = _needed(prompt, outputs) if outputs else set(prompt)
    for name, node in prompt.items():
        if name not in wanted:
            continue
        inputs = node.get("inputs") if isinstance(node, Mapping) else None
        if not isinstance(inputs, Mapping):
            raise CheckpointError(f"prompt: node {name!r} has no inputs")
        found = _work(prompt, str(node.get("class_type")), inputs)
        if found is not None and found[1]:
            seconds, measured = seconds_for(*found)
            steps.append(
                {
                    "node": name,
                    "kind": node["class_type"],
                    "what": found[0],
                    "seconds": seconds,
                    "measured": measured,
                }
            )
    return {"seconds": sum(float(step["seconds"]) for step in steps), "steps": steps}


def _needed(prompt: Prompt, outputs: Sequence[str]) -> set[str]:
    needed: set[str] = set()
    waiting = list(outputs)
    while waiting:
        name = waiting.pop()
        node = prompt.get(name)
        if name not in needed and isinstance(node, Mapping):
            needed.add(name)
            waiting += filter(None, map(_linked, node.get("inputs", {}).values()))
    return needed


def _work(prompt: Prompt, kind: str, inputs: Mapping[str, Any]) -> tuple[str, float] | None:
    """What a node does and how much of it; None for one that does not take long."""
    if kind == "RoundsmithQuantizeFile":
        return _rounding(prompt, inputs, loaded=False), float(sum(_sizes(inputs)))
    if kind in _QUANTIZE:
        size = _size_behind(prompt, inputs.get(_QUANTIZE[kind]))
        return _rounding(prompt, inputs, loaded=True), float(size)
    if kind in _SAMPLE:
        size = _size_behind(prompt, inputs.get(_SAMPLE[kind]))
        runs = _number(inputs.get("seeds"), 1) if kind == "RoundsmithCalibrateSampler" else 2.0
        guided = 2 if _number(inputs.get("cfg"), 1) > 1 else 1
        return "sampling", size * runs * guided * _number(inputs.get("steps"), 20)
    return None


def _rounding(prompt: Prompt, inputs: Mapping[str, Any], loaded: bool) -> str:
    node = prompt.get(_linked(inputs.get("recipe")) or "")
    settings = node.get("inputs", inputs) if isinstance(node, Mapping) else inputs
    method = settings.get("rounding", "auto")
    if method in ("nearest", "learned"):
        return str(method)
    if _linked(inputs.get("calibration")):
        return "calibrated"
    return "self-calibrated" if loaded else "nearest"


def _size_behind(prompt: Prompt, link: Any) -> int:
    """Bytes of the files that the loader behind a link reads; 0 where there is none."""
    waiting, seen = [_linked(link)], set()
    while waiting:
        name = waiting.pop(0)
        node = prompt.get(name or "")
        if name in seen or not isinstance(node, Mapping):
            continue
        seen.add(name)
        inputs = node.get("inputs", {})
        sizes = list(_sizes(inputs))
        if sizes:
            return sum(sizes)
        models = ("model", "clip", "reference")  # before prompts, controls and the like
        for key in sorted(inputs, key=lambda key: not key.startswith(models)):
            waiting.append(_linked(inputs[key]))
    return 0


def _sizes(inputs: Mapping[str, Any]) -> Iterator[int]:
    for key, value in inputs.items():
        folder = next((f for pattern, f in _FILE_INPUTS if pattern.fullmatch(key)), None)
        if folder is None or not isinstance(value, str):
            continue
        try:
            yield resolve_source(folder + value).stat().st_size
        except (CheckpointError, OSError):
            continue


def _linked(value: Any) -> str | None:
    return str(value[0]) if isinstance(value, list) and len(value) == 2 else None


def _number(value: Any, instead: float) -> float:
    return float(value) if isinstance(value, (int, float)) else instead
