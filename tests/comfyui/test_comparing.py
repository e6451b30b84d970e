"""Compare Models: known errors are found, in the layer and at the size they have."""

from __future__ import annotations

import itertools
import math

import comfy.model_management as mm
import comfy.sd
import comfy.utils
import pytest
import torch
from safetensors.torch import load_file, save_file

from roundsmith.bridge import comparing
from roundsmith.bridge.comparing import compare_models
from roundsmith.bridge.pictures import shown
from roundsmith.bridge.quantizing import quantize_model
from roundsmith.converters import Recipe
from roundsmith.errors import RoundsmithError
from roundsmith.tests.models import VAE_FILE

from .support import (
    conditioning,
    hooks_on,
    load_ours,
    load_stock,
    lora,
    sample,
    snr,
    tokens_seen,
    with_lora,
)

STEPS = 3


@torch.inference_mode()
def compare(reference, quantized, steps=STEPS, seed=1, **options):
    prompt, latent = conditioning(), {"samples": torch.zeros(1, 16, 8, 8)}
    return compare_models(
        *(reference, quantized, prompt, prompt, latent, seed, steps, 1.0, "euler", "simple"),
        **options,
    )


@pytest.fixture(scope="module")
def vae(base):
    return comfy.sd.VAE(sd=comfy.utils.load_torch_file(str(base / "models" / "vae" / VAE_FILE)))


@pytest.fixture(scope="module")
def int8(demo, quantized):
    """The demo model beside its INT8 file."""
    return compare(load_stock(demo), load_stock(quantized("int8_tensorwise")))


def damaged(demo, path, layer, decibels):
    """The demo model with noise of a known power in one layer's weight."""
    state = load_file(demo)
    w = state[f"{layer}.weight"].float()
    noise = torch.randn(w.shape, generator=torch.Generator().manual_seed(1))
    state[f"{layer}.weight"] = w + noise * (w.norm() / noise.norm()) * 10 ** (-decibels / 20)
    save_file({name: t.float() for name, t in state.items()}, path)
    return load_stock(path)


def test_the_latents_are_ksamplers(demo, quantized, int8):
    for latent, path in ((int8.reference, demo), (int8.quantized, quantized("int8_tensorwise"))):
        assert torch.equal(latent["samples"], sample(load_stock(path), steps=STEPS))


def test_the_final_latents_snr(int8):
    expected = snr(int8.reference["samples"], int8.quantized["samples"])
    assert int8.comparison.snr == pytest.approx(expected, abs=1e-3)
    assert 30 < expected < 60
    assert int8.comparison.what == "final latent" and "latents" in int8.comparison.psnr_what


def test_a_model_beside_itself_loses_nothing(demo):
    model = load_stock(demo)
    for other in (model, model.clone(), load_stock(demo)):
        found = compare(model, other).comparison
        assert found.snr == found.psnr == math.inf
        assert {step.latent for step in found.steps} == {math.inf}
        assert {layer.score for layer in found.layers} == {math.inf}
        assert found.passed(1000) and not found.only_reference and not found.only_quantized


def test_errors_add_up_step_by_step(demo, quantized):
    found = compare(load_stock(demo), load_stock(quantized("nvfp4")), steps=8).comparison
    assert [step.number for step in found.steps] == list(range(1, 9))
    latent = [step.latent for step in found.steps]
    assert latent[-1] == found.snr and latent[0] > found.snr + 10
    assert all(a > b - 1 for a, b in itertools.pairwise(latent)), latent
    assert all(10 < step.denoised < 60 for step in found.steps)


