"""Modules side by side: errors of a known size, in the layer that has them."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from torch import nn

import roundsmith
from roundsmith import Recipe, quantize_module
from roundsmith.converters.comparing import compare
from roundsmith.errors import QualityError, RoundsmithError


class Block(nn.Module):
    """Three layers, two fed by one tensor; answers with a dictionary."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(32, 64)
        self.left = nn.Linear(64, 32)
        self.right = nn.Linear(64, 32, bias=False)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, scale=1.0):
        h = torch.relu(self.first(x))
        return {"left": self.dropout(self.left(h)) * scale, "more": [self.right(h)]}


@pytest.fixture
def model():
    torch.manual_seed(3)
    return Block()


@pytest.fixture
def x():
    return torch.randn(40, 32, generator=torch.Generator().manual_seed(4))


def damaged(model, layer, snr):
    """A copy in which a layer's weight has noise of a known power."""
    other = copy.deepcopy(model)
    weight = other.get_submodule(layer).weight
    with torch.no_grad():
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(5))
        weight += noise * (weight.norm() / noise.norm()) * 10 ** (-snr / 20)
    return other


def test_the_damaged_layer_is_the_worst_and_the_only_one(model, x):
    found = compare(model, damaged(model, "left", 30.0), x)
    worst = found.layers[0]
    assert worst.name == "left" and worst.weight == pytest.approx(30.0, abs=0.01)
    assert [layer.score for layer in found.layers[1:]] == [math.inf] * 2
    assert [layer.name for layer in found.worst()] == ["left"]


def test_scores_are_those_of_their_definition(model, x):
    """Against float64 arithmetic on the inputs the reference's layer saw."""
    other = damaged(model, "left", 30.0)
    found = compare(model, other, x)
    inputs = []
    model.left.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))
    model.eval()(x)
    seen = inputs[0].bfloat16().double()
    w, w_hat = (m.left.weight.detach().double() for m in (model, other))
    signal = (seen @ w.T).square().sum()
    expected = 10 * math.log10(float(signal / (seen @ (w_hat - w).T).square().sum()))
    left = found.layers[0]
    assert left.tokens == 40
    assert left.exact == pytest.approx(expected, abs=1e-3)
    assert left.executed == pytest.approx(expected, abs=1e-2)


def test_the_output_is_scored_over_all_its_tensors(model, x):
    other = damaged(model, "right", 20.0)
    found = compare(model, other, [x])
    model.eval(), other.eval()
    mine, its = (torch.cat([o["left"], o["more"][0]]) for o in (model(x), other(x)))
    mine, its = mine.detach(), its.detach()
    error = (mine - its).double().square().sum()
    expected = 10 * math.log10(float(mine.double().square().sum() / error))
    assert found.snr == pytest.approx(expected, abs=1e-3)
    assert found.psnr is not None and found.psnr > found.snr


def test_a_model_beside_itself_loses_nothing(model, x):
    for other in (model, copy.deepcopy(model)):
        found = compare(model, other, x)
        assert found.snr == found.psnr == math.inf
        assert all(s == math.inf for y in found.layers for s in (y.weight, y.exact, y.executed))
        assert {y.tokens for y in found.layers} == {40}, "what the second model sees is not watched"
        assert found.passed(1000) and not found.worst()


def test_both_scores_of_a_quantized_layer(model, x):
    """INT8 rounds its inputs too: as executed it is worse than its weights alone."""
    other = copy.deepcopy(model)
    quantize_module(other, Recipe(format="int8_tensorwise", preset=None))
    found = compare(model, other, x)
    for layer in found.layers:
        assert 40 < layer.exact < 60
        assert 30 < layer.executed < layer.exact - 1
        assert "INT8" in layer.stored_as
    assert found.executed < found.exact


def test_weights_are_decoded_without_the_rounding_of_their_dtype(model):
    """A bfloat16 module's codes stand for values that bfloat16 does not have."""
    model = model.bfloat16()
    other = copy.deepcopy(model)
    quantize_module(other, Recipe(format="int8_tensorwise", preset=None))
    found = compare(model, other, torch.randn(40, 32).bfloat16())
    for layer in found.layers:
        w = model.get_submodule(layer.name).weight.detach().double()
        stored = other.get_submodule(layer.name).weight
        w_hat = stored._qdata.double() * stored._params.scale.double().reshape(-1, 1)
        error = (w_hat - w).square().sum()
        expected = 10 * math.log10(float(w.square().sum() / error))
        assert layer.weight == pytest.approx(expected, abs=0.02)


def test_formats_that_decode_execute_as_their_weights_say(model, x):
    other = copy.deepcopy(model)
    quantize_module(other, Recipe(format="float8_e4m3fn", preset=None))
    for layer in compare(model, other, x).layers:
        assert layer.executed == pytest.approx(layer.exact, abs=0.05)


