"""Quantize Model and Quantize CLIP: a model that runs at once, its source unharmed."""

from __future__ import annotations

import copy
import types

import comfy.model_management as mm
import comfy.model_sampling
import comfy.sd
import pytest
import torch
from comfy.quant_ops import QuantizedTensor

from roundsmith.bridge import quantizing, self_calibration, self_runs
from roundsmith.bridge.quantizing import quantize_clip, quantize_model
from roundsmith.bridge.self_calibration import self_calibrate_model
from roundsmith.bridge.sources import PatchedWeights
from roundsmith.converters import Recipe
from roundsmith.converters.solving import LayerSolver

from .support import CASES, case_id, hooks_on, load_ours, load_stock, lora, sample, snr, with_lora


@torch.inference_mode()
def quantize(model, format="int8_tensorwise", rounding="nearest", **options):
    return quantize_model(model, Recipe(format=format, rounding=rounding, **options))


@pytest.mark.parametrize(("format", "options"), CASES, ids=case_id)
def test_in_the_graph_as_from_a_file(demo, quantized, format, options):
    """The same codes run the same, wherever they were made."""
    model, report = quantize(load_stock(demo), format, **options)
    assert report.quantized == 32
    assert torch.equal(sample(model), sample(load_ours(quantized(format, **options))))


def test_the_original_is_unharmed(demo, reference):
    model = load_stock(demo)
    before = {name: t.clone() for name, t in model.model.state_dict().items()}
    sample(model)  # loaded, as it is when a graph reaches the node
    new, _ = quantize(model, "nvfp4")
    sample(new)
    after = model.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert before.keys() == after.keys()
    assert torch.equal(sample(model), reference)
    assert new.model is not model.model and not new.is_clone(model)


def test_nothing_is_shared_but_the_configuration(demo):
    model = load_stock(demo)
    new, _ = quantize(model)
    pointers = {p.data_ptr() for p in model.model.parameters()}
    assert not pointers & {p.data_ptr() for p in new.model.parameters()}
    assert new.model.model_config is model.model.model_config


def test_loras_are_baked_once(demo, reference):
    """The quantized model is as near to the model with the LoRA as quantizing allows."""
    plain = load_stock(demo)
    patched = with_lora(plain)
    expected = sample(patched)
    assert snr(expected, reference) < 15, "the LoRA must be visible for this to prove anything"
    for loaded in (patched, with_lora(load_stock(demo))):  # already in memory, and not yet
        new, _ = quantize(loaded, "int8_tensorwise")
        assert not new.patches
        assert snr(expected, sample(new)) > 32
    assert torch.equal(sample(plain), reference)
    assert torch.equal(sample(patched), expected)


def test_a_lora_baked_while_another_is_loaded(demo):
    """Weights in memory carry another clone's patches; the originals are what counts."""
    plain = load_stock(demo)
    other = with_lora(plain, lora(0.6))
    sample(other)
    new, _ = quantize(plain, "int8_tensorwise")
    assert snr(sample(plain), sample(new)) > 32


def test_quantizing_a_quantized_model(quantized, reference):
    """It decodes first; layers kept by the recipe keep the codes they have."""
    fp8 = load_ours(quantized("float8_e4m3fn_rowwise"))
    new, _ = quantize(fp8, "int8_lodewise", exclude=("single_blocks",))
    kept = new.model.diffusion_model.single_blocks[0].linear1
    changed = new.model.diffusion_model.double_blocks[0].img_mlp[0]
    assert kept.quant_format == "float8_e4m3fn_rowwise"
    assert changed.quant_format == "int8_lodewise"
    assert torch.equal(
        kept.weight._qdata.view(torch.uint8),
        fp8.model.diffusion_model.single_blocks[0].linear1.weight._qdata.view(torch.uint8),
    )
    assert snr(reference, sample(new)) > 32


def test_what_the_graph_set_on_the_model_stays(demo):
    """Options, wrappers, object patches; methods patched onto the network follow to the new one."""
    model = load_stock(demo)
    network = model.model.diffusion_model
    seen = []

    def forward(self, *arguments, **keywords):
        seen.append(self)
        return type(self).forward(self, *arguments, **keywords)

    sampling = copy.deepcopy(model.model.model_sampling)
    sampling.set_parameters(shift=2.5)
    model.add_object_patch("model_sampling", sampling)
    model.add_object_patch("diffusion_model.forward", types.MethodType(forward, network))
    model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] * 1.0)
    expected = sample(model)
    seen.clear()
    new, _ = quantize(model, "int8_tensorwise")
    assert snr(expected, sample(new)) > 32
    assert seen and all(module is new.model.diffusion_model for module in seen)
    assert new.model_options["sampler_post_cfg_function"]


