"""The key names of every family of models, and what its preset does with them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

# Key names of each architecture: weights the preset leaves to the recipe ("quantized"), weights it
# keeps, other tensors. "blocks.{19}." stands for nineteen numbered blocks.
FAMILIES = [
    SimpleNamespace(**{"kept": [], "other": [], **case})
    for case in json.loads(Path(__file__).with_name("families.json").read_text(encoding="utf-8"))
]
MANUAL = ("chroma_small", "radiance_small", "z_image_refiner")

T5_DECODER = [
    "encoder.block.0.layer.0.SelfAttention.q.weight",
    "decoder.block.0.layer.0.SelfAttention.q.weight",
    "decoder.final_layer_norm.weight",
    "lm_head.weight",
    "shared.weight",
]


def expanded(names):
    """The names with ``{n}`` replaced by 0 to n - 1."""
    for name in names:
        number = re.search(r"\{(\d+)\}", name)
        if number is None:
            yield name
            continue
        for index in range(int(number[1])):
            yield from expanded([name.replace(number[0], str(index), 1)])


def names_of(case):
    """All tensor names of a family."""
    weights = [f"{name}.weight" for name in expanded([*case.quantized, *case.kept])]
    return [*weights, *expanded(case.other)]


def linears(policy, names):
    """The layers of ``names`` the policy would quantize, were every weight 2-D."""
    weights = [name for name in names if name.endswith(".weight")]
    chosen = [name for name in weights if policy.decide(name, (64, 64)).action == "quantize"]
    return [name.removesuffix(".weight") for name in chosen]
