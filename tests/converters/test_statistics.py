"""Conversion with statistics: what is rounded how, what is reported, what goes wrong clearly."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file as load_plain
from safetensors.torch import save_file
from torch import Tensor, nn

import roundsmith
from roundsmith import Calibration, Recipe, capture, quantize_file, quantize_module
from roundsmith.checkpoints import Checkpoint
from roundsmith.converters import solving
from roundsmith.converters.stored import parts_of, stored_layers
from roundsmith.errors import Cancelled, RoundsmithError

WIDTH = 128


class Net(nn.Module):
    """Three layers that run, one that never does, one that sees a single token."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(WIDTH, 2 * WIDTH)
        self.second = nn.Linear(2 * WIDTH, WIDTH)
        self.third = nn.Linear(WIDTH, WIDTH, bias=False)
        self.unused = nn.Linear(WIDTH, WIDTH)
        self.once = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(torch.relu(self.first(x)))
        return self.third(x) + self.once(x.mean(0, keepdim=True))


def inputs(count: int, seed: int) -> Tensor:
    """Tokens that lie near a subspace, around a mean: as trained networks have them."""
    mixing = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(1))
    mixing *= torch.logspace(0, -2, WIDTH)[:, None]
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, WIDTH, generator=generator) @ mixing + 0.5


@pytest.fixture(scope="module")
def net() -> Net:
    return Net().eval()


@pytest.fixture(scope="module")
def calibration(net: Net) -> Calibration:
    with torch.no_grad(), capture(net) as found:
        for seed in range(100):
            net(inputs(40, seed))
    return found


@pytest.fixture
def source(net: Net, tmp_path: Path) -> Path:
    save_file(dict(net.state_dict()), tmp_path / "source.safetensors")
    return tmp_path / "source.safetensors"


def decoded(path: Path) -> dict[str, Tensor]:
    """Weights of a file's quantized layers."""
    with Checkpoint.open(path) as checkpoint:
        layers = stored_layers(checkpoint).layers
        return {n: s.format.decode(parts_of(checkpoint, s), s.conf) for n, s in layers.items()}


def recipe(format: str = "nvfp4", **options: object) -> Recipe:
    return Recipe(format=format, preset=None, **options)


@pytest.mark.parametrize("name", list(roundsmith.layouts.formats()))
def test_every_format_is_calibrated(name: str, net, calibration, source: Path) -> None:
    """Layers gain over nearest on inputs that nothing was fitted to."""
    made = source.with_name("made.safetensors")
    report = quantize_file(source, made, recipe(name), calibration=calibration)
    layers = {layer.name: layer for layer in report.layers}
    for layer in ("first", "second", "third"):
        outcome = layers[layer].outcome
        assert outcome.method == "calibrated"
        assert outcome.output_snr > outcome.nearest_snr + 1
        assert outcome.executed_snr is not None and outcome.expected_gain is not None
        assert outcome.tokens > 1000
    fresh = inputs(500, 12345)
    with torch.no_grad():
        exact = fresh @ net.first.weight.T
        codes = fresh @ decoded(made)["first"].T
        plain = source.with_name("plain.safetensors")
        quantize_file(source, plain, recipe(name, rounding="nearest"))
        nearest = fresh @ decoded(plain)["first"].T
    assert (codes - exact).square().sum() < 0.8 * (nearest - exact).square().sum()


def test_the_report_says_everything_twice(calibration, source: Path) -> None:
    report = quantize_file(
        source, source.with_name("made"), recipe("int8_tensorwise"), calibration=calibration
    )
    assert report.mean_executed_snr < report.mean_output_snr
    assert "as executed here" in report.summary() and "with exact activations" in report.summary()
    table = report.table()
    assert "outputs dB" in table and "executed dB" in table and "bound dB" in table
    line = next(x for x in table.splitlines() if x.startswith(report.layers[0].name))
    assert float(line.split()[-1]) > 0 and "N²M+N³" in table  # work over seconds, layer by layer
    layer = next(x for x in json.loads(report.json())["layers"] if x["name"] == "first")
    assert {"output_snr", "executed_snr", "method", "seconds", "input_max"} <= set(layer)


def test_progress_tells_the_gain_so_far(calibration, source: Path) -> None:
    """Of the layers solved, so that a person sees early whether calibrating pays."""
    told = []
    made = source.with_name("made")
    report = quantize_file(
        source, made, recipe(), calibration=calibration, progress=told.append
    )
    assert told[0].gain is None, "nothing is solved yet"
    assert told[-1].gain == pytest.approx(report.mean_gain)
    steps = {t.gain for t in told}
    assert len(steps) > 2, "it moves with each layer"


def test_a_layer_that_never_ran_is_named(calibration, source: Path) -> None:
    report = quantize_file(source, source.with_name("made"), recipe(), calibration=calibration)
    layer = next(x for x in report.layers if x.name == "unused")
    assert layer.outcome.method == "scale search"
    assert "never reached" in layer.reason
    assert any("never reached" in text and "unused" in text for text in report.warnings)


