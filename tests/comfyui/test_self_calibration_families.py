"""Models of many families calibrate themselves: random weights, but ComfyUI's own networks."""

from __future__ import annotations

import pytest
import torch

from roundsmith.bridge import self_runs
from roundsmith.bridge.self_calibration import self_calibrate_model

from .tiny import MODELS, tiny_model


@pytest.fixture(autouse=True)
def one_run(monkeypatch):
    """One run of one step is enough to see what is reached."""
    monkeypatch.setattr(self_runs, "SAMPLES", 2)
    monkeypatch.setattr(self_runs, "FEWEST_SAMPLES", 2)
    monkeypatch.setattr(self_runs, "BATCH", 2)
    monkeypatch.setattr(self_runs, "STEPS", 1)
    monkeypatch.setattr(self_runs, "FRAMES", 2)


LARGER = {"pixart sigma": 128}
"""Pixels to begin with, where a small picture has no positions: it takes four times that."""


@pytest.mark.parametrize("name", MODELS)
def test_every_layer_is_reached(name, monkeypatch):
    monkeypatch.setattr(self_runs, "PIXELS", LARGER.get(name, 64))
    patcher = tiny_model(name)
    before = {key: value.clone() for key, value in patcher.model.state_dict().items()}
    with torch.inference_mode():
        calibration, note = self_calibrate_model(patcher, tell=lambda _: None)
    assert calibration is not None, note
    assert calibration.unreached == ()
    assert min(calibration.summary(layer).count for layer in calibration.layers) >= 2
    for layer in calibration.layers:
        weight = patcher.model.diffusion_model.get_submodule(layer).weight
        assert calibration.summary(layer).features == weight.shape[1]
    assert not any(module._forward_pre_hooks for module in patcher.model.modules())
    after = patcher.model.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())


@pytest.mark.parametrize(
    ("name", "layers"),
    [("flux", ("txt_in", "vector_in.in_layer")), ("omnigen 2", ("time_caption_embed.caption_",))],
)
def test_vectors_are_not_all_zero(name, layers, monkeypatch):
    """Networks that take one sample at a time too get more than the null conditioning."""
    monkeypatch.setattr(self_runs, "SAMPLES", 4)
    monkeypatch.setattr(self_runs, "PIXELS", 64)
    with torch.inference_mode():
        calibration, _ = self_calibrate_model(tiny_model(name), tell=lambda _: None)
    found = [name for name in calibration.layers if name.startswith(layers)]
    assert found
    for name in found:
        assert float(calibration.record(name).absmax.max()) > 0.3
