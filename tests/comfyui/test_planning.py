"""Recipe, rules and plan as nodes: what is planned is what is made."""

from __future__ import annotations

import json

import pytest
from safetensors import safe_open

from roundsmith.converters import Recipe, Rule
from roundsmith.errors import RecipeError
from roundsmith.layouts import get_format
from roundsmith.nodes.fit_to_budget import FitToBudget
from roundsmith.nodes.layer_rule import LayerRule
from roundsmith.nodes.load_recipe import LoadRecipe
from roundsmith.nodes.plan_quantization import PlanQuantization
from roundsmith.nodes.quantization_recipe import QuantizationRecipe
from roundsmith.nodes.quantize_file import QuantizeFile

SOURCE = "diffusion_models/roundsmith-demo-flux-digits.safetensors"
AS_RECIPE = {"rounding": "as the recipe", "scale_search": "as the recipe"}
AS_RECIPE["full_precision_matmul"] = "as the recipe"


def rule(match, format, rules=(), **switches):
    return LayerRule.execute(match, format, rules, **{**AS_RECIPE, **switches}).args[0]


@pytest.fixture
def recipe():
    """Single blocks in INT8, their first kept, the rest in NVFP4."""
    rules = rule(r"single_blocks\.0\.", {"format": "keep in high precision"})
    rules = rule("single", {"format": "int8_tensorwise", "scaling": "row", "convrot": "64"}, rules)
    made = QuantizationRecipe.execute(
        {"format": "nvfp4"}, rules, rounding={"rounding": "nearest"},
        fallback={"fallback": "keep in high precision"},
    )  # fmt: skip
    assert Recipe.from_json(made.args[1]) == made.args[0]
    return made.args[0]


def test_rules_chain_in_order(recipe):
    assert [r.match for r in recipe.rules] == [r"single_blocks\.0\.", "single"]
    assert recipe.rules[0].skip
    assert recipe.rules[1] == Rule(match="single", format="int8_tensorwise", scaling="row",
                                   convrot=64)  # fmt: skip


def test_a_rules_switches(base):
    (made,) = rule("a", {"format": "nvfp4"}, rounding="nearest", full_precision_matmul="on")
    assert made.rounding == "nearest"
    assert made.full_precision_matrix_mult is True
    assert made.scale_search is None


def test_an_empty_or_bad_rule_is_refused(base):
    with pytest.raises(RecipeError, match="match is empty"):
        rule(" ", {"format": "nvfp4"})
    with pytest.raises(RecipeError, match=r"bad regular expression 'a\('"):
        rule("a(", {"format": "nvfp4"})


def test_what_is_planned_is_what_is_made(base, demo, recipe):
    table, size, config = PlanQuantization.execute(
        SOURCE, {"format": "float8_e4m3fn"}, recipe=recipe
    ).args
    made = QuantizeFile.execute(
        SOURCE, {"format": "float8_e4m3fn"}, "same as source", "planned.safetensors", True,
        recipe=recipe,
    )  # fmt: skip
    path = base / "models" / "diffusion_models" / "planned.safetensors"
    assert made.args[0] == str(path)
    assert path.stat().st_size == size
    assert f"{size:,} bytes" in table
    with safe_open(path, "pt") as file:
        confs = json.loads(file.metadata()["_quantization_metadata"])["layers"]
    planned = json.loads(config)
    for layer, conf in confs.items():
        entry = planned["^" + layer.replace(".", r"\.") + "$"]
        assert entry["format"] == conf["format"]
    assert planned[r"^single_blocks\.0\.linear1$"]["skip"]
    assert {conf["format"] for conf in confs.values()} == {"nvfp4", "int8_tensorwise"}
    assert LoadRecipe.execute("diffusion_models/planned.safetensors").args[0] == recipe
    path.unlink()


def test_a_plan_as_layer_config_makes_the_same_plan(base, demo, recipe):
    _, size, config = PlanQuantization.execute(SOURCE, {"format": "nvfp4"}, recipe=recipe).args
    again = QuantizationRecipe.execute({"format": "mxfp8"}, layer_config=config).args[0]
    _, same, config_again = PlanQuantization.execute(SOURCE, {"format": "nvfp4"}, recipe=again).args
    assert config_again == config
    assert abs(same - size) < 4096, "the recipe in the metadata differs, nothing else"


def test_fallback_takes_what_the_preset_keeps(base, demo):
    made = QuantizationRecipe.execute(
        {"format": "nvfp4"}, fallback={"fallback": "int8_tensorwise", "scaling": "row"}
    ).args[0]
    table = PlanQuantization.execute(SOURCE, {"format": "nvfp4"}, recipe=made).args[0]
    assert "fallback" in table


@pytest.mark.parametrize("text", ["{", "[1]", '{"a": {"format": "fp9"}}'])
def test_a_bad_layer_config_is_refused(base, text):
    with pytest.raises(RecipeError, match="layer_config"):
        QuantizationRecipe.execute({"format": "nvfp4"}, layer_config=text)


def test_a_file_that_does_not_say_how_it_was_made(base, demo):
    with pytest.raises(RecipeError, match="does not say how it was made"):
        LoadRecipe.execute(SOURCE)


def test_a_budget_is_kept(base, demo):
    """The node's recipe makes a file of the size asked for, of formats ComfyUI reads."""
    recipe, table, chart = FitToBudget.execute(
        SOURCE, {"target": "size, GB", "size": 0.007}, "stock ComfyUI only"
    ).args
    assert chart.shape[0] == 1 and chart.shape[3] == 3
    assert 0 < float(chart.mean()) < 1
    assert "weights" in table, "no calibration: it says what was measured"
    _, size, config = PlanQuantization.execute(SOURCE, {"format": "mxfp8"}, recipe=recipe).args
    assert 6_000_000 < size <= 7_000_000
    used = {entry.get("format") for entry in json.loads(config).values()}
    assert len(used) > 1
    assert all(name is None or get_format(name).stock for name in used)


def test_a_budget_out_of_reach_says_how_far_one_can_go(base, demo):
    with pytest.raises(RecipeError, match="at least"):
        FitToBudget.execute(SOURCE, {"target": "size, GB", "size": 0.001})
