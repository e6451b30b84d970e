"""What each format's candidates say of their quality, against what is measured.

    python benchmarks/candidates.py

The sentence encoder's layers, calibrated on 200 sentences, on what they see of 200 others: dB of
the outputs with exact inputs, and with inputs rounded as devices round them that multiply the
codes. `format="auto"` chooses by these numbers; a candidate that is off by more than half a dB
fails.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import torch
from comfy_kitchen.tensor import QuantizedTensor
from encoder import Encoder, load, texts
from ours import calibrate
from scoring import Bars, mean, snr, table
from torch import Tensor

from roundsmith import Recipe, quantize_module
from roundsmith.converters.calibration import Calibration
from roundsmith.layouts import Format, executed_linear, formats
from roundsmith.layouts.grids import INT8
from roundsmith.layouts.scaled_tensor import ScaledLayout
from roundsmith.layouts.transforms import rotate

TOKENS = 1024
MOST = 0.5


def multiplied(fmt: Format, weight: QuantizedTensor, x: Tensor) -> Tensor:
    """``x [T, N]`` times ``weight``, inputs rounded as where its codes are multiplied."""
    layout = weight.layout_cls
    if getattr(weight._params, "linear_dtype", "") == "int8":  # comfy-kitchen does so on GPUs only
        group = weight._params.convrot_groupsize
        turned = rotate(x, group)
        scale = turned.abs().amax(dim=1, keepdim=True).clamp(min=1e-30) / INT8.max
        return rotate((turned / scale).round() * scale, group) @ weight.dequantize().T
    if fmt.core_quantizes_input:
        x = QuantizedTensor.from_float(x, weight._layout_cls).dequantize()
    elif issubclass(layout, ScaledLayout):
        scales = layout.scale_grid(weight._qdata, weight._params)
        group = weight.shape[1] // scales.shape[1]
        x = QuantizedTensor.from_float(x, weight._layout_cls, block=(1, group)).dequantize()
    else:
        return executed_linear(fmt, weight, x)
    return x @ weight.dequantize().T


@torch.inference_mode()
def measure(
    encoder: Encoder, recipe: Recipe, fmt: Format, given: Calibration, seen: Calibration
) -> tuple[float, float]:
    """Mean dB over the layers: exact inputs, rounded inputs."""
    made, _ = quantize_module(deepcopy(encoder), recipe, calibration=given)
    exact, executed = [], []
    for name, linear in made.linears().items():
        record = seen.record(name)
        assert record is not None
        x = record.tokens[:TOKENS].float()
        wanted = x @ encoder.linears()[name].weight.T
        exact.append(snr(wanted, x @ linear.weight.dequantize().T))
        executed.append(snr(wanted, multiplied(fmt, linear.weight, x)))
    return mean(exact), mean(executed)


def main(words: Sequence[str] | None = None) -> int:
    """Print the table; the exit status says whether every candidate tells the truth."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="regular expression: formats by id")
    arguments = parser.parse_args(words)
    bars, lines = Bars(), []
    encoder, vocabulary = load()
    with tempfile.TemporaryDirectory(prefix="roundsmith-candidates-") as folder:
        files = [Path(folder) / name for name in ("fitted.safetensors", "scored.safetensors")]
        for sentences, file in zip(texts(vocabulary), files, strict=True):
            calibrate(encoder, sentences, file)
        given, seen = map(Calibration.load, files)
        for fmt in formats().values():
            for candidate in fmt.candidates if re.search(arguments.only, fmt.id) else ():
                if candidate.options.get("convrot") == "auto":
                    continue  # rotates by 256 or not at all, and 256 does not divide 384
                recipe = Recipe(format=fmt.id, **candidate.options, preset=None)
                found = measure(encoder, recipe, fmt, given, seen)
                name = " ".join([fmt.id, *map(str, candidate.options.values())])
                lines.append([name, *(f"{value:.2f}" for value in found)])
                print(*lines[-1], flush=True)
                for what, said, value in zip(
                    ("exact", "executed"), (candidate.snr, candidate.executed), found, strict=True
                ):
                    bars.at_most(f"{name}, {what}: {said}, off by", abs(said - value), MOST, "dB")
    table(["", "exact", "executed"], lines, first=36)
    return bars.status


if __name__ == "__main__":
    sys.exit(main())
