"""End to end: the demo's Flux quantized, loaded by stock ComfyUI and sampled, against the original.

    python benchmarks/demo_comfyui.py --peer-python ~/peer/bin/python

Runs in ComfyUI's own environment, as the tests in tests/comfyui do, on the CPU: there INT8 layers
round their inputs too, the others do not. A number is the final latent's SNR in dB against the
unquantized model on the same noise and prompt after 12 Euler steps, mean over the ten digits with
four seeds each, which are used for nothing else. (One seed says little: the order of a sum moves it
by half a dB.) ComfyUI 0.29 ignores ``full_precision_matrix_mult`` for INT8, so that line is loaded
by Roundsmith; all others by ComfyUI.

Columns: ``ceiling``, the unquantized weights with inputs rounded as this line's products round
them: what no rounding of weights can pass by more than luck; ``ceiling fitted``, the same with
weights that are not rounded but fitted to those inputs, on the samples of ``on prompts``;
``nearest``; calibrated ``on prompts`` (all ten, 120 samples, other seeds), ``on 20`` of those
samples, ``0-4 on 5-9`` (20 samples of half of the digits, scored on the others; ``nearest 5-9``
beside it), by ``itself`` (nothing given) and ``with CLIP`` (built-in prompts); ``learned`` with the
SVD objective, ``learned act`` with the activations', on the statistics of ``on prompts``; the
``peer``, convert-to-quant 1.3.4, with ``--simple`` and learned, on the same layers.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ceiling import Affine, fit_to_int8, inputs_in_int8
from in_comfyui import STEPS, Demo, restart_in_comfyui
from ours import METHODS
from peers import Peer
from scoring import Bars, mean, snr, table
from torch import Tensor

from roundsmith import Recipe, plan_file, quantize_file
from roundsmith.converters.plan import TensorPlan

DIGITS = range(10)
SCORED, FITTED = (7, 8, 9, 11), tuple(range(20, 32))  # seeds are 1000 times these, plus the digit
FEW = 20  # samples
HALF = range(5)
OTHERS = slice(len(HALF) * len(SCORED), None)  # samples of the other half
ROW = {"format": "int8_tensorwise", "scaling": "row"}
INT8 = ("--int8", "--scaling_mode", "row")


@dataclass(frozen=True)
class Line:
    """A line of the table: our recipe, the peer's options, and bars by column, dB over nearest.

    ``ours``: loaded by Roundsmith, where ComfyUI's own loader ignores what the file asks for.
    """

    title: str
    recipe: dict[str, object]
    peer: tuple[str, ...]
    bars: dict[str, float] = field(default_factory=dict)
    ours: bool = False


LINES = (
    Line(
        "fp8",
        {"format": "float8_e4m3fn"},
        (),
        {"on prompts": 8, "0-4 on 5-9": 4.5, "itself": 4.5},
    ),
    Line(
        "nvfp4",
        {"format": "nvfp4"},
        ("--nvfp4",),
        {"on prompts": 6, "0-4 on 5-9": 4.5, "itself": 4.5},
    ),
    Line("mxfp8", {"format": "mxfp8"}, ("--mxfp8",)),
    Line("int8 row", ROW, INT8, {"on prompts": 2.5}),
    Line(
        "int8 row + ConvRot 64",
        {**ROW, "convrot": 64},
        (*INT8, "--convrot", "--convrot-group-size", "64"),
        {"on prompts": 4},
    ),
    Line(
        "int8 row, full precision",
        {**ROW, "full_precision_matrix_mult": True},
        (*INT8, "--full_precision_matrix_mult"),
        {"on prompts": 10},
        ours=True,
    ),
)
COLUMNS = (
    "ceiling", "ceiling fitted", "nearest", "on prompts", "on 20", "itself", "with CLIP",
    "nearest 5-9", "0-4 on 5-9", "learned", "learned act", "peer", "peer learned",
)  # fmt: skip
CALIBRATED = ("on prompts", "on 20", "itself", "with CLIP", "0-4 on 5-9")


class Table:
    """Makes and scores the files."""

    def __init__(self, folder: Path, peer: Peer | None, peer_learned: str, columns: str) -> None:
        """``peer_learned``: in which lines the peer learns; ``columns``: which are filled beside
        ``nearest``; regular expressions."""
        self.demo = Demo(folder)
        self.peer, self.peer_learned = peer, peer_learned
        self.file = folder / "quantized.safetensors"
        self.original = self.demo.load(self.demo.model_file)
        self.latents = self._sample(self.original)
        self.columns = {column for column in COLUMNS if re.search(columns, column)}
        makers: dict[str, Callable[[], Any]] = {
            "on prompts": lambda: self.demo.calibrate(self.original, DIGITS, FITTED),
            "on 20": lambda: self.demo.calibrate(
                self.original, DIGITS, FITTED[: FEW // len(DIGITS)]
            ),
            "0-4 on 5-9": lambda: self.demo.calibrate(
                self.original, HALF, FITTED[: FEW // len(HALF)]
            ),
            "itself": lambda: self.demo.self_calibrate(self.original, told=False),
            "with CLIP": lambda: self.demo.self_calibrate(self.original, told=True),
        }
        needed = self.columns | ({"on prompts"} if "learned act" in self.columns else set())
        self.calibrations = {name: make() for name, make in makers.items() if name in needed}

    def _sample(self, model: Any) -> list[Tensor]:
        return [
            self.demo.sample(model, digit, 1000 * seed + digit)
            for digit in DIGITS
            for seed in SCORED
        ]

    def score(self, line: Line, path: Path) -> list[float]:
        """dB of each sample, digit after digit."""
        made = self._sample((self.demo.load_ours if line.ours else self.demo.load)(path))
        return [snr(a, b) for a, b in zip(self.latents, made, strict=True)]

    def ceilings(self, line: Line) -> dict[str, float]:
        """dB of weights that are not rounded, by column, where the line's products round their
        inputs; else {}."""
        if "int8" not in str(line.recipe["format"]) or line.ours:
            return {}
        layers = [t for t in self._plan(line) if t.action == "quantize"]
        network, found = self.original.model.diffusion_model, {}
        for column in self.columns & {"ceiling", "ceiling fitted"}:
            weights: dict[str, Affine] = {}
            if column == "ceiling fitted":
                weights = fit_to_int8(network, layers, self._sample_fitted, _every_fourth)
            with inputs_in_int8(network, layers, weights):
                made = self._sample(self.original)
            found[column] = mean([snr(a, b) for a, b in zip(self.latents, made, strict=True)])
        return found

    def _sample_fitted(self) -> None:
        """What the calibration on prompts samples."""
        for digit in DIGITS:
            for seed in FITTED:
                self.demo.sample(self.original, digit, 1000 * seed + digit)

    def _plan(self, line: Line) -> Sequence[TensorPlan]:
        return plan_file(self.demo.model_file, Recipe(**line.recipe)).tensors

    def ours(self, line: Line, method: str, calibration: Any = None) -> list[float]:
        """dB of each sample after our rounding."""
        recipe = Recipe(**line.recipe, **METHODS[method])
        quantize_file(
            self.demo.model_file, self.file, recipe, calibration=calibration, overwrite=True
        )
        return self.score(line, self.file)

    def theirs(self, line: Line, learned: bool) -> list[float]:
        """dB of each sample after the peer's, on the layers that ours quantizes."""
        assert self.peer is not None
        kept = "|".join(re.escape(t.layer) for t in self._plan(line) if t.action == "keep")
        options = (*line.peer, *(("--exclude-layers", f"^({kept})(\\.weight)?$") if kept else ()))
        return self.score(line, self.peer.convert(self.demo.model_file, options, learned)[0])

    def fill(self, line: Line) -> dict[str, float]:
        """A line's numbers by column."""
        nearest = self.ours(line, "nearest")
        found = {"nearest": mean(nearest), "nearest 5-9": mean(nearest[OTHERS])}
        found |= self.ceilings(line)
        for column in self.columns.intersection(CALIBRATED):
            values = self.ours(line, "calibrated", self.calibrations[column])
            found[column] = mean(values[OTHERS] if column == "0-4 on 5-9" else values)
        if "learned" in self.columns:
            found["learned"] = mean(self.ours(line, "learned svd"))
        if "learned act" in self.columns:
            given = self.calibrations["on prompts"]
            found["learned act"] = mean(self.ours(line, "learned act", given))
        if self.peer is not None:
            if "peer" in self.columns:
                found["peer"] = mean(self.theirs(line, learned=False))
            if "peer learned" in self.columns and re.search(self.peer_learned, line.title):
                found["peer learned"] = mean(self.theirs(line, learned=True))
        return found


