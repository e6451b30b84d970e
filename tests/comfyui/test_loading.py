"""Loaders: every format, any mix of them, legacy and damaged files, whole checkpoints."""

from __future__ import annotations

from pathlib import Path

import comfy.quant_ops as quant_ops
import comfy.sd
import pytest
import torch
from comfy.quant_ops import QuantizedTensor
from safetensors.torch import load_file, save_file

from roundsmith.bridge import loading
from roundsmith.bridge.operations import core_knows
from roundsmith.checkpoints import Checkpoint, read_layers
from roundsmith.converters import Recipe, Rule, quantize_file
from roundsmith.converters import load_file as load_quantized
from roundsmith.errors import CheckpointError, FormatError

from .support import CASES, STOCK, case_id, least_snr, load_ours, load_stock, sample, snr


@pytest.mark.parametrize(("format", "options"), CASES, ids=case_id)
def test_our_loader_samples_every_format(quantized, reference, format, options):
    latent = sample(load_ours(quantized(format, **options)))
    assert snr(reference, latent) > least_snr(format)


@pytest.mark.parametrize(("format", "options"), STOCK, ids=case_id)
def test_stock_loader_agrees_with_kitchens_layout(quantized, reference, demo, format, options):
    """What stock ComfyUI makes of a file is what comfy-kitchen makes of its codes."""
    path = quantized(format, **options)
    stock = sample(load_stock(path))
    assert torch.equal(stock, sample(load_ours(path))), "our loader is to behave as the stock one"
    bare = load_stock(demo)
    with torch.inference_mode():
        for name, tensor in load_quantized(path, dtype=torch.float32).items():
            if isinstance(tensor, QuantizedTensor):
                layer = bare.model.diffusion_model.get_submodule(name.removesuffix(".weight"))
                layer.weight = torch.nn.Parameter(tensor, requires_grad=False)
    assert snr(reference, stock) == pytest.approx(snr(reference, sample(bare)), abs=0.5)


def test_an_unquantized_file_loads_as_with_the_stock_loader(demo, reference):
    assert torch.equal(sample(load_ours(demo)), reference)


MIX = {
    "img_attn": "float8_e4m3fn_rowwise",
    "txt_attn": "float8_e4m3fn_blockwise",
    "img_mlp": "int8_lodewise",
    "txt_mlp": "asym_w4a8_int8",
    "linear1": "nvfp4",
    "linear2": "int8_blockwise",
}


@pytest.fixture(scope="module")
def mixed(demo: Path) -> Path:
    """A file in seven formats: six by rule, the rest INT8."""
    path = demo.with_name("mixed.safetensors")
    rules = tuple(Rule(match=match, format=format) for match, format in MIX.items())
    quantize_file(demo, path, Recipe(format="int8_tensorwise", rules=rules), overwrite=True)
    return path


def test_a_file_mixing_formats(mixed, reference):
    with Checkpoint.open(mixed) as checkpoint:
        found = {conf["format"] for conf in read_layers(checkpoint).layers.values()}
    assert found == {*MIX.values(), "int8_tensorwise"}
    model = load_ours(mixed)
    assert snr(reference, sample(model)) > 20
    layer = model.model.diffusion_model.single_blocks[0].linear2
    assert layer.quant_format == "int8_blockwise"


def test_the_layers_json_is_kept(quantized):
    model = load_ours(quantized("float8_e4m3fn_blockwise"))
    state = model.model.diffusion_model.single_blocks[0].linear1.state_dict()
    assert b'"group_size": 64' in bytes(state["comfy_quant"].tolist())


@pytest.mark.parametrize(
    ("format", "options"),
    [("int8_blockwise", {}), ("int8_tensorwise", {}), ("int8_tensorwise", {"convrot": 64})],
    ids=case_id,
)
def test_a_full_precision_layer_really_decodes(demo, format, options):
    """An INT8 layer marked so must not round its activations, whoever's format it is."""
    path = demo.with_name(f"full-precision-{format}.safetensors")
    recipe = Recipe(format=format, full_precision_matrix_mult=True, **options)
    quantize_file(demo, path, recipe, overwrite=True)
    layer = load_ours(path).model.diffusion_model.single_blocks[0].linear1
    x = torch.randn(2, 5, 256)
    with torch.inference_mode():
        exact = torch.nn.functional.linear(x, layer.weight.dequantize(), layer.bias)
        assert torch.equal(layer(x), exact)


