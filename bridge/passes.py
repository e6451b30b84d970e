"""Run a MODEL, several times where memory asks for it, and record what its layers see.

Layers are recorded in groups that fit the memory budget, one group a pass; every pass runs the
same. Where there are several, what one recorded goes to ComfyUI's temporary folder before the next
begins.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import folder_paths
import latent_preview
import torch

from ..converters.calibration import Calibration, Record, plan_passes
from ..converters.calibration.calibration import Shelf
from ..errors import RoundsmithError
from .capturing import capture_model, model_capture, model_layers
from .progress import Messages

MAX_TOKENS = 4096
MOST_PASSES = 8
"""Above this, layers keep fewer tokens instead; the calibration's notes say so."""

Callback = Callable[[int, Any, Any, int], None]
"""A sampler's: step, denoised, noisy, number of steps."""

Run = Callable[[Any, Callback], Any]
"""Samples with the MODEL it is given, start to end, and calls back after each step."""


def run_recorded(
    model: Any,
    runs: Sequence[Run],
    steps: int,
    settings: Mapping[str, Any],
    *,
    layers: str = "",
    max_tokens: int = MAX_TOKENS,
    memory_mb: int = 0,
) -> tuple[Calibration, Any]:
    """Do ``runs`` with a clone of ``model`` that records, in as many passes as the memory needs.

    Args:
        model: a ModelPatcher; it is not changed.
        runs: what to do in every pass.
        steps: of each run.
        settings: what the calibration will say of how it was made, beside the capture's own.
        layers: record only layers whose name this regular expression is found in.
        max_tokens: tokens kept of each layer.
        memory_mb: megabytes the statistics may take; 0: half of what is free.

    Returns:
        The calibration, and what the first run gave.

    Raises:
        RoundsmithError: a run failed, or no layer was reached. Nothing half-made is returned.
    """
    memory = memory_bytes(memory_mb)
    groups = layers_by_pass(model, layers, max_tokens, memory)
    bar = Bar(model, len(groups), len(runs), steps)
    parts: list[Calibration] = []
    first: Any = None
    for group in groups:
        capture = model_capture(model, group, max_tokens=max_tokens, memory=memory)
        capture.settings.update(settings)
        recorded = capture_model(model, capture)
        for index, run in enumerate(runs):
            result = guarded(run, recorded, bar)
            if not parts and index == 0:
                first = result
        parts.append(_to_disk(capture.finish()) if len(groups) > 1 else capture.finish())
    return reached(Calibration.join(parts)), first


def layers_by_pass(model: Any, layers: str, max_tokens: int, memory: int) -> list[list[str]]:
    """The layers of ``model`` that each pass records; arguments as for :func:`run_recorded`.

    ``memory`` is in bytes. As many passes as groups: at most :data:`MOST_PASSES`.
    """
    return plan_passes(model_layers(model, layers), max_tokens, memory, max_passes=MOST_PASSES)


def memory_bytes(megabytes: int) -> int:
    """A budget in bytes; 0 stands for half of the memory that is free."""
    if megabytes:
        return megabytes * 1024**2
    return int(mm.get_free_memory(torch.device("cpu"))) // 2


def temporary_folder() -> Path:
    """ComfyUI's temporary folder, which it empties when it starts."""
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def reached(calibration: Calibration) -> Calibration:
    """The calibration. Raises RoundsmithError where it is of no use: no layer was ever called."""
    if len(calibration.unreached) == len(calibration.layers):
        raise RoundsmithError(
            "nothing was recorded: the run called none of the model's layers. Another node may "
            "keep ComfyUI from running them (a cache, a replaced network): calibrate before it."
        )
    return calibration


class Bar:
    """One bar on the node, with previews, over all runs of all passes."""

    def __init__(self, model: Any, passes: int, runs: int, steps: int) -> None:
        self._passes, self._runs, self._steps = passes, runs, steps
        self._total = passes * runs * steps
        self._done = 0
        self._show = latent_preview.prepare_callback(model, self._total)
        self._messages = Messages("calibrating")

    def begin(self) -> str:
        """The next run begins: say so on the node. Returns how it is called."""
        where = f"run {self._done % self._runs + 1} of {self._runs}"
        if self._passes > 1:
            where += f", pass {self._done // self._runs + 1} of {self._passes}"
        self._tell(0)
        return where

    def step(self, step: int, denoised: Any, noisy: Any, _: int) -> None:
        """A sampler's callback."""
        at = self._done * self._steps + min(step, self._steps - 1)
        self._show(at, denoised, noisy, self._total)
        self._tell(min(step + 1, self._steps))

    def end(self) -> None:
        """The run is over."""
        self._done += 1

    def _tell(self, step: int) -> None:
        self._messages.send(
            (self._done * self._steps + step) / self._total,
            run=self._done % self._runs + 1,
            runs=self._runs,
            step=step,
            steps=self._steps,
            nth_pass=self._done // self._runs + 1,
            passes=self._passes,
        )


def guarded(run: Run, model: Any, bar: Bar) -> Any:
    """What ``run`` gives. Raises RoundsmithError, which says in which run, where it fails."""
    where = bar.begin()
    try:
        result = run(model, bar.step)
    except RoundsmithError:
        raise
    except Exception as error:
        if mm.is_oom(error):
            raise  # ComfyUI frees its models and says what can be done
        raise RoundsmithError(
            f"calibration stopped in {where} and nothing was kept: {type(error).__name__}: "
            f"{error}. If a KSampler fails on the same inputs, mend them there first."
        ) from error
    bar.end()
    return result


class _Temporary:
    """A file that goes when nothing refers to it any more."""

    def __init__(self) -> None:
        with tempfile.NamedTemporaryFile(
            dir=temporary_folder(), prefix="roundsmith-", suffix=".safetensors", delete=False
        ) as file:
            self.path = Path(file.name)
        weakref.finalize(self, _remove, self.path)


def _remove(path: Path) -> None:
    with suppress(OSError):  # open elsewhere; ComfyUI empties the folder
        path.unlink()


def _to_disk(calibration: Calibration) -> Calibration:
    """The same, its tensors read from a temporary file when they are asked for."""
    file = _Temporary()
    calibration.save(file.path, overwrite=True)
    loaded = Calibration.load(file.path)
    kept: dict[int, Shelf] = {}
    for shelf in loaded.shelves.values():
        if shelf is not None and id(shelf) not in kept:
            kept[id(shelf)] = Shelf(shelf.summary, _Reader(file, shelf))
    shelves = {name: None if s is None else kept[id(s)] for name, s in loaded.shelves.items()}
    return Calibration(shelves, loaded.settings, loaded.notes, loaded.fingerprint)


class _Reader:
    """Reads a record, and keeps its file."""

    def __init__(self, file: _Temporary, shelf: Shelf) -> None:
        self._file, self._shelf = file, shelf

    def __call__(self) -> Record:
        return self._shelf.load()
