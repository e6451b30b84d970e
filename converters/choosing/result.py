"""What a budget chose, as an object, a table and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from ...layouts import Spec
from ..recipe import Recipe


@dataclass(frozen=True)
class Chosen:
    """What one layer gets.

    Attributes:
        layer: its name.
        spec: what it is stored as; None: it stays as it is.
        nbytes: bytes of that, its JSON in layer and header among them.
        error: relative error of its outputs (of its weights, without statistics).
        effect: what that counts in the sum over all layers: the relative error it makes in the
            model's output, or where influences are not known its share of the mean.
    """

    layer: str
    spec: Spec | None
    nbytes: int
    error: float
    effect: float


@dataclass(frozen=True)
class Budget:
    """The choice, and what else there was to choose.

    Attributes:
        recipe: makes it: the recipe given, with a rule a format in front.
        layers: what each layer gets.
        curve: bytes of the file and dB, from the smallest choice to the most exact.
        uniform: bytes of the file and dB of each format alone, by what it is.
        size: bytes of the file.
        measured: what dB are of: the model's output where the layers' influences are known, else
            the layers' mean error: of outputs as executed, or of weights without statistics.
        notes: what a person should know.
    """

    recipe: Recipe
    layers: tuple[Chosen, ...]
    curve: tuple[tuple[int, float], ...]
    uniform: Mapping[str, tuple[int, float]]
    size: int
    measured: str
    notes: tuple[str, ...]

    @property
    def snr(self) -> float:
        """dB of the sum of all layers' effects."""
        return decibel(sum(c.effect for c in self.layers))

    def table(self) -> str:
        """A line for each layer, the one that adds most to the error first."""
        width = max((len(c.layer) for c in self.layers), default=5)
        lines = [f"{'layer':{width}}  {'MB':>9}  {'dB':>6}  {'of all':>6}  stored as"]
        everything = sum(c.effect for c in self.layers) or 1.0
        for c in sorted(self.layers, key=lambda c: -c.effect):
            level = f"{decibel(c.error):6.1f}" if c.error else "     –"
            what = c.spec.describe() if c.spec else "as it is"
            share = f"{c.effect / everything:6.1%}"
            lines.append(f"{c.layer:{width}}  {c.nbytes / 1e6:9.2f}  {level}  {share}  {what}")
        lines.append(f"{self.size:,} bytes, {self.snr:.1f} dB ({self.measured})")
        lines += [
            f"  all {name}: {size:,} bytes, {snr:.1f} dB"
            for name, (size, snr) in sorted(self.uniform.items(), key=lambda item: item[1])
        ]
        return "\n".join([*lines, *self.notes])

    def json(self) -> str:
        """The choice for machines; ``recipe`` can be given to quantize."""
        layers = [
            {
                "name": c.layer,
                "stored_as": c.spec.describe() if c.spec else None,
                "bytes": c.nbytes,
                "error": c.error,
                "effect": c.effect,
            }
            for c in self.layers
        ]
        top = {"size": self.size, "snr": _finite(self.snr), "measured": self.measured}
        uniform = {name: (size, _finite(snr)) for name, (size, snr) in self.uniform.items()}
        rest = {"curve": self.curve, "uniform": uniform, "notes": self.notes}
        recipe = json.loads(self.recipe.to_json())
        return json.dumps({**top, "recipe": recipe, "layers": layers, **rest}, ensure_ascii=False)


def decibel(error: float) -> float:
    """dB of a relative error."""
    return -10 * math.log10(error) if error > 0 else math.inf


def _finite(level: float) -> float | None:
    """None where nothing is lost, which JSON has no number for."""
    return level if math.isfinite(level) else None