def test_a_corrected_bias_counts(model, x):
    """Only the error's part of a bias is in the score, with exact activations and executed."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.left.bias += 0.5
    left = compare(model, other, x).layers[0]
    assert left.name == "left" and left.weight == math.inf
    assert left.exact == pytest.approx(left.executed, abs=0.01)
    assert left.exact < 20


def test_every_way_to_give_inputs(model, x):
    other = damaged(model, "first", 25.0)
    ways = [x, (x,), {"x": x}, [x], ((x, 1.0) for _ in range(1)), iter([{"x": x, "scale": 1.0}])]
    scores = [compare(model, other, way).snr for way in ways]
    assert scores == pytest.approx([scores[0]] * len(ways), abs=1e-6)


def test_several_calls_are_listed_and_summed(model, x):
    other = damaged(model, "first", 25.0)
    found = compare(model, other, [x, 3 * x, x])
    assert [step.number for step in found.steps] == [1, 2, 3]
    assert found.steps[0].latent == pytest.approx(found.steps[2].latent)
    assert compare(model, other, x).steps == ()


def test_the_models_are_left_as_they_were(model, x):
    model.train(), model.left.eval()
    other = damaged(model, "left", 30.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    compare(model, other, x)
    assert model.training and not model.left.training and model.dropout.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for module in (*model.modules(), *other.modules()):
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_a_threshold_fails_with_numbers_and_the_worst_layers(model, x):
    other = damaged(damaged(model, "left", 10.0), "first", 20.0)
    with pytest.raises(QualityError, match=r"below 60 dB.*worst layers: left \(.*first \(") as told:
        compare(model, other, x, threshold=60)
    assert told.value.comparison.layers[0].name == "left"
    assert not told.value.comparison.passed(60)
    found = compare(model, other, x, threshold=1)
    assert found.passed(1) and not found.passed(60) and found.passed(None)


def test_nan_fails_every_threshold(model, x):
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.right.weight[0, 0] = math.nan
    found = compare(model, other, x)
    assert found.snr == -math.inf and not found.passed(-1000)
    assert found.worst()[0].name == "right"
    data = json.loads(found.json())
    assert data["snr"] is None and data["broken"] == ["right"]
    assert "broken" in found.table()


def test_layers_that_differ_are_named(model, x):
    other = copy.deepcopy(model)
    other.right = nn.Sequential(nn.Linear(64, 16), nn.Linear(16, 32))
    found = compare(model, other, x)
    assert found.only_reference == ("right",)
    assert found.only_quantized == ("right.0", "right.1")
    assert "only in the reference: right" in found.table()


def test_layers_whose_shapes_differ_are_named(x):
    """Where the second model cannot run, or gives another shape; torch names neither."""

    def chain(*widths):
        return nn.Sequential(*(nn.Linear(a, b) for a, b in widths))

    first = chain((32, 16), (16, 8))
    with pytest.raises(RoundsmithError, match=r"'1' is 8×16 in the reference, 8×12 in the quant"):
        compare(first, chain((32, 16), (12, 8)), x)
    with pytest.raises(RoundsmithError, match=r"'0' is 16×32 .*, 16×24 .*1 more"):
        compare(first, chain((24, 16), (16, 9)), x)
    with pytest.raises(RoundsmithError, match=r"'1' is 8×16 .*, 9×16 .*shape"):
        compare(first, chain((32, 16), (16, 9)), x)
    assert compare(first, chain((32, 12), (12, 8)), x).only_reference == ("0", "1")


def test_an_error_of_the_model_s_own_stays_as_it_is(x):
    class Broken(nn.Linear):
        def forward(self, _):
            raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match=r"^of its own$"):
        compare(nn.Sequential(nn.Linear(32, 4)), nn.Sequential(Broken(32, 4)), x)


def test_a_layer_that_is_never_reached_says_so(model, x):
    model.unused = nn.Linear(4, 4)
    other = copy.deepcopy(model)
    layer = next(y for y in compare(model, other, x).layers if y.name == "unused")
    assert layer.note == "never reached" and layer.executed is None and layer.weight == math.inf


def test_only_some_layers(model, x):
    assert [y.name for y in compare(model, model, x, layers="left|right").layers] == [
        "left",
        "right",
    ]


def test_bad_inputs(model, x):
    with pytest.raises(RoundsmithError, match="there are none"):
        compare(model, model, [])
    with pytest.raises(RoundsmithError, match="int"):
        compare(model, model, 5)
    with pytest.raises(RoundsmithError, match="shape"):
        compare(nn.Sequential(nn.Linear(32, 4)), nn.Sequential(nn.Linear(32, 5)), x)


def test_table_and_json(model, x):
    found = compare(model, damaged(model, "left", 30.0), [x, x])
    table = found.table(worst=1)
    assert "... and 2 better ones" in table and "30.0" in table
    assert "right" in found.table()
    data = json.loads(found.json())
    assert data["layers"][0]["name"] == "left"
    assert data["layers"][1]["executed"] is None, "infinite: nothing was lost"
    assert data["mean_executed"] == pytest.approx(found.executed)


def test_public_names():
    assert roundsmith.compare is compare
