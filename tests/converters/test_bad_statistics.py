"""Statistics that are damaged, too few, counted twice or of another model, as a conversion sees
them: named in the report, and never worse than none."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file as load_plain
from safetensors.torch import save_file
from torch import Tensor, nn

from roundsmith import Calibration, Recipe, capture, load_file, quantize_file, quantize_module
from roundsmith.converters.calibration.calibration import Shelf
from roundsmith.converters.comparing import compare_files
from roundsmith.errors import CheckpointError, RecipeError, RoundsmithError

WIDTH = 96
FP8 = Recipe(format="float8_e4m3fn", preset=None)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH)).eval()


def inputs(tokens: int, seed: int, offset: float = 0.5) -> Tensor:
    return torch.randn(tokens, WIDTH, generator=torch.Generator().manual_seed(seed)) + offset


def captured(net: nn.Module, calls: int, tokens: int, first: int = 0) -> Calibration:
    with torch.no_grad(), capture(net) as found:
        for seed in range(first, first + calls):
            net(inputs(tokens, seed))
    return found


@pytest.fixture(scope="module")
def net() -> nn.Sequential:
    return network()


@pytest.fixture(scope="module")
def calibration(net: nn.Sequential) -> Calibration:
    return captured(net, 64, 40)


@pytest.fixture
def source(net: nn.Sequential, tmp_path: Path) -> Path:
    save_file(dict(net.state_dict()), tmp_path / "source.safetensors")
    return tmp_path / "source.safetensors"


def spoiled(calibration: Calibration, field: str, value: float) -> Calibration:
    """With one bad number in layer ``0``'s statistics."""
    record = calibration.record("0")
    assert record is not None
    tensor = getattr(record, field).clone()
    tensor.view(-1)[0] = value
    shelves = dict(calibration.shelves)
    shelves["0"] = Shelf.keeping(replace(record, **{field: tensor}))
    return Calibration(shelves, calibration.settings, (), calibration.fingerprint)


@pytest.mark.parametrize("rounding", ["auto", "nearest", "learned"])
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mean", math.nan),
        ("absmax", math.nan),
        ("absmax", math.inf),
        ("absmax", -1.0),
        ("histogram", -1),
        ("tokens", math.nan),
        ("moment", math.nan),
    ],
)
def test_one_bad_number(field, value, rounding, calibration, source: Path) -> None:
    """The layer is rounded as if it had never been reached; the others are not touched by it."""
    recipe = FP8.model_copy(update={"rounding": rounding, "scale_search": rounding == "nearest"})
    made, plain = source.with_name("made.safetensors"), source.with_name("plain.safetensors")
    report = quantize_file(source, made, recipe, calibration=spoiled(calibration, field, value))
    assert any("1 of 2 layers have statistics with NaN" in text for text in report.warnings)
    layers = {layer.name: layer for layer in report.layers}
    assert layers["0"].outcome.output_snr is None and layers["2"].outcome.output_snr is not None
    if rounding == "auto":
        assert "no statistics: its statistics" in layers["0"].reason
    ours = load_plain(made)
    assert "0.input_scale" not in ours and ours["2.input_scale"].isfinite()
    quantize_file(source, plain, recipe)
    codes = (tensors["0.weight"].view(torch.uint8) for tensors in (ours, load_plain(plain)))
    assert torch.equal(*codes)


def test_a_layer_that_saw_only_zeros_does_not_clip(net, source: Path) -> None:
    with torch.no_grad(), capture(net) as calibration:
        for _ in range(20):
            net(torch.zeros(40, WIDTH))
    made = source.with_name("made.safetensors")
    quantize_file(source, made, FP8, calibration=calibration)
    assert load_plain(made)["0.input_scale"] == 1.0