def _every_fourth(call: int) -> bool:
    """Whether a call of the network is of one of the steps set aside, alike in all samples."""
    return call % STEPS % 4 == 3


def judge(bars: Bars, line: Line, found: dict[str, float]) -> None:
    """Print a line's bars, and how much any rounding of its weights could gain."""
    for column, which in (("ceiling", "exact"), ("ceiling fitted", "fitted, unrounded")):
        if column in found:
            most = found[column] - found["nearest"]
            print(f"      {line.title}: {which} weights would gain {most:.2f} dB over nearest")
    for column, bar in line.bars.items():
        if column not in found:
            continue
        base = "nearest 5-9" if column == "0-4 on 5-9" else "nearest"
        bars.at_least(f"{line.title}, {column}, over nearest", found[column] - found[base], bar)


def main(words: Sequence[str] | None = None) -> int:
    """Print the table; the exit status says whether the bars were met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", type=Path, help="interpreter that has convert-to-quant")
    parser.add_argument("--cache", type=Path, help="keep what the peer wrote in this folder")
    parser.add_argument(
        "--peer-learned",
        default="^(fp8|nvfp4|mxfp8|int8 row)$",
        help="regular expression: lines in which the peer learns (minutes each)",
    )
    parser.add_argument("--columns", default="", help="regular expression: which columns to fill")
    parser.add_argument("--only", default="", help="regular expression: which lines, by title")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    arguments = parser.parse_args(words)
    restart_in_comfyui()

    peer = Peer(arguments.peer_python, arguments.cache) if arguments.peer_python else None
    bars, results = Bars(), {}
    with tempfile.TemporaryDirectory(prefix="roundsmith-demo-") as folder:
        measured = Table(Path(folder), peer, arguments.peer_learned, arguments.columns)
        for line in LINES:
            if re.search(arguments.only, line.title):
                began = time.perf_counter()
                found = measured.fill(line)
                results[line.title] = found
                numbers = ", ".join(f"{column} {value:.2f}" for column, value in found.items())
                print(f"{line.title}, {time.perf_counter() - began:.0f} s: {numbers}", flush=True)
    print("\nFinal-latent SNR, dB")
    texts = [
        [title, *(f"{found[c]:.1f}" if c in found else "–" for c in COLUMNS)]
        for title, found in results.items()
    ]
    table(["", *COLUMNS], texts)
    print()
    for line in LINES:
        if line.title in results:
            judge(bars, line, results[line.title])
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))
    return bars.status


if __name__ == "__main__":
    sys.exit(main())
