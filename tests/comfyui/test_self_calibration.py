"""The demo's model and text encoder calibrate themselves: on what, and without a trace."""

from __future__ import annotations

import comfy.model_management as mm
import pytest
import torch

import nodes
from roundsmith.bridge import self_calibration, self_runs
from roundsmith.bridge.capturing import clip_layers, model_layers
from roundsmith.bridge.prompts import PROMPTS, texts
from roundsmith.bridge.quantizing import quantize_model
from roundsmith.bridge.self_calibration import (
    read_note,
    self_calibrate_clip,
    self_calibrate_model,
)
from roundsmith.bridge.summaries import of_report
from roundsmith.converters import Recipe, Report
from roundsmith.nodes._result import brief
from roundsmith.tests.models import TEXT_ENCODER_FILE

from .support import load_stock, sample
from .tiny import tiny_model


@pytest.fixture
def quick(monkeypatch):
    """Two runs of two steps on small pictures; two texts."""
    monkeypatch.setattr(self_runs, "SAMPLES", 8)
    monkeypatch.setattr(self_runs, "STEPS", 2)
    monkeypatch.setattr(self_runs, "PIXELS", 64)
    monkeypatch.setattr(self_calibration, "TOKENS_READ", 200)


@pytest.fixture(scope="module")
def model(demo):
    return load_stock(demo)


@pytest.fixture(scope="module")
def clip(encoder):
    return nodes.CLIPLoader().load_clip(TEXT_ENCODER_FILE, "stable_diffusion")[0]


@torch.inference_mode()
def calibrated(patcher, clip=None, **options):
    calibration, note = self_calibrate_model(patcher, clip, tell=lambda _: None, **options)
    assert calibration is not None, note
    return calibration


def test_every_layer_gets_enough_tokens(model):
    """What the layers of the demo see with the settings people get."""
    said = []
    with torch.inference_mode():
        calibration, note = self_calibrate_model(model, tell=said.append)
    assert said[-1] == note and "short runs" in note and "short runs" in said[0]
    assert calibration.layers == tuple(model_layers(model))
    assert not calibration.unreached and not calibration.warnings
    counts = {name: calibration.summary(name).count for name in calibration.layers}
    streams = [name for name in counts if "attn" in name or "mlp" in name or "linear" in name]
    assert min(counts[name] for name in streams) >= 5000
    assert calibration.settings["what"] == "self"


def test_the_same_seed_gives_the_same_statistics(quick, model):
    layer = "single_blocks.0.linear1"
    first, again, other = (calibrated(model, seed=seed).record(layer) for seed in (0, 0, 5))
    assert torch.equal(first.mean, again.mean)
    assert not torch.equal(first.mean, other.mean)


def test_nothing_is_left_behind(quick, demo):
    model = load_stock(demo)
    before = sample(model)
    wrappers = {kind: dict(keys) for kind, keys in model.wrappers.items()}
    calibrated(model)
    assert {kind: dict(keys) for kind, keys in model.wrappers.items()} == wrappers
    assert not any(m._forward_pre_hooks for m in model.model.modules())
    assert torch.equal(sample(model), before)


def test_random_numbers_go_on_as_they_would_have(quick):
    """Some networks draw noise of their own."""
    patcher = tiny_model("flux")
    patcher.model.diffusion_model.img_in.register_forward_pre_hook(lambda *_: void(torch.rand(3)))
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    calibrated(patcher)
    assert torch.equal(torch.rand(4), expected)


def void(_):
    """Nothing: what a hook gives back would become the layer's input."""


def test_prompts_are_encoded_where_there_is_a_clip(quick, model, clip, monkeypatch):
    encoded = []
    monkeypatch.setattr(self_runs, "PROMPTS", PROMPTS[:5])
    tokenize = clip.tokenize

    def watched(text):
        encoded.append(text)
        return tokenize(text)

    monkeypatch.setattr(clip, "tokenize", watched)
    told = calibrated(model, clip)
    assert encoded == list(PROMPTS[:5])
    assert "prompts" in told.settings["told"]
    assert "prompts" not in calibrated(model).settings["told"]


def test_a_clip_that_cannot_encode_is_done_without(quick, model):
    class Broken:
        def tokenize(self, text):
            raise KeyError("no tokenizer")

        def encode_from_tokens_scheduled(self, tokens, **_):
            raise AssertionError("nothing to encode")

    calibration = calibrated(model, Broken())
    assert not calibration.unreached
    assert any("no tokenizer" in note for note in calibration.notes)


def test_a_model_that_cannot_be_run_is_no_error(quick, monkeypatch):
    patcher = tiny_model("flux")

    def fail(*_, **__):
        raise RuntimeError("this network wants something else")

    monkeypatch.setattr(patcher.model.diffusion_model, "forward", fail)
    with torch.inference_mode():
        calibration, note = self_calibrate_model(patcher, tell=lambda _: None)
    assert calibration is None
    assert "wants something else" in note
    assert not any(m._forward_pre_hooks for m in patcher.model.modules())


def test_cancelling_ends_it(quick, model):
    mm.interrupt_current_processing()
    with torch.inference_mode(), pytest.raises(mm.InterruptProcessingException):
        self_calibrate_model(model, tell=lambda _: None)
    assert not any(m._forward_pre_hooks for m in model.model.modules())


def test_a_slow_model_draws_fewer_samples(quick, model, monkeypatch):
    monkeypatch.setattr(self_runs, "SECONDS", 0.0)
    monkeypatch.setattr(self_runs, "FEWEST_SAMPLES", 4)
    calibration = calibrated(model)
    assert any("4 samples were drawn instead of 8" in note for note in calibration.notes)