def test_layers_that_see_a_token_a_call_are_decoded_first(calibration, source: Path) -> None:
    made = source.with_name("made.safetensors")
    quantize_file(source, made, recipe("int8_tensorwise"), calibration=calibration)
    with Checkpoint.open(made) as checkpoint:
        confs = {n: s.conf for n, s in stored_layers(checkpoint).layers.items()}
    exact = {n for n, conf in confs.items() if conf.get("full_precision_matrix_mult")}
    assert exact == {"once"}
    off = recipe("int8_tensorwise", full_precision_matrix_mult=False)
    quantize_file(source, made, off, calibration=calibration, overwrite=True)
    with Checkpoint.open(made) as checkpoint:
        layers = stored_layers(checkpoint).layers.values()
        assert not any(s.conf.get("full_precision_matrix_mult") for s in layers)


def test_statistics_of_another_model(calibration, tmp_path: Path) -> None:
    save_file(dict(Net(seed=7).state_dict()), tmp_path / "other.safetensors")
    with pytest.raises(RoundsmithError, match="another model"):
        quantize_file(
            tmp_path / "other.safetensors", tmp_path / "made", recipe(), calibration=calibration
        )
    assert not (tmp_path / "made").exists()


def test_too_few_tokens(net, source: Path) -> None:
    with torch.no_grad(), capture(net) as few:
        net(inputs(20, 0))
    report = quantize_file(source, source.with_name("made"), recipe(), calibration=few)
    layer = next(x for x in report.layers if x.name == "first")
    assert layer.outcome.method in ("scale search", "nearest")
    assert "tokens" in layer.reason


def test_asking_for_calibrated_without_statistics(source: Path) -> None:
    report = quantize_file(source, source.with_name("made"), recipe(rounding="calibrated"))
    assert any("no calibration was given" in text for text in report.warnings)
    assert all("no statistics" in x.reason for x in report.layers if x.action == "quantize")


def test_a_module_and_a_file_come_out_the_same(net, calibration, source: Path) -> None:
    saved = calibration.save(source.with_name("calibration.safetensors"))
    made = source.with_name("made.safetensors")
    quantize_file(source, made, recipe("int8_lodewise"), calibration=saved)
    module, _ = quantize_module(
        copy.deepcopy(net), recipe("int8_lodewise"), calibration=calibration
    )
    stored = load_plain(made)
    for name in ("first", "second", "third"):
        layer = module.get_submodule(name)
        assert torch.equal(layer.weight._qdata, stored[f"{name}.weight"])
    assert torch.equal(module.first.bias, stored["first.bias"])


def test_biases_are_corrected_where_it_helps(net, calibration, source: Path) -> None:
    made = source.with_name("made.safetensors")
    quantize_file(source, made, recipe(), calibration=calibration)
    corrected = load_plain(made)
    quantize_file(
        source, made, recipe(bias_correction=False), calibration=calibration, overwrite=True
    )
    left = load_plain(made)
    assert torch.equal(left["first.bias"], net.first.bias)
    assert not torch.equal(corrected["first.bias"], net.first.bias)
    assert torch.equal(corrected["unused.bias"], net.unused.bias)
    w, w_hat = net.first.weight, decoded(made)["first"]
    mean = calibration.record("first").mean
    expected = net.first.bias + (w - w_hat) @ mean
    assert torch.allclose(corrected["first.bias"], expected, atol=1e-5)


def test_input_scales(net, calibration, source: Path) -> None:
    made = source.with_name("made.safetensors")

    def scale(**options: object) -> Tensor | None:
        quantize_file(
            *(source, made, recipe("float8_e4m3fn", **options)),
            calibration=calibration,
            overwrite=True,
        )
        return load_plain(made).get("first.input_scale")

    largest = calibration.record("first").absmax.max()
    assert torch.allclose(scale(), largest / 448)
    assert scale(input_scale_percentile=99) < largest / 448
    assert scale(input_scale="none") is None
    assert scale(input_scale="constant") == 1
    assert torch.equal(scale(input_scale="weight"), load_plain(made)["first.weight_scale"])
    listed = source.with_name("scales.json")
    listed.write_text(json.dumps({"model.diffusion_model.first": 0.25}))
    assert scale(input_scale="imported", input_scales=str(listed)) == 0.25
    measured = calibration.record("third").absmax.max() / 448
    assert torch.allclose(load_plain(made)["third.input_scale"], measured)
    quantize_file(source, made, recipe("nvfp4"), calibration=calibration, overwrite=True)
    assert "first.input_scale" not in load_plain(made)


