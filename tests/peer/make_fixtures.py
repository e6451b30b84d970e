"""Write ``files/``: checkpoints made by convert-to-quant and the weights its decoders read there.

Run by hand, in an environment of its own that has the peer (roundsmith is not needed):

    pip install torch convert-to-quant==1.3.4 comfy-kitchen packaging numpy scipy
    pip install --no-deps triton            # its INT8 modes import it, on a CPU too
    python make_fixtures.py                 # every case, or those named

Each case is ``<case>.safetensors`` as the peer's command line wrote it and ``<case>.npz``, the
float32 weights of its quantized layers by layer name; a case that edits another's file has its
weights. The sources are small random matrices with the spread of trained ones: rows and columns of
differing size, some outliers. Same seed, same files.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from convert_to_quant.comfy.quant_ops import (
    BlockWiseFP8Layout,
    BlockWiseINT8Layout,
    RowWiseFP8Layout,
    TensorCoreFP8Layout,
    TensorWiseINT8Layout,
)
from convert_to_quant.converters.mxfp8_converter import MXFP8Converter
from convert_to_quant.converters.nvfp4_converter import NVFP4Converter
from convert_to_quant.utils.convrot import build_hadamard, rotate_activation
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sources import by_blocks, matrix
from torch import Tensor

FILES = Path(__file__).parent / "files"
Tensors = dict[str, Tensor]


# ---- sources -------------------------------------------------------------------------------------


def model(shapes: Mapping[str, tuple[int, int]], dtype: torch.dtype = torch.bfloat16) -> Tensors:
    """A state dict of linear layers with biases, a norm, and a tensor that is no weight."""
    tensors: Tensors = {}
    for seed, (name, (m, n)) in enumerate(shapes.items()):
        tensors[f"{name}.weight"] = matrix(seed, m, n).to(dtype)
        tensors[f"{name}.bias"] = matrix(100 + seed, m, 1)[:, 0].to(dtype)
    tensors["double_blocks.0.img_attn.norm.query_norm.scale"] = torch.ones(16, dtype=dtype)
    tensors["single_blocks.0.norm.weight"] = torch.ones(32, dtype=dtype)
    return tensors


def rows() -> Tensors:
    """Shapes no block divides, and one row; an all-zero layer."""
    tensors = model(
        {
            "double_blocks.0.img_attn.qkv": (96, 64),
            "double_blocks.0.img_attn.proj": (64, 96),
            "img_in": (50, 40),
            "final_layer.linear": (1, 64),
        }
    )
    return {**tensors, "single_blocks.0.linear2.weight": torch.zeros(64, 64).bfloat16()}


def rows_nonzero() -> Tensors:
    """``rows`` without the all-zero layer, where some of the peer's modes crash or write NaN."""
    tensors = rows()
    del tensors["single_blocks.0.linear2.weight"]
    return tensors


def zeros() -> Tensors:
    """All-zero layers: in INT8 row mode the peer gives them block scales, none at all below 128."""
    names = {"double_blocks.0.img_mod.lin": 64, "double_blocks.0.txt_mod.lin": 128}
    return {f"{name}.weight": torch.zeros(size, size).bfloat16() for name, size in names.items()}


def blocks() -> Tensors:
    """Block grids 2x1, 1x2 and 1x1 at block 64, a shape no block divides, and one row."""
    return model(
        {
            "double_blocks.0.img_attn.qkv": (128, 64),
            "double_blocks.0.img_attn.proj": (64, 128),
            "single_blocks.0.linear1": (64, 64),
            "img_in": (50, 40),
            "final_layer.linear": (1, 64),
        }
    )


def large_blocks() -> Tensors:
    """A block grid 2x1 at the default block 128."""
    return model({"double_blocks.0.img_mlp.0": (256, 128)})


def rotated() -> Tensors:
    """Inputs that groups of 256, of 64 and none divide, and one row."""
    return model(
        {
            "double_blocks.0.img_mlp.2": (24, 256),
            "double_blocks.0.img_attn.proj": (48, 64),
            "img_in": (50, 40),
            "final_layer.linear": (1, 256),
        }
    )


