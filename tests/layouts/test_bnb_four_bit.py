"""bitsandbytes' four-bit formats, against bitsandbytes itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file as load_plain
from safetensors.torch import save_file
from torch import Tensor

from roundsmith import Recipe, load_file, quantize_file
from roundsmith.converters.inspecting import inspect_file
from roundsmith.converters.rounding import nearest
from roundsmith.errors import FormatError, RecipeError
from roundsmith.layouts import Spec, formats, get_format

from ..contract import KINDS, FormatContract, bits, snr, weights

TYPES = ("nf4", "fp4")
ODD = ((7, 250), (33, 96), (3, 1000), (5, 7), (1, 1), (129, 65))


def reference(w: Tensor, quant_type: str, size: int) -> tuple[Tensor, bnb.QuantState]:
    return bnb.quantize_4bit(w, blocksize=size, quant_type=quant_type)


def values(packed: Tensor, state: bnb.QuantState) -> Tensor:
    """What bitsandbytes' codes, table and scales stand for.

    Its own ``dequantize_4bit`` (0.50.2) reads scales of other blocks where blocks cross rows, on
    CPUs with AVX512.
    """
    absmax = state.absmax
    if state.nested:
        absmax = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
    bytes_ = packed.flatten().view(torch.uint8)
    codes = torch.stack([bytes_ >> 4, bytes_ & 15], dim=1).flatten()[: state.shape.numel()].long()
    scales = absmax.repeat_interleave(state.blocksize)[: len(codes)]
    return (state.code[codes] * scales).reshape(state.shape)


def ours(w: Tensor, quant_type: str, size: int = 64, form: str | None = None) -> dict[str, Tensor]:
    fmt = get_format(f"bnb_{quant_type}")
    shape = (w.shape[0], w.shape[1])
    spec = fmt.fit(fmt.bind(group_size=size, form=form), shape).spec
    assert spec is not None and spec.group_size == size
    codes, scales = nearest(w.clone(), fmt.grid, fmt.geometry(spec))
    return {"weight": fmt.pack_codes(codes, spec), **fmt.pack_scales(scales, spec, shape)}


class _AgainstBitsandbytes(FormatContract):
    """``kitchen`` is bitsandbytes here: the contract compares all kinds of weights with it."""

    def kitchen(self, w: Tensor, spec: Spec) -> dict[str, Tensor] | None:
        packed, state = reference(w, self.FORMAT.removeprefix("bnb_"), spec.group_size or 64)
        return {"weight": packed.flatten(), "absmax": state.absmax}


class TestNF4(_AgainstBitsandbytes):
    FORMAT = "bnb_nf4"
    MIN_SNR = 20.0


class TestNF4Blocks128(_AgainstBitsandbytes):
    FORMAT = "bnb_nf4"
    OPTIONS = {"group_size": 128}  # noqa: RUF012
    MIN_SNR = 19.4


class TestFP4(_AgainstBitsandbytes):
    FORMAT = "bnb_fp4"
    MIN_SNR = 18.0


class TestAF4(FormatContract):
    FORMAT = "bnb_af4"
    MIN_SNR = 20.0


class TestNF4AsBitsandbytesKeepsIt(FormatContract):
    FORMAT = "bnb_nf4"
    OPTIONS = {"form": "bitsandbytes"}  # noqa: RUF012
    MIN_SNR = 20.0

    def test_through_a_file(self, tmp_path: Path) -> None:
        """No JSON in this form: what the tensors say is tested below."""


# ---- the same as bitsandbytes --------------------------------------------------------------------


@pytest.mark.parametrize("quant_type", [*TYPES, "af4"])
def test_tables_are_bitsandbytes_own(quant_type: str) -> None:
    grid = get_format(f"bnb_{quant_type}").grid
    expected = bnb.get_4bit_type(quant_type, device="cpu")
    assert torch.equal(grid.decode(torch.arange(16)), expected)


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("quant_type", TYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_codes_and_scales_are_bitsandbytes_to_the_last_bit(
    kind: str, quant_type: str, size: int
) -> None:
    w = weights(kind)
    packed, state = reference(w, quant_type, size)
    found = ours(w, quant_type, size)
    assert torch.equal(found["weight"], packed.flatten())
    assert torch.equal(bits(found["absmax"]), bits(state.absmax))


@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("quant_type", TYPES)
@pytest.mark.parametrize("shape", ODD, ids=str)
def test_blocks_that_straddle_rows_and_a_short_last_one(
    shape: tuple[int, int], quant_type: str, size: int
) -> None:
    w = weights("random", *shape)
    packed, state = reference(w, quant_type, size)
    found = ours(w, quant_type, size)
    assert torch.equal(bits(found["absmax"]), bits(state.absmax))
    whole = w.numel() // size * size // 2  # of the last block bitsandbytes pads the odd byte too
    assert torch.equal(found["weight"][:whole], packed.flatten()[:whole])
    fmt = get_format(f"bnb_{quant_type}")
    spec = fmt.bind(group_size=size)
    decoded = fmt.decode(found, fmt.conf(spec, shape))
    assert torch.equal(decoded, values(packed, state))


def test_the_even_element_is_the_high_nibble() -> None:
    w = torch.zeros(1, 64)
    w[0, 0], w[0, 1] = 1.0, -1.0
    assert ours(w, "nf4")["weight"][0] == 0xF0


# ---- files ---------------------------------------------------------------------------------------

LAYER = "blocks.0.fc"


def written_by_bitsandbytes(
    path: Path, w: Tensor, quant_type: str = "nf4", nested: bool = False, **options: Any
) -> Tensor:
    """A file as bitsandbytes' own state dict saves one; returns the values in it."""
    packed, state = bnb.quantize_4bit(
        w, quant_type=quant_type, compress_statistics=nested, **options
    )
    tensors = {f"{LAYER}.weight.{k}": t for k, t in state.as_dict(packed=True).items()}
    tensors |= {f"{LAYER}.weight": packed, f"{LAYER}.bias": torch.ones(w.shape[0])}
    tensors["blocks.0.norm.weight"] = torch.ones(w.shape[1])
    save_file({k: t.contiguous() for k, t in tensors.items()}, path)
    found = values(packed, state)
    if w.shape[1] % state.blocksize == 0:
        torch.testing.assert_close(found, bnb.dequantize_4bit(packed, state), rtol=1e-6, atol=0)
    return found