@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("format", ["float8_e4m3fn_block3d", "int8_lodewise", "nvfp4"])
def test_linear_inside_and_outside_inference_mode(quantized, format, inference):
    """torch hands the product to layouts whole inside inference mode, in pieces outside."""
    with torch.inference_mode(inference), torch.no_grad():
        model = loading.load_diffusion_model(str(quantized(format)))
        layer = model.model.diffusion_model.single_blocks[0].linear1
        x = torch.randn(2, 5, 256, generator=torch.Generator().manual_seed(0))
        expected = torch.nn.functional.linear(x, layer.weight.dequantize(), layer.bias)
        for shape in ((2, 5, 256), (10, 256), (1, 2, 5, 256)):
            got = layer(x.reshape(shape))
            assert got.shape == (*shape[:-1], 1792)
            assert snr(expected.reshape(-1), got.reshape(-1)) > 35


def test_wild_one_dimensional_int8_scales_are_read_per_row(quantized, demo, reference):
    """In ComfyUI's own loader they broadcast along the wrong axis without a word."""
    tensors = load_file(quantized("int8_tensorwise"))
    tensors = {
        name: t.flatten() if name.endswith("weight_scale") else t for name, t in tensors.items()
    }
    path = demo.with_name("one-dimensional.safetensors")
    save_file(tensors, path)
    assert snr(reference, sample(load_ours(path))) > 32