def widest() -> Tensors:
    """Inputs for the dynamic group: 1024 and 512."""
    return model({"double_blocks.0.img_mlp.2": (8, 1024), "double_blocks.0.img_mlp.0": (8, 512)})


def mixed() -> Tensors:
    """One layer for each of three formats."""
    return model(
        {
            "double_blocks.0.img_mlp.2": (24, 128),
            "double_blocks.0.img_attn.proj": (48, 64),
            "img_in": (64, 96),
        }
    )


def text_encoder() -> Tensors:
    """A T5: encoder, embedding, and a decoder, which the peer drops."""
    return {
        "encoder.block.0.layer.0.SelfAttention.q.weight": matrix(0, 64, 64).bfloat16(),
        "encoder.block.0.layer.0.SelfAttention.k.weight": matrix(1, 64, 96).bfloat16(),
        "shared.weight": matrix(2, 32, 64).bfloat16(),
        "decoder.block.0.layer.0.SelfAttention.q.weight": matrix(3, 32, 32).bfloat16(),
    }


def legacy_fp8() -> Tensors:
    """A legacy ``fp8_scaled`` model of older tools: every scale shape, and dummy scales."""
    tensors: Tensors = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for seed, kind in enumerate(("tensor", "one", "row", "block", "block3d")):
        shape = (64, 128) if "block" in kind else (32, 48)
        scaled, scale = by_blocks(matrix(seed, *shape), kind, 448.0)
        layer = f"blocks.{seed}.{kind}"
        tensors[f"{layer}.weight"] = scaled.clamp(-448, 448).to(torch.float8_e4m3fn)
        tensors[f"{layer}.scale_weight"] = scale
    tensors["blocks.0.tensor.scale_input"] = torch.tensor(1.0)
    tensors["blocks.1.one.scale_input"] = torch.tensor(0.25)
    tensors["blocks.0.kept.weight"] = matrix(9, 32, 32).bfloat16()
    tensors["blocks.0.kept.scale_weight"] = torch.tensor(1.0)
    return tensors


def legacy_int8() -> Tensors:
    """A legacy INT8 model: ``scale_weight`` of every shape that says how it was made."""
    tensors: Tensors = {}
    shapes = {
        "tensor": (32, 48),
        "row": (32, 48),
        "row_square": (32, 32),
        "column": (32, 48),
        "column_square": (32, 32),
        "block": (64, 128),
        "lode": (64, 128),
    }
    for seed, (name, shape) in enumerate(shapes.items()):
        scaled, scale = by_blocks(matrix(seed, *shape), name.partition("_")[0], 127.0)
        tensors[f"blocks.0.{name}.weight"] = scaled.round().clamp(-127, 127).to(torch.int8)
        tensors[f"blocks.0.{name}.scale_weight"] = scale
    return tensors


# ---- cases: what the peer was asked --------------------------------------------------------------

