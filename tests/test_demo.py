"""The demo's trained model, its decoder, its text encoder, and the demo that runs on them."""

from __future__ import annotations

import hashlib
import json
import math
from functools import cache
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from roundsmith.converters.demo import ORIGINAL, load_flux, name_of, run_demo, variants
from roundsmith.converters.demo_comfyui import QUANTIZE, WORKFLOW, run_demo_comfyui
from roundsmith.converters.demo_workflow import find, only_for, to_prompt
from roundsmith.errors import FormatError, RoundsmithError
from roundsmith.tests.models import FOLDER, LORA_FILE, MODEL_FILE, VAE_FILE, taesd, text
from roundsmith.tests.models.flux import Flux
from roundsmith.tests.models.install import install
from roundsmith.tests.models.latents import (
    INKS,
    digits,
    intensities,
    pictures,
    preview,
    to_latents,
)
from roundsmith.tests.models.sampling import sample, simple_schedule, starting_noise

# A Flux checkpoint as published, hidden size h: the names ComfyUI's loader looks for.
H = 256
EMBEDDER = {"in_layer.weight", "in_layer.bias", "out_layer.weight", "out_layer.bias"}
FLUX_SHAPES = {
    "img_in.weight": (H, 64),
    "txt_in.weight": (H, 768),
    "time_in.in_layer.weight": (H, 256),
    "vector_in.in_layer.weight": (H, 768),
    "double_blocks.1.img_mod.lin.weight": (6 * H, H),
    "double_blocks.1.txt_attn.qkv.bias": (3 * H,),
    "double_blocks.0.img_attn.norm.key_norm.scale": (128,),
    "double_blocks.0.txt_attn.norm.query_norm.scale": (128,),
    "double_blocks.0.img_attn.proj.weight": (H, H),
    "double_blocks.0.img_mlp.0.weight": (4 * H, H),
    "double_blocks.0.txt_mlp.2.weight": (H, 4 * H),
    "single_blocks.3.linear1.weight": (7 * H, H),
    "single_blocks.3.linear2.weight": (H, 5 * H),
    "single_blocks.3.norm.query_norm.scale": (128,),
    "single_blocks.3.modulation.lin.weight": (3 * H, H),
    "final_layer.linear.weight": (64, H),
    "final_layer.adaLN_modulation.1.weight": (2 * H, H),
}


@cache
def prompts() -> tuple[Tensor, Tensor]:
    return text.encode(text.PROMPTS)


@cache
def trained() -> Flux:
    return load_flux(load_file(FOLDER / MODEL_FILE))


@cache
def painted(seed: int) -> Tensor:
    noise = starting_noise(len(text.PROMPTS), seed)
    return sample(trained(), noise, *prompts())


def test_the_model_has_the_names_and_shapes_of_a_flux_checkpoint():
    tensors = load_file(FOLDER / MODEL_FILE)
    assert {name: tuple(tensors[name].shape) for name in FLUX_SHAPES} == FLUX_SHAPES
    for name in ("time_in", "vector_in"):
        assert {f"{name}.{part}" for part in EMBEDDER} <= set(tensors)
    # With guidance_in ComfyUI would take it for Flux dev: another schedule, a guidance input.
    assert not any(name.startswith("guidance_in") for name in tensors)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert set(tensors) == set(Flux().state_dict())


def test_the_decoder_has_the_names_and_shapes_of_taesd():
    tensors = load_file(FOLDER / VAE_FILE)
    assert tensors["taesd_decoder.1.weight"].shape == (64, 16, 3, 3)
    assert tensors["taesd_decoder.3.conv.4.bias"].shape == (64,)
    assert tensors["taesd_decoder.7.weight"].shape == (64, 64, 3, 3)
    assert "taesd_decoder.7.bias" not in tensors
    assert tensors["taesd_decoder.18.conv.0.weight"].shape == (64, 64, 3, 3)
    assert tensors["taesd_decoder.19.weight"].shape == (3, 64, 3, 3)
    assert tensors["taesd_encoder.0.weight"].shape == (64, 3, 3, 3)
    assert tensors["taesd_encoder.14.weight"].shape == (16, 64, 3, 3)
    assert tensors["vae_scale"].item() == pytest.approx(0.3611)
    assert tensors["vae_shift"].item() == pytest.approx(0.1159)


