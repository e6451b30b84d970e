"""Calibrate (Sampler): what it records, the latent it gives, and what it leaves behind: nothing."""

from __future__ import annotations

import comfy.model_management as mm
import pytest
import torch
from comfy.patcher_extension import WrappersMP

import nodes
from roundsmith.bridge import passes
from roundsmith.bridge.calibrating import calibrate_sampler
from roundsmith.bridge.capturing import model_layers
from roundsmith.errors import RecipeError, RoundsmithError

from .support import (
    conditioning,
    hooks_on,
    load_ours,
    load_stock,
    sample,
    tokens_seen,
    with_lora,
)
from .tiny import tiny_model

SETTINGS = {"steps": 3, "cfg": 2.5, "sampler_name": "euler", "scheduler": "simple"}
OTHER = "a handwritten seven"
TINY_MB = 24


def latent(batch=1):
    return {"samples": torch.zeros(batch, 16, 8, 8)}


@torch.inference_mode()
def calibrate(model, seeds=(1, 2), start=None, **options):
    arguments = {**SETTINGS, **options}
    start = start or latent()
    return calibrate_sampler(
        model, conditioning(), conditioning(OTHER), start, seeds, **arguments
    )


@torch.inference_mode()
def ksampler(model, seed, start=None, **options):
    arguments = {**SETTINGS, "denoise": 1.0, **options}
    prompts = {"positive": conditioning(), "negative": conditioning(OTHER)}
    return nodes.common_ksampler(
        model, seed, latent=start or latent(), **prompts, **arguments
    )[0]


def second_moment(record):
    """Of every token seen, where none was dropped."""
    tokens = record.tokens.double()
    total = tokens.T @ tokens
    if record.moment is not None:
        total += record.moment.double() * record.moment_count
    return total / record.count


@pytest.fixture(scope="module")
def seen(demo):
    """What plain torch hooks see when KSampler runs seeds 1 and 2."""
    model = load_stock(demo)

    def run():
        for seed in (1, 2):
            ksampler(model, seed)

    return tokens_seen(model.model.diffusion_model, model_layers(model), run)


@pytest.fixture(scope="module")
def calibrated(demo):
    return calibrate(load_stock(demo))[0]


def assert_same_statistics(calibration, seen):
    assert set(calibration.layers) == set(seen) and not calibration.unreached
    for name, x in seen.items():
        record = calibration.record(name)
        assert record.count == len(x) and record.nonfinite == 0
        torch.testing.assert_close(record.mean.double(), x.mean(0), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(record.absmax.double(), x.abs().amax(0), rtol=0, atol=0)
        assert int(record.histogram.sum()) == x.numel()
        moment = x.T @ x / len(x)
        error = (second_moment(record) - moment).norm() / moment.norm()
        assert error < 0.01, f"{name}: {error}"  # bfloat16 tokens


def test_statistics_are_those_of_plain_hooks(calibrated, seen):
    assert len(seen) > 32
    assert_same_statistics(calibrated, seen)


def test_both_guidance_branches_are_recorded(calibrated):
    assert calibrated.record("img_in").count == 2 * 2 * 3 * 16  # branches, seeds, steps, patches
    prompts = conditioning()[0][0], conditioning(OTHER)[0][0]
    kept = {tuple(row) for row in calibrated.record("txt_in").tokens.float().tolist()}
    for prompt in prompts:
        assert kept & {tuple(row) for row in prompt[0].bfloat16().float().tolist()}


def test_a_video():
    """A latent of frames, two seeds; the latent is KSampler's."""
    model = tiny_model("wan 2.1 text to video")
    start = {"samples": torch.zeros(1, 16, 3, 8, 8)}
    prompts = [[[torch.randn(1, 5, 48), {}]] for _ in range(2)]
    with torch.inference_mode():
        calibration, got = calibrate_sampler(model, *prompts, start, (1, 2), **SETTINGS)
        expected = nodes.common_ksampler(
            *(model, 1, *SETTINGS.values(), *prompts, start), denoise=1.0
        )[0]
    assert torch.equal(got["samples"], expected["samples"]) and got["samples"].ndim == 5
    assert not calibration.unreached
    patches = 3 * 4 * 4
    assert calibration.record("blocks.0.self_attn.q").count == 2 * 2 * 3 * patches
    assert calibration.settings["passes"] == 1


def test_settings_say_how_it_was_made(calibrated):
    settings = calibrated.settings
    assert settings["seeds"] == [1, 2] and settings["steps"] == 3 and settings["cfg"] == 2.5
    assert settings["sampler"] == "euler" and settings["scheduler"] == "simple"
    assert settings["passes"] == 1 and settings["slowdown"] > 1


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "heun"])
def test_the_latent_is_ksamplers(demo, sampler):
    """Bit for bit, with everything a latent can carry."""
    model = load_stock(demo)
    start = latent(2)
    start["samples"][:, :, 2:] = 0.3
    start |= {"batch_index": [0, 3], "noise_mask": torch.ones(1, 1, 8, 8).tril()}
    start |= {"downscale_ratio_spacial": 8}
    options = {"sampler_name": sampler, "denoise": 0.8, "start": start}
    expected = ksampler(model, 5, **options)
    _, got = calibrate(model, (5, 6), **options)
    assert got.keys() == expected.keys()
    assert torch.equal(got["samples"], expected["samples"])


def test_nothing_stays_on_the_model(demo, reference):
    model = load_stock(demo)
    before = sample(model)
    state = {name: t.clone() for name, t in model.model.state_dict().items()}
    calibrate(model, (1,))
    assert hooks_on(model.model) == 0
    assert not any(model.get_all_wrappers(WrappersMP.APPLY_MODEL))
    assert all(torch.equal(state[name], t) for name, t in model.model.state_dict().items())
    assert torch.equal(sample(model), before) and torch.equal(before, reference)


