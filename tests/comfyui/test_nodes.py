"""What a person sees of the nodes: names, tooltips, options that show only where they apply."""

from __future__ import annotations

import asyncio
from typing import get_args

import pytest

import roundsmith
from roundsmith import dev
from roundsmith.converters import Recipe
from roundsmith.converters.corrections import ErrorLoraOptions
from roundsmith.converters.recipe import Rounding
from roundsmith.errors import RecipeError
from roundsmith.layouts import formats
from roundsmith.nodes import NODES
from roundsmith.nodes._error_lora import lora_options
from roundsmith.nodes._recipe import make_recipe


@pytest.fixture(params=NODES, ids=lambda node: node.__name__)
def schema(request, base):
    return request.param.GET_SCHEMA()


def all_inputs(inputs):
    for item in inputs:
        yield item
        for option in getattr(item, "options", None) or []:
            yield from all_inputs(getattr(option, "inputs", []))


def test_every_input_and_output_has_a_tooltip(schema):
    for item in all_inputs(schema.inputs):
        assert item.tooltip, item.id
    assert all(output.tooltip for output in schema.outputs)
    assert schema.description and schema.search_aliases and schema.display_name
    assert schema.node_id.startswith("Roundsmith") and schema.category.startswith("Roundsmith")


def test_every_node_has_a_help_page(schema):
    page = dev.ROOT / "web" / "docs" / f"{schema.node_id}.md"
    assert page.is_file(), f"no help page {page}"


def test_every_format_is_offered_with_its_own_options_only(base):
    schema = next(n for n in NODES if n.__name__ == "QuantizeModel").GET_SCHEMA()
    choice = next(i for i in schema.inputs if i.id == "format")
    assert {option.key for option in choice.options} == {*formats(), "auto"}
    assert choice.options[0].key == "int8_tensorwise"
    for option in choice.options:
        if option.key == "auto":
            assert [item.id for item in option.inputs] == ["goal"]
            continue
        fmt = formats()[option.key]
        names = {item.id for item in option.inputs}
        assert ("scaling" in names) == bool(fmt.scalings)
        assert ("group_size" in names) == bool(fmt.group_sizes)
        assert ("convrot" in names) == fmt.rotates


def test_a_beginner_sees_model_format_and_rounding(base):
    """A DynamicCombo cannot be advanced; calibration and CLIP are sockets that may stay empty."""
    schema = next(n for n in NODES if n.__name__ == "QuantizeModel").GET_SCHEMA()
    plain = [i for i in schema.inputs if not getattr(i, "advanced", None)]
    assert [i.id for i in plain if not i.optional] == ["model", "format", "rounding"]
    assert [i.id for i in plain if i.optional] == ["calibration", "clip", "recipe"]


@pytest.mark.parametrize("name", ["QuantizeModel", "QuantizeCLIP", "QuantizeFile"])
def test_rounding_is_automatic_unless_chosen(base, name):
    schema = next(n for n in NODES if n.__name__ == name).GET_SCHEMA()
    choice = next(i for i in schema.inputs if i.id == "rounding")
    assert [option.key for option in choice.options] == list(get_args(Rounding))
    shown = {option.key: [item.id for item in option.inputs] for option in choice.options}
    assert shown["auto"] == shown["nearest"] == []
    assert shown["calibrated"] == ["settings"]
    assert shown["learned"] == ["objective", "optimizer", "schedule", "settings"]
    assert make_recipe({"format": "nvfp4"}) == Recipe(format="nvfp4")


def test_settings_of_a_rounding_method(base):
    """NAME = VALUE lines reach the method, and only those it has."""
    chosen = {"rounding": "calibrated", "settings": "damping = 0.1\n\nact_order = false"}
    recipe = make_recipe({"format": "nvfp4"}, rounding=chosen)
    assert recipe.rounding == "calibrated"
    assert (recipe.calibrated.damping, recipe.calibrated.act_order) == (0.1, False)
    chosen = {"rounding": "learned", "optimizer": "prodigy", "settings": "iterations = 7"}
    recipe = make_recipe({"format": "nvfp4"}, rounding=chosen)
    assert (recipe.learned.optimizer, recipe.learned.iterations) == ("prodigy", 7)
    for text in ("nonsense = 1", "damping", "damping = much"):
        with pytest.raises(RecipeError):
            make_recipe({"format": "nvfp4"}, rounding={"rounding": "calibrated", "settings": text})


def test_every_default_makes_a_recipe(base):
    for name, fmt in formats().items():
        chosen = {"format": name}
        if fmt.scalings:
            chosen |= {"scaling": fmt.scalings[0], "convrot": "auto"}
        if fmt.group_sizes:
            chosen["group_size"] = str(fmt.group_sizes[-1])
        assert make_recipe(chosen, exclude="a\n\n b ").exclude == ("a", "b")


@pytest.mark.parametrize("name", ["ExtractErrorLora", "ExtractErrorLoraFile"])
def test_an_error_lora_takes_few_blocks_and_shapes(base, name):
    """What came later is last and optional, so that older workflows keep their values."""
    schema = next(n for n in NODES if n.__name__ == name).GET_SCHEMA()
    added = schema.inputs[-2:]
    assert [item.id for item in added] == ["depth", "aspect"]
    assert all(item.optional and item.advanced for item in added)
    shown = {item.id: item.default for item in added}
    assert lora_options(8, "selected", **shown) == ErrorLoraOptions(rank=8, layers="selected")
    options = lora_options(8, "selected", depth=3, aspect=2.5)
    assert (options.depth, options.aspect) == (3, 2.5)
    with pytest.raises(RecipeError, match="aspect"):
        lora_options(8, aspect=0.5)


def test_estimated_scales_are_last_and_called_estimates(base):
    schema = next(n for n in NODES if n.__name__ == "SetInputScales").GET_SCHEMA()
    choice = next(i for i in schema.inputs if i.id == "scales")
    assert [o.key for o in choice.options][-2:] == ["random", "lora"]
    assert "estimates without measured activations" in choice.tooltip
    shown = {o.key: {i.id: getattr(i, "default", None) for i in o.inputs} for o in choice.options}
    expected = {"samples": 64, "percentile": 99.9, "seed": 0}
    assert shown["random"] == expected and shown["lora"] == {"lora": None, **expected}


def test_tensor_scales_and_automatic_rotation_do_not_clash(base):
    chosen = {"format": "int8_tensorwise", "scaling": "tensor", "convrot": "auto"}
    assert make_recipe(chosen).convrot is None


def test_the_entry_point(base):
    extension = asyncio.run(roundsmith.comfy_entrypoint())
    assert asyncio.run(extension.get_node_list()) == list(NODES)
    assert not hasattr(roundsmith, "NODE_CLASS_MAPPINGS"), "it would hide the V3 nodes"