def test_the_files_are_small_enough_for_the_repository():
    assert (FOLDER / MODEL_FILE).stat().st_size <= 20e6
    assert (FOLDER / VAE_FILE).stat().st_size <= 5e6


def test_a_classifier_that_never_saw_the_model_reads_its_digits():
    from sklearn.svm import SVC

    ink, labels = digits()
    classifier = SVC(gamma=0.25, C=10).fit(ink.flatten(1).numpy(), labels.numpy())
    right = []
    for seed in range(4):
        read = classifier.predict(intensities(painted(seed)).flatten(1).numpy())
        right.append(int((torch.from_numpy(read) == torch.arange(10)).sum()))
    assert min(right) >= 9, right
    assert sum(right) / 40 >= 0.95, right


def test_sampling_is_deterministic_and_the_seed_matters():
    again = sample(trained(), starting_noise(10, 0), *prompts())
    assert torch.equal(painted(0), again)
    assert not torch.allclose(painted(0), painted(1), atol=0.1)


def test_the_schedule_is_the_one_comfyui_calls_simple():
    # From its definition: every (1000 / steps)-th of the levels 1/1000 ... 1, from the top, then 0.
    assert simple_schedule(4).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert simple_schedule(12)[1].item() == pytest.approx(0.917)
    assert simple_schedule(12)[11].item() == pytest.approx(0.084)


def test_latents_have_unit_scale_and_the_preview_shows_the_digit():
    ink, labels = digits()
    latents = to_latents(ink, labels)
    deviation = latents.std(dim=(0, 2, 3))
    assert deviation.min() > 0.3 and deviation.max() < 1.6
    assert latents.abs().max() < 4
    assert (intensities(latents) - ink).abs().max() < 0.01
    assert preview(latents).min() > 0 and preview(latents).max() < 1


def test_the_decoder_paints_the_pictures_it_was_trained_on():
    ink, labels = digits()
    decoder = taesd.load_decoder(load_file(FOLDER / VAE_FILE))
    with torch.inference_mode():
        shown = decoder(to_latents(ink[:40], labels[:40])).clamp(0, 1)
    error = (shown - pictures(ink[:40], labels[:40])).square().mean().item()
    assert shown.shape == (40, 3, 64, 64)
    assert -10 * math.log10(error) > 24


def test_a_widened_autoencoder_computes_the_same():
    narrow, wide = taesd.decoder(8), taesd.decoder()
    wide.load_state_dict(taesd.widen(narrow, wide))
    x = torch.randn(2, 16, 4, 4)
    assert torch.allclose(narrow(x), wide(x), atol=1e-5)


def test_the_text_encoder_is_the_same_everywhere():
    # The values of PCG64's guaranteed stream under the recipe: another hash is another encoder, and
    # the model would no longer understand it.
    shape, deviation = text.shapes()["text_projection.weight"]
    drawn = text.draw("text_projection.weight", shape, deviation)
    assert drawn.dtype == torch.float16
    assert drawn.float().std().item() == pytest.approx(deviation, rel=0.01)
    assert hashlib.sha256(drawn.numpy().astype("<f2").tobytes()).hexdigest()[:16] == HASH


HASH = "f72d3d9708212bb9"


def test_prompts_are_told_apart():
    context, pooled = prompts()
    assert context.shape == (10, 77, 768) and pooled.shape == (10, 768)
    distance = torch.cdist(pooled, pooled) + 1e9 * torch.eye(10)
    assert distance.min() > 0.2 * pooled.norm(dim=1).mean()


def test_an_unknown_word_is_named():
    with pytest.raises(ValueError, match=r"'cat'.*handwritten"):
        text.encode(["a handwritten cat"])


