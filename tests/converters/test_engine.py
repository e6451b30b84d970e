"""File to file and module to module: what is written, kept, reported; what a failing run leaves."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from comfy_kitchen.tensor import QuantizedTensor
from safetensors.torch import load_file as plain_load
from safetensors.torch import save_file
from torch import nn

import roundsmith
import roundsmith.layouts
from roundsmith import Recipe, load_file, quantize_file, quantize_module
from roundsmith.converters import Progress
from roundsmith.errors import Cancelled, CheckpointError, DestinationExistsError, RecipeError

from ..contract import bits, snr, weights


@pytest.fixture
def flux(tmp_path: Path) -> Path:
    """A file with the names of a Flux, small."""
    tensors = {
        "img_in.weight": weights("random", 256, 64).bfloat16(),
        "guidance_in.in_layer.weight": weights("random", 256, 256).bfloat16(),
        "vector_in.in_layer.weight": weights("random", 256, 768).bfloat16(),
        "double_blocks.0.img_attn.qkv.weight": weights("random", 768, 256).bfloat16(),
        "double_blocks.0.img_attn.qkv.bias": torch.randn(768).bfloat16(),
        "double_blocks.0.img_attn.norm.query_norm.scale": torch.ones(128),
        "single_blocks.0.linear1.weight": weights("outliers", 1792, 256).bfloat16(),
        "single_blocks.0.linear2.weight": weights("random", 250, 1279).half(),
    }
    save_file(tensors, tmp_path / "flux.safetensors", metadata={"modelspec.title": "small"})
    return tmp_path / "flux.safetensors"


def test_high_precision_layers_are_copied_to_the_last_bit(flux: Path, tmp_path: Path) -> None:
    report = quantize_file(flux, tmp_path / "out.safetensors", Recipe(format="nvfp4"))
    before, after = plain_load(flux), plain_load(tmp_path / "out.safetensors")
    kept = {layer.name: layer.reason for layer in report.layers if layer.action == "keep"}
    assert set(kept) == {"img_in", "guidance_in.in_layer", "vector_in.in_layer"}
    assert "img_in" in kept["img_in"] and "flux1" in kept["img_in"]
    for name, tensor in before.items():
        if name.removesuffix(".weight") in kept or not name.endswith(".weight"):
            assert torch.equal(bits(after[name]), bits(tensor)), name
    assert report.preset == "flux1"
    assert "double_blocks" in report.evidence


CASES: list[dict[str, Any]] = [
    *({"format": name} for name in roundsmith.layouts.formats()),
    *({"format": n, "variant": v} for n, f in roundsmith.layouts.formats().items()
      for v in f.variants[1:]),
    *({"format": n, "form": v} for n, f in roundsmith.layouts.formats().items()
      for v in f.forms[1:]),
    {"format": "int8_tensorwise", "scaling": "tensor"},
    {"format": "int8_tensorwise", "convrot": "auto"},
    {"format": "float8_e4m3fn", "input_scale": "weight", "full_precision_matrix_mult": True},
    {"format": "float8_e4m3fn", "header": False},
    {"format": "nvfp4", "rules": [{"match": "linear2", "format": "mxfp8"}], "heuristics": True},
]  # fmt: skip


@pytest.mark.parametrize("settings", CASES, ids=str)
def test_size_is_known_beforehand_and_the_recipe_comes_back(
    settings: dict[str, object], flux: Path, tmp_path: Path
) -> None:
    """To the byte, whatever is stored; and the file says how to make it again."""
    recipe, out = Recipe(rounding="nearest", **settings), tmp_path / "out.safetensors"
    plan = roundsmith.plan_file(flux, recipe)
    report = quantize_file(flux, out, recipe)
    assert out.stat().st_size == plan.size
    assert sum(t.bytes_after for t in plan.tensors) == report.bytes_after
    assert Recipe.load(out) == recipe


def test_chunks_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However a tensor is cut into rows, the same bytes come out."""
    w = weights("outliers", 640, 512)
    save_file({"a.weight": w}, tmp_path / "in.safetensors")
    plain = ("float8_e4m3fn", "int8_blockwise", "nvfp4", "mxfp8")
    cases: list[tuple[str, dict[str, object]]] = [(name, {}) for name in plain]
    cases += [("int8_tensorwise", {"convrot": 64}), ("nvfp4", {"scale_search": True})]
    for name, options in cases:
        files = []
        for size in (1 << 12, 1 << 30):
            monkeypatch.setattr("roundsmith.converters.rows._CPU_CHUNK", size)
            recipe = Recipe(format=name, preset=None, **options)
            quantize_file(tmp_path / "in.safetensors", tmp_path / f"{size}", recipe, overwrite=True)
            files.append((tmp_path / f"{size}").read_bytes())
        assert files[0] == files[1], name