def test_what_was_reused_is_said(calibration, source: Path, solved) -> None:
    made = source.with_name("made.safetensors")
    with pytest.raises(Cancelled):
        quantize_file(
            *(source, made, recipe()), calibration=calibration, cancel=lambda: len(solved) >= 2
        )
    report = quantize_file(source, made, recipe(), calibration=calibration)
    assert any("finished in a run before, and reused" in text for text in report.warnings)


@pytest.mark.parametrize("with_statistics", [False, True])
def test_learned_rounding(with_statistics: bool, calibration, source: Path) -> None:
    report = quantize_file(
        *(source, source.with_name("made"), recipe(rounding="learned", learned={"iterations": 50})),
        calibration=calibration if with_statistics else None,
    )
    outcome = next(x for x in report.layers if x.name == "first").outcome
    assert outcome.method == "learned" or outcome.note
    assert (outcome.output_snr is not None) == with_statistics
    if with_statistics:
        assert outcome.output_snr >= outcome.nearest_snr


def test_nearest_is_measured_too(calibration, source: Path) -> None:
    made, plain = source.with_name("made.safetensors"), source.with_name("plain.safetensors")
    options = {"bias_correction": False, "full_precision_matrix_mult": False}
    nearest = recipe("mxfp8", rounding="nearest", **options)
    report = quantize_file(source, made, nearest, calibration=calibration)
    quantize_file(source, plain, nearest)
    ours, other = load_plain(made), load_plain(plain)
    assert ours.keys() == other.keys()
    assert all(torch.equal(ours[n].view(torch.uint8), other[n].view(torch.uint8)) for n in ours)
    outcome = next(x for x in report.layers if x.name == "first").outcome
    assert outcome.output_snr == pytest.approx(outcome.nearest_snr, abs=1e-3)


@pytest.fixture
def solved(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The layers that were solved, in order."""
    seen: list[str] = []
    real = solving.LayerSolver._solve

    def watched(self, t, *args):
        seen.append(t.layer)
        return real(self, t, *args)

    monkeypatch.setattr(solving.LayerSolver, "_solve", watched)
    return seen


def test_a_cancelled_run_goes_on_where_it_was(calibration, source: Path, solved) -> None:
    made, layers = (
        source.with_name("made.safetensors"),
        source.parent / ("made.safetensors.roundsmith-layers"),
    )
    with pytest.raises(Cancelled):
        quantize_file(
            *(source, made, recipe()), calibration=calibration, cancel=lambda: len(solved) >= 2
        )
    assert not made.exists() and len(list(layers.iterdir())) >= 1
    finished = len(list(layers.iterdir()))
    solved.clear()
    quantize_file(source, made, recipe(), calibration=calibration)
    assert len(solved) == 4 - finished
    assert made.exists() and not layers.exists()
    whole = source.with_name("whole.safetensors")
    quantize_file(source, whole, recipe(), calibration=calibration)
    resumed, straight = load_plain(made), load_plain(whole)
    assert [n for n in straight if not torch.equal(straight[n], resumed[n])] == []


def test_cancel_in_the_middle_of_a_layer(calibration, source: Path, monkeypatch) -> None:
    """The solver's own poll ends the run."""
    monkeypatch.setattr("roundsmith.converters.engine._TICK", 0.0)
    looks = []

    def cancel() -> bool:
        looks.append(1)
        return len(looks) > 12

    with pytest.raises(Cancelled):
        quantize_file(
            *(source, source.with_name("made"), recipe()), calibration=calibration, cancel=cancel
        )
    assert not source.with_name("made").exists()


def test_a_layer_too_big_for_the_gpu_is_solved_on_the_cpu(
    calibration, source: Path, monkeypatch
) -> None:
    """Simulated: the device pretends to be a GPU without room."""
    real = solving.LayerSolver._solve

    def solve(self, t, w, record, bias, device):
        if device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, t, w, record, bias, device)

    def pretend(self, t, *args):
        self.rows.device = torch.device("cuda")
        try:
            return somewhere(self, t, *args)
        finally:
            self.rows.device = torch.device("cpu")

    somewhere = solving.LayerSolver._solve_somewhere
    monkeypatch.setattr(solving.LayerSolver, "_solve", solve)
    monkeypatch.setattr(solving.LayerSolver, "_solve_somewhere", pretend)
    report = quantize_file(source, source.with_name("made"), recipe(), calibration=calibration)
    layer = next(x for x in report.layers if x.name == "first")
    assert "ran out of memory: rounded on the CPU" in layer.reason
    assert layer.outcome.output_snr is not None
    assert layer.outcome.executed_snr is None, "the GPU's product was not measured"


def test_an_error_lora_beside_the_file(calibration, source: Path) -> None:
    made = source.with_name("made.safetensors")
    options = roundsmith.ErrorLoraOptions(rank=8)
    report = quantize_file(source, made, recipe(), calibration=calibration, error_lora=options)
    assert source.with_name("made_lora.safetensors").exists()
    assert any("made_lora" in text and "Bypass" in text for text in report.warnings)
