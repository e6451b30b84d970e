"""Which layers matter: measured while a MODEL samples, and left as it was."""

from __future__ import annotations

from types import SimpleNamespace

import comfy.model_management as mm
import pytest
import torch

from roundsmith.bridge import influences as measuring
from roundsmith.bridge.calibrating import calibrate_sampler
from roundsmith.bridge.capturing import intercept_model, model_layers
from roundsmith.errors import RoundsmithError

from .support import conditioning, hooks_on, load_stock, sample

LAYERS = r"double_blocks\.0\.img_|single_blocks\.0"


@torch.inference_mode()
def calibrate(model, **options):
    start = {"samples": torch.zeros(1, 16, 8, 8)}
    settings = (3, 1.0, "euler", "simple")
    return calibrate_sampler(
        model, conditioning(), conditioning(), start, (1,), *settings, **options
    )


@pytest.fixture(scope="module")
def measured(demo):
    model = load_stock(demo)
    plain, latent = calibrate(model, layers=LAYERS)
    return model, plain, latent, *calibrate(model, layers=LAYERS, influences=True)


def test_every_layer_has_one_and_nothing_else_changes(measured):
    model, plain, latent, calibration, again = measured
    layers = model_layers(model, LAYERS)
    assert not plain.influences, "only when asked for: it takes time"
    assert set(calibration.influences) == set(layers)
    assert all(0 < value < 100 for value in calibration.influences.values())
    assert torch.equal(latent["samples"], again["samples"])
    for name in layers:
        assert torch.equal(plain.record(name).mean, calibration.record(name).mean), name
    assert not hooks_on(model.model.diffusion_model)


@torch.inference_mode()
def test_they_say_what_an_error_of_a_layer_does_to_a_call_of_the_model(measured):
    """The largest and the smallest: noise put into the weights themselves shows the same order."""
    model, _, _, calibration, _ = measured
    order = sorted(calibration.influences, key=calibration.influences.get)
    done = []

    def lost(name):
        layer = model.model.diffusion_model.get_submodule(name)
        weight = layer.weight.data.clone()
        generator = torch.Generator().manual_seed(7)
        first = []

        def calling(go):
            if first:
                return go()
            first.append(True)
            seen = []
            hook = layer.register_forward_hook(lambda _m, _a, y: seen.append(y.double()))
            expected = go().double()
            size = weight.float().square().mean().sqrt()
            noise = torch.randn(weight.shape, generator=generator) * size * 0.05
            layer.weight.data.add_(noise.to(weight.dtype))
            got = go().double()
            layer.weight.data.copy_(weight)
            hook.remove()
            alone = (seen[1] - seen[0]).square().sum() / seen[0].square().sum()
            done.append(float((got - expected).square().sum() / expected.square().sum() / alone))
            return expected.float()

        sample(intercept_model(model, calling))
        return done[-1]

    assert lost(order[-1]) > 3 * lost(order[0])


def test_interrupting_or_failing_leaves_nothing(measured, monkeypatch):
    model = measured[0]

    def interrupt(*_, **__):
        raise mm.InterruptProcessingException

    monkeypatch.setattr(measuring, "Messages", lambda _: SimpleNamespace(send=interrupt))
    with pytest.raises(mm.InterruptProcessingException):
        calibrate(model, layers=LAYERS, influences=True)
    assert not hooks_on(model.model.diffusion_model)

    def fail(*_, **__):
        raise ValueError("no more")

    monkeypatch.setattr(measuring, "Messages", lambda _: SimpleNamespace(send=fail))
    with pytest.raises(RoundsmithError, match="no more"):
        calibrate(model, layers=LAYERS, influences=True)
    assert not hooks_on(model.model.diffusion_model)
