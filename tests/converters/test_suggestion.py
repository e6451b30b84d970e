"""Format auto: what is chosen for which device, and that it is what is made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from roundsmith.cli import main
from roundsmith.converters import Recipe, plan_file, quantize_file
from roundsmith.converters.options import Rule
from roundsmith.converters.suggestion import Device, suggest, this_device
from roundsmith.errors import RecipeError
from roundsmith.layouts import Candidate, Format, formats

GB = 10**9
TURING = Device("an RTX 2080", (7, 5), 8 * GB)
AMPERE = Device("an RTX 3090", (8, 6), 24 * GB)
ADA = Device("an RTX 4090", (8, 9), 24 * GB)
BLACKWELL = Device("an RTX 5090", (12, 0), 32 * GB)
CPU = Device("the CPU")
WEIGHTS = 12 * GB  # Flux


def size_of(fmt: Format, candidate: Candidate, weights: float = WEIGHTS) -> int:
    """Bytes of a model of so many weights."""
    shape = (3072, 3072)
    spec = fmt.bind(features=3072, **candidate.options)
    stored = fmt.storage(spec, shape).values()
    each = sum(dtype.itemsize * torch.Size(extent).numel() for dtype, extent in stored)
    return int(each * weights / (3072 * 3072))


@pytest.mark.parametrize("device", [AMPERE, ADA, BLACKWELL, CPU], ids=lambda d: d.name)
def test_rotated_int8_is_the_balance_where_it_fits(device: Device) -> None:
    """10 dB better than FP8 wherever activations are quantized, at the same size and speed."""
    found = suggest("balance", device, size_of)
    assert found.chosen.format.id == "int8_tensorwise"
    assert found.chosen.speed == 1
    assert device.name in found.reason


def test_what_does_not_fit_is_not_chosen() -> None:
    for goal in ("quality", "balance", "smallest", "fastest"):
        chosen = suggest(goal, TURING, size_of).chosen
        assert chosen.size <= 0.85 * 8 * GB
    assert suggest("balance", TURING, size_of).chosen.size < 7 * GB


def test_the_fastest_has_four_bit_products_where_there_are_some() -> None:
    assert suggest("fastest", BLACKWELL, size_of).chosen.format.id == "nvfp4"
    assert suggest("fastest", CPU, size_of).chosen.speed == 1


def test_the_smallest_still_gives_a_picture() -> None:
    for device in (TURING, ADA, BLACKWELL, CPU):
        chosen = suggest("smallest", device, size_of).chosen
        assert chosen.snr >= 20
        assert chosen.size * 8 / WEIGHTS < 4.7


def test_quality_counts_decoded_weights() -> None:
    """Where a device cannot multiply a format's codes it runs more exactly, and that is counted."""
    by_id = {x.format.id: x for x in suggest("quality", AMPERE, size_of).alternatives}
    assert by_id["mxfp8"].speed == 0
    assert by_id["mxfp8"].snr == by_id["mxfp8"].candidate.snr
    on_blackwell = {x.format.id: x for x in suggest("quality", BLACKWELL, size_of).alternatives}
    assert on_blackwell["mxfp8"].snr < by_id["mxfp8"].snr


def test_a_model_too_large_for_all() -> None:
    found = suggest("quality", TURING, lambda f, c: 4 * size_of(f, c))
    assert found.chosen.size == min(x.size for x in found.alternatives)
    assert "does not leave" in found.reason


def test_the_table_names_every_alternative() -> None:
    found = suggest("balance", ADA, size_of)
    text = found.table()
    assert text.count("→") == 1
    for fmt in formats().values():
        assert (fmt.id in text) == bool(fmt.candidates)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_file({f"blocks.{i}.fc.weight": torch.randn(256, 256) for i in range(3)}, path)
    return path


@pytest.mark.parametrize("goal", ["quality", "balance", "smallest", "fastest"])
def test_what_is_chosen_is_what_is_made(model: Path, tmp_path: Path, goal: str) -> None:
    recipe = Recipe(format="auto", goal=goal, preset=None)
    plan = plan_file(model, recipe)
    assert plan.choice is not None
    report = quantize_file(model, tmp_path / "out.safetensors", recipe)
    assert (tmp_path / "out.safetensors").stat().st_size == plan.size
    assert {layer.format for layer in report.layers} == {plan.choice.chosen.format.id}
    assert plan.choice.reason in report.table()
    made = Recipe.load(tmp_path / "out.safetensors")
    assert made.format == plan.choice.chosen.format.id, "the file says what it is, not auto"
    confs = [k for k in load_file(tmp_path / "out.safetensors") if k.endswith("comfy_quant")]
    assert len(confs) == 3


def test_from_the_shell(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", str(model), "--preset", "none", "--format", "auto", "--goal", "smallest"]
    assert main(words) == 0
    assert "format auto, smallest: " in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    assert "format auto, smallest: " in json.loads(capsys.readouterr().out)["choice"]


def test_what_is_refused() -> None:
    with pytest.raises(RecipeError, match="scaling"):
        Recipe(format="auto", scaling="row")
    with pytest.raises(RecipeError, match="whole recipe"):
        Rule(match="a", format="auto")
    with pytest.raises(RecipeError, match="goal"):
        Recipe(format="auto", goal="prettiest")


def test_amd_numbers_are_no_compute_capabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        name, major, minor, total_memory = "an RX 7900", 11, 0, 24 * GB

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    monkeypatch.setattr(torch.version, "hip", "6.2")
    device = this_device()
    assert device.capability is None
    assert suggest("fastest", device, size_of).chosen.speed == 1
