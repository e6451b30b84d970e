"""Recipes and plans: what a person may ask for, what is decided about each layer, and why."""

import json
from pathlib import Path

import pytest
import torch

from roundsmith import Recipe
from roundsmith.converters import MemorySource, ModelView, Options, Rule, make_plan
from roundsmith.errors import FormatError, RecipeError

FLUX = {
    "img_in.weight": (256, 64),
    "guidance_in.in_layer.weight": (256, 256),
    "double_blocks.0.img_attn.qkv.weight": (768, 256),
    "double_blocks.0.img_attn.qkv.bias": (768,),
    "double_blocks.0.img_mod.lin.weight": (1536, 256),
    "single_blocks.0.linear1.weight": (1792, 256),
    "single_blocks.0.linear2.weight": (256, 1280),
    "final_layer.linear.weight": (64, 256),
}


def plan(recipe: Recipe, shapes: dict[str, tuple[int, ...]] | None = None) -> dict[str, object]:
    """What is decided about each layer: the stored format, or None."""
    tensors = {k: torch.empty(v, dtype=torch.bfloat16) for k, v in (shapes or FLUX).items()}
    made = make_plan(ModelView(MemorySource(tensors)), recipe)
    return {
        t.layer: t.spec.describe() if t.spec else None for t in made.tensors if t.action != "copy"
    }


def reasons(recipe: Recipe, shapes: dict[str, tuple[int, ...]] | None = None) -> dict[str, str]:
    tensors = {k: torch.empty(v, dtype=torch.bfloat16) for k, v in (shapes or FLUX).items()}
    return {t.layer: t.reason for t in make_plan(ModelView(MemorySource(tensors)), recipe).tensors}


def test_a_recipe_survives_json(tmp_path: Path) -> None:
    recipe = Recipe(
        format="int8",
        convrot="auto",
        preset=("flux1", "visual"),
        rules=(Rule(match=r"\.0\.", skip=True), Rule(match="qkv", format="nvfp4")),
        exclude=("txt_",),
        fallback=Options(format="fp8"),
        seed=7,
    )
    assert Recipe.from_json(recipe.to_json()) == recipe
    assert Recipe.from_json(Recipe(preset=None).to_json()).preset is None
    assert Recipe().to_json() == "{}"
    (tmp_path / "r.json").write_text(recipe.to_json())
    assert Recipe.load(tmp_path / "r.json") == recipe


