"""Every conversion mode of convert-to-quant 1.3.4, and what does the same here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from roundsmith import Recipe, quantize_file
from roundsmith.converters.corrections import (
    CalibrateOptions,
    ErrorLoraOptions,
    calibrate_file,
    error_lora_file,
)
from roundsmith.converters.editing import EditOptions, edit_file
from roundsmith.converters.hybrid import HybridOptions, make_hybrid
from roundsmith.converters.migrating import MigrateOptions, migrate_file
from roundsmith.converters.patching import Destination

Ours = Callable[[Path, Path, dict[str, Path]], object]
QUANT = ("--comfy_quant", "--save-quant-metadata", "--manual_seed", "0", "--device", "cpu")
SIMPLE = (*QUANT, "--simple")
LEARNED = (*QUANT, "--num_iter", "10", "--calib_samples", "256")
INT8_ROW = ("--int8", "--scaling_mode", "row")
LAYER_CONFIG = {
    "img_attn.qkv": {"format": "float8_e4m3fn_rowwise", "scaling_mode": "row", "simple": True},
    "img_attn.proj": {"format": "mxfp8", "simple": True},
    "img_mlp.2": {"format": "nvfp4", "simple": True},
    "embed_tokens": {"skip": True},
    "final_layer": {"skip": True},
}


@dataclass(frozen=True)
class Mode:
    """One mode.

    Attributes:
        name: for people.
        source: a name of ``write_sources``, or of a mode, whose file (the peer's) is the input.
        options: the peer's options; ``{name}`` is another mode's file, ``LAYER_CONFIG`` a file.
        ours: does the same from the source into a file, given the peer's files by mode.
        learned: codes are found by another method, so only their quality compares.
        lora: what is compared is the LoRA beside the file (FP8 and INT8 write none).
        module: what is run; ``--actcal`` of the command line ends on an import that fails.
    """

    name: str
    source: str
    options: tuple[str, ...]
    ours: Ours
    learned: bool = False
    lora: bool = False
    module: str = "convert_to_quant"


def _quantize(**settings: Any) -> Ours:
    settings = {"preset": None, "rounding": "nearest", **settings}
    if settings["rounding"] == "learned":
        settings["learned"] = {"iterations": 10}

    def run(source: Path, out: Path, files: dict[str, Path]) -> object:
        return quantize_file(source, out, Recipe(**settings), overwrite=True)

    return run


def _edit(**settings: Any) -> Ours:
    return lambda source, out, files: edit_file(source, _to(out), EditOptions(**settings))


def _migrate(**settings: Any) -> Ours:
    return lambda source, out, files: migrate_file(source, _to(out), MigrateOptions(**settings))


def _hybrid(imported: str | None = None) -> Ours:
    def run(source: Path, out: Path, files: dict[str, Path]) -> object:
        options = HybridOptions()
        if imported is not None:
            options = HybridOptions(scalar="import", source=files[imported])
        return make_hybrid(source, _to(out), options)

    return run


def _calibrate(source: Path, out: Path, files: dict[str, Path]) -> object:
    return calibrate_file(source, _to(out), CalibrateOptions(mode="random", seed=42))


def _lora(source: Path, out: Path, files: dict[str, Path]) -> object:
    options = ErrorLoraOptions(rank=8, layers="selected")
    lora = files["error LoRA, NVFP4"]
    quantized = lora.with_name(lora.name.replace("_lora", ""))
    return error_lora_file(source, quantized, out, options, overwrite=True)


def _to(out: Path) -> Destination:
    return Destination(out, overwrite=True)


MIXED = {
    "format": "float8_e4m3fn",
    "rules": [{"match": "img_mlp", "format": "int8_tensorwise", "scaling": "row"}],
    "exclude": ["img_attn"],
    "fallback": {"format": "mxfp8"},
}
# fmt: off
MODES = (
    Mode("FP8", "model", SIMPLE, _quantize()),
    Mode("FP8, streamed", "model", (*SIMPLE, "--low-memory"), _quantize()),
    Mode(
        "FP8, input scales, full precision",
        "model",
        (*SIMPLE, "--full_precision_matrix_mult", "--input_scale"),
        _quantize(full_precision_matrix_mult=True, input_scale="constant"),
    ),
    Mode("FP8, scales [1]", "model", (*SIMPLE, "--no-normalize-scales"),
         _quantize(keep_1d_scales=True)),
    Mode("FP8, heuristics", "model", (*SIMPLE, "--heur"), _quantize(heuristics=True)),
    Mode("FP8, float16 output", "model",
         (*SIMPLE, "--output-dtype", "float16", "--exclude-layers", "img_mlp"),
         _quantize(exclude=["img_mlp"])),
    Mode("FP8 row", "model", (*SIMPLE, "--scaling_mode", "row"),
         _quantize(format="float8_e4m3fn_rowwise")),
    Mode("FP8 block 64", "model", (*SIMPLE, "--scaling_mode", "block", "--block_size", "64"),
         _quantize(format="float8_e4m3fn_blockwise", group_size=64)),
    Mode("FP8 block 128", "model", (*SIMPLE, "--scaling_mode", "block"),
         _quantize(format="float8_e4m3fn_blockwise", group_size=128)),
    Mode("FP8 block3d", "model", (*SIMPLE, "--scaling_mode", "block3d", "--block_size", "64"),
         _quantize(format="float8_e4m3fn_blockwise", group_size=64)),
    Mode("INT8 tensor", "model", (*SIMPLE, "--int8", "--scaling_mode", "tensor"),
         _quantize(format="int8_tensorwise", scaling="tensor")),
    Mode("INT8 row", "model", (*SIMPLE, *INT8_ROW), _quantize(format="int8_tensorwise")),
    Mode("INT8 ConvRot 256", "model", (*SIMPLE, *INT8_ROW, "--convrot"),
         _quantize(format="int8_tensorwise", convrot=256)),
    Mode("INT8 ConvRot 16", "model", (*SIMPLE, *INT8_ROW, "--convrot", "--convrot-group-size",
         "16"), _quantize(format="int8_tensorwise", convrot=16)),
    Mode("INT8 ConvRot dynamic", "model", (*SIMPLE, *INT8_ROW, "--convrot", "--dynamic-convrot"),
         _quantize(format="int8_tensorwise", convrot="auto")),
    Mode("INT8 block 64", "model",
         (*SIMPLE, "--int8", "--scaling_mode", "block", "--heur", "--block_size", "64"),
         _quantize(format="int8_blockwise", group_size=64, heuristics=True)),
    Mode("INT8 block 128", "model",
         (*SIMPLE, "--int8", "--scaling_mode", "block", "--heur", "--block_size", "128"),
         _quantize(format="int8_blockwise", group_size=128, heuristics=True)),
    Mode("NVFP4", "model", (*SIMPLE, "--nvfp4"), _quantize(format="nvfp4")),
    Mode("MXFP8", "model", (*SIMPLE, "--mxfp8"), _quantize(format="mxfp8")),
    Mode("custom, excluded, fallback", "model", (
        *SIMPLE, "--custom-layers", "img_mlp", "--custom-type", "int8", "--custom-scaling-mode",
        "row", "--custom-simple", "--exclude-layers", "img_attn", "--fallback", "mxfp8",
        "--fallback-simple"), _quantize(**MIXED)),
    Mode("layer config", "model", (*SIMPLE, "--layer-config", "LAYER_CONFIG"),
         _quantize(layer_config=LAYER_CONFIG)),
    Mode("T5 filter", "text_encoder", (*SIMPLE, "--t5xxl"),
         _quantize(preset="t5xxl")),
    Mode("FP8 learned", "model", LEARNED, _quantize(rounding="learned"), True),
    Mode("INT8 row learned", "model", (*LEARNED, *INT8_ROW),
         _quantize(format="int8_tensorwise", rounding="learned"), True),
    Mode("INT8 row, dualround", "model",
         (*LEARNED, *INT8_ROW, "--scale-optimization", "dualround"),
         _quantize(format="int8_tensorwise", rounding="learned"), True),
    Mode("NVFP4 learned", "model", (*LEARNED, "--nvfp4"),
         _quantize(format="nvfp4", rounding="learned"), True),
    Mode("MXFP8 learned", "model", (*LEARNED, "--mxfp8"),
         _quantize(format="mxfp8", rounding="learned"), True),
    Mode("hybrid MXFP8", "MXFP8", ("--make-hybrid-mxfp8",), _hybrid()),
    Mode("hybrid MXFP8, scales of a file", "MXFP8",
         ("--make-hybrid-mxfp8", "--tensor-scales", "{FP8}"), _hybrid("FP8")),
    Mode("edit: add and remove", "INT8 ConvRot 256", (
        "--edit-quant", "--save-quant-metadata", "--add-keys",
        "'full_precision_matrix_mult': true", "--remove-keys", "orig_dtype", "--quant-filter",
        "img_attn"), _edit(layers="img_attn", set={"full_precision_matrix_mult": True},
                           remove=("orig_dtype",))),
    Mode("legacy FP8 → comfy_quant", "legacy_fp8", ("--convert-fp8-scaled",), _migrate()),
    Mode("legacy FP8 → comfy_quant, options", "legacy_fp8",
         ("--convert-fp8-scaled", "--full-precision-mm", "--hp-filter", "kept"),
         _migrate(full_precision_matrix_mult=True, hp_filter="kept")),
    Mode("legacy FP8 cleaned, marker 0", "legacy_fp8",
         ("--cleanup-fp8-scaled", "--scaled-fp8-marker", "0"),
         _migrate(to="same", marker=0)),
    Mode("legacy FP8 cleaned, marker 2", "legacy_fp8",
         ("--cleanup-fp8-scaled", "--scaled-fp8-marker", "2"),
         _migrate(to="same", marker=2)),
    Mode("legacy FP8, input scales", "legacy_fp8", ("--legacy_input_add",),
         _migrate(to="same", add_input_scales=True)),
    Mode("legacy INT8 → comfy_quant", "legacy_int8", ("--convert-int8-scaled",
         "--save-quant-metadata"), _migrate()),
    Mode("activation scales", "FP8", (), _calibrate, module="calibrate_activation_scales"),
    Mode("error LoRA, NVFP4", "model",
         (*LEARNED, "--nvfp4", "--extract-lora", "--lora-rank", "8"), _lora, lora=True),
)
# fmt: on