def test_few_tokens_are_named_and_leave_the_bias(net, source: Path) -> None:
    """A bias fitted to a handful of tokens costs others more than it gains these."""
    made = source.with_name("made.safetensors")
    few = captured(net, 10, 5)
    report = quantize_file(source, made, FP8, calibration=few)
    assert any("2 of 2 layers have fewer than 64 tokens" in text for text in report.warnings)
    assert torch.equal(load_plain(made)["0.bias"], net[0].bias)


@pytest.mark.parametrize("calls", [4, 16], ids=["tokens set aside", "calls set aside"])
def test_what_judges_a_bias_is_not_in_it(calls: int, net) -> None:
    record = captured(net, calls, 20).record("0")
    seen = torch.cat([inputs(20, seed) for seed in range(calls)])
    held = record.split().held
    assert 0 < len(held) < len(seen)
    rest = seen.sum(0) - held.sum(0)
    assert torch.allclose(record.fitted_mean(), rest / (len(seen) - len(held)), atol=2e-3)
    assert not torch.allclose(record.fitted_mean(), record.mean, atol=1e-3)


def test_a_run_is_not_counted_twice(net, calibration, tmp_path: Path) -> None:
    again = Calibration.load(calibration.save(tmp_path / "c.safetensors"))
    for other in (calibration, again, captured(net, 64, 40)):
        with pytest.raises(RoundsmithError, match="same run"):
            calibration.merge(other)
    merged = calibration.merge(captured(net, 64, 40, first=1000))
    assert merged.record("0").count == 2 * calibration.record("0").count
    with pytest.raises(RoundsmithError, match="same run"):
        merged.merge(calibration)
    with pytest.raises(RoundsmithError, match="not with"):
        calibration.merge("c.safetensors")


def test_statistics_for_codes_say_what_could_not_be_checked(calibration, source: Path) -> None:
    made = source.with_name("made.safetensors")
    quantize_file(source, made, Recipe(format="int8_tensorwise", preset=None))
    report = quantize_file(made, source.with_name("again"), FP8, calibration=calibration)
    assert any("names and shapes only" in text for text in report.warnings)


def test_notes_of_the_run_reach_the_report(calibration, source: Path) -> None:
    noted = Calibration(
        calibration.shelves, calibration.settings, ["a call ended early"], calibration.fingerprint
    )
    report = quantize_file(source, source.with_name("made"), FP8, calibration=noted)
    assert "a call ended early" in report.warnings


def test_input_scales_of_another_model(calibration, source: Path) -> None:
    scales = source.with_name("scales.json")
    recipe = FP8.model_copy(update={"input_scale": "imported", "input_scales": str(scales)})
    scales.write_text('{"elsewhere": 0.5}')
    with pytest.raises(CheckpointError, match="belongs to another model"):
        quantize_file(source, source.with_name("made"), recipe, calibration=calibration)
    assert not source.with_name("made").exists()
    scales.write_text('{"elsewhere": 0.5, "model.diffusion_model.0": 0.25}')
    report = quantize_file(source, source.with_name("made"), recipe)
    assert any("1 scales are of no layer here (elsewhere)" in text for text in report.warnings)
    assert any("no input scale of 1 layers" in text and "2" in text for text in report.warnings)
    assert load_plain(source.with_name("made"))["0.input_scale"] == 0.25


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": '{"calls": "many"}'},
        {"settings": '{"runs": 3}'},
        {"settings": '{"runs": ["x"]}'},
        {"notes": "[1]"},
    ],
)
def test_damaged_metadata(changes: dict[str, str], calibration, source: Path) -> None:
    saved = calibration.save(source.with_name("c.safetensors"))
    with safe_open(saved, "pt") as file:
        metadata = {**file.metadata(), **changes}
    save_file(load_plain(saved), saved, metadata=metadata)
    with pytest.raises(CheckpointError, match=r"c\.safetensors is a damaged calibration"):
        quantize_file(source, source.with_name("made"), FP8, calibration=saved)


