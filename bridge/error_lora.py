"""A LoRA that takes back part of what quantizing a loaded model cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management as mm

from ..converters import ModelView
from ..converters.calibration import Calibration
from ..converters.corrections import ErrorLoraOptions, error_lora_file, extract_error_lora
from ..converters.corrections.error_lora_report import ErrorLoraReport
from ..errors import Cancelled
from .networks import DIFFUSION
from .paths import resolve_source
from .progress import NodeProgress, cancelled
from .sources import PatchedWeights


def error_lora(
    original: Any,
    quantized: Any,
    path: Path,
    options: ErrorLoraOptions,
    calibration: Calibration | None = None,
) -> ErrorLoraReport:
    """Write a LoRA for ``quantized``, one layer in memory at a time.

    Args:
        original, quantized: ModelPatchers of the same network, LoRAs included; they are read only.
        path: the file to write.
        options: which layers, and how much of their error.
        calibration: statistics of the original's inputs, to minimise the outputs' error with.

    Raises:
        CheckpointError: models that do not belong together, or nothing to correct.
        RoundsmithError: statistics of another model.
    """
    with original.use_ejected(), quantized.use_ejected():
        sources = [PatchedWeights(patcher, DIFFUSION) for patcher in (original, quantized)]
        views = [ModelView(source) for source in sources]
        try:
            return extract_error_lora(
                *(*views, path, options, calibration),
                progress=NodeProgress("correcting"),
                cancel=cancelled,
            )
        except Cancelled:
            mm.throw_exception_if_processing_interrupted()
            raise
        finally:
            for source in sources:
                source.close()


def error_lora_of_files(
    original: str,
    quantized: str,
    path: Path,
    options: ErrorLoraOptions,
    calibration: Calibration | None = None,
) -> ErrorLoraReport:
    """:func:`error_lora` of two of ComfyUI's files; neither is loaded.

    Args:
        original, quantized: choices of :func:`~.paths.list_sources`.
        path, options, calibration: as there.

    Raises:
        CheckpointError, RoundsmithError: as there; names that are no choices.
    """
    files = [resolve_source(choice) for choice in (original, quantized)]
    try:
        return error_lora_file(
            *(*files, path, options, calibration),
            progress=NodeProgress("correcting"),
            cancel=cancelled,
        )
    except Cancelled:
        mm.throw_exception_if_processing_interrupted()
        raise