class Clock:
    """Time that passes only while the model runs a step: two seconds for a sample of it."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.run = self_runs._run
        monkeypatch.setattr(self_runs, "_run", self.step)
        monkeypatch.setattr(self_runs, "time", self)

    def monotonic(self):
        return self.now

    def step(self, shapes, told, *rest):
        self.run(shapes, told, *rest)
        self.now += 2.0 * told.batch


@pytest.mark.parametrize(("passes", "samples"), [(1, 15), (3, 5), (8, 2)])
def test_every_pass_and_the_recording_take_their_time(quick, model, monkeypatch, passes, samples):
    """A sample of two steps takes four seconds, each pass, and 2.5 times that recorded."""
    monkeypatch.setattr(self_runs, "SAMPLES", 32)
    monkeypatch.setattr(self_runs, "BATCH", 1)
    monkeypatch.setattr(self_runs, "SECONDS", 150.0)
    monkeypatch.setattr(self_runs, "FEWEST_SAMPLES", 2)
    Clock(monkeypatch)
    with torch.inference_mode():
        plan = self_runs.plan_runs(model, passes=lambda: passes)
    assert len(plan.runs) == samples
    assert f"{samples} samples were drawn instead of 32" in plan.notes[0]
    assert ("passes" in plan.notes[0]) == (passes > 1)


def test_passes_are_those_that_memory_asks_for(quick, model, monkeypatch):
    asked = []
    plan_runs = self_calibration.plan_runs

    def watched(patcher, clip, seed, passes):
        asked.append(passes())
        return plan_runs(patcher, clip, seed, passes)

    monkeypatch.setattr(self_calibration, "plan_runs", watched)
    told = calibrated(model, memory_mb=24)
    assert asked == [told.settings["passes"]] and asked[0] > 1


def test_where_only_prompts_are_taken_there_is_a_budget_too(quick, model, clip, monkeypatch):
    def fail(*_):
        raise RuntimeError("no random things")

    monkeypatch.setattr(self_runs, "_discovered", fail)
    monkeypatch.setattr(self_runs, "PROMPTS", PROMPTS[:4])
    monkeypatch.setattr(self_runs, "SECONDS", 0.0)
    monkeypatch.setattr(self_runs, "FEWEST_SAMPLES", 4)
    calibration = calibrated(model, clip)
    assert any("4 samples were drawn instead of 8" in note for note in calibration.notes)


def test_the_node_says_what_came_of_it(quick, clip):
    """Of what the notes say, the browser makes a line in its language."""
    with torch.inference_mode():
        patcher = tiny_model("flux")
        notes = [self_calibrate_model(patcher, tell=lambda _: None).note]
        notes.append(self_calibrate_clip(clip, tell=lambda _: None).note)
        broken = tiny_model("flux")
        broken.model.diffusion_model.forward = None
        notes.append(self_calibrate_model(broken, tell=lambda _: None).note)
    runs, texts, failed = map(read_note, notes)
    assert runs.keys() == {"runs", "seconds"} and runs["runs"] >= 2
    assert texts.keys() == {"texts", "seconds"} and texts["texts"] >= 1
    assert failed == {"why": "TypeError: 'NoneType' object is not callable"}
    assert read_note("3 layers were never reached in the calibration run") is None
    for note, told in zip(notes, (runs, texts, failed), strict=True):
        report = Report((), ("another", note), "", "", 0, 0)
        assert of_report(report).facts["calibrated"] == told
        assert note in brief(report).splitlines() and "1 note:" in brief(report)
    assert of_report(Report((), ("another",), "", "", 0, 0)).facts["calibrated"] is None
    recipe = Recipe(format="int8_tensorwise")
    with torch.inference_mode():
        for model, told in ((patcher, "runs"), (broken, "why")):
            facts = of_report(quantize_model(model, recipe)[1]).facts
            assert told in facts["calibrated"]
        nearest = recipe.model_copy(update={"rounding": "nearest"})
        assert of_report(quantize_model(patcher, nearest)[1]).facts["calibrated"] is None


def test_networks_are_told_how_strongly_to_follow(quick, monkeypatch):
    """Flux takes guidance as an input: other values reach it than what everybody uses."""
    monkeypatch.setattr(self_runs, "BATCH", 2)
    patcher = tiny_model("flux")
    network, seen = patcher.model.diffusion_model, set()
    forward = network.forward

    def watched(*arguments, guidance=None, **keywords):
        seen.update(guidance.tolist())
        return forward(*arguments, guidance=guidance, **keywords)

    monkeypatch.setattr(network, "forward", watched)
    calibrated(patcher)
    assert seen == {3.5, 2.0, 4.0}


def test_a_text_encoder_reads_built_in_text(quick, clip):
    with torch.inference_mode():
        calibration, note = self_calibrate_clip(clip, tell=lambda _: None)
    assert calibration is not None, note
    assert calibration.layers == tuple(clip_layers(clip))
    assert all(name.startswith("clip_l.transformer.") for name in calibration.layers)
    reached = set(calibration.layers) - set(calibration.unreached)
    assert all(calibration.summary(name).count >= 200 for name in reached if "layers" in name)
    assert not any(m._forward_pre_hooks for m in clip.patcher.model.modules())


def test_built_in_texts_are_many_and_differ():
    every = list(texts())
    assert len(every) > 100
    assert len(set(every)) == len(every)
    assert all(900 < len(text) < 2500 for text in every[:-1])
