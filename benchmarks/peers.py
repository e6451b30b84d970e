"""What others make of the same weights: double precision, comfy-kitchen, GGUF, convert-to-quant.

convert-to-quant 1.3.4 runs in an environment of its own (see tests/peer/make_fixtures.py; its
learned mode needs ``pip install prodigy-plus-schedule-free`` there). It is slow, so what it wrote
is kept in a folder if one is given, with the seconds it took.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from comfy_kitchen.tensor import QuantizedTensor
from rows import E4M3, INT8, Row
from torch import Tensor

from roundsmith.checkpoints import Checkpoint
from roundsmith.converters.stored import parts_of, stored_layers

Weights = dict[str, Tensor]
GGUF_TYPES = ("Q8_0", "Q5_0", "Q4_0")


def in_float64(w: Tensor, row: Row) -> Tensor:
    """Absmax scales and nearest codes in double precision."""
    assert row.largest is not None
    m, n = w.shape
    rows, cols = row.block[0] or m, row.block[1] or n
    blocks = w.double().view(m // rows, rows, n // cols, cols)
    scale = blocks.abs().amax((1, 3), keepdim=True) / row.largest
    scaled = blocks / scale
    if row.largest == INT8:
        return (scaled.round() * scale).view(m, n)
    exponent = 3 if row.largest == E4M3 else 2  # mantissa bits
    least = -6 if row.largest == E4M3 else -14  # exponent of the smallest normal number
    _, power = torch.frexp(scaled)
    step = torch.exp2((power - 1).clamp_min(least).double() - exponent)
    return ((scaled / step).round() * step * scale).view(m, n)


def with_kitchen(w: Tensor, row: Row) -> Tensor:
    """comfy-kitchen's encoder and decoder on float32."""
    assert row.kitchen is not None
    layout, options = row.kitchen
    return QuantizedTensor.from_float(w, layout, **options).dequantize().float()


def with_gguf(w: Tensor, kind: str) -> Tensor:
    """The ``gguf`` package's encoder and decoder: blocks of 32 in a row."""
    from gguf import GGMLQuantizationType, quants

    code = GGMLQuantizationType[kind]
    return torch.from_numpy(quants.dequantize(quants.quantize(w.numpy(), code), code))


def read(path: Path) -> Weights:
    """Float32 weights of a file's quantized layers."""
    with Checkpoint.open(path) as source:
        layers = stored_layers(source).layers
        return {n: v.format.decode(parts_of(source, v), v.conf) for n, v in layers.items()}


@dataclass
class Peer:
    """convert-to-quant as a process of its own.

    Attributes:
        python: the interpreter that has it.
        cache: what it wrote is kept here; None: nowhere.
        folder: where it writes otherwise.
    """

    python: Path
    cache: Path | None = None
    folder: tempfile.TemporaryDirectory[str] = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="roundsmith-peer-")
    )

    def convert(
        self, source: Path, options: Sequence[str], learned: bool = False
    ) -> tuple[Path, float]:
        """A file it made of ``source``, and the seconds its process took.

        Args:
            source: the checkpoint.
            options: its options for the format.
            learned: at its defaults (Prodigy, up to 4000 steps); else ``--simple``.

        Raises:
            SystemExit: it wrote nothing.
        """
        words = ["--comfy_quant", "--save-quant-metadata", "--manual_seed", "0"]
        words += [*([] if learned else ["--simple"]), *options]
        key = hashlib.sha256(source.read_bytes() + json.dumps(words).encode()).hexdigest()[:24]
        output = (self.cache or Path(self.folder.name)) / f"{key}.safetensors"
        seconds = output.with_suffix(".json")
        if self.cache is None or not (output.is_file() and seconds.is_file()):
            output.parent.mkdir(parents=True, exist_ok=True)
            output.unlink(missing_ok=True)
            seconds.write_text(json.dumps(self._run(source, output, words)))
        return output, float(json.loads(seconds.read_text()))

    def _run(self, source: Path, output: Path, options: Sequence[str]) -> float:
        module = ["-m", "convert_to_quant.convert_to_quant"]
        command = [str(self.python), *module, "-i", str(source), "-o", str(output), *options]
        began = time.perf_counter()
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
        run = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        if not output.is_file():
            raise SystemExit(f"{' '.join(command)}\nwrote nothing\n{run.stdout}\n{run.stderr}")
        return time.perf_counter() - began
