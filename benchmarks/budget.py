"""Formats chosen layer by layer for a size, against choices made without looking at the layers.

    python benchmarks/budget.py

The sentence encoder, calibrated on 200 sentences, on 40 of which the layers' influences are
measured, and scored on the final embeddings of 200 others, all layers running as this device runs
them (where it decodes a weight before its product, that is done once), 20 sentences a call. For
each size: the budget's choice, each uniform format that fits, those too that are not worth
choosing, and mixtures: of each pair of formats, one smaller and one larger than the size, layers
drawn at random to the same size, mean of ten. (Of formats that another beats in both size and
quality no mixture is made.) The bars: 1 dB above the best mixture, and never below a uniform format
that fits. All are made and run; nothing is predicted.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import NamedTuple

import torch
from encoder import Encoder, load, texts
from ours import calibrate
from scoring import Bars, mean, snr, table
from torch import Tensor, nn

from roundsmith import Recipe, measure_influences, quantize_module
from roundsmith.converters.calibration import Calibration
from roundsmith.converters.choosing import Budget, Target, fit_budget
from roundsmith.converters.source import MemorySource
from roundsmith.layouts import formats

SIZES = (5.5, 7.0)
MEASURED = 40
DRAWS = 10
TOGETHER = 20  # sentences a call; every format rounds inputs token by token


@torch.inference_mode()
def embeddings(encoder: Encoder, sentences: Sequence[Sequence[int]]) -> Tensor:
    """Mean of each sentence's tokens, of length one."""
    found = []
    for first in range(0, len(sentences), TOGETHER):
        group = sentences[first : first + TOGETHER]
        found += [part.mean(0) for part in encoder(*group).split([len(ids) for ids in group])]
    return nn.functional.normalize(torch.stack(found), dim=1)


@torch.inference_mode()
def decode(linear: nn.Linear) -> None:
    """Decode a layer's weight for good, where this device multiplies with the decoded one anyway:
    where it does not round the inputs.
    """
    x = torch.randn(16, linear.in_features, generator=torch.Generator().manual_seed(0))
    weight = linear.weight.data
    if type(weight) is not Tensor:
        weight = weight.dequantize().float()
        executed = linear(x) - (0 if linear.bias is None else linear.bias)
        if snr(x @ weight.T, executed) > 100:
            linear.weight = nn.Parameter(weight, requires_grad=False)


class Made(NamedTuple):
    """The encoder's layers, quantized, and what each takes."""

    layers: dict[str, nn.Linear]
    nbytes: dict[str, int]

    @property
    def size(self) -> int:
        """Bytes of all layers."""
        return sum(self.nbytes.values())


class Bench:
    """The encoder, its calibration and its scores."""

    def __init__(self, folder: Path) -> None:
        self.encoder, vocabulary = load()
        fitted, self.scored = texts(vocabulary)
        calibrate(self.encoder, fitted, folder / "calibration.safetensors")
        self.calibration = Calibration.load(folder / "calibration.safetensors")
        with torch.inference_mode():
            self.calibration.influences = measure_influences(
                self.encoder, lambda: embeddings(self.encoder, fitted[:MEASURED])
            )
        self.reference = embeddings(self.encoder, self.scored)
        self.weights = sum(m.weight.numel() for m in self.encoder.linears().values())

    def make(self, recipe: Recipe) -> Made:
        """All layers quantized by ``recipe``."""
        model, report = quantize_module(
            deepcopy(self.encoder), recipe, calibration=self.calibration
        )
        for linear in model.linears().values():
            decode(linear)
        return Made(model.linears(), {x.name: x.bytes_after for x in report.layers})

    def uniform(self) -> dict[str, Made]:
        """Every format alone, those too that are not worth choosing."""
        found: dict[str, Made] = {}
        for fmt in formats().values():
            for settings in [candidate.options for candidate in fmt.candidates] or [{}]:
                recipe = Recipe(format=fmt.id, **settings, preset=None)
                name = " ".join([fmt.id, *(f"{k} {v}" for k, v in settings.items())])
                found[name] = self.make(recipe)
                print(f"made {name}", flush=True)
        return found

    def score(self, layers: Mapping[str, nn.Linear]) -> float:
        """dB of the embeddings with these layers."""
        model = deepcopy(self.encoder)
        for name, linear in layers.items():
            model.set_submodule(name, linear)
        return snr(self.reference, embeddings(model, self.scored))

    def budget(self, bits: float) -> Budget:
        """The choice for so many bits a weight."""
        weights = {f"{n}.weight": m.weight.data for n, m in self.encoder.linears().items()}
        source, recipe = MemorySource(weights), Recipe(preset=None)
        return fit_budget(source, Target(bits=bits), recipe, self.calibration)