def test_a_quantized_model_can_be_cloned_afresh(demo):
    """ComfyUI asks for an independent copy to run without dynamic VRAM or on another device."""
    new, _ = quantize(load_stock(demo), "nvfp4")
    expected = sample(new)
    factory, arguments = new.cached_patcher_init[:2]
    with torch.inference_mode():
        again = factory(*arguments, disable_dynamic=True)
    assert again.model is not new.model
    assert torch.equal(sample(again), expected)


def test_room_is_made_for_the_models_weights(demo, monkeypatch):
    shapes = []
    monkeypatch.setattr(quantizing, "make_room", lambda recipe, found: shapes.extend(found))
    quantize(load_stock(demo))
    assert (1792, 256) in shapes


@torch.inference_mode()
def test_only_what_is_asked_for_leaves_the_gpu(quantized, monkeypatch):
    """A chunk is cut out of the weight before it is moved."""
    model = with_lora(load_ours(quantized("int8_tensorwise")), lora(layers=("qkv",)))
    layer = model.model.diffusion_model.img_in
    layer.weight = torch.nn.Parameter(layer.weight.detach().T.contiguous().T, requires_grad=False)
    source = PatchedWeights(model, quantizing.DIFFUSION)
    moved, cpu = [], torch.Tensor.cpu

    def watched(tensor: torch.Tensor) -> torch.Tensor:
        moved.append(tensor.shape[0])
        return cpu(tensor)

    monkeypatch.setattr(torch.Tensor, "cpu", watched)
    names = ("single_blocks.0.linear1.weight", "vector_in.in_layer.weight", "img_in.weight",
             "double_blocks.0.img_attn.qkv.weight")  # fmt: skip
    for name in names:
        whole = cpu(source.read(name))
        size = whole.element_size() * whole.shape[1]
        moved.clear()
        out = torch.empty_like(whole)
        assert torch.equal(source.read_rows(name, 3, 7), whole[3:7])
        assert torch.equal(source.read_rows(name, 3, 7, out), whole[3:7])
        got = source.read_bytes(name, 3 * size, 7 * size)
        assert bytes(got) == whole[3:7].reshape(-1).view(torch.uint8).numpy().tobytes()
        assert max(moved) <= 4 * size and moved.count(4) >= 1


def test_excluded_layers_stay_exact(demo):
    model = load_stock(demo)
    new, report = quantize(model, "float8_e4m3fn", exclude=("linear2$",))
    layers = {layer.name: layer for layer in report.layers}
    assert layers["single_blocks.0.linear2"].action == "keep"
    new_weight = new.model.diffusion_model.single_blocks[0].linear2.weight
    old_weight = model.model.diffusion_model.single_blocks[0].linear2.weight
    assert torch.equal(new_weight.float(), old_weight.float())


@pytest.mark.parametrize("format", ["int8_blockwise", "float8_e4m3fn"])
def test_text_encoders(encoder, format):
    with torch.inference_mode():
        clip = comfy.sd.load_clip([str(encoder)])
        tokens = clip.tokenize("a handwritten three")
        expected = clip.encode_from_tokens(tokens)
        new, reports = quantize_clip(clip, Recipe(format=format, rounding="nearest"))
        got = new.encode_from_tokens(tokens)
        again = clip.encode_from_tokens(tokens)
    assert [name for name, _ in reports] == ["clip_l"] and reports[0][1].quantized == 73
    layer = new.cond_stage_model.clip_l.transformer.text_model.encoder.layers[0].mlp.fc1
    assert isinstance(layer.weight, QuantizedTensor) and new.patcher.model is new.cond_stage_model
    assert 20 < snr(expected, got) < 80
    assert torch.equal(expected, again)


# ---- statistics: connected, or the model's own ---------------------------------------------------


@pytest.fixture
def calibrations(monkeypatch):
    """Counts how often the model calibrates itself, on a few short runs."""
    monkeypatch.setattr(self_runs, "SAMPLES", 8)
    monkeypatch.setattr(self_runs, "STEPS", 6)
    monkeypatch.setattr(self_runs, "PIXELS", 64)
    made = []

    def counted(*arguments):
        made.append(arguments)
        return self_calibrate_model(*arguments)

    monkeypatch.setattr(quantizing, "self_calibrate_model", counted)
    return made