SIMPLE = ["--comfy_quant", "--save-quant-metadata", "--manual_seed", "0", "--simple"]
LEARNED = ["--comfy_quant", "--save-quant-metadata", "--manual_seed", "0", "--num_iter", "10"]
INT8_ROW = ["--int8", "--scaling_mode", "row"]
INT8_BLOCK = ["--int8", "--scaling_mode", "block", "--heur", "--block_size"]
MIXED = [
    *("--custom-layers", "img_mlp", "--custom-type", "int8"),
    *("--custom-scaling-mode", "row", "--custom-simple"),
    *("--exclude-layers", "img_in", "--fallback", "mxfp8", "--fallback-simple"),
]
LAYER_CONFIG = {
    "img_attn.qkv": {"format": "float8_e4m3fn_rowwise", "simple": True},
    "img_attn.proj": {
        "format": "float8_e4m3fn_block3d",
        "scaling_mode": "block3d",
        "block_size": 64,
        "simple": True,
    },
    "single_blocks.0.linear1": {"format": "mxfp8", "simple": True},
    "img_in": {
        "format": "float8_e4m3fn_blockwise",
        "scaling_mode": "row",
        "block_size": 64,
        "simple": True,
    },
    "final_layer": {"skip": True},
}
Source = Callable[[], Tensors] | str  # a source, or the case whose output is the input
CASES: dict[str, tuple[Source, list[str]]] = {
    "fp8_tensor": (rows, SIMPLE),
    "fp8_tensor_no_header": (rows, ["--comfy_quant", "--manual_seed", "0", "--simple"]),
    "fp8_tensor_full_precision": (rows, [*SIMPLE, "--full_precision_matrix_mult", "--input_scale"]),
    "fp8_row": (rows, [*SIMPLE, "--scaling_mode", "row"]),
    "fp8_block64": (blocks, [*SIMPLE, "--scaling_mode", "block", "--block_size", "64"]),
    "fp8_block128": (large_blocks, [*SIMPLE, "--scaling_mode", "block"]),
    "fp8_block3d": (blocks, [*SIMPLE, "--scaling_mode", "block3d", "--block_size", "64"]),
    "int8_tensor": (rows_nonzero, [*SIMPLE, "--int8", "--scaling_mode", "tensor"]),
    "int8_row": (rows_nonzero, [*SIMPLE, *INT8_ROW]),
    "int8_row_all_zero": (zeros, [*SIMPLE, *INT8_ROW]),
    "int8_convrot256": (rotated, [*SIMPLE, *INT8_ROW, "--convrot"]),
    "int8_convrot16": (
        rotated,
        [*SIMPLE, *INT8_ROW, "--convrot", "--convrot-group-size", "16"],
    ),
    "int8_convrot_dynamic": (widest, [*SIMPLE, *INT8_ROW, "--convrot", "--dynamic-convrot"]),
    "int8_block64": (blocks, [*SIMPLE, *INT8_BLOCK, "64"]),
    "int8_block128": (large_blocks, [*SIMPLE, *INT8_BLOCK, "128"]),
    "nvfp4": (rows_nonzero, [*SIMPLE, "--nvfp4"]),
    "nvfp4_learned": (rows, [*LEARNED, "--nvfp4"]),
    "mxfp8": (rows, [*SIMPLE, "--mxfp8"]),
    "hybrid_mxfp8": ("mxfp8", ["--make-hybrid-mxfp8"]),
    "t5_fp8_tensor": (text_encoder, [*SIMPLE, "--t5xxl"]),
    "t5_fp8_row": (text_encoder, [*SIMPLE, "--t5xxl", "--scaling_mode", "row"]),
    "t5_int8_row": (text_encoder, [*SIMPLE, "--t5xxl", *INT8_ROW]),
    "mixed": (mixed, [*SIMPLE, *MIXED]),
    "layer_config": (blocks, [*SIMPLE, "--layer-config", "LAYER_CONFIG"]),
    "edited": (
        "int8_convrot256",
        ["--edit-quant", "--save-quant-metadata", "--add-keys", "'note': 'edited'"],
    ),
    "legacy_fp8": (legacy_fp8, ["--legacy_input_add"]),
    "legacy_fp8_cleaned": ("legacy_fp8", ["--cleanup-fp8-scaled", "--scaled-fp8-marker", "2"]),
    "legacy_fp8_converted": ("legacy_fp8", ["--convert-fp8-scaled"]),
    "legacy_int8_converted": (legacy_int8, ["--convert-int8-scaled"]),
}


# ---- the peer's decoders -------------------------------------------------------------------------