def test_install_writes_its_files_and_nothing_else(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "vae").mkdir()
    written = install(tmp_path)
    found = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert found == sorted(written)
    folders = {"diffusion_models", "loras", "text_encoders", "vae"}
    assert {path.parent.name for path in written} == folders
    assert all(path.name.startswith("roundsmith-demo-") for path in written)
    assert len(written) == 10
    encoder = next(path for path in written if path.parent.name == "text_encoders")
    with safe_open(encoder, "pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        assert torch.equal(
            file.get_tensor("text_model.encoder.layers.11.mlp.fc2.weight")[:2, :5],
            text.draw("text_model.encoder.layers.11.mlp.fc2.weight", (768, 3072), 0.5 / 3072**0.5)[
                :2, :5
            ],
        )
    assert shapes == {name: shape for name, (shape, _) in text.shapes().items()}
    encoder.unlink()  # 250 MB that the temporary folder should not keep


def test_the_lora_paints_pink():
    """Each digit in the nine's colours, and the digit still: what the example workflow shows."""
    state, lora = load_file(FOLDER / MODEL_FILE), load_file(FOLDER / LORA_FILE)
    for name in [name for name in lora if name.endswith(".lora_A.weight")]:
        layer = name.removeprefix("diffusion_model.").removesuffix(".lora_A.weight")
        up = lora[name.replace("lora_A", "lora_B")].float()
        state[f"{layer}.weight"] = state[f"{layer}.weight"].float() + up @ lora[name].float()
    after = sample(load_flux(state), starting_noise(10, 0), *prompts())
    greens = slice(1, 6)  # the digits whose own colours are far from pink
    ink = preview(after).amax(dim=(2, 3))[greens]
    assert ((ink - INKS[9]).norm(dim=1) < 0.6 * (ink - INKS[greens]).norm(dim=1)).all()
    pairs = zip(intensities(after), intensities(painted(0)), strict=True)
    kept = [torch.corrcoef(torch.stack((a.flatten(), b.flatten())))[0, 1] for a, b in pairs]
    assert min(kept) > 0.4, kept


def test_install_needs_a_comfyui(tmp_path):
    with pytest.raises(FileNotFoundError, match="models"):
        install(tmp_path / "nothing")


