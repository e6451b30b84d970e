"""Files in the older layout, and scales as [1]: stock ComfyUI reads them as comfy_quant."""

from __future__ import annotations

import pytest
import torch

from roundsmith.converters import Recipe
from roundsmith.errors import RecipeError
from roundsmith.nodes.load_recipe import LoadRecipe
from roundsmith.nodes.plan_quantization import PlanQuantization
from roundsmith.nodes.quantization_recipe import QuantizationRecipe
from roundsmith.nodes.quantize_file import QuantizeFile

from .support import load_ours, load_stock, sample

SOURCE = "diffusion_models/roundsmith-demo-flux-digits.safetensors"
FP8 = {"format": "float8_e4m3fn"}


def made(base, name, format=FP8, **settings):
    """A file the node wrote, of the size the plan said."""
    settings = {"rounding": {"rounding": "nearest"}, **settings}
    QuantizeFile.execute(SOURCE, format, "same as source", name, True, **settings)
    path = base / "models" / "diffusion_models" / f"{name}.safetensors"
    assert path.stat().st_size == PlanQuantization.execute(SOURCE, format, **settings).args[1]
    return path


@pytest.mark.parametrize("load", [load_stock, load_ours])
@pytest.mark.parametrize(
    ("format", "settings"),
    [
        (FP8, {"output": "fp8_scaled"}),
        (FP8, {"output": "fp8_scaled", "full_precision_matmul": "off"}),
        (FP8, {"output": "fp8_scaled", "keep_1d_scales": True, "input_scale": "weight"}),
        (FP8, {"keep_1d_scales": True}),
        ({"format": "int8_tensorwise", "scaling": "tensor"}, {"keep_1d_scales": True}),
    ],
    ids=str,
)
def test_read_as_comfy_quant_is(base, demo, format, settings, load):
    """A name or a shape the loader does not expect would leave codes without their scales."""
    path = made(base, "other", format, **settings)
    full = "on" if settings.get("full_precision_matmul", "on") == "on" else "off"
    usual = {"input_scale": settings.get("input_scale", "auto")}
    if settings.get("output") == "fp8_scaled" and "input_scale" not in settings:
        usual["full_precision_matmul"] = full
    reference = made(base, "usual", format, **usual)
    try:
        assert torch.equal(sample(load(path)), sample(load(reference)))
    finally:
        path.unlink()
        reference.unlink()


def test_the_recipe_says_it_and_comes_back(base, demo):
    recipe = QuantizationRecipe.execute(FP8, output="fp8_scaled").args[0]
    assert recipe == Recipe(output="fp8_scaled")
    path = made(base, "planned", recipe=recipe)
    assert LoadRecipe.execute("diffusion_models/planned.safetensors").args[0] == recipe
    path.unlink()
    with pytest.raises(RecipeError, match="fp8_scaled holds FP8"):
        QuantizationRecipe.execute({"format": "nvfp4"}, output="fp8_scaled")
