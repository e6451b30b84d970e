"""File to file: convert, plan and load checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..checkpoints import Checkpoint, CheckpointWriter
from ..errors import CheckpointError
from .engine import CancelCallback, ProgressCallback, convert
from .model import ModelView
from .plan import Plan, make_plan
from .recipe import Recipe
from .report import Report
from .source import Entries
from .stored import parts_of


def quantize_file(
    src: str | Path,
    dst: str | Path,
    recipe: Recipe | None = None,
    *,
    progress: ProgressCallback | None = None,
    cancel: CancelCallback | None = None,
    overwrite: bool = False,
) -> Report:
    """Quantize a checkpoint into a new file.

    Args:
        src: a ``.safetensors`` file, an index of shards, or the folder that holds it.
        dst: the file to write; it appears under this name only when complete.
        recipe: the settings; by default FP8, preset chosen from the keys.
        progress, cancel: as in :func:`~roundsmith.converters.engine.convert`.
        overwrite: replace an existing ``dst``.

    Raises:
        CheckpointError: a file that cannot be read or written.
        DestinationExistsError: ``dst`` exists and ``overwrite`` was not given.
        FormatError: a layer of ``src`` in a format that is unknown or contradicts its tensors.
        Cancelled: ``cancel`` said so.
    """
    dst = Path(dst)
    with Checkpoint.open(src) as source:
        files = {info.file.resolve() for info in source.tensors.values()}
        if dst.resolve() in files:
            raise CheckpointError(f"{dst} is the source itself: choose another destination")

        def open_sink(entries: Entries, metadata: Mapping[str, str]) -> CheckpointWriter:
            return CheckpointWriter(dst, entries, metadata, overwrite=overwrite)

        return convert(source, open_sink, recipe or Recipe(), progress, cancel)


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