def mixtures(bench: Bench, bits: float, uniform: Mapping[str, Made]) -> dict[str, float]:
    """Mean dB of random mixtures of two formats at ``bits`` a weight, by pair."""
    limit, found = bits * bench.weights / 8, {}
    for small, large in itertools.permutations(uniform, 2):
        below, above = uniform[small], uniform[large]
        if not below.size < limit < above.size:
            continue
        scores = []
        for draw in range(DRAWS):
            names = list(below.layers)
            order = torch.randperm(len(names), generator=torch.Generator().manual_seed(draw))
            used, chosen = below.size, dict(below.layers)
            for name in (names[i] for i in order.tolist()):
                more = above.nbytes[name] - below.nbytes[name]
                if used + more <= limit:
                    used += more
                    chosen[name] = above.layers[name]
            scores.append(bench.score(chosen))
        found[f"{small} + {large}"] = mean(scores)
        spread = f"{min(scores):.2f} to {max(scores):.2f}"
        print(f"  {small} + {large}: {mean(scores):.2f} dB ({spread})", flush=True)
    return found


def front(bits: Mapping[str, float], scores: Mapping[str, float]) -> list[str]:
    """The formats that no other beats in both size and quality."""
    return [
        name
        for name in bits
        if not any(bits[x] <= bits[name] and scores[x] > scores[name] for x in bits if x != name)
    ]


def main(words: Sequence[str] | None = None) -> int:
    """Print the tables; the exit status says whether the bars were met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bits", nargs="*", type=float, default=SIZES)
    arguments = parser.parse_args(words)
    bars, began = Bars(), time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="roundsmith-budget-") as folder:
        bench = Bench(Path(folder))
        uniform = bench.uniform()
        alone = {name: bench.score(made.layers) for name, made in uniform.items()}
        bits_of = {name: made.size * 8 / bench.weights for name, made in uniform.items()}
        print("\nUniform formats, dB of the embeddings")
        lines = [[n, f"{bits_of[n]:.2f}", f"{alone[n]:.2f}"] for n in sorted(alone, key=alone.get)]
        table(["", "bits", "dB"], lines, first=40)
        for bits in arguments.bits:
            choice = bench.budget(bits)
            ours = bench.score(bench.make(choice.recipe).layers)
            used = sum(c.nbytes for c in choice.layers) * 8 / bench.weights
            print(f"\n{bits} bits a weight: the budget's choice has {used:.2f} and {ours:.2f} dB")
            counts = Counter(c.spec.describe() if c.spec else "as it is" for c in choice.layers)
            for what, count in counts.most_common():
                print(f"  {count} layers {what}")
            mixed = mixtures(bench, bits, {n: uniform[n] for n in front(bits_of, alone)})
            best = max(mixed, key=lambda name: mixed[name])
            print(f"  best mixture, {best}: {mixed[best]:.2f} dB")
            bars.at_least(f"{bits} bits, above the best mixture", ours - mixed[best], 1)
            top = max((n for n in alone if bits_of[n] <= bits), key=lambda n: alone[n])
            print(f"  best uniform format that fits, {top}: {alone[top]:.2f} dB")
            bars.at_least(f"{bits} bits, above the best uniform format", ours - alone[top], 0)
    print(f"\n{time.perf_counter() - began:.0f} s")
    return bars.status


if __name__ == "__main__":
    sys.exit(main())