def test_legacy_fp8_scaled(demo, reference):
    """Marker, scale_weight, and a high-precision layer that carries a dummy scale."""
    tensors = load_file(demo)
    for name in [n for n in tensors if n.endswith("img_mlp.0.weight")]:
        weight = tensors[name].float()
        scale = weight.abs().max() / 448
        tensors[name] = (weight / scale).to(torch.float8_e4m3fn)
        tensors[name.replace(".weight", ".scale_weight")] = scale
    tensors["img_in.scale_weight"] = torch.tensor(7.0)
    tensors["scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    path = demo.with_name("legacy.safetensors")
    save_file(tensors, path)
    model = load_ours(path)
    assert isinstance(
        model.model.diffusion_model.double_blocks[0].img_mlp[0].weight, QuantizedTensor
    )
    assert not isinstance(model.model.diffusion_model.img_in.weight, QuantizedTensor)
    assert snr(reference, sample(model)) > 32


def test_a_legacy_text_encoder_leaves_other_layers_alone(tmp_path):
    """Only the layers its marker converted are looked at; an INT8 one keeps JSON and scale."""
    conf = torch.tensor(list(b'{"format": "int8_tensorwise"}'), dtype=torch.uint8)
    for name in ("model.diffusion_model.x", "te.y"):  # beside the marker's prefix, and under it
        tensors = {
            "te.scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn),
            "te.fp8.weight": torch.ones(16, 16).to(torch.float8_e4m3fn),
            "te.fp8.scale_weight": torch.tensor(2.0),
            "te.high.weight": torch.ones(16, 16),
            "te.high.scale_weight": torch.tensor(7.0),
            f"{name}.weight": torch.ones(16, 16, dtype=torch.int8),
            f"{name}.weight_scale": torch.full((16, 1), 0.5),
            f"{name}.comfy_quant": conf,
        }
        path = tmp_path / f"{name}.safetensors"
        save_file(tensors, path)
        state = loading.read_state_dict(str(path))
        assert state.formats == {"te.fp8": "float8_e4m3fn", name: "int8_tensorwise"}
        assert torch.equal(state.tensors[f"{name}.weight_scale"], torch.full((16, 1), 0.5))
        assert "te.high.weight_scale" not in state.tensors


def test_damaged_and_foreign_files_are_named(demo, quantized):
    short = demo.with_name("short.safetensors")
    short.write_bytes(demo.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match=r"short\.safetensors"):
        load_ours(short)
    tensors = load_file(quantized("mxfp8"))
    name = next(n for n in tensors if n.endswith("weight_scale"))
    tensors[name] = tensors[name][:64]
    broken = demo.with_name("broken.safetensors")
    save_file(tensors, broken)
    with pytest.raises(FormatError, match=name.removesuffix(".weight_scale")):
        load_ours(broken)
    stranger = demo.with_name("stranger.safetensors")
    save_file({"hello.weight": torch.zeros(2, 2)}, stranger)
    with pytest.raises(CheckpointError, match="does not recognise"):
        load_ours(stranger)


def test_an_unknown_format_is_named_with_its_layer(demo, quantized):
    tensors = load_file(quantized("float8_e4m3fn"))
    name = next(n for n in tensors if n.endswith("comfy_quant"))
    tensors[name] = torch.tensor(list(b'{"format": "float3_mystery"}'), dtype=torch.uint8)
    path = demo.with_name("mystery.safetensors")
    save_file(tensors, path)
    with pytest.raises(FormatError, match=r"float3_mystery"):
        load_ours(path)


@pytest.fixture(scope="module")
def checkpoint(demo: Path, encoder: Path, base: Path) -> Path:
    """A whole checkpoint: the demo's model and text encoder, as SD-style files hold them."""
    path = base / "models" / "checkpoints" / "whole.safetensors"
    tensors = {f"model.diffusion_model.{n}": t for n, t in load_file(demo).items()}
    text = {f"text_encoders.clip_l.transformer.{n}": t for n, t in load_file(encoder).items()}
    save_file({**tensors, **text}, path)
    return path


@pytest.mark.parametrize("format", ["int8_lodewise", "float8_e4m3fn"])
def test_a_whole_checkpoint(checkpoint, reference, format):
    """The diffusion model under its prefix, text encoder beside it, both quantized."""
    path = checkpoint.with_name(f"whole-{format}.safetensors")
    quantize_file(checkpoint, path, Recipe(format=format), overwrite=True)
    with torch.inference_mode():
        model, clip, _ = loading.load_checkpoint(str(path))
        assert snr(reference, sample(model)) > 32
        assert clip is not None
        attention = clip.cond_stage_model.clip_l.transformer.text_model.encoder.layers[0].self_attn
        assert isinstance(attention.q_proj.weight, QuantizedTensor)


@pytest.mark.parametrize("format", ["int8_blockwise", "float8_e4m3fn", "int8_tensorwise"])
def test_a_quantized_text_encoder(encoder, format):
    """Encodes nearly as the unquantized one, in formats ComfyUI knows and in ours."""
    path = encoder.with_name(f"clip-{format}.safetensors")
    quantize_file(encoder, path, Recipe(format=format), overwrite=True)
    with torch.inference_mode():
        stock = comfy.sd.load_clip([str(encoder)])
        ours = loading.load_clip([str(path)], "stable_diffusion")
        tokens = stock.tokenize("a handwritten three")
        expected, got = (clip.encode_from_tokens(tokens) for clip in (stock, ours))
        layer = ours.cond_stage_model.clip_l.transformer.text_model.encoder.layers[3].mlp.fc1
    assert isinstance(layer.weight, QuantizedTensor)
    assert snr(expected, got) > 20


def test_patchers_can_be_loaded_again(quantized, reference):
    """ComfyUI calls the factory for a patcher without dynamic VRAM."""
    model = load_ours(quantized("int8_lodewise"))
    factory, arguments = model.cached_patcher_init[:2]
    with torch.inference_mode():
        again = factory(*arguments, disable_dynamic=True)
    assert not again.is_dynamic()
    assert torch.equal(sample(again), sample(model))


def test_what_core_knows_is_probed():
    assert core_knows("nvfp4") and core_knows("int8_tensorwise") and core_knows("convrot_w4a4")
    assert not core_knows("int8_blockwise")
    assert core_knows("asym_w4a8_int8", "w4a8") == hasattr(quant_ops, "AsymW4A8Int8Layout")
    assert not core_knows("asym_w4a8_int8", "asymmetric"), "ComfyUI overlooks the correction"