def decode(conf: Mapping[str, Any], weight: Tensor, scales: Mapping[str, Tensor]) -> Tensor:
    """What the peer's decoder makes of a layer, float32.

    The decoder is the one of what the peer did, which the scale's shape shows. Its JSON says
    otherwise where a layer did not fit the blocks, where a layer config named another format, and
    in legacy INT8 conversions.
    """
    scale = scales["weight_scale"]
    m, n = weight.shape
    if scale.dtype in (torch.uint8, torch.float8_e4m3fn):  # blocked scales
        if "weight_scale_2" in scales:
            w = NVFP4Converter()._dequantize_pytorch(
                weight, scales["weight_scale_2"], scale, torch.float32
            )
        else:
            w = MXFP8Converter()._dequantize_pytorch(weight, scale, torch.float32)
        m, n = conf.get("orig_shape", w.shape)
        return w[:m, :n]
    if scale.ndim == 3 or (scale.ndim == 2 and scale.shape[1] > 1 and scale.shape[0] == m):
        # Scale groups within rows: 1.3.4 has no layout for them, but older versions multiplied so.
        return weight.float() * scale.reshape(m, -1).repeat_interleave(n // scale.shape[1], 1)
    if weight.dtype == torch.float8_e4m3fn:
        if scale.ndim == 2:
            return BlockWiseFP8Layout.dequantize(weight, scale, m // scale.shape[0], torch.float32)
        layout = RowWiseFP8Layout if scale.ndim else TensorCoreFP8Layout
        return layout.dequantize(weight, scale, torch.float32)
    if not weight.any():
        return weight.float()  # an all-zero row-wise layer, whose scales have a shape of their own
    if scale.ndim == 2 and scale.shape[1] * m == scale.shape[0] * n:
        return BlockWiseINT8Layout.dequantize(
            weight, scale, m // scale.shape[0], is_weight=True, orig_dtype=torch.float32
        )
    w = TensorWiseINT8Layout.dequantize(weight, scale, is_weight=True, orig_dtype=torch.float32)
    if conf.get("convrot"):
        group = conf["convrot_groupsize"]
        w = rotate_activation(w, build_hadamard(group, dtype=torch.float32), group)
    return w


def expected(path: Path) -> dict[str, np.ndarray]:
    """Float32 weights of the quantized layers of a checkpoint, by layer."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        header = json.loads((file.metadata() or {}).get("_quantization_metadata", "{}"))
    confs: dict[str, dict[str, Any]] = dict(header.get("layers", {}))
    for name, tensor in tensors.items():
        layer, _, suffix = name.rpartition(".")
        if suffix == "comfy_quant":
            confs[layer] = json.loads(bytes(tensor.tolist())) | confs.get(layer, {})
        elif suffix == "scale_weight" and tensors[f"{layer}.weight"].dtype.itemsize == 1:
            confs[layer] = {}
    weights = {}
    for layer, conf in confs.items():
        old = tensors.get(f"{layer}.scale_weight")
        names = [k for k in tensors if k.startswith(f"{layer}.weight_")]
        scales = {k.removeprefix(f"{layer}."): tensors[k] for k in names}
        weight = tensors[f"{layer}.weight"]
        weights[layer] = decode(conf, weight, scales if old is None else {"weight_scale": old})
    return {layer: w.contiguous().numpy() for layer, w in weights.items()}


def make(case: str, folder: Path) -> None:
    """Run the peer for one case and write its two files."""
    source, options = CASES[case]
    if isinstance(source, str):
        path = FILES / f"{source}.safetensors"
    else:
        path = folder / "source.safetensors"
        save_file(source(), path, {"modelspec.title": "a small model"})
    config = folder / "layers.json"
    config.write_text(json.dumps(LAYER_CONFIG))
    options = [str(config) if o == "LAYER_CONFIG" else o for o in options]
    out = FILES / f"{case}.safetensors"
    out.unlink(missing_ok=True)
    command = [str(Path(sys.executable).with_name("ctq")), "-i", str(path), "-o", str(out)]
    run = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    if not out.is_file():
        raise SystemExit(f"{case}: the peer wrote nothing\n{run.stdout}\n{run.stderr}")
    weights = expected(out)
    if isinstance(source, str):
        with np.load(FILES / f"{source}.npz") as same:
            assert all(np.array_equal(weights[layer], same[layer]) for layer in same.files)
    else:
        np.savez_compressed(FILES / f"{case}.npz", **weights)


def main() -> None:
    """Make the cases named on the command line, or all."""
    FILES.mkdir(exist_ok=True)
    for case in sys.argv[1:] or CASES:
        with tempfile.TemporaryDirectory() as folder:
            make(case, Path(folder))
        sizes = [path.stat().st_size for path in sorted(FILES.glob(f"{case}.*"))]
        print(f"{case:28}", *(f"{size:7}" for size in sizes))


if __name__ == "__main__":
    main()