def test_a_calibration_by_its_path(net, calibration, tmp_path: Path) -> None:
    saved = calibration.save(tmp_path / "c.safetensors")
    _, report = quantize_module(network(), FP8, calibration=str(saved))
    assert report.mean_output_snr is not None
    with pytest.raises(RecipeError, match="seed"), capture(net, seed=-1):
        pass


def test_a_finished_layer_of_other_tensors_is_solved_again(calibration, source: Path) -> None:
    made = source.with_name("made.safetensors")

    def cancel() -> bool:
        return any(source.parent.glob("*-layers/*.layer.*"))

    with pytest.raises(RoundsmithError):
        quantize_file(source, made, FP8, calibration=calibration, cancel=cancel)
    (kept,) = source.parent.glob("*-layers/*.layer.*")
    with safe_open(kept, "pt") as file:
        facts = file.metadata()
    save_file({"weight": torch.zeros(2)}, kept, metadata=facts)
    report = quantize_file(source, made, FP8, calibration=calibration)
    assert load_file(made)["0.weight"].shape == (WIDTH, WIDTH)
    assert len(report.layers) == 2


def test_a_calibration_is_not_written_over(calibration, source: Path) -> None:
    saved = calibration.save(source.with_name("c.safetensors"))
    with pytest.raises(CheckpointError, match="the calibration itself"):
        quantize_file(source, saved, FP8, calibration=saved, overwrite=True)
    assert Calibration.load(saved).layers == ("0", "2")


def test_a_comparison_does_not_blame_the_model(calibration, source: Path) -> None:
    made = source.with_name("made.safetensors")
    quantize_file(source, made, FP8)
    found = compare_files(source, made, spoiled(calibration, "tokens", math.nan))
    scores = {score.name: score for score in found.layers}
    assert scores["0"].executed is None and scores["2"].executed > 20
    assert not found.faults and any("there are none of: 0" in note for note in found.notes)


def test_an_edited_file_of_input_scales_is_read_again(net, calibration, source: Path) -> None:
    """A layer that was finished with the old scale is another layer."""
    made, scales = source.with_name("made.safetensors"), source.with_name("scales.json")
    recipe = FP8.model_copy(update={"input_scale": "imported", "input_scales": str(scales)})

    def cancel() -> bool:
        return any(source.parent.glob("*-layers/*.layer.*"))

    scales.write_text('{"0": 0.5, "2": 0.5}')
    with pytest.raises(RoundsmithError):
        quantize_file(source, made, recipe, calibration=calibration, cancel=cancel)
    scales.write_text('{"0": 0.25, "2": 0.25}')
    report = quantize_file(source, made, recipe, calibration=calibration)
    tensors = load_plain(made)
    assert tensors["0.input_scale"] == tensors["2.input_scale"] == 0.25
    assert not any("reused" in text for text in report.warnings)


def test_equal_layers_of_one_run_are_not_called_reused(tmp_path: Path) -> None:
    net = network()
    net[2].load_state_dict(net[0].state_dict())
    save_file({k: v.clone() for k, v in net.state_dict().items()}, tmp_path / "s.safetensors")
    report = quantize_file(
        *(tmp_path / "s.safetensors", tmp_path / "m.safetensors"),
        Recipe(format="nvfp4", preset=None, rounding="learned", learned={"iterations": 5}),
    )
    assert not any("reused" in text for text in report.warnings)


def test_a_record_is_read_twice_at_most(net, calibration, source: Path) -> None:
    """Once to see whether it is sound, once to round against: files of calibrations are large."""
    reads: list[str] = []

    def counted(name: str, shelf: Shelf) -> Shelf:
        def load():
            reads.append(name)
            return shelf.load()

        return Shelf(shelf.summary, load)

    shelves = {n: counted(n, s) for n, s in calibration.shelves.items() if s is not None}
    watched = Calibration(shelves, calibration.settings, (), calibration.fingerprint)
    quantize_file(source, source.with_name("made"), FP8, calibration=watched)
    assert sorted(reads) == ["0", "0", "2", "2"]