def test_a_tiny_budget_takes_passes_and_gives_the_same(demo, seen, tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "temporary_folder", lambda: tmp_path)
    calibration, got = calibrate(load_stock(demo), memory_mb=TINY_MB)
    assert calibration.settings["passes"] >= 2
    assert_same_statistics(calibration, seen)
    assert torch.equal(got["samples"], ksampler(load_stock(demo), 1)["samples"])
    assert len(list(tmp_path.iterdir())) == calibration.settings["passes"]
    del calibration
    assert not list(tmp_path.iterdir()), "temporary files go with the calibration"


def test_few_tokens_are_a_sample_of_all(demo, seen):
    calibration, _ = calibrate(load_stock(demo), max_tokens=64)
    record = calibration.record("single_blocks.0.linear1")
    x = seen["single_blocks.0.linear1"]
    assert len(record.tokens) == 64 and record.count == len(x)
    known = {tuple(row) for row in x.bfloat16().float().tolist()}
    assert {tuple(row) for row in record.tokens.float().tolist()} <= known


def test_layers_can_be_chosen(demo):
    calibration, _ = calibrate(load_stock(demo), (1,), layers=r"^double_blocks\.\d+\.img_mlp")
    assert len(calibration.layers) == 4
    for pattern, words in (("(", "regular expression"), ("no_such", "no linear layer")):
        with pytest.raises(RecipeError, match=words):
            calibrate(load_stock(demo), (1,), layers=pattern)


def test_a_lora_is_seen_and_the_fingerprint_is_of_the_model(demo, calibrated):
    plain = load_stock(demo)
    patched = with_lora(plain)
    sample(patched)  # its weights are in memory now
    calibration, _ = calibrate(patched)
    assert calibration.fingerprint.marks == calibrated.fingerprint.marks
    assert any(mark.samples for mark in calibration.fingerprint.marks.values())
    layer = "single_blocks.3.linear2"
    changed = calibration.record(layer).mean - calibrated.record(layer).mean
    assert changed.norm() > 0.05 * calibrated.record(layer).mean.norm()


@pytest.mark.parametrize("format", ["int8_tensorwise", "nvfp4", "float8_e4m3fn_rowwise"])
def test_quantized_layers_are_recorded(quantized, calibrated, format):
    calibration, _ = calibrate(load_ours(quantized(format)))
    assert set(calibration.layers) == set(calibrated.layers) and not calibration.unreached
    assert calibration.check(calibrated.fingerprint) == []
    for name in ("double_blocks.0.img_attn.qkv", "single_blocks.0.linear1"):
        wanted, found = calibrated.record(name), calibration.record(name)
        assert found.count == wanted.count
        assert (found.mean - wanted.mean).norm() < 0.2 * wanted.mean.norm()


def test_low_vram(demo, monkeypatch):
    """Weights stay where they are and are cast, patched, as each layer runs."""
    model = with_lora(load_stock(demo))
    expected, _ = calibrate(model)
    with torch.inference_mode():
        mm.unload_all_models()
        model.patch_model(load_weights=False)
        model.load(torch.device("cpu"), lowvram_model_memory=1)
    monkeypatch.setattr(mm, "load_models_gpu", lambda *_, **__: None)
    assert model.model.diffusion_model.single_blocks[0].linear1.weight_function
    calibration, _ = calibrate(model)
    model.detach()
    for name in expected.layers:
        wanted, found = expected.record(name), calibration.record(name)
        torch.testing.assert_close(found.mean, wanted.mean, rtol=1e-3, atol=1e-4)


def failing(model, call, error):
    """A clone whose network fails inside its ``call``-th call, while hooks are on."""
    network, calls = model.model.diffusion_model, iter(range(10**6))
    forward = network.final_layer.forward

    def broken(*arguments, **keywords):
        if next(calls) == call:
            raise error
        return forward(*arguments, **keywords)

    new = model.clone()
    new.add_object_patch("diffusion_model.final_layer.forward", broken)
    return new


def test_an_error_in_the_middle(demo, reference):
    model = load_stock(demo)
    with pytest.raises(RoundsmithError, match=r"run 2 of 2.*RuntimeError: the sampler broke"):
        calibrate(failing(model, 4, RuntimeError("the sampler broke")))
    assert hooks_on(model.model) == 0
    assert torch.equal(sample(model), reference)


def test_out_of_memory_is_comfyuis_to_handle(demo):
    error = torch.cuda.OutOfMemoryError("too much")
    with pytest.raises(torch.cuda.OutOfMemoryError):
        calibrate(failing(load_stock(demo), 1, error))


def test_cancel_in_the_middle(demo, reference, tmp_path, monkeypatch):
    monkeypatch.setattr(passes, "temporary_folder", lambda: tmp_path)
    model = load_stock(demo)
    for memory_mb in (0, TINY_MB):
        with pytest.raises(mm.InterruptProcessingException):
            calibrate(failing(model, 8, mm.InterruptProcessingException()), memory_mb=memory_mb,
                      seeds=(1, 2, 3))  # fmt: skip
        assert hooks_on(model.model) == 0 and not list(tmp_path.iterdir())
    mm.interrupt_current_processing(True)
    with pytest.raises(mm.InterruptProcessingException):
        calibrate(model)
    assert not mm.processing_interrupted()
    assert torch.equal(sample(model), reference)


def test_a_run_that_reaches_no_layer(demo):
    """Another node answers in the network's place."""
    model = load_stock(demo)
    model.set_model_unet_function_wrapper(lambda apply, given: given["input"] * 0.5)
    with pytest.raises(RoundsmithError, match="nothing was recorded"):
        calibrate(model, (1,))
