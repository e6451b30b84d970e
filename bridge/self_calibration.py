"""A model calibrates itself: no data, no settings, a few short runs of its own.

A diffusion model sampled from noise, told random things and nothing, feeds its layers much as in
earnest; with its text encoders at hand it is told real things too. Text encoders read some text of
ours. Nobody asked for any of it, so it never fails: where a model cannot be run like this, there is
no calibration, and a note says why.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import comfy.model_management as mm
import torch

from ..converters.calibration import Calibration
from .capturing import capture_clip, clip_capture, clip_layers
from .passes import MAX_TOKENS, layers_by_pass, memory_bytes, reached, run_recorded
from .progress import Messages
from .prompts import texts
from .self_runs import STEPS, plan_runs

TOKENS_READ = 6000
"""Of the built-in text by a text encoder, at least, with what pads it."""

Tell = Callable[[str], None]

_ITSELF = "calibrated itself on "
_FAILED = "not calibrated: the model could not be run by itself "
_TOLD = re.compile(
    rf"{_ITSELF}(?P<count>\d+) (?P<what>short runs|built-in texts)\b.*?, in (?P<seconds>\d+) s\b"
)


class SelfCalibration(NamedTuple):
    """What came of it.

    Attributes:
        calibration: the statistics; None where the model could not be run.
        note: for the person: what was done, or why nothing was.
    """

    calibration: Calibration | None
    note: str


def read_note(text: str) -> dict[str, Any] | None:
    """What a note of a :class:`SelfCalibration` says; None for any other text.

    Either ``why`` nothing was calibrated, or how many short ``runs`` or built-in ``texts`` it was
    calibrated on, and in how many ``seconds``.
    """
    if text.startswith(_FAILED):
        return {"why": text[len(_FAILED) + 1 : -1]}
    told = _TOLD.match(text)
    if told is None:
        return None
    what = "runs" if told["what"] == "short runs" else "texts"
    return {what: int(told["count"]), "seconds": int(told["seconds"])}


def self_calibrate_model(
    patcher: Any,
    clip: Any = None,
    *,
    max_tokens: int = MAX_TOKENS,
    memory_mb: int = 0,
    seed: int = 0,
    tell: Tell | None = None,
) -> SelfCalibration:
    """Calibrate a MODEL on a few short runs of its own noise. The model is left as it was.

    Args:
        patcher: the ModelPatcher, of any family that ComfyUI samples.
        clip: its CLIP, where there is one: the model is then sampled with built-in prompts too.
        max_tokens: tokens kept of each layer.
        memory_mb: megabytes the statistics may take; 0: half of what is free.
        seed: of noise and conditioning.
        tell: told what happens, in short sentences; None: the log is.
    """

    def passes() -> int:
        return len(layers_by_pass(patcher, "", max_tokens, memory_bytes(memory_mb)))

    def calibrate(say: Tell) -> tuple[Calibration, str]:
        plan = plan_runs(patcher, clip, seed, passes)
        what = f"{len(plan.runs)} short runs from noise, {plan.what}"
        say(f"Calibrating on {what}")
        settings = {"what": "self", "told": plan.what, "steps": STEPS, "seeds": [seed]}
        calibration, _ = run_recorded(
            *(patcher, plan.runs, STEPS, settings), max_tokens=max_tokens, memory_mb=memory_mb
        )
        calibration.notes.extend(plan.notes)
        return calibration, what

    return _attempt(calibrate, tell)


def self_calibrate_clip(
    clip: Any,
    *,
    max_tokens: int = MAX_TOKENS,
    memory_mb: int = 0,
    tell: Tell | None = None,
) -> SelfCalibration:
    """Calibrate a CLIP's text encoders on built-in text, read by their own tokenizers.

    Layers are named as ``clip_l.transformer.…``. Arguments as for :func:`self_calibrate_model`.
    """

    def calibrate(say: Tell) -> tuple[Calibration, str]:
        tokens, count = _tokenized(clip)
        what = f"{len(tokens)} built-in texts, {count} tokens"
        say(f"Calibrating on {what}")
        memory = memory_bytes(memory_mb)
        layers = list(clip_layers(clip))
        capture = clip_capture(clip, layers, max_tokens=max_tokens, memory=memory)
        capture.settings.update({"what": "self", "told": what})
        recorded = capture_clip(clip, capture)
        messages = Messages("calibrating")
        for read, text in enumerate(tokens, 1):
            recorded.encode_from_tokens(text)
            messages.send(read / len(tokens), text=read, texts=len(tokens))
        return reached(capture.finish()), what

    return _attempt(calibrate, tell)


def _attempt(calibrate: Callable[[Tell], tuple[Calibration, str]], tell: Tell | None) -> Any:
    """What ``calibrate`` gives, with its note; a note alone where it fails."""
    say = tell or _tell
    began = time.monotonic()
    try:
        with _undisturbed():
            calibration, what = calibrate(say)
    except Exception as error:  # of any network, with inputs it was never meant for
        mm.throw_exception_if_processing_interrupted()
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        logging.warning("Roundsmith: the model could not calibrate itself", exc_info=error)
        note = f"{_FAILED}({reason})"
        say(note)
        return SelfCalibration(None, note)
    note = f"{_ITSELF}{what}, in {time.monotonic() - began:.0f} s"
    missed = calibration.unreached
    if missed:
        note += f"; {len(missed)} of {len(calibration.layers)} layers never ran ({missed[0]}, …)"
    say(note)
    return SelfCalibration(calibration, note)


def _tokenized(clip: Any) -> tuple[Sequence[Any], int]:
    """Built-in texts as the CLIP's tokenizers give them, and how many tokens that is."""
    read: list[Any] = []
    count = 0
    for text in texts():
        tokens = clip.tokenize(text)
        read.append(tokens)
        count += min(sum(len(chunk) for chunk in chunks) for chunks in tokens.values())
        if count >= TOKENS_READ:
            break
    return read, count


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Random numbers go on afterwards as if nothing had been drawn; no gradients meanwhile."""
    device = mm.get_torch_device()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        yield


def _tell(text: str) -> None:
    logging.info("Roundsmith: %s", text)
