"""Capture in any graph: what samplers and text encoders record, and what Finish Capture gives."""

from __future__ import annotations

import comfy.sd
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.torch_helpers import set_torch_compile_wrapper
from comfy_execution.utils import CurrentNodeContext
from comfy_extras.nodes_custom_sampler import (
    BasicScheduler,
    CFGGuider,
    KSamplerSelect,
    RandomNoise,
    SamplerCustomAdvanced,
)

from roundsmith.bridge import recording as recording_module
from roundsmith.bridge.capturing import (
    capture_clip,
    capture_model,
    clip_capture,
    clip_layers,
    model_capture,
    model_layers,
)
from roundsmith.bridge.recording import record_clip, record_model
from roundsmith.errors import RoundsmithError

from .support import conditioning, hooks_on, load_stock, tokens_seen, with_lora

LAYER = "single_blocks.0.linear1"
ENCODER = "clip_l.transformer."


@torch.inference_mode()
def guided(model, seed=1, steps=2, cfg=1.5):
    """Samples with ComfyUI's own nodes for custom sampling."""
    guider = CFGGuider.execute(model, conditioning(), conditioning("a nine"), cfg).args[0]
    sigmas = BasicScheduler.execute(model, "simple", steps, 1.0).args[0]
    start = {"samples": torch.zeros(1, 16, 8, 8)}
    result = SamplerCustomAdvanced.execute(
        RandomNoise.execute(seed).args[0], guider, KSamplerSelect.execute("euler").args[0],
        sigmas, start,
    )  # fmt: skip
    return result.args[0]["samples"]


def node(number, run="first"):
    """As if node ``number`` were executed in the prompt ``run``."""
    return CurrentNodeContext(run, str(number))


def mean(seen, layer=LAYER):
    return seen[layer].mean(0).float()


def test_a_guider_and_a_custom_sampler(demo):
    plain = load_stock(demo)
    seen = tokens_seen(plain.model.diffusion_model, model_layers(plain), lambda: guided(plain))
    model, recording = record_model(plain)
    with node(3):
        got = guided(model)
    calibration = recording.finish({"3": {}})
    assert torch.equal(got, guided(plain))
    for name, x in seen.items():
        record = calibration.record(name)
        assert record.count == len(x)
        torch.testing.assert_close(record.mean.double(), x.mean(0), rtol=1e-4, atol=1e-5)
    assert calibration.settings["what"] == "sampler"
    assert hooks_on(plain.model) == 0


def test_what_ran_again_is_recorded_anew_and_the_rest_stays(demo):
    """Two samplers. The second runs again with another seed; the first's latent was kept."""
    plain = load_stock(demo)
    layers = [LAYER]
    model, recording = record_model(plain, LAYER)
    network = plain.model.diffusion_model
    seen = {s: tokens_seen(network, layers, lambda s=s: guided(plain, s)) for s in (1, 2, 3)}
    graph = {"3": {}, "4": {}}
    for number in (3, 4):
        with node(number):
            guided(model, seed=number - 2)
    first = recording.finish(graph).record(LAYER)
    assert first.count == 2 * len(seen[1][LAYER])
    torch.testing.assert_close(first.mean, (mean(seen[1]) + mean(seen[2])) / 2, atol=1e-4, rtol=0)
    assert torch.equal(recording.finish(graph).record(LAYER).mean, first.mean), "asked again"
    with node(4, "second"):
        guided(model, seed=3)
    again = recording.finish(graph).record(LAYER)
    assert again.count == first.count
    torch.testing.assert_close(again.mean, (mean(seen[1]) + mean(seen[3])) / 2, atol=1e-4, rtol=0)
    alone = recording.finish({"4": {}}).record(LAYER)
    torch.testing.assert_close(alone.mean, mean(seen[3]), atol=1e-4, rtol=0)


def test_a_run_cut_short_is_not_counted(demo):
    """Cancelled in the middle; the sampler runs again in the next prompt."""
    model, recording = record_model(load_stock(demo), LAYER)

    def cancel(_, given):
        raise KeyboardInterrupt

    with node(3):
        guided(model, steps=1)
    one = recording.finish().record(LAYER).count
    with node(3, "second"):
        guided(model, steps=2)
        broken = model.clone()
        broken.set_model_unet_function_wrapper(cancel)
        with pytest.raises(KeyboardInterrupt):
            guided(broken)
    with node(3, "third"):
        guided(model, steps=1)
    assert recording.finish().record(LAYER).count == one


def test_finish_with_nothing_recorded_says_the_way_out(demo):
    model, recording = record_model(load_stock(demo), LAYER)
    with pytest.raises(RoundsmithError, match="change its seed"):
        recording.finish()
    with node(3):
        guided(model)
    with pytest.raises(RoundsmithError, match="'after'"):
        recording.finish({"5": {}})


def test_nodes_made_by_a_node_count_with_it(demo):
    model, recording = record_model(load_stock(demo), LAYER)
    with node("3.0.1"):
        guided(model)
    assert recording.finish({"3": {}}).record(LAYER).count


