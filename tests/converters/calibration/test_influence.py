"""Influences of layers: what is measured is what an error of the layer does in the end."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from roundsmith.converters.calibration import Calibration, Influences, measure_influences
from roundsmith.errors import RecipeError, RoundsmithError


class Sum(nn.Module):
    """Three layers added up with weights 1, ``share`` and 0; one that is never called."""

    def __init__(self, share: float = 0.1):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.unused = (nn.Linear(64, 64, bias=i < 2) for i in range(4))
        self.share = share

    def forward(self, x):
        return {"out": [self.a(x) + self.share * self.b(x), 0 * self.c(x)], "count": 3}


def tokens(seed=1):
    return torch.randn(200, 64, generator=torch.Generator().manual_seed(seed))


def test_an_influence_is_the_share_of_an_error_that_arrives():
    model, x = Sum(), tokens()
    found = measure_influences(model, lambda: model(x))
    with torch.no_grad():
        whole = model(x)["out"][0].square().sum()
        part = {n: (x @ getattr(model, n).weight.T).square().sum() for n in ("a", "b")}
    assert set(found) == {"a", "b", "c"}, "one that never ran has no influence"
    assert found["a"] == pytest.approx(float(part["a"] / whole), rel=0.01)
    assert found["b"] == pytest.approx(float(0.01 * part["b"] / whole), rel=0.01)
    assert found["c"] == 0


def test_it_predicts_what_rounding_a_layer_does_to_the_output():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.LayerNorm(64), nn.Linear(64, 16))
    x = tokens()
    found = measure_influences(model, lambda: model(x))
    with torch.no_grad():
        expected, first = model(x), x @ model[0].weight.T
        step = model[0].weight.abs().amax() / 15
        rounded = (model[0].weight / step).round() * step
        alone = (x @ (rounded - model[0].weight).T).square().sum() / first.square().sum()
        model[0].weight.copy_(rounded)
        inthe_end = (model(x) - expected).square().sum() / expected.square().sum()
    assert float(inthe_end / alone) == pytest.approx(found["0"], rel=0.2)


def test_the_model_is_as_it_was_and_runs_alike_each_time():
    model, x = Sum(), tokens()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    state, drawn = torch.get_rng_state(), []

    def run():
        drawn.append(float(torch.rand(())))
        return model(x)

    first = Influences(model).add(run)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(drawn) == 5 and len(set(drawn)) == 1, "noise of the model's own would count as error"
    assert torch.equal(first["out"][0], model(x)["out"][0])
    assert not any(m._forward_hooks for m in model.modules())
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_inputs_add_up_and_layers_can_be_chosen():
    model = Sum()
    measured = Influences(model, "^[ab]$")
    told = []
    with torch.inference_mode():
        for seed in (1, 2):
            x = tokens(seed)
            measured.add(lambda x=x: model(x), lambda done, total: told.append((done, total)))
    found = measured.finish()
    assert set(found) == {"a", "b"} and told == [(0, 2), (1, 2)] * 2
    alone = measure_influences(model, lambda: model(tokens(1)))
    assert found["a"] == pytest.approx(alone["a"], rel=0.1)


class Elsewhere(nn.Module):
    """A linear layer whose weight is not to be read."""

    in_features = out_features = 64

    def __init__(self, weight):
        super().__init__()
        self.packed = weight.detach().reshape(-1)

    def forward(self, x):
        return x @ self.packed.view(64, 64).T


def test_half_precision_and_unreadable_weights_are_measured_too():
    plain, half = Sum(), Sum().bfloat16()
    found = measure_influences(plain, lambda: plain(tokens()))
    rounded = measure_influences(half, lambda: half(tokens().bfloat16()))
    assert rounded["a"] == pytest.approx(found["a"], rel=0.1)
    plain.b = Elsewhere(plain.b.weight)
    measured = Influences(plain, linear=lambda m: isinstance(m, Elsewhere))
    measured.add(lambda: plain(tokens()))
    assert measured.finish() == {"b": pytest.approx(found["b"], rel=0.1)}


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_an_output_that_says_nothing_is_an_error(value):
    model = Sum()
    with pytest.raises(RoundsmithError, match="only 0, or NaN or Inf"):
        measure_influences(model, lambda: value * torch.ones(3))
    with pytest.raises(RoundsmithError, match="no tensor of numbers"):
        measure_influences(model, lambda: [1, torch.ones(2, dtype=torch.int64)])
    with pytest.raises(RecipeError, match="no linear layer"):
        measure_influences(model, lambda: model(tokens()), "nothing")


def test_merged_joined_and_parts_of_calibrations_have_influences():
    one = Calibration({"x.a": None, "x.b": None}, influences={"x.a": 1.0, "x.b": 4.0})
    two = Calibration({"x.a": None}, influences={"x.a": 3.0})
    assert one.merge(two).influences == {"x.a": 2.0, "x.b": 4.0}
    assert one.merge(Calibration({"x.a": None})).influences == one.influences
    assert one.under("x.").influences == {"a": 1.0, "b": 4.0}
    assert one.under("x.").influence("model.diffusion_model.a.weight") == 1.0
    other = Calibration({"y": None}, influences={"y": 5.0})
    assert Calibration.join([one, other]).influences == {"x.a": 1.0, "x.b": 4.0, "y": 5.0}
    assert other.influence("nothing") is None
