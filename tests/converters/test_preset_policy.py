"""Presets: what stays in high precision, what is dropped, and the reasons given."""

from __future__ import annotations

import pytest

from roundsmith.converters.preset_files import load_presets
from roundsmith.converters.presets import resolve
from roundsmith.errors import RecipeError

from .families import FAMILIES, T5_DECODER, expanded, linears, names_of


def test_t5_decoder_goes_with_its_norms():
    policy = resolve("auto", T5_DECODER)
    actions = [policy.decide(n, (64,) if "norm" in n else (64, 64)).action for n in T5_DECODER]
    assert actions == ["quantize", "remove", "remove", "remove", "keep"]
    assert policy.decide("decoder.block.0.x", (4, 4)).reason == "remove:^decoder. (t5xxl)"


@pytest.mark.parametrize(
    "preset, layer, reason",
    [
        ("flux1", "time_in.in_layer", "keep:time_in"),
        ("flux1", "xtime_in.in_layer", None),
        ("flux1", "model.diffusion_model.img_in", "keep:img_in"),
        ("flux1", "double_blocks.0.img_mod.lin", None),
        ("flux1", "double_blocks.0.img_attn.qkv", None),
        ("flux2", "single_stream_modulation.lin", "keep:*_stream_modulation"),
        ("radiance", "double_blocks.3.txt_attn.proj", "keep:_attn.proj"),
        ("radiance_small", "double_blocks.3.txt_attn.proj", None),
        ("radiance", "__x0__", "keep:__x0__"),
        ("chroma", "txt_in", "keep:txt_in"),
        ("chroma_small", "txt_in", None),
        ("wan", "head.head", "keep:head.head"),
        ("wan", "blocks.0.ffn.0", None),
        ("wan", "ref_conv", "keep:ref_conv"),
        ("wan", "blocks.0.cross_attn.k_img", None),
        ("qwen_image", "transformer_blocks.0.img_mod.1", "keep:transformer_blocks.0.img_mod.1"),
        ("qwen_image", "transformer_blocks.10.img_mod.1", None),
        ("qwen_image", "transformer_blocks.0.img_mod.11", None),
        ("qwen_image", "transformer_blocks.0.attn.to_out.0", None),
        ("z_image", "noise_refiner.0.attention.qkv", None),
        ("z_image_refiner", "noise_refiner.0.attention.qkv", "keep:noise_refiner"),
        ("z_image", "layers.3.adaLN_modulation.0", "keep:adaLN_modulation"),
        ("ltxv2", "transformer_blocks.1.attn1.to_q", "keep:transformer_blocks.1."),
        ("ltxv2", "transformer_blocks.10.attn1.to_q", None),
        ("ltxv2", "transformer_blocks.46.attn1.to_q", "keep:transformer_blocks.46."),
        ("ltxv2", "transformer_blocks.4.attn1.to_q", None),
        ("ltxv2", "transformer_blocks.7.attn1.to_gate_logits", "keep:*to_gate_logits"),
        ("ltxv2", "transformer_blocks.7.attn1.to_out.0", None),
        ("anima", "net.blocks.0.mlp.layer1", "keep:^blocks.0."),
        ("anima", "net.blocks.01.mlp.layer1", None),
        ("anima", "net.blocks.1.adaln_modulation_mlp.1", "keep:^blocks.1.adaln_modulation"),
        ("anima", "net.blocks.11.adaln_modulation_mlp.1", None),
        ("krea2", "tmlp.0", "keep:tml"),
        ("krea2", "txtmlp.1", None),
        ("krea2", "blocks.0.attn.wq", None),
        ("sdxl", "out.2", "keep:^out."),
        ("sdxl", "input_blocks.4.1.transformer_blocks.0.attn1.to_out.0", None),
        ("hidream", "double_stream_blocks.0.block.ff_i.shared_experts.w1", None),
        ("qwen", "model.visual.blocks.0.attn.qkv", "keep:visual.blocks.0."),
        ("qwen", "visual.blocks.10.attn.qkv", None),
        ("qwen", "visual.merger.mlp.0", "keep:merger"),
        ("visual", "visual.blocks.3.mlp.down_proj", "keep:visual.blocks.*.mlp.down_proj"),
        ("visual", "model.layers.3.mlp.down_proj", None),
        ("t5xxl", "SelfAttention.relative_attention_bias", "keep:relative_attention_bias"),
        ("t5xxl", "lm_head", "remove:^lm_head"),
    ],
)  # fmt: skip
def test_match(preset, layer, reason):
    found = load_presets()[preset].match(layer)
    assert found == reason
    assert load_presets()[preset].match(layer + ".weight") == reason


@pytest.mark.parametrize("case", FAMILIES, ids=lambda case: case.title)
def test_keeps_exactly_what_the_family_says(case):
    names = names_of(case)
    assert sorted(linears(resolve("auto", names), names)) == sorted(expanded(case.quantized))


@pytest.mark.parametrize(
    "name, shape, action",
    [
        ("double_blocks.0.img_attn.norm.key_norm", (128, 2), "keep"),
        ("blocks.0.self_attn.norm_q.weight", (5120,), "keep"),
        ("blocks.0.norm1.linear", (6144, 1024), "quantize"),
        ("double_blocks.0.img_mod.lin", (6144, 1024), "quantize"),
        ("double_blocks.0.img_mod.lin.bias", (6144,), "keep"),
        ("patch_embedding.weight", (64, 64, 1, 2, 2), "keep"),
        ("vace_patch_embedding", (64, 64), "keep"),
        ("pos_embed", (64, 64), "keep"),
        ("model.embed_tokens.weight", (64, 64), "keep"),
        ("model.layers.0.mlp.shared_expert.up_proj", (64, 64), "quantize"),
        ("shared.weight", (64, 64), "keep"),
        ("lm_head", (64, 64), "keep"),
        ("input_blocks.1.0.in_layers.2", (64, 64, 3, 3), "keep"),
        ("anything", (), "keep"),
        ("img_in", (64, 64), "quantize"),
    ],
)
def test_everywhere(name, shape, action):
    assert resolve(None, [name]).decide(name, shape).action == action


def test_last_block_of_qwen35_follows_the_model():
    names = [
        f"model.language_model.layers.{i}.linear_attn.in_proj_{x}.weight"
        for i in range(64)
        for x in "abz"
    ]
    policy = resolve("auto", names)
    kept = [
        i
        for i in range(64)
        if policy.decide(f"model.language_model.layers.{i}.mlp.up_proj", (4, 4)).action == "keep"
    ]
    assert kept == [0, 63]


def test_presets_combine():
    names = [f"model.layers.{i}.self_attn.k_proj.bias" for i in range(2)]
    names += ["visual.blocks.1.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"]
    alone, both = resolve("qwen", names), resolve(["qwen", "visual"], names)
    assert alone.presets == ("qwen",) and both.presets == ("qwen", "visual")
    assert alone.decide(names[2], (64, 64)).action == "quantize"
    assert both.decide(names[2], (64, 64)).reason == "keep:visual.blocks.*.mlp.up_proj (visual)"
    assert both.decide(names[3], (64, 64)).action == "quantize"
    assert resolve(["auto", "visual"], names).presets == both.presets


def test_unknown_preset_lists_the_choices():
    with pytest.raises(RecipeError, match=r"'flux9'.*auto, anima, .*flux1"):
        resolve("flux9", ["a"])
    with pytest.raises(RecipeError, match="'everywhere'"):
        resolve("everywhere", ["a"])