def test_what_does_not_fit_goes_to_a_file(demo, tmp_path, monkeypatch):
    monkeypatch.setattr(recording_module, "temporary_folder", lambda: tmp_path)
    model, recording = record_model(load_stock(demo), "linear2|linear1", 2048, memory_mb=24)
    kept, plain = record_model(load_stock(demo), "linear2|linear1", 2048, memory_mb=1024)
    guided(model), guided(kept)
    assert len(list(tmp_path.iterdir())) == 1
    stored, memory = recording.finish(), plain.finish()
    for name in memory.layers:
        a, b = stored.record(name), memory.record(name)
        assert a.count == b.count and torch.equal(a.mean, b.mean)
        assert torch.equal(a.tokens, b.tokens)


def test_compiled_models_run_uncompiled_while_recorded(demo):
    """Compiled code would leave the hooks out."""
    compiled = load_stock(demo)

    def never(graph, inputs):
        raise AssertionError("compiled")

    set_torch_compile_wrapper(compiled, backend=never)
    model, recording = record_model(compiled, LAYER)
    guided(model)
    assert recording.finish().record(LAYER).count
    assert compiled.get_all_wrappers(WrappersMP.APPLY_MODEL), "the original still is"


def test_other_wrappers_stay(demo):
    seen = []

    def wrapper(executor, *arguments, **keywords):
        seen.append(hooks_on(executor.class_obj))
        return executor(*arguments, **keywords)

    plain = load_stock(demo)
    plain.add_wrapper(WrappersMP.DIFFUSION_MODEL, wrapper)
    capture = model_capture(plain, [LAYER])
    guided(capture_model(plain, capture))
    assert seen == [1, 1] and hooks_on(plain.model) == 0
    guided(plain)
    assert seen == [1, 1, 0, 0] and capture.finish().settings["calls"] == 2


def test_a_lora_put_on_after_the_capture(demo):
    """The recording goes with the model wherever the graph takes it."""
    plain = load_stock(demo)
    model, recording = record_model(plain, "single_blocks.3.linear2")
    patched = with_lora(model)
    expected = guided(with_lora(plain))
    assert torch.equal(guided(patched), expected)
    with_patch = recording.finish().record("single_blocks.3.linear2").mean
    model, recording = record_model(plain, "single_blocks.3.linear2")
    guided(model)
    without = recording.finish().record("single_blocks.3.linear2").mean
    assert (with_patch - without).norm() > 0.05 * without.norm()


@pytest.fixture(scope="module")
def clip(encoder):
    with torch.inference_mode():
        return comfy.sd.load_clip([str(encoder)])


@torch.inference_mode()
def encode(clip, text="a handwritten three"):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))[0][0]


def test_text_encoders(clip):
    model = clip.cond_stage_model
    seen = tokens_seen(model, clip_layers(clip), lambda: encode(clip))
    capture = clip_capture(clip)
    recorded = capture_clip(clip, capture).clone()  # as other nodes clone it
    assert hooks_on(model) == 0
    assert torch.equal(encode(recorded), encode(clip))
    assert hooks_on(model) == 0 and recorded.patcher.model is model
    assert recorded.cond_stage_model.state_dict().keys() == model.state_dict().keys()
    calibration = capture.finish()
    assert set(calibration.layers) == set(seen)
    assert all(name.startswith(ENCODER) for name in seen) and len(seen) >= 72
    part = calibration.under(ENCODER)
    for name, x in seen.items():
        if not len(x):
            assert name in calibration.unreached
            continue
        record = part.record(name.removeprefix(ENCODER))
        assert record.count == len(x)
        torch.testing.assert_close(record.mean.double(), x.mean(0), rtol=1e-3, atol=1e-4)
    qkv = [f"{ENCODER}text_model.encoder.layers.0.self_attn.{n}_proj" for n in "qkv"]
    assert set(calibration.shares(qkv[0])) == set(qkv), "fed by one tensor"


def test_texts_of_several_nodes_come_together(clip):
    recorded, recording = record_clip(clip, r"layers\.0\.mlp\.fc1$")
    for number, text in ((5, "one"), (6, "two")):
        with node(number):
            encode(recorded, text)
    calibration = recording.finish({"5": {}, "6": {}})
    (layer,) = calibration.layers
    assert calibration.record(layer).count == 2 * 77
    assert calibration.settings["what"] == "text encoder"
    with pytest.raises(RoundsmithError, match="text encoder"):
        record_clip(clip)[1].finish()


def test_an_error_while_encoding_leaves_no_hook(clip, monkeypatch):
    recorded, _ = record_clip(clip)

    def broken(*_, **__):
        raise RuntimeError("broke")

    monkeypatch.setattr(clip.cond_stage_model.clip_l.transformer.text_model, "forward", broken)
    with pytest.raises(RuntimeError, match="broke"):
        encode(recorded)
    assert hooks_on(clip.cond_stage_model) == 0