def test_steps_are_those_the_sampler_shows(demo, quantized):
    """Against the latents both models show when they are sampled alone."""
    seen = []
    with torch.inference_mode():
        for path in (demo, quantized("nvfp4")):
            steps = []
            comparing.ksample(
                *(load_stock(path), 1, STEPS, 1.0, "euler", "simple"),
                *(conditioning(), conditioning(), {"samples": torch.zeros(1, 16, 8, 8)}, 1.0),
                lambda i, denoised, x, n, steps=steps: steps.append((x.clone(), denoised.clone())),
            )
            seen.append(steps)
    found = compare(load_stock(demo), load_stock(quantized("nvfp4"))).comparison
    for step, mine, its in zip(found.steps, *seen, strict=True):
        assert step.denoised == pytest.approx(snr(mine[1], its[1]), abs=1e-3)
    for step, mine, its in zip(found.steps, seen[0][1:], seen[1][1:], strict=False):
        assert step.latent == pytest.approx(snr(mine[0], its[0]), abs=1e-3)


def test_the_damaged_layer_is_the_only_bad_one(demo, tmp_path):
    reference = damaged(demo, tmp_path / "same.safetensors", "img_in", 300)
    other = damaged(demo, tmp_path / "bad.safetensors", "single_blocks.2.linear1", 25)
    found = compare(reference, other).comparison
    worst = found.layers[0]
    assert worst.name == "single_blocks.2.linear1"
    assert worst.weight == pytest.approx(25, abs=0.1)
    assert worst.exact == pytest.approx(worst.executed, abs=0.1)
    assert all(layer.score > 80 for layer in found.layers[1:])
    assert "single_blocks.2.linear1" in found.summary()


def test_scores_of_a_layer_against_float64(demo, quantized):
    """On everything the layer saw, not the sample: they agree as far as a sample can."""
    model, other = load_stock(demo), load_stock(quantized("nvfp4"))
    names = ["double_blocks.0.img_attn.qkv", "single_blocks.3.linear2"]
    seen = tokens_seen(
        model.model.diffusion_model, names, lambda: sample(model, steps=STEPS)
    )
    found = {x.name: x for x in compare(model, other).comparison.layers}
    for name in names:
        w = model.model.diffusion_model.get_submodule(name).weight.double()
        w_hat = other.model.diffusion_model.get_submodule(name).weight
        w_hat = w_hat.to(torch.float32).dequantize().double()
        expected = snr(seen[name] @ w.T, seen[name] @ w_hat.T)
        assert found[name].exact == pytest.approx(expected, abs=0.4)
        assert found[name].executed == pytest.approx(expected, abs=0.4)


def test_int8_activations_show_as_executed_only(int8):
    """ComfyUI quantizes them on a CPU too."""
    layers = [x for x in int8.comparison.layers if x.weight != math.inf]
    assert len(layers) == 32
    assert all(x.stored_as == "int8_tensorwise" for x in layers)
    reached = [x for x in layers if x.tokens > 20]
    assert len(reached) > 10
    assert all(x.executed < x.exact - 0.5 for x in reached)


@pytest.mark.parametrize("format", ["float8_e4m3fn", "mxfp8", "float8_e4m3fn_rowwise"])
def test_formats_a_cpu_decodes(demo, quantized, format):
    found = compare(load_stock(demo), load_ours(quantized(format))).comparison
    layers = [x for x in found.layers if x.weight != math.inf]
    assert len(layers) == 32
    assert all(x.executed == pytest.approx(x.exact, abs=0.3) for x in layers)
    assert {x.stored_as for x in layers} == {format}


def test_both_quantized(quantized):
    found = compare(
        load_stock(quantized("int8_tensorwise")), load_stock(quantized("nvfp4"))
    ).comparison
    assert 15 < found.snr < 45 and found.layers[0].stored_as == "nvfp4"


def test_loras_on_either_model(demo, quantized):
    """They are part of the weights that are compared, and of what is executed."""
    plain = load_stock(demo)
    patched = with_lora(plain, lora(layers=("qkv",)))
    found = compare(plain, patched).comparison
    changed = {x.name for x in found.layers if x.weight < 100}
    assert changed == {"double_blocks.0.img_attn.qkv", "double_blocks.1.img_attn.qkv"}
    for layer in found.layers:
        if layer.name in changed:
            assert layer.executed == pytest.approx(layer.exact, abs=0.3)
        else:
            assert layer.score == math.inf
    with torch.inference_mode():
        baked, _ = quantize_model(patched, Recipe(format="int8_tensorwise", rounding="nearest"))
    assert compare(patched, baked).comparison.snr > 32