FILES = [
    {},
    {"quant_type": "fp4"},
    {"blocksize": 128},
    {"nested": True},
    {"quant_storage": torch.bfloat16},
]


@pytest.mark.parametrize("options", FILES, ids=str)
@pytest.mark.parametrize("shape", [(96, 64), (40, 250)], ids=str)
def test_a_file_of_bitsandbytes_reads_right(
    tmp_path: Path, shape: tuple[int, int], options: dict[str, Any]
) -> None:
    """Packed bytes never reach the product, and the even element is the high nibble."""
    path, w = tmp_path / "foreign.safetensors", weights("outliers", *shape)
    expected = written_by_bitsandbytes(path, w, **options)
    loaded = load_file(path, dtype=torch.float32)
    assert set(loaded) == {f"{LAYER}.weight", f"{LAYER}.bias", "blocks.0.norm.weight"}
    weight = loaded[f"{LAYER}.weight"]
    assert weight.shape == shape
    tolerance = {"rtol": 1e-6, "atol": 0} if options.get("nested") else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(weight.dequantize(), expected, **tolerance)
    x = torch.randn(3, 5, shape[1])
    for inference in (False, True):
        with torch.inference_mode(inference):
            found = torch.nn.functional.linear(x, weight, loaded[f"{LAYER}.bias"])
        torch.testing.assert_close(found, x @ expected.t() + 1, rtol=1e-5, atol=1e-5)