def test_a_model_with_nothing_connected_calibrates_itself(demo, calibrations):
    original = load_stock(demo)
    plain, _ = quantize(original, "float8_e4m3fn")
    assert not calibrations, "nearest rounding needs no statistics"
    new, report = quantize(original, "float8_e4m3fn", rounding="auto")
    assert len(calibrations) == 1
    assert any("short runs" in warning for warning in report.warnings)
    methods = [layer.outcome.method for layer in report.layers if layer.outcome]
    assert len(methods) == 32 and methods.count("calibrated") >= 20
    assert set(methods) <= {"calibrated", "scale search", "nearest"}
    expected = sample(original, steps=6)
    gain = snr(expected, sample(new, steps=6)) - snr(expected, sample(plain, steps=6))
    assert gain >= 4
    assert hooks_on(original.model) == 0


def test_a_connected_calibration_is_what_counts(demo, calibrations):
    original = load_stock(demo)
    with torch.inference_mode():
        given, _ = self_calibrate_model(original, tell=lambda _: None)
        recipe = Recipe(format="float8_e4m3fn")
        _, report = quantize_model(original, recipe, given)
    assert not calibrations
    assert not any("short runs" in warning for warning in report.warnings)
    assert "calibrated" in report.methods()


def test_cancelled_and_started_again(demo, calibrations, monkeypatch):
    """Neither the calibration nor a finished layer is made twice; afterwards nothing is held."""
    original = load_stock(demo)
    solved, solve = [], LayerSolver._solve

    def counted(self, t, *arguments):
        if len(solved) == 5 and not again:
            mm.interrupt_current_processing()
        found = solve(self, t, *arguments)
        (again or solved).append(t.layer)
        return found

    again = []
    monkeypatch.setattr(LayerSolver, "_solve", counted)
    with pytest.raises(mm.InterruptProcessingException):
        quantize(original, "float8_e4m3fn", rounding="auto")
    assert len(calibrations) == 1 and 5 <= len(solved) < 10
    again.append("second run")
    _, report = quantize(original, "float8_e4m3fn", rounding="auto")
    assert len(calibrations) == 1
    assert report.quantized == 32 == len(solved) + len(again[1:])
    assert not set(solved) & set(again)
    quantize(original, "float8_e4m3fn", rounding="auto", exclude=("double", "linear"))
    assert len(calibrations) == 2, "a finished run's statistics are not kept"


def test_a_text_encoder_with_nothing_connected_calibrates_itself(encoder, monkeypatch):
    monkeypatch.setattr(self_calibration, "TOKENS_READ", 1500)
    others = r"layers\.([1-9]|1\d)\."
    with torch.inference_mode():
        clip = comfy.sd.load_clip([str(encoder)])
        _, reports = quantize_clip(clip, Recipe(format="nvfp4", exclude=(others,)))
    ((_, report),) = reports
    outcomes = {layer.name: layer.outcome for layer in report.layers if layer.outcome}
    inner = [outcome for name, outcome in outcomes.items() if "layers.0." in name]
    assert len(inner) == 6 and all(outcome.method == "calibrated" for outcome in inner)
    assert all(outcome.tokens >= 1000 for outcome in inner)
    assert report.mean_gain > 1


def test_an_encoder_that_was_finished_is_not_done_again(encoder, monkeypatch):
    """A CLIP of several encoders, cancelled in the second; another is done in between."""
    parts = [f"clip_l.transformer.text_model.encoder.layers.{i}." for i in (0, 1)]
    monkeypatch.setattr(self_calibration, "TOKENS_READ", 300)
    monkeypatch.setattr(quantizing, "encoder_prefixes", lambda _: parts)
    solved, solve, cancelling = [], LayerSolver._solve, True

    def counted(self, t, *arguments):
        if len(solved) == 8 and cancelling:
            mm.interrupt_current_processing()
        found = solve(self, t, *arguments)
        solved.append(t.layer)
        return found

    monkeypatch.setattr(LayerSolver, "_solve", counted)
    with torch.inference_mode():
        clip, other = (comfy.sd.load_clip([str(encoder)]) for _ in range(2))
        with pytest.raises(mm.InterruptProcessingException):
            quantize_clip(clip, Recipe(format="nvfp4"))
        cancelling, finished = False, len(solved)
        assert 8 <= finished < 12, "six of the first, and some of the second"
        quantize_clip(other, Recipe(format="mxfp8"))
        assert len(solved) == finished + 12
        _, reports = quantize_clip(clip, Recipe(format="nvfp4"))
    assert len(solved) == finished + 12 + (12 - finished)
    said = "6 layers were finished in a run before, and reused"
    assert said in reports[0][1].warnings