def test_a_lora_on_top_of_a_quantized_model(demo, quantized):
    state = lora(layers=("qkv",))
    reference = with_lora(load_stock(demo), state)
    found = compare(reference, with_lora(load_stock(quantized("float8_e4m3fn")), state)).comparison
    assert all(x.exact > 25 for x in found.layers if x.exact is not None)
    assert all(x.executed > 25 for x in found.layers if x.executed is not None)


def test_the_models_are_left_as_they_were(demo, quantized):
    reference, other = load_stock(demo), load_stock(quantized("nvfp4"))
    expected = [sample(model) for model in (reference, other)]
    before = [dict(model.model_options) for model in (reference, other)]
    keys = [set(model.wrappers) for model in (reference, other)]
    compare(reference, other)
    assert [model.model_options for model in (reference, other)] == before
    assert [set(model.wrappers) for model in (reference, other)] == keys
    assert all(hooks_on(model.model) == 0 for model in (reference, other))
    assert all(
        torch.equal(sample(model), latent)
        for model, latent in zip((reference, other), expected, strict=True)
    )


def test_pictures_and_their_psnr(demo, quantized, vae):
    found = compare(load_stock(demo), load_stock(quantized("nvfp4")), vae=vae)
    mine, its = found.pictures
    assert mine.shape == its.shape == (1, 64, 64, 3)
    with torch.inference_mode():
        assert torch.equal(mine, vae.decode(found.reference["samples"])[..., :3].cpu())
    error = float((mine - its).square().mean())
    assert found.comparison.psnr == pytest.approx(-10 * math.log10(error), abs=0.01)
    assert "decoded pictures" in found.comparison.psnr_what


def test_rough_pictures_without_a_vae(int8):
    mine, its = int8.pictures
    assert mine.shape == its.shape == (1, 8, 8, 3)
    assert mine.std() > 0.01 and mine.min() >= 0 and mine.max() <= 1


def test_long_batches_are_shown_in_part():
    frames = torch.arange(10.0)[:, None, None, None].expand(10, 2, 2, 3)
    assert shown(frames)[:, 0, 0, 0].tolist() == [0, 3, 6, 9]
    assert len(shown(frames[:3])) == 3


def test_another_model_is_refused(demo, encoder):
    with torch.inference_mode():
        clip = comfy.sd.load_clip([str(encoder)])
    other = clip.patcher.clone()
    other.model.diffusion_model = clip.cond_stage_model
    try:
        with pytest.raises(RoundsmithError, match="no linear layer in common"):
            compare(load_stock(demo), other)
    finally:
        del other.model.diffusion_model


def test_an_error_of_the_sampler_names_the_model(demo):
    model, broken = load_stock(demo), load_stock(demo)

    def fail(*_):
        raise RuntimeError("the node before broke it")

    broken.set_model_unet_function_wrapper(fail)
    for pair, which in (((broken, model), "reference"), ((model, broken), "quantized")):
        with pytest.raises(RoundsmithError, match=f"{which} model failed.*broke it"):
            compare(*pair)
    assert hooks_on(model.model) == hooks_on(broken.model) == 0


@pytest.mark.parametrize("moment", [0.2, 0.7])
def test_cancel_stops_in_either_run(demo, moment, monkeypatch):
    """ComfyUI's own interruption goes through, and leaves nothing on the models."""
    reference, other = load_stock(demo), load_stock(demo)
    steps = []
    step = comparing._Steps.step

    def interrupting(self, *arguments):
        steps.append(1)
        if len(steps) == round(moment * 20):
            mm.interrupt_current_processing()
        step(self, *arguments)

    monkeypatch.setattr(comparing._Steps, "step", interrupting)
    with pytest.raises(mm.InterruptProcessingException):
        compare(reference, other, steps=10)
    assert len(steps) == round(moment * 20)
    assert hooks_on(reference.model) == hooks_on(other.model) == 0