def test_inspection_knows_a_file_of_bitsandbytes(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    written_by_bitsandbytes(path, weights("random", 96, 64), nested=True)
    found = inspect_file(path)
    (layer,) = found.layers
    assert (layer.name, layer.stored_as, layer.shape) == (LAYER, "bnb_nf4", (96, 64))
    assert not found.stock


def test_a_file_of_bitsandbytes_is_decoded_before_it_is_quantized_again(tmp_path: Path) -> None:
    path, out = tmp_path / "foreign.safetensors", tmp_path / "out.safetensors"
    expected = written_by_bitsandbytes(path, weights("random", 96, 64), nested=True)
    quantize_file(path, out, Recipe(format="int8_tensorwise", preset=None))
    again = load_file(out, dtype=torch.float32)[f"{LAYER}.weight"].dequantize()
    assert snr(expected, again) > 40


def test_a_kept_layer_of_bitsandbytes_keeps_its_values(tmp_path: Path) -> None:
    path, out = tmp_path / "foreign.safetensors", tmp_path / "out.safetensors"
    written_by_bitsandbytes(path, weights("random", 96, 64), nested=True)
    report = quantize_file(path, out, Recipe(format="int8_tensorwise", exclude=("fc",)))
    (reason,) = [x.reason for x in report.layers if x.name == LAYER]
    assert "already bnb_nf4" in reason
    before, after = (load_file(p, dtype=torch.float32)[f"{LAYER}.weight"] for p in (path, out))
    assert torch.equal(before.dequantize(), after.dequantize())


@pytest.mark.parametrize("quant_type", TYPES)
def test_bitsandbytes_reads_the_form_that_is_named_after_it(
    tmp_path: Path, quant_type: str
) -> None:
    source, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    w = weights("random", 96, 64)
    save_file({f"{LAYER}.weight": w, f"{LAYER}.bias": torch.zeros(96)}, source)
    recipe = Recipe(format=f"bnb_{quant_type}", form="bitsandbytes", rounding="nearest")
    quantize_file(source, out, recipe)
    tensors = load_plain(out)
    state = {
        k.removeprefix(f"{LAYER}.weight."): t
        for k, t in tensors.items()
        if k.startswith(f"{LAYER}.weight.")
    }
    assert set(tensors) == {
        f"{LAYER}.weight", f"{LAYER}.bias", *(f"{LAYER}.weight.{k}" for k in state)
    }  # fmt: skip
    theirs = bnb.QuantState.from_dict(dict(state), torch.device("cpu"))
    packed, expected = reference(w, quant_type, 64)
    assert torch.equal(tensors[f"{LAYER}.weight"], packed)
    assert theirs.shape == expected.shape and theirs.blocksize == 64
    decoded = bnb.dequantize_4bit(tensors[f"{LAYER}.weight"], theirs)
    assert torch.equal(decoded, bnb.dequantize_4bit(packed, expected).to(torch.bfloat16))
    with safe_open(out, "pt") as file:
        assert "_quantization_metadata" not in file.metadata()
        assert Recipe.from_json(file.metadata()["roundsmith_recipe"]) == recipe
    mine = load_file(out, dtype=torch.bfloat16)[f"{LAYER}.weight"]
    assert torch.equal(mine.dequantize(), decoded)


@pytest.mark.parametrize("form", ["comfy_quant", "bitsandbytes"])
def test_layers_written_in_several_parts(tmp_path: Path, form: str) -> None:
    """More weights than are rounded at once, of an odd width: parts begin amid a row's block."""
    source, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    w = weights("random", 7011, 301)
    save_file({f"{LAYER}.weight": w}, source)
    for search in (False, True):
        recipe = Recipe(format="bnb_nf4", form=form, rounding="nearest", scale_search=search)
        quantize_file(source, out, recipe, overwrite=True)
        decoded = load_file(out, dtype=torch.float32)[f"{LAYER}.weight"].dequantize()
        packed, state = reference(w, "nf4", 64)
        expected = bnb.dequantize_4bit(packed, state)
        if search:
            assert snr(w, decoded) > snr(w, expected) + 0.3
        else:
            assert (decoded != expected).sum() <= 64  # ties within the last block


def test_the_comfy_quant_form_tells_all_in_its_json(tmp_path: Path) -> None:
    source, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file({f"{LAYER}.weight": weights("random", 96, 64)}, source)
    quantize_file(source, out, Recipe(format="nf4", group_size=128))
    tensors = load_plain(out)
    assert set(tensors) == {f"{LAYER}.{s}" for s in ("weight", "absmax", "comfy_quant")}
    conf = json.loads(bytes(tensors[f"{LAYER}.comfy_quant"].tolist()))
    table = conf.pop("quant_map")
    assert torch.equal(torch.tensor(table), bnb.get_4bit_type("nf4", device="cpu"))
    assert conf == {
        "format": "bnb_nf4", "group_size": 128, "quant_type": "nf4", "dtype": "bfloat16",
        "shape": [96, 64],
    }  # fmt: skip


def test_a_table_of_the_files_own_is_heeded() -> None:
    fmt, w = get_format("bnb_nf4"), weights("random", 96, 64)
    parts, conf = ours(w, "nf4"), fmt.conf(fmt.bind(), (96, 64))
    doubled = {**conf, "quant_map": [2 * x for x in conf["quant_map"]]}
    assert torch.equal(fmt.decode(parts, doubled), 2 * fmt.decode(parts, conf))
    assert torch.equal(fmt.read(parts, doubled).dequantize().float(),
                       2 * fmt.read(parts, conf).dequantize().float())  # fmt: skip


def test_the_block_size_is_read_off_where_it_is_not_told() -> None:
    fmt = get_format("bnb_nf4")
    for size in (64, 128):
        for shape in ((96, 64), *ODD):
            w = weights("random", *shape)
            conf = {"format": "bnb_nf4", "shape": list(shape)}
            parts = ours(w, "nf4", size)
            told = fmt.decode(parts, {**conf, "group_size": size})
            assert torch.equal(fmt.decode(parts, conf), told)


def test_what_is_wrong_with_a_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    written_by_bitsandbytes(path, weights("random", 96, 64))
    tensors = load_plain(path)
    state = f"{LAYER}.weight.quant_state.bitsandbytes__nf4"
    cases: dict[str, dict[str, Tensor | None]] = {
        "scales, absmax, are missing": {f"{LAYER}.weight.absmax": None},
        "not those of a weight": {f"{LAYER}.weight": tensors[f"{LAYER}.weight"][:-1].clone()},
        "does not hold JSON": {state: torch.tensor([1, 2], dtype=torch.uint8)},
        "not two numbers": {state: torch.tensor(list(b"{}"), dtype=torch.uint8)},
    }
    for message, change in cases.items():
        damaged = {k: t for k, t in {**tensors, **change}.items() if t is not None}
        save_file(damaged, path)
        with pytest.raises(FormatError, match=message):
            load_file(path)


def test_scales_that_are_quantized_need_all_their_parts(tmp_path: Path) -> None:
    path = tmp_path / "bad.safetensors"
    written_by_bitsandbytes(path, weights("random", 96, 64), nested=True)
    tensors = load_plain(path)
    del tensors[f"{LAYER}.weight.nested_quant_map"]
    save_file(tensors, path)
    with pytest.raises(FormatError, match="nested_quant_map"):
        load_file(path)


def test_forms_and_blocks_that_are_not_there_are_refused() -> None:
    assert [f.id for f in formats().values() if "bitsandbytes" in f.forms] == [
        "bnb_nf4", "bnb_fp4", "bnb_af4"
    ]  # fmt: skip
    for options in ({"form": "gguf"}, {"group_size": 32}):
        with pytest.raises(RecipeError):
            Recipe(format="bnb_nf4", **options)
    with pytest.raises(RecipeError):
        Recipe(format="bnb_af4", group_size=128)
    with pytest.raises(RecipeError):
        Recipe(format="nvfp4", form="bitsandbytes")
