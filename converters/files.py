"""File to file: convert, plan and load checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints import Checkpoint, CheckpointWriter
from ..errors import CheckpointError, DestinationExistsError
from .calibration import Calibration
from .corrections import ErrorLoraOptions, error_lora_file
from .corrections.error_lora_report import HOW_TO_APPLY
from .engine import CancelCallback, ProgressCallback, convert
from .model import ModelView
from .plan import Plan, make_plan
from .recipe import Recipe
from .report import Report
from .resume import Journal
from .source import Entries
from .stored import parts_of


def quantize_file(
    src: str | Path,
    dst: str | Path,
    recipe: Recipe | None = None,
    *,
    calibration: Calibration | str | Path | None = None,
    error_lora: ErrorLoraOptions | None = None,
    progress: ProgressCallback | None = None,
    cancel: CancelCallback | None = None,
    overwrite: bool = False,
) -> Report:
    """Quantize a checkpoint into a new file.

    Layers that take long, calibrated and learned ones, are kept beside ``dst`` in a folder
    ``<dst>.roundsmith-layers`` until the file is complete: a run that was cancelled goes on where
    it was when it is started again.

    Args:
        src: a ``.safetensors`` file, an index of shards, or the folder that holds it.
        dst: the file to write; it appears under this name only when complete.
        recipe: the settings; by default FP8, preset chosen from the keys.
        calibration: statistics of the layers' inputs, or the file they were saved to.
        error_lora: also write a LoRA that takes back part of the error, ``<dst>_lora.safetensors``.
        progress, cancel: as in :func:`~roundsmith.converters.engine.convert`.
        overwrite: replace an existing ``dst``.

    Raises:
        CheckpointError: a file that cannot be read or written; a source that was changed meanwhile.
        RoundsmithError: statistics of another model.
        DestinationExistsError: ``dst`` exists and ``overwrite`` was not given.
        FormatError: a layer of ``src`` in a format that is unknown or contradicts its tensors.
        Cancelled: ``cancel`` said so.
    """
    dst = Path(dst)
    lora = dst.with_name(f"{dst.stem}_lora.safetensors")
    if error_lora is not None and lora.exists() and not overwrite:
        raise DestinationExistsError(f"{lora} exists: choose another name or overwrite it")
    with Checkpoint.open(src) as source:
        files = {info.file.resolve() for info in source.tensors.values()}
        if dst.resolve() in files:
            raise CheckpointError(f"{dst} is the source itself: choose another destination")
        if isinstance(calibration, (str, Path)) and dst.resolve() == Path(calibration).resolve():
            raise CheckpointError(f"{dst} is the calibration itself: choose another destination")

        @contextmanager
        def open_sink(entries: Entries, metadata: Mapping[str, str]) -> Iterator[CheckpointWriter]:
            with CheckpointWriter(dst, entries, metadata, overwrite=overwrite) as writer:
                yield writer
                source.check_unchanged()  # an error here leaves no file

        if isinstance(calibration, (str, Path)):
            calibration = Calibration.load(calibration)
        journal = Journal(dst.with_name(f"{dst.name}.roundsmith-layers"))
        recipe = recipe or Recipe()
        report = convert(source, open_sink, recipe, progress, cancel, calibration, journal)
        journal.clear()
    if error_lora is not None:
        made = error_lora_file(
            *(src, dst, lora, error_lora, calibration),
            progress=progress,
            cancel=cancel,
            overwrite=overwrite,
        )
        note = f"{lora.name}: {made.summary()}. {HOW_TO_APPLY}"
        report = replace(report, warnings=(*report.warnings, *made.warnings, note))
    return report


def plan_file(src: str | Path, recipe: Recipe | None = None) -> Plan:
    """What :func:`quantize_file` would do, without reading weights or writing anything."""
    with Checkpoint.open(src) as source:
        return make_plan(ModelView(source), recipe or Recipe())


def load_file(
    path: str | Path, device: str | torch.device = "cpu", dtype: torch.dtype = torch.bfloat16
) -> dict[str, Tensor]:
    """Read a checkpoint: plain tensors and, for quantized layers, tensors that run at once.

    Args:
        path: a ``.safetensors`` file, an index of shards, or the folder that holds it.
        device: where the tensors go.
        dtype: the dtype quantized weights stand for (a layer's ``orig_dtype`` wins).

    Returns:
        Tensors by name. A quantized layer ``L`` is a ``QuantizedTensor`` under ``L.weight``; its
        ``L.input_scale`` stays a tensor of its own (one of many elements, as old text encoders
        have, is a copy of the weight's scale and left out).
    """
    tensors: dict[str, Tensor] = {}
    with Checkpoint.open(path) as source:
        model = ModelView(source)
        for name in model.names:
            stored = model.stored_layer(name)
            if stored is None:
                tensors[name] = source.read(name).to(device)
                continue
            parts = {s: t.to(device) for s, t in parts_of(source, stored).items()}
            wanted = getattr(torch, str(stored.conf.get("orig_dtype", "")).split(".")[-1], None)
            if not (isinstance(wanted, torch.dtype) and wanted.is_floating_point):
                wanted = dtype
            tensors[name] = stored.format.read(parts, stored.conf, dtype=wanted)
            if "input_scale" in parts and parts["input_scale"].numel() == 1:
                tensors[name.removesuffix("weight") + "input_scale"] = parts["input_scale"]
    return tensors
