"""How fast this machine is at what takes long: measured on each run, used to estimate the next."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import folder_paths

from ..checkpoints.text import write_text
from ..converters import Recipe
from ..errors import RoundsmithError

KEPT = 8
"""Runs of a kind that its speed is the mean of; large ones count for more."""

FIRST_GUESS = {
    "cpu": {
        "nearest": 10.0,
        "calibrated": 140.0,
        "self-calibrated": 160.0,
        "learned": 1500.0,
        "sampling": 5.0,
    },
    "gpu": {
        "nearest": 5.0,
        "calibrated": 20.0,
        "self-calibrated": 25.0,
        "learned": 200.0,
        "sampling": 0.1,
    },
}
"""Seconds a gigabyte of the model, where nothing was measured yet; ``sampling``: for each step.
Rough: rounding on a CPU from docs/benchmarks.md, everything else guessed."""

_LOCK = threading.Lock()


@contextmanager
def measured(kind: str, amount: float) -> Iterator[None]:
    """Time the block, and remember it once it is through.

    Args:
        kind: one of those in :data:`FIRST_GUESS`.
        amount: bytes of the model; times the steps for ``sampling``.
    """
    began = time.monotonic()
    yield
    seconds = time.monotonic() - began
    with _LOCK:
        runs = _read()
        kept = [*runs.get(_key(kind), []), [float(amount), seconds]]
        runs[_key(kind)] = kept[-KEPT:]
        try:
            _file().parent.mkdir(parents=True, exist_ok=True)
            write_text(_file(), json.dumps(runs), overwrite=True)
        except (OSError, RoundsmithError) as error:
            logging.warning("Roundsmith: the time of this run is not remembered: %s", error)


def measured_rounding(
    recipe: Recipe, calibration: Any, patcher: Any
) -> AbstractContextManager[None]:
    """:func:`measured` for a MODEL or CLIP that is quantized in memory."""
    kind = rounding_kind(recipe, "calibrated" if calibration else "self-calibrated")
    return measured(kind, patcher.model_size())


def rounding_kind(recipe: Recipe, auto: str) -> str:
    """The kind of work that rounding by ``recipe`` is; ``auto`` where it depends on statistics."""
    return recipe.rounding if recipe.rounding in ("nearest", "learned") else auto


def seconds_for(kind: str, amount: float) -> tuple[float, bool]:
    """How long ``amount`` should take, and whether that was measured here (else it is guessed)."""
    runs = _read().get(_key(kind), [])
    done = sum(run[0] for run in runs)
    if done > 0:
        return amount * sum(run[1] for run in runs) / done, True
    return amount / 1e9 * FIRST_GUESS["cpu" if _device() == "cpu" else "gpu"][kind], False


def _device() -> str:
    return str(mm.get_torch_device().type)


def _key(kind: str) -> str:
    return f"{_device()} {kind}"


def _file() -> Path:
    return Path(folder_paths.get_user_directory()) / "roundsmith" / "speed.json"


def _read() -> dict[str, list[list[float]]]:
    """What is remembered; nothing where the file is missing or not as it was written."""
    try:
        found = json.loads(_file().read_text(encoding="utf-8"))
        return {k: [[float(a), float(s)] for a, s in runs] for k, runs in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
