"""Files made of the demo's model at install time: what the example workflows convert and load."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from roundsmith.converters import Recipe, Rule, quantize_file
from roundsmith.converters.calibration import capture
from roundsmith.converters.corrections import error_lora_file
from roundsmith.converters.migrating import MigrateOptions, migrate_file
from roundsmith.converters.patching import Destination

from . import FOLDER, MODEL_FILE, text
from .flux import Flux
from .sampling import sample, starting_noise

INT8 = Recipe(format="int8_tensorwise", convrot="auto")
MXFP8 = Recipe(format="mxfp8", rounding="nearest")
NVFP4 = Recipe(format="nvfp4", rounding="nearest")
MIXED = Recipe(
    format="nvfp4",
    rules=(
        Rule(match=r"_attn\.", format="float8_e4m3fn"),
        Rule(match=r"_mlp\.", format="int8_tensorwise", scaling="row", convrot="auto"),
        Rule(match=r"single_blocks\.0\.", format="mxfp8"),
        Rule(match=r"single_blocks\.3\.", format="float8_e4m3fn_rowwise"),
    ),
)
"""Five formats in one file, as *Layer Rule* and *Fit to Budget* make them."""


def write_quantized(path: Path, recipe: Recipe) -> None:
    """Write the demo's model as this recipe makes it."""
    quantize_file(FOLDER / MODEL_FILE, path, recipe, overwrite=True)


def write_error_lora(quantized: Path, path: Path) -> None:
    """Write the LoRA that takes back part of what a file of the demo's model lost.

    It is fitted to what the layers see of four prompts, on seeds that no workflow samples.
    """
    model = Flux()
    model.load_state_dict({k: t.float() for k, t in load_file(FOLDER / MODEL_FILE).items()})
    context, pooled = text.encode(text.PROMPTS[::3])
    with capture(model.eval()) as calibration:
        sample(model, starting_noise(len(pooled), seed=1000), context, pooled)
    error_lora_file(FOLDER / MODEL_FILE, quantized, path, None, calibration, overwrite=True)


def write_legacy(path: Path) -> None:
    """Write the demo's model in FP8 as tools of 2024 left it, with what was often wrong with that.

    Scales of shape [1], the scale of a layer that is not there, no ``scale_input``, no header.
    """
    modern, clean = (path.with_name(f"{path.name}.{part}") for part in ("modern", "clean"))
    try:
        write_quantized(modern, Recipe(format="float8_e4m3fn", rounding="nearest"))
        migrate_file(modern, Destination(clean, overwrite=True), MigrateOptions(to="fp8_scaled"))
        kept = {k: t for k, t in load_file(clean).items() if not k.endswith(".scale_input")}
        scales = {k: t.reshape(1) for k, t in kept.items() if k.endswith(".scale_weight")}
        orphan = {"single_blocks.9.linear1.scale_weight": torch.ones(1)}
        save_file({**kept, **scales, **orphan}, path)
        del kept, scales  # they map the file that goes now
    finally:
        modern.unlink(missing_ok=True)
        clean.unlink(missing_ok=True)
