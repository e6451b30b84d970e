"""A LoRA file that takes back part of what quantization did, from the two models.

For each layer ``L`` of the quantized model, by the names of ComfyUI's LoRA loader::

    diffusion_model.L.lora_A.weight   F32 [r, N]
    diffusion_model.L.lora_B.weight   F32 [M, r]
    diffusion_model.L.diff_b          F32 [M]   where the quantized bias was corrected already

No alpha: at strength 1 the loader adds ``B·A`` as it stands.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ...checkpoints import Checkpoint, CheckpointWriter
from ...errors import Cancelled, CheckpointError, RoundsmithError
from ...kernels.machine import out_of_memory
from ..calibration import Calibration
from ..model import ModelView
from ..progress import Progress
from ..running import decodes_weights, run_layer
from .devices import usable_device
from .error_lora_options import ErrorLoraOptions
from .error_lora_report import HOW_TO_APPLY, CorrectedLayer, ErrorLoraReport
from .layer_correction import Correction, Run, correct_layer
from .lora_names import LoraNames
from .names import LayerNames
from .spool import Spool
from .statistics import fitted

METADATA_KEY = "roundsmith_error_lora"
"""Metadata that say what a file of this kind corrects, and how."""

_UNRELATED = 1.0  # dB of weight SNR; two bits a weight give 9


def error_lora_file(
    original: str | Path,
    quantized: str | Path,
    dst: str | Path | None = None,
    options: ErrorLoraOptions | None = None,
    calibration: Calibration | str | Path | None = None,
    *,
    progress: Callable[[Progress], None] | None = None,
    cancel: Callable[[], bool] | None = None,
    overwrite: bool = False,
) -> ErrorLoraReport:
    """:func:`extract_error_lora` from files.

    ``dst`` is by default the quantized file's name with ``_lora`` at its end.
    """
    quantized = Path(quantized)
    if dst is None:
        path = quantized.resolve()
        stem = path.name.removesuffix(".index.json").removesuffix(".safetensors")
        dst = path.with_name(f"{stem}_lora.safetensors")
    if calibration is not None and not isinstance(calibration, Calibration):
        calibration = Calibration.load(calibration)
    with Checkpoint.open(original) as first, Checkpoint.open(quantized) as second:
        sources = {info.file.resolve() for c in (first, second) for info in c.tensors.values()}
        if Path(dst).resolve() in sources:
            raise CheckpointError(f"{dst} is one of the models: choose another destination")
        return extract_error_lora(
            ModelView(first),
            ModelView(second),
            dst,
            options,
            calibration,
            progress=progress,
            cancel=cancel,
            overwrite=overwrite,
        )


def extract_error_lora(
    original: ModelView,
    quantized: ModelView,
    dst: str | Path,
    options: ErrorLoraOptions | None = None,
    calibration: Calibration | None = None,
    *,
    progress: Callable[[Progress], None] | None = None,
    cancel: Callable[[], bool] | None = None,
    overwrite: bool = False,
) -> ErrorLoraReport:
    """Write a LoRA that corrects ``quantized`` towards ``original``, one layer in memory at a time.

    Args:
        original: the model before.
        quantized: the model after; its quantized layers are corrected.
        dst: the file to write; it appears under this name only when complete.
        options: which layers, and how much of their error.
        calibration: statistics of the original's inputs; the outputs' error is minimised with
            them, the weights' without.
        progress, cancel: as in :func:`~roundsmith.converters.engine.convert`.
        overwrite: replace an existing ``dst``.

    Raises:
        CheckpointError: a file that cannot be read or written; models that do not belong together;
            nothing to correct.
        RoundsmithError: statistics of another model.
        Cancelled: ``cancel`` said so.
    """
    began = time.perf_counter()
    options, dst = options or ErrorLoraOptions(), Path(dst)
    CheckpointWriter(dst, {}, {}, overwrite=overwrite)  # a bad destination shows before the work
    warnings: list[str] = []
    if calibration is not None:
        calibration, warnings = fitted(calibration, original)
    work = _Work(original, quantized, options, calibration)
    layers = []
    with Spool(dst.parent) as spool:
        for layer, state in work.layers():
            if cancel is not None and cancel():
                raise Cancelled("cancelled; nothing was written under the destination's name")
            if progress is not None:
                progress(state)
            layers.append(work.correct(layer, spool))
        if not spool.entries:
            raise CheckpointError(
                f"{dst} was not written, there is nothing to correct: {_why_nothing(layers)}"
            )
        metadata = {"format": "pt", METADATA_KEY: _provenance(quantized, options, layers)}
        with CheckpointWriter(dst, spool.entries, metadata, overwrite=overwrite) as writer:
            spool.copy_to(writer)
    seconds = time.perf_counter() - began
    return ErrorLoraReport(str(dst), tuple(layers), writer.nbytes, seconds, tuple(warnings))


class _Pair(NamedTuple):
    """A layer in both models: float32 weights, and the difference of its biases where there is one.
    """

    w: Tensor
    w_hat: Tensor
    bias_error: Tensor | None


class _Work:
    """The layers of a quantized model, corrected one by one."""

    def __init__(
        self,
        original: ModelView,
        quantized: ModelView,
        options: ErrorLoraOptions,
        calibration: Calibration | None,
    ) -> None:
        if not quantized.stored:
            raise CheckpointError(
                f"{_name(quantized)} has no quantized layers: give the original first, the "
                "quantized model second"
            )
        self.original, self.quantized = original, quantized
        self.options, self.calibration = options, calibration
        self.device = usable_device(options.device)
        self.decodes = decodes_weights(original)
        self.lora_names = LoraNames(quantized)
        weights = [n for n in original.names if n.endswith(".weight") and original.is_weight(n)]
        self.names = LayerNames(name.removesuffix(".weight") for name in weights)

    def layers(self) -> Iterator[tuple[str, Progress]]:
        """The quantized layers, and how far the work is."""
        sizes = {layer: self.quantized.nbytes(f"{layer}.weight") for layer in self.quantized.stored}
        done, total = 0, sum(sizes.values())
        for index, (layer, size) in enumerate(sizes.items(), 1):
            yield layer, Progress(layer, index, len(sizes), done, total)
            done += size

    def correct(self, layer: str, spool: Spool) -> CorrectedLayer:
        """Correct one layer into ``spool``."""
        reason = self.options.why_not(layer, self.quantized.shape(f"{layer}.weight"))
        name = self.lora_names.of(layer)
        if name is None:
            reason = reason or "ComfyUI's LoRA loader has no name for it"
        if reason or name is None:
            return CorrectedLayer(layer, reason=reason)
        try:
            found = self._correction(layer, self.device)
        except RuntimeError as error:
            if self.device.type == "cpu" or not out_of_memory(error):
                raise
            torch.cuda.empty_cache()
            found = self._correction(layer, torch.device("cpu"))
        except ValueError as error:
            if isinstance(error, RoundsmithError):
                raise
            return CorrectedLayer(layer, reason=str(error))
        finally:
            self.original.release()
            self.quantized.release()
        if found.weights[0] < _UNRELATED and found.method:
            raise CheckpointError(
                f"layer {layer!r} of {_name(self.quantized)} has nothing in common with that of "
                f"{_name(self.original)}: give the model that it was made from"
            )
        rank = 0
        if found.a is not None and found.b is not None:
            rank = found.a.shape[0]
            spool.add(f"{name}.lora_A.weight", found.a)
            spool.add(f"{name}.lora_B.weight", found.b)
            if found.bias is not None:
                spool.add(f"{name}.diff_b", found.bias)
        return CorrectedLayer(
            layer,
            name if rank else "",
            rank,
            found.method,
            bool(rank) and found.bias is not None,
            found.note,
            *found.weights,
            *(found.outputs or (None, None)),
            *(found.executed or (None, None)),
        )

    def _correction(self, layer: str, device: torch.device) -> Correction:
        pair = self._read(layer, device)
        record = None if self.calibration is None else self.calibration.record(layer)
        name = f"{layer}.weight"
        return correct_layer(
            *(pair.w, pair.w_hat, self.options.rank, record, pair.bias_error, self.options.seed),
            run=self._run(name) if device == self.device else None,  # not another's product
        )

    def _run(self, name: str) -> Run:
        return lambda x: run_layer(self.quantized, name, x, decodes=self.decodes)

    def _read(self, layer: str, device: torch.device) -> _Pair:
        before = self.names.find(layer)
        if before is None:
            raise CheckpointError(
                f"{_name(self.original)} has no layer {layer!r}, which is quantized in "
                f"{_name(self.quantized)}: give the model that it was made from"
            )
        shapes = [
            view.shape(f"{name}.weight")
            for view, name in ((self.original, before), (self.quantized, layer))
        ]
        if shapes[0] != shapes[1]:
            raise CheckpointError(
                f"layer {layer!r} is {shapes[1]} in {_name(self.quantized)} and {shapes[0]} in "
                f"{_name(self.original)}: give the model that it was made from"
            )
        w, w_hat = (
            view.read_rows(f"{name}.weight", 0, shapes[0][0]).to(device, torch.float32)
            for view, name in ((self.original, before), (self.quantized, layer))
        )
        return _Pair(w, w_hat, self._bias_error(before, layer, device))

    def _bias_error(self, before: str, layer: str, device: torch.device) -> Tensor | None:
        names = f"{before}.bias", f"{layer}.bias"
        sources = self.original.source, self.quantized.source
        if any(name not in s.tensors for s, name in zip(sources, names, strict=True)):
            return None
        old, new = (s.read(name) for s, name in zip(sources, names, strict=True))
        if old.shape != new.shape or torch.equal(old.to(new.dtype), new):
            return None
        return old.to(device, torch.float32) - new.to(device, torch.float32)


def _name(model: ModelView) -> str:
    return str(getattr(model.source, "path", "the model"))


def _why_nothing(layers: list[CorrectedLayer]) -> str:
    reasons = dict.fromkeys(layer.reason for layer in layers)
    return f"none of {len(layers)} quantized layers was corrected ({'; '.join(list(reasons)[:3])})"


def _provenance(
    quantized: ModelView, options: ErrorLoraOptions, layers: list[CorrectedLayer]
) -> str:
    settings = options.model_dump(exclude={"device"}, exclude_none=True)
    path = getattr(quantized.source, "path", None)
    said = {
        "corrects": Path(path).name if path else "a quantized model",
        "layers": sum(bool(layer.rank) for layer in layers),
        "weighted": sum(layer.method == "weighted" for layer in layers),
        "strength": 1.0,
        "apply": HOW_TO_APPLY,
        "settings": settings,
    }
    return json.dumps(said, ensure_ascii=False)
