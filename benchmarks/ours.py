"""The encoder's layers quantized by the package, through its public interface, file to file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from encoder import Encoder, Weights
from peers import read
from rows import Row

from roundsmith import Recipe, Report, capture, quantize_file
from roundsmith.converters.calibration import Calibration
from roundsmith.converters.corrections import error_lora

METHODS: dict[str, dict[str, object]] = {
    "nearest": {"rounding": "nearest", "scale_search": False},
    "search": {"rounding": "nearest", "scale_search": True},
    "calibrated": {"rounding": "calibrated"},
    "learned svd": {"rounding": "learned", "learned": {"objective": "svd"}},
    "learned act": {"rounding": "learned", "learned": {"objective": "activations"}},
}
"""Settings by column."""

MAX_TOKENS = 8192
"""Wide layers keep every token of the 200 sentences, as narrow ones do anyway."""


def calibrate(encoder: Encoder, sentences: list[list[int]], path: Path) -> None:
    """Capture what the layers see on ``sentences`` and write the file."""
    with torch.inference_mode(), capture(encoder, max_tokens=MAX_TOKENS) as calibration:
        for ids in sentences:
            encoder(ids)
    calibration.save(path)


@dataclass(frozen=True)
class Ours:
    """Quantizes one checkpoint.

    Attributes:
        source: the checkpoint.
        output: where results go, one after the other.
        calibration: the calibration's file.
    """

    source: Path
    output: Path
    calibration: Path

    def quantize(self, row: Row, method: str) -> tuple[Weights, Report]:
        """The layers' weights in a row's format, and the report."""
        recipe = Recipe(**row.recipe, **METHODS[method], preset=None)
        # With statistics the SVD objective's codes are given up where nearest ones are better;
        # nearest rounding has them for its report only.
        given = None if method in ("search", "learned svd") else self.calibration
        report = quantize_file(self.source, self.output, recipe, calibration=given, overwrite=True)
        return read(self.output), report


def with_error_lora(
    weights: Weights, quantized: Weights, path: Path, rank: int
) -> Weights:
    """Quantized weights plus the low-rank factors that best correct their outputs.

    Args:
        weights: as they were.
        quantized: as they are.
        path: the calibration's file.
        rank: of the factors.
    """
    calibration = Calibration.load(path)
    corrected: Weights = {}
    for name, w in weights.items():
        record = calibration.record(name)
        assert record is not None
        a, b = error_lora(w, quantized[name], rank, record.split().moment)
        corrected[name] = quantized[name] + b @ a
    return corrected
