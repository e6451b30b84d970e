"""Files side by side: weights alone, and outputs where there are activations."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from roundsmith import Recipe, load_file, quantize_file
from roundsmith.converters.calibration import Calibration, capture
from roundsmith.converters.comparing import compare_files
from roundsmith.errors import Cancelled, CheckpointError, QualityError, RoundsmithError

N = 128


@pytest.fixture
def model():
    torch.manual_seed(7)
    names = ("first", "second", "third")
    return nn.ModuleDict({name: nn.Linear(N, N) for name in names}).bfloat16()


@pytest.fixture
def original(model, tmp_path):
    return save(model.state_dict(), tmp_path / "original.safetensors")


@pytest.fixture
def calibration(model):
    torch.manual_seed(8)
    x = torch.randn(600, N) * torch.logspace(-1, 1, N)
    with capture(model) as captured:
        for layer in model.values():
            layer(x.bfloat16())
    return captured


def save(tensors, path):
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def quantized(original, format="int8_tensorwise", **options):
    made = original.with_name(f"{format}.safetensors")
    quantize_file(original, made, Recipe(format=format, preset=None, **options), overwrite=True)
    return made


def decoded(path, layer):
    return load_file(path, dtype=torch.float32)[f"{layer}.weight"].dequantize().double()


def test_weights_without_a_calibration(model, original):
    """Against float64 arithmetic on what the loader gives."""
    made = quantized(original, "float8_e4m3fn")
    found = compare_files(original, made)
    for layer in found.layers:
        w = model[layer.name].weight.detach().double()
        error = (decoded(made, layer.name) - w).square().sum()
        assert layer.weight == pytest.approx(
            10 * math.log10(float(w.square().sum() / error)), abs=0.01
        )
        assert layer.exact is layer.executed is None
        assert layer.stored_as == "float8_e4m3fn"
    assert found.snr == pytest.approx(sum(x.weight for x in found.layers) / 3)
    assert "weights" in found.what and "give a calibration" in found.table()


def test_outputs_with_a_calibration(model, original, calibration, tmp_path):
    """On the tokens set aside; with exact activations against float64 arithmetic."""
    made = quantized(original)
    calibration.save(tmp_path / "c.safetensors")
    found = compare_files(original, made, tmp_path / "c.safetensors", device="cpu")
    assert found.snr == found.executed
    for layer in found.layers:
        held = calibration.record(layer.name).split().held.double()
        assert layer.tokens == len(held) == 75
        w = model[layer.name].weight.detach().double()
        error = held @ (decoded(made, layer.name) - w).T
        signal = (held @ w.T).square().sum()
        expected = 10 * math.log10(float(signal / error.square().sum()))
        assert layer.exact == pytest.approx(expected, abs=0.01)
        assert layer.executed < layer.exact - 1, "int8 rounds activations on every device"


@pytest.mark.parametrize("options", [{}, {"full_precision_matrix_mult": True}], ids=["", "full"])
def test_full_precision_products_execute_exactly(original, calibration, options):
    found = compare_files(original, quantized(original, **options), calibration, device="cpu")
    for layer in found.layers:
        exact = layer.executed == pytest.approx(layer.exact, abs=0.01)
        assert exact == bool(options)
        assert ("full-precision" in layer.stored_as) == bool(options)


@pytest.mark.parametrize("format", ["float8_e4m3fn", "mxfp8", "nvfp4"])
def test_formats_a_cpu_decodes_execute_exactly(original, calibration, format):
    for x in compare_files(original, quantized(original, format), calibration, device="cpu").layers:
        assert x.executed == pytest.approx(x.exact, abs=0.01)


def test_the_other_way_round(original, calibration):
    """The quantized model as the reference: the same errors over a slightly different signal."""
    made = quantized(original)
    there = compare_files(original, made, calibration, device="cpu")
    back = compare_files(made, original, calibration, device="cpu")
    assert back.snr == pytest.approx(there.snr, abs=0.2)
    assert back.layers[0].stored_as == "bfloat16"


def test_a_file_beside_itself_and_two_quantized_ones(original, calibration):
    first, second = quantized(original), quantized(original, "nvfp4")
    for path in (original, first):
        found = compare_files(path, path, calibration, device="cpu")
        assert found.snr == math.inf and not found.worst()
    assert 15 < compare_files(first, second, calibration, device="cpu").snr < 25


def test_the_damaged_layer_is_the_worst(model, original, tmp_path):
    state = dict(model.state_dict())
    noise = torch.randn(N, N)
    noise *= state["second.weight"].float().norm() / noise.norm() / 10
    state["second.weight"] = state["second.weight"].float() + noise
    found = compare_files(original, save(state, tmp_path / "damaged.safetensors"))
    assert [x.name for x in found.worst()] == ["second"]
    assert found.snr == found.layers[0].weight == pytest.approx(20, abs=0.01)


def test_names_of_a_checkpoint_and_of_a_model_file(model, original, calibration, tmp_path):
    state = {f"model.diffusion_model.{name}": t for name, t in model.state_dict().items()}
    whole = save(state, tmp_path / "checkpoint.safetensors")
    for a, b in ((whole, quantized(original)), (quantized(original), whole)):
        found = compare_files(a, b, calibration, device="cpu")
        assert not found.only_reference and not found.only_quantized
        assert all(layer.tokens for layer in found.layers)


def test_layers_that_differ_are_named(model, original, tmp_path):
    state = dict(model.state_dict())
    state["extra.weight"] = state.pop("third.weight")
    state["second.weight"] = state["second.weight"][:64]
    found = compare_files(original, save(state, tmp_path / "b.safetensors"))
    assert found.only_reference == ("second", "third")
    assert found.only_quantized == ("extra", "second")
    assert [layer.name for layer in found.layers] == ["first"]


def test_layers_of_another_shape_fail_a_threshold_and_say_their_shapes(model, original, tmp_path):
    state = dict(model.state_dict())
    state["second.weight"] = state["second.weight"][:64]
    state["second.bias"] = state["second.bias"][:64]
    other = save(state, tmp_path / "b.safetensors")
    found = compare_files(original, other)
    assert found.snr == math.inf and not found.passed(20) and found.passed(None)
    assert "second is 128×128 in the reference, 64×128 in the quantized model" in found.table()
    assert json.loads(found.json())["faults"]
    with pytest.raises(QualityError, match="another shape: second"):
        compare_files(original, other, threshold=20)


def test_a_bias_that_does_not_fit_is_named(model, original, calibration, tmp_path):
    state = dict(model.state_dict())
    state["second.bias"] = state["second.bias"][:64]
    other = save(state, tmp_path / "b.safetensors")
    with pytest.raises(RoundsmithError, match=r"b\.safetensors: .*second\.bias.*\[64\].*128"):
        compare_files(original, other, calibration, device="cpu")


def test_nan_of_the_reference_itself_is_no_fault(model, original, tmp_path):
    """A mask with −∞ in it, the same in both."""
    state = {**model.state_dict(), "mask": torch.full((4, 4), -math.inf)}
    a, b = (save(state, tmp_path / name) for name in ("a.safetensors", "b.safetensors"))
    assert compare_files(a, b, threshold=20).passed(20)


def test_a_layer_that_is_nan_in_the_reference_is_left_out(model, original, calibration, tmp_path):
    """Quantizing keeps such a layer as it is."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["second.weight"][0, 0] = math.nan
    a, b = (save(state, tmp_path / name) for name in ("a.safetensors", "b.safetensors"))
    for given in (None, calibration):
        found = compare_files(a, b, given, threshold=20)
        assert found.passed(20) and found.snr == math.inf
        assert any("NaN or Inf in the reference itself: second" in note for note in found.notes)