def test_training_is_reproducible(monkeypatch):
    from roundsmith.tests.models import train

    monkeypatch.setattr(train, "SHORT_BATCH", 8)
    monkeypatch.setattr(train, "FULL_BATCH", 4)
    monkeypatch.setattr(train, "TEMPLATES", train.TEMPLATES[:1])
    monkeypatch.setattr(train, "Prompts", cache(train.Prompts))
    first, second = (train.train_flux(0.006).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_every_format_is_in_the_demo():
    names = [name_of(recipe) for recipe in variants()]
    assert len(set(names)) == len(names)
    assert {"float8_e4m3fn", "nvfp4", "mxfp8", "int8_tensorwise row convrot"} <= set(names)


def test_the_demo_without_comfyui(tmp_path):
    told = []
    result = run_demo(
        tmp_path, ["fp8", "nvfp4"], steps=4, progress=lambda what, *at: told.append((what, *at))
    )
    names = [row.name for row in result.rows]
    assert names == [ORIGINAL, "float8_e4m3fn", "nvfp4"]
    assert told == [(ORIGINAL, 0, 3), (names[1], 1, 3), (names[2], 2, 3), ("pictures", 3, 3)]
    eight, four = result.rows[1:]
    assert 7.99 < eight.bits < 8.1 and 4.5 <= four.bits < 4.6
    assert eight.snr > 28 and 15 < four.snr < eight.snr
    assert eight.bytes > four.bytes > 0.3 * result.rows[0].bytes
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {result.grid.name, result.table_file.name, result.json_file.name}
    assert "nvfp4" in result.table_file.read_text(encoding="utf-8")
    assert json.loads(result.json_file.read_text(encoding="utf-8"))[0]["snr"] is None


def test_the_demo_names_the_formats_there_are(tmp_path):
    with pytest.raises(FormatError, match="nvfp4"):
        run_demo(tmp_path, ["fp3"])


def graph() -> dict[str, Any]:
    """A saved workflow in miniature: a link, a seed and what follows it, a note, a muted node."""

    def node(number: int, kind: str, values: list[Any], inputs: list[Any], mode: int = 0) -> Any:
        return {
            "id": number, "type": kind, "mode": mode, "inputs": inputs, "widgets_values": values
        }  # fmt: skip

    return {
        "nodes": [
            node(1, "UNETLoader", ["a.safetensors", "default"], []),
            node(2, "KSampler", [7, "randomize", 12, 1.5], [{"name": "model", "link": 9}]),
            node(3, "Note", ["read me"], []),
            node(4, "Quantize", ["int8", "row"], [
                {"name": "format", "link": None, "widget": {"name": "format"}},
                {"name": "format.scaling", "link": None, "widget": {"name": "format.scaling"}},
            ]),
            node(5, "UNETLoader", ["b", "default"], [], mode=4),
        ],
        "links": [[9, 1, 0, 2, 0, "MODEL"]],
    }  # fmt: skip


INFO = {
    "UNETLoader": {"input": {"required": {"unet_name": [["a.safetensors"]], "weight_dtype": [[]]}}},
    "KSampler": {
        "input": {
            "required": {
                "model": ["MODEL"],
                "seed": ["INT", {"control_after_generate": True}],
                "steps": ["INT", {}],
                "cfg": ["FLOAT", {}],
            }
        }
    },
    "Quantize": {"input": {}},
}


def test_a_saved_workflow_becomes_a_prompt():
    assert to_prompt(graph(), INFO) == {
        "1": {
            "class_type": "UNETLoader",
            "inputs": {"unet_name": "a.safetensors", "weight_dtype": "default"},
        },
        "2": {
            "class_type": "KSampler",
            "inputs": {"seed": 7, "steps": 12, "cfg": 1.5, "model": ["1", 0]},
        },
        "4": {"class_type": "Quantize", "inputs": {"format": "int8", "format.scaling": "row"}},
    }


def test_values_without_names_follow_the_schema_and_what_was_chosen():
    scaling = {"key": "int8", "inputs": {"required": {"scaling": [["row"]]}}}
    choice = ["COMFY_DYNAMICCOMBO_V3", {"options": [{"key": "fp8", "inputs": {}}, scaling]}]
    info = {"Quantize": {"input": {"required": {"format": choice, "preset": ["COMBO", {}]}}}}
    saved = {"id": 1, "type": "Quantize", "inputs": []}
    for values, expected in (
        (["int8", "row", "auto"], {"format": "int8", "format.scaling": "row", "preset": "auto"}),
        (["fp8", "auto"], {"format": "fp8", "preset": "auto"}),
    ):
        made = to_prompt({"nodes": [{**saved, "widgets_values": values}], "links": []}, info)
        assert made["1"]["inputs"] == expected


def test_a_prompt_is_cut_to_what_an_output_needs():
    prompt = to_prompt(graph(), INFO)
    assert set(only_for(prompt, [find(prompt, "KSampler")])) == {"1", "2"}


def test_a_node_the_server_lacks_is_named():
    with pytest.raises(RoundsmithError, match="'Quantize'"):
        to_prompt(graph(), {name: INFO[name] for name in ("UNETLoader", "KSampler")})


def test_where_no_comfyui_answers_the_message_says_what_to_do(tmp_path):
    with pytest.raises(RoundsmithError, match=r"no ComfyUI answers at \S+:9 .*folder"):
        run_demo_comfyui(tmp_path, "127.0.0.1:9")


def test_the_shipped_workflow_is_the_one_the_demo_runs():
    graph = json.loads(WORKFLOW.read_text(encoding="utf-8"))
    kinds = {node["type"] for node in graph["nodes"]}
    assert {"UNETLoader", "CLIPLoader", "VAELoader", "KSampler", "VAEDecode", QUANTIZE} <= kinds
    assert MODEL_FILE in json.dumps(graph)