def test_nonfinite_weights_are_kept_and_named(flux: Path, tmp_path: Path) -> None:
    tensors = plain_load(flux)
    tensors["double_blocks.0.img_attn.qkv.weight"][700, 3] = torch.nan
    tensors["single_blocks.0.linear2.weight"][0, :2] = torch.inf
    save_file(tensors, tmp_path / "bad.safetensors")
    for name in roundsmith.layouts.formats():
        if name in ("int8_blockwise", "float8_e4m3fn_blockwise"):
            continue  # linear2 suits neither; the others see both
        out = tmp_path / f"{name}.safetensors"
        report = quantize_file(tmp_path / "bad.safetensors", out, Recipe(format=name))
        kept = {x.name: x.reason for x in report.layers if x.action == "keep"}
        assert "1 weights are NaN or Inf" in kept["double_blocks.0.img_attn.qkv"], name
        assert any("double_blocks.0.img_attn.qkv" in warning for warning in report.warnings)
        stored = plain_load(out)["double_blocks.0.img_attn.qkv.weight"]
        assert torch.equal(bits(stored), bits(tensors["double_blocks.0.img_attn.qkv.weight"]))
        shape = tuple(tensors["single_blocks.0.linear2.weight"].shape)
        fmt = roundsmith.layouts.get_format(name)
        if fmt.fit(fmt.bind(features=shape[1]), shape).spec is not None:
            assert "2 weights are NaN or Inf" in kept["single_blocks.0.linear2"], name


def test_an_existing_destination_is_refused(flux: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"precious")
    with pytest.raises(DestinationExistsError, match=r"out\.safetensors"):
        quantize_file(flux, out)
    assert out.read_bytes() == b"precious"
    quantize_file(flux, out, overwrite=True)
    assert load_file(out)
    with pytest.raises(CheckpointError, match="is the source itself"):
        quantize_file(out, out, overwrite=True)


def test_cancel_leaves_nothing(flux: Path, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    with pytest.raises(Cancelled, match="nothing was written"):
        quantize_file(flux, tmp_path / "out.safetensors", cancel=lambda: True)

    def fail(progress: Progress) -> None:
        if progress.index == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_file(flux, tmp_path / "out.safetensors", progress=fail)
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["nvfp4", "float8_e4m3fn"])
def test_cancel_is_quick_in_a_long_layer(name: str, tmp_path: Path) -> None:
    save_file({"a.weight": torch.randn(4096, 2048)}, tmp_path / "in.safetensors")
    began: list[float] = []

    def cancel() -> bool:
        if not began:
            began.append(time.monotonic())
        return time.monotonic() - began[0] > 0.3

    recipe = Recipe(format=name, scale_search=True, preset=None)
    with pytest.raises(Cancelled, match="nothing was written"):
        quantize_file(tmp_path / "in.safetensors", tmp_path / "out", recipe, cancel=cancel)
    assert time.monotonic() - began[0] < 1.5