def test_names_people_use_become_the_formats_own() -> None:
    assert Recipe(format="fp8").format == "float8_e4m3fn"
    assert Recipe(format="int8").format == "int8_tensorwise"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "fp7"}, "unknown format 'fp7'; known: .*nvfp4"),
        ({"formt": "fp8"}, "Recipe.formt: no such setting"),
        ({"format": "nvfp4", "scaling": "row"}, "nvfp4 has no scaling 'row'; leave it out"),
        ({"format": "int8", "group_size": 64}, "int8_tensorwise has no group_size 64"),
        ({"format": "int8_blockwise", "group_size": 48}, "it takes 128, 64"),
        ({"format": "mxfp8", "convrot": 64}, "mxfp8 has no convrot 64"),
        ({"format": "int8", "convrot": 100}, "it takes auto, 4, 16, 64, 256, 1024"),
        ({"format": "int8", "convrot": 64, "scaling": "tensor"}, "ConvRot needs scaling 'row'"),
        ({"exclude": ["(unclosed"]}, r"bad regular expression '\(unclosed'"),
        ({"rules": [{"match": "x" * 2000}]}, "pattern of 2000 characters"),
        ({"rules": [{"match": "x", "format": "fp7"}]}, "unknown format 'fp7'"),
        ({"fallback": {"scaling": "row"}}, "fallback names no format"),
        ({"seed": -1}, "Recipe.seed: .*greater than or equal to 0"),
        ({"rounding": "magic"}, "Recipe.rounding"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(settings: dict, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe(**settings)


def test_files_that_are_no_recipes_are_named(tmp_path: Path) -> None:
    for text, message in (("{", "not valid JSON"), ("[]", "a JSON object, not a list"),
                          ('{"format": "fp7"}', "unknown format")):  # fmt: skip
        (tmp_path / "r.json").write_text(text)
        with pytest.raises(RecipeError, match=rf"r\.json: .*{message}"):
            Recipe.load(tmp_path / "r.json")
    with pytest.raises(RecipeError, match=r"cannot read .*none\.json"):
        Recipe.load(tmp_path / "none.json")


def test_precedence_rules_then_exclude_and_preset_then_the_recipe() -> None:
    recipe = Recipe(
        format="fp8",
        rules=(
            Rule(match="linear2", skip=True),
            Rule(match="linear", format="nvfp4"),
            Rule(match="^img_in", format="mxfp8"),
        ),
        exclude=("img_mod",),
    )
    assert plan(recipe) == {
        "img_in": "mxfp8",  # a rule beats the preset
        "guidance_in.in_layer": None,  # the preset
        "double_blocks.0.img_attn.qkv": "float8_e4m3fn",  # the recipe
        "double_blocks.0.img_mod.lin": None,  # exclude
        "single_blocks.0.linear1": "nvfp4",  # the second rule
        "single_blocks.0.linear2": None,  # the first rule wins
        "final_layer.linear": "nvfp4",
    }
    why = reasons(recipe)
    assert why["single_blocks.0.linear2"] == "rule 1: linear2"
    assert why["double_blocks.0.img_mod.lin"] == "exclude: img_mod"


def test_fallback_takes_what_exclude_and_preset_would_keep() -> None:
    shapes = {**FLUX, "double_blocks.0.norm.weight": (256,), "pos_embed.weight": (64, 64)}
    made = plan(Recipe(format="nvfp4", fallback=Options(format="int8", scaling="row")), shapes)
    assert made["img_in"] == "int8_tensorwise row"
    assert made["double_blocks.0.img_attn.qkv"] == "nvfp4"
    assert made["double_blocks.0.norm"] is None
    assert made["pos_embed"] is None


def test_a_rule_inherits_what_it_does_not_say() -> None:
    recipe = Recipe(
        format="int8",
        convrot=64,
        scale_search=True,
        rules=(
            Rule(match="qkv", full_precision_matrix_mult=True),
            Rule(match="linear1", format="fp8"),
        ),
    )
    made = plan(recipe)
    assert made["double_blocks.0.img_attn.qkv"] == (
        "int8_tensorwise row convrot 64 full-precision matmul"
    )
    assert made["single_blocks.0.linear1"] == "float8_e4m3fn"  # ConvRot is int8's own


def test_convrot_auto_follows_each_layers_width() -> None:
    shapes = {"a.weight": (64, 2048), "b.weight": (64, 768), "c.weight": (64, 192)}
    recipe = Recipe(format="int8", convrot="auto", preset=None)
    assert plan(recipe, shapes) == {
        "a": "int8_tensorwise row convrot 1024",
        "b": "int8_tensorwise row convrot 256",
        "c": "int8_tensorwise row",
    }
    assert "no ConvRot group divides 192" in reasons(recipe, shapes)["c"]


def test_heuristics_keep_what_gains_little() -> None:
    shapes = {"tiny.weight": (64, 64), "thin.weight": (16384, 64), "fine.weight": (512, 512)}
    made = plan(Recipe(heuristics=True, preset=None), shapes)
    assert made == {"tiny": None, "thin": None, "fine": "float8_e4m3fn"}
    why = reasons(Recipe(heuristics=True, preset=None), shapes)
    assert "only 4096 weights" in why["tiny"]
    assert "extreme aspect ratio" in why["thin"]


def test_the_plan_is_exact_and_writes_nothing() -> None:
    tensors = {k: torch.empty(v, dtype=torch.bfloat16) for k, v in FLUX.items()}
    made = make_plan(ModelView(MemorySource(tensors)), Recipe(format="fp8"))
    qkv = next(t for t in made.tensors if t.layer == "double_blocks.0.img_attn.qkv")
    assert qkv.bytes_before == 768 * 256 * 2
    assert qkv.bytes_after == 768 * 256 + 4
    assert json.loads(made.metadata["_quantization_metadata"])["layers"].keys() == {
        t.layer for t in made.tensors if t.spec
    }


def test_unknown_models_are_warned_about() -> None:
    shapes = {"x.weight": (64, 64), "y.weight": (64, 64)}
    tensors = {k: torch.empty(v) for k, v in shapes.items()}
    made = make_plan(ModelView(MemorySource(tensors)), Recipe())
    assert any("unknown model" in warning for warning in made.warnings)


def test_contradicting_layers_are_named() -> None:
    from roundsmith.checkpoints import encode_conf

    tensors = {
        "fc.weight": torch.zeros(64, 64, dtype=torch.int8),
        "fc.weight_scale": torch.ones(7),
        "fc.comfy_quant": encode_conf({"format": "int8_tensorwise"}),
    }
    with pytest.raises(FormatError, match=r"layer 'fc' .*weight_scale \[7\]"):
        ModelView(MemorySource(tensors))
    tensors["fc.comfy_quant"] = encode_conf({"format": "int3_magic"})
    with pytest.raises(FormatError, match=r"layer 'fc' has the unknown format 'int3_magic'"):
        ModelView(MemorySource(tensors))


def test_a_pattern_that_never_ends_is_refused_in_time() -> None:
    """A stranger's workflow may carry one."""
    recipe = Recipe(exclude=(r"(?:[a-z0-9_.]|[a-z0-9_.]{2})+[A-Z]",))
    with pytest.raises(RecipeError, match="takes too long on 'double_blocks"):
        plan(recipe, {"double_blocks.0.img_attn.some_long_projection_name.weight": (64, 64)})


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"convrot": True, "convrot_groupsize": None}, "group size None is not one of"),
        ({"convrot": True, "convrot_groupsize": 256}, "group size 256 does not divide the 100"),
        ({"orig_shape": ["a", 2]}, None),
    ],
)
def test_odd_json_is_named_or_ignored(conf: dict, message: str | None) -> None:
    from roundsmith.checkpoints import encode_conf

    tensors = {
        "fc.weight": torch.zeros(64, 100, dtype=torch.int8),
        "fc.weight_scale": torch.ones(64, 1),
        "fc.comfy_quant": encode_conf({"format": "int8_tensorwise", **conf}),
    }
    if message is None:
        assert ModelView(MemorySource(tensors)).shape("fc.weight") == (64, 100)
        return
    with pytest.raises(FormatError, match=f"layer 'fc': .*{message}"):
        ModelView(MemorySource(tensors))