def test_other_tensors_that_differ_are_noted(model, original, tmp_path):
    state = dict(model.state_dict())
    state["second.bias"] = state["second.bias"] + 0.01
    found = compare_files(original, save(state, tmp_path / "b.safetensors"))
    assert "1 other tensors differ; most does second.bias" in found.table()


def test_a_corrected_bias_counts_in_both_scores(model, original, calibration, tmp_path):
    state = dict(model.state_dict())
    state["second.bias"] = state["second.bias"] + 1
    found = compare_files(original, save(state, tmp_path / "b.safetensors"), calibration)
    worst = found.layers[0]
    assert worst.name == "second" and worst.weight == math.inf
    assert worst.exact == pytest.approx(worst.executed, abs=0.05)
    assert math.isfinite(worst.exact)


def test_a_layer_without_activations_is_named(model, original):
    with capture(model, layers="first|second") as captured:
        model["first"](torch.randn(100, N).bfloat16())
    found = compare_files(original, quantized(original), captured, device="cpu")
    assert [x.name for x in found.layers if x.tokens] == ["first"]
    assert "scored without activations" in found.table() and "third" in found.table()
    assert found.snr == next(x.executed for x in found.layers if x.tokens)


def test_a_threshold(original):
    made = quantized(original, "nvfp4")
    assert compare_files(original, made, threshold=10).passed(10)
    with pytest.raises(QualityError, match=r"below 40 dB; worst layers: \w+ \(\d\d\.\d dB\)"):
        compare_files(original, made, threshold=40)


def test_progress_and_cancel(original):
    made, seen = quantized(original), []
    compare_files(original, made, progress=seen.append)
    assert [p.layer for p in seen if p.layer.endswith("weight")] == [
        "first.weight",
        "second.weight",
        "third.weight",
    ]
    assert seen[-1].index == seen[-1].count == 6
    with pytest.raises(Cancelled):
        compare_files(original, made, cancel=lambda: True)


def test_bad_files(original, tmp_path):
    other = save({"x.weight": torch.randn(4, 4)}, tmp_path / "other.safetensors")
    with pytest.raises(RoundsmithError, match="no linear layer in common"):
        compare_files(original, other)
    with pytest.raises(CheckpointError, match="missing"):
        compare_files(original, tmp_path / "missing.safetensors")


def test_statistics_of_another_model(original):
    torch.manual_seed(9)
    other = nn.ModuleDict({name: nn.Linear(N, N) for name in ("first", "second", "third")})
    with capture(other) as captured:
        other["first"](torch.randn(100, N))
    with pytest.raises(RoundsmithError, match="another model"):
        compare_files(original, quantized(original), captured)


def test_it_reads_a_layer_at_a_time(original, monkeypatch):
    """Nothing of a layer stays when the next one's turn comes."""
    made, held = quantized(original), []
    from roundsmith.converters.comparing import files

    score = files._Pair.score

    def watched(pair, name, calibration):
        held.append(pair.second._decoded)
        return score(pair, name, calibration)

    monkeypatch.setattr(files._Pair, "score", watched)
    compare_files(original, made)
    assert held == [None] * 3


def test_calibration_object_or_path(original, calibration, tmp_path):
    made = quantized(original)
    calibration.save(tmp_path / "c.safetensors")
    loaded = Calibration.load(tmp_path / "c.safetensors")
    scores = [compare_files(original, made, c, device="cpu").snr for c in (calibration, loaded)]
    assert scores[0] == scores[1]