def test_a_killed_run_leaves_no_file_and_the_next_clears_up(flux: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    code = (
        "import os, signal, sys, roundsmith\n"
        "def die(p):\n"
        "    if p.index == 4: os.kill(os.getpid(), 9)\n"
        "roundsmith.quantize_file(sys.argv[1], sys.argv[2], progress=die)\n"
    )
    if os.name == "nt":
        code = code.replace("os.kill(os.getpid(), 9)", "os._exit(9)")
    run = subprocess.run([sys.executable, "-c", code, str(flux), str(out)], check=False)
    assert run.returncode != 0
    assert not out.exists()
    assert [p for p in tmp_path.iterdir() if "roundsmith-partial" in p.name]
    quantize_file(flux, out)
    assert not [p for p in tmp_path.iterdir() if "roundsmith-partial" in p.name]


def test_progress_names_layers_and_reaches_the_end(flux: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    quantize_file(flux, tmp_path / "out.safetensors", progress=seen.append)
    assert {"img_in", "single_blocks.0.linear1"} <= {p.layer for p in seen}
    assert seen[-1].bytes_done == seen[-1].bytes_total
    assert [p.bytes_done for p in seen] == sorted(p.bytes_done for p in seen)


def test_shards_and_prefixes(flux: Path, tmp_path: Path) -> None:
    tensors = {f"model.diffusion_model.{k}": v for k, v in plain_load(flux).items()}
    folder = tmp_path / "shards"
    folder.mkdir()
    weight_map = {}
    for number, names in enumerate((list(tensors)[::2], list(tensors)[1::2])):
        file = f"model-{number}.safetensors"
        save_file({k: tensors[k] for k in names}, folder / file)
        weight_map.update(dict.fromkeys(names, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    report = quantize_file(folder, tmp_path / "whole.safetensors", Recipe(format="int8"))
    assert report.preset == "flux1"
    alone = quantize_file(flux, tmp_path / "alone.safetensors", Recipe(format="int8"))
    assert report.quantized == alone.quantized == 3
    whole = plain_load(tmp_path / "whole.safetensors")
    single = plain_load(tmp_path / "alone.safetensors")
    assert whole.keys() == {f"model.diffusion_model.{k}" for k in single}
    for name, tensor in single.items():
        assert torch.equal(bits(whole[f"model.diffusion_model.{name}"]), bits(tensor))


def test_quantized_sources_are_decoded_before_they_are_rounded_again(
    flux: Path, tmp_path: Path
) -> None:
    """Through MXFP8 (padded, blocked scales) to INT8: the error of one step, not garbage."""
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    quantize_file(flux, first, Recipe(format="mxfp8"))
    report = quantize_file(first, second, Recipe(format="int8"))
    assert report.quantized == 3
    original = plain_load(flux)
    between, after = load_file(first), load_file(second)
    for layer in ("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear2.weight"):
        assert after[layer].shape == original[layer].shape
        assert snr(between[layer].dequantize(), after[layer].dequantize()) > 35
    assert not [k for k in plain_load(second) if k.endswith("weight_scale_2")]


def test_layers_the_recipe_keeps_stay_as_the_source_has_them(flux: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    quantize_file(flux, first, Recipe(format="nvfp4"))
    rules = [{"match": "single_blocks", "skip": True}]
    report = quantize_file(first, second, Recipe(format="int8", rules=rules))
    reasons = {x.name: x.reason for x in report.layers}
    assert "already nvfp4" in reasons["single_blocks.0.linear1"]
    old, new = plain_load(first), plain_load(second)
    for suffix in ("weight", "weight_scale", "weight_scale_2", "comfy_quant"):
        name = f"single_blocks.0.linear1.{suffix}"
        assert torch.equal(bits(old[name]), bits(new[name]))


def test_the_same_recipe_makes_the_same_file(flux: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        quantize_file(flux, tmp_path / name, Recipe(format="mxfp8", scale_search=True))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_unusable_device_is_named(flux: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="device 'cuda:77' is not usable"):
        quantize_file(flux, tmp_path / "out", Recipe(device="cuda:77"))


def test_a_full_gpu_moves_the_run_to_the_cpu(
    flux: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated: the device pretends to be a GPU without room."""
    from roundsmith.converters import engine

    real = engine._Run.carry_out

    def carry_out(run: engine._Run, sink: object) -> None:
        if run.rows.device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(run, sink)

    monkeypatch.setattr(engine, "rounding_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(engine._Run, "carry_out", carry_out)
    report = quantize_file(flux, tmp_path / "out.safetensors")
    assert report.quantized == 3
    assert any("ran out of memory: rounded on the CPU" in text for text in report.warnings)


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("name", list(roundsmith.layouts.formats()))
def test_modules_run_at_once(name: str, inference: bool) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(256, 512), nn.GELU(), nn.LayerNorm(512), nn.Linear(512, 128))
    x = torch.randn(4, 256)
    expected = module(x)
    with torch.inference_mode(inference):
        same, report = quantize_module(module, Recipe(format=name, preset=None))
        assert same is module
        assert report.quantized == 2
        assert isinstance(module[0].weight.data, QuantizedTensor)
        with torch.no_grad():
            # Two layers of 20 dB each, at worst; where inputs have 4 bits as well, of 15.
            assert snr(expected, module(x)) > (10 if name == "convrot_w4a4" else 15)


def test_a_module_without_linears_says_so() -> None:
    _, report = quantize_module(nn.Sequential(nn.Conv2d(3, 3, 3)), Recipe(preset=None))
    assert report.quantized == 0
    assert any("nothing was quantized" in warning for warning in report.warnings)
