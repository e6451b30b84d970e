"""Budgets: what is chosen fits, is made as said, and beats single formats."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from roundsmith.cli import main
from roundsmith.converters import Recipe, plan_file, quantize_file
from roundsmith.converters.calibration import Calibration, capture
from roundsmith.converters.choosing import Target, curve, fit_budget_file
from roundsmith.errors import Cancelled, RecipeError

FORMATS = ("nvfp4", "int8_tensorwise", "float8_e4m3fn")


class Net(nn.Module):
    """Six layers; the inputs of some have outliers, which 8 and 4 bits take differently."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(256, 256, bias=False) for _ in range(6))
        with torch.no_grad():
            for i, layer in enumerate(self.layers):
                layer.weight.mul_(torch.randn(256, 1).mul(0.3 * i).exp())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, layer in enumerate(self.layers):
            x = torch.tanh(layer(x * torch.linspace(0, i, 256).exp().div(math.exp(i)))) + x
        return x


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The model's file, and its calibration's."""
    folder = tmp_path_factory.mktemp("budget")
    net = Net()
    save_file({f"{n}.weight": p for n, p in zip("abcdef", net.parameters(), strict=True)},
              folder / "model.safetensors")  # fmt: skip
    named = nn.ModuleDict(dict(zip("abcdef", net.layers, strict=True)))
    with torch.no_grad(), capture(named) as calibration:
        for _ in range(8):
            x = torch.randn(64, 256)
            for i, layer in enumerate(named.values()):
                x = torch.tanh(layer(x * torch.linspace(0, i, 256).exp().div(math.exp(i)))) + x
    calibration.save(folder / "calibration.safetensors")
    return folder / "model.safetensors", folder / "calibration.safetensors"


RECIPE = Recipe(preset=None)


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("share", [0.2, 0.25, 0.5, 0.9])
def test_the_file_is_no_larger_than_asked(
    made: tuple[Path, Path], tmp_path: Path, calibrated: bool, share: float
) -> None:
    model, calibration = made
    size = int(model.stat().st_size * share)
    target = Target(size=size, formats=FORMATS)
    found = fit_budget_file(model, target, RECIPE, calibration if calibrated else None)
    assert found.size <= size
    assert plan_file(model, found.recipe).size == found.size
    quantize_file(model, tmp_path / "out.safetensors", found.recipe)
    assert (tmp_path / "out.safetensors").stat().st_size <= size
    assert ("outputs" in found.measured) == calibrated
    assert ("weights' error" in found.notes[0]) != calibrated, "weights alone say less"
    assert ("counted alike" in found.notes[0]) == calibrated, "no influences were measured"


def test_mean_bits(made: tuple[Path, Path]) -> None:
    model, calibration = made
    found = fit_budget_file(model, Target(bits=6.5, formats=FORMATS), RECIPE, calibration)
    used = sum(c.nbytes for c in found.layers) * 8 / (6 * 256 * 256)
    assert 5.5 < used <= 6.5


def test_quality_is_reached_in_fewer_bytes(made: tuple[Path, Path]) -> None:
    model, calibration = made
    sizes = []
    for snr in (20.0, 30.0, 40.0):
        found = fit_budget_file(model, Target(snr=snr, formats=FORMATS), RECIPE, calibration)
        assert found.snr >= snr
        sizes.append(found.size)
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


def test_never_worse_than_a_single_format_that_fits(made: tuple[Path, Path]) -> None:
    model, calibration = made
    everything = fit_budget_file(model, Target(bits=16), RECIPE, calibration)
    assert len(everything.uniform) > 5
    for name, (size, snr) in everything.uniform.items():
        found = fit_budget_file(model, Target(size=size + 4096), RECIPE, calibration)
        assert found.snr >= snr - 1e-6, name
        assert found.size <= size + 4096


def test_the_curve_rises(made: tuple[Path, Path]) -> None:
    model, calibration = made
    found = fit_budget_file(model, Target(bits=6, formats=FORMATS), RECIPE, calibration)
    sizes, levels = zip(*found.curve, strict=True)
    assert list(sizes) == sorted(sizes)
    assert list(levels) == sorted(levels)
    picture = curve.draw(found)
    assert picture.width > 400 and picture.mode == "RGB"


def test_rules_name_just_the_layers(made: tuple[Path, Path]) -> None:
    """As what the budget says; the recipe's own rules come after."""
    model, calibration = made
    recipe = Recipe(preset=None, rules=[{"match": "^c$", "skip": True}])
    found = fit_budget_file(model, Target(bits=5, formats=FORMATS), recipe, calibration)
    assert {c.layer for c in found.layers} == set("abdef"), "c is not for choosing"
    assert found.recipe.rules[-1] == recipe.rules[0]
    planned = {t.layer: t.spec for t in plan_file(model, found.recipe).tensors}
    for chosen in found.layers:
        assert planned[chosen.layer] == chosen.spec


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"size": 1000}, "at least"),
        ({"bits": 1.0}, "at least 4.5"),
        ({"snr": 150.0, "keep": False}, "at best"),
    ],
)
def test_targets_out_of_reach(
    made: tuple[Path, Path], settings: dict[str, float], says: str
) -> None:
    model, calibration = made
    with pytest.raises(RecipeError, match=says):
        fit_budget_file(model, Target(**settings, formats=FORMATS), RECIPE, calibration)


@pytest.mark.parametrize(
    "settings", [{}, {"size": 5, "bits": 4}, {"bits": 4, "formats": ("fp9",)}, {"size": -1}]
)
def test_bad_targets(settings: dict[str, object]) -> None:
    with pytest.raises(RecipeError):
        Target(**settings)


def test_nothing_to_choose_for(made: tuple[Path, Path]) -> None:
    with pytest.raises(RecipeError, match="nothing to choose for"):
        fit_budget_file(made[0], Target(bits=5), Recipe(preset=None, exclude=["."]))


def test_cancel(made: tuple[Path, Path]) -> None:
    with pytest.raises(Cancelled):
        fit_budget_file(made[0], Target(bits=5), RECIPE, cancel=lambda: True)


def test_from_the_shell(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, calibration = made
    recipe, chart = tmp_path / "recipe.json", tmp_path / "curve.png"
    words = ["budget", str(model), "--size", "0.3MB", "--calibration", str(calibration)]
    words += ["--from", "nvfp4", "mxfp8", "--preset", "none"]
    assert main([*words, "--save", str(recipe), "--chart", str(chart)]) == 0
    assert "all nvfp4" in capsys.readouterr().out
    assert chart.read_bytes().startswith(b"\x89PNG")
    assert main(["plan", str(model), "--recipe", str(recipe), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["size"] <= 300_000
    assert main([*words, "--save", str(recipe)]) == 1, "it exists"
    assert main([*words[:2], "--size", "big"]) == 2


def test_layers_with_nan_are_kept_and_named(tmp_path: Path) -> None:
    tensors = {f"l{i}.weight": torch.randn(256, 256) for i in range(4)}
    tensors["l1.weight"][3, 3] = torch.nan
    save_file(tensors, tmp_path / "nan.safetensors")
    size = 256 * 256 * 4 + 3 * 256 * 256
    found = fit_budget_file(tmp_path / "nan.safetensors", Target(size=size), RECIPE)
    assert [c.layer for c in found.layers if c.spec is None] == ["l1"]
    assert any("l1: weights are NaN" in note for note in found.notes)
    assert math.isfinite(found.snr)
    quantize_file(tmp_path / "nan.safetensors", tmp_path / "out.safetensors", found.recipe)
    assert (tmp_path / "out.safetensors").stat().st_size <= size


def test_what_a_person_chose_stays(made: tuple[Path, Path]) -> None:
    """Rules, layer configs and fallbacks; the rest is chosen around them."""
    rule = {"match": "^c$", "format": "int8_tensorwise", "full_precision_matrix_mult": True}
    recipe = Recipe(preset=None, rules=[rule], layer_config={"^d$": {"format": "mxfp8"}})
    found = fit_budget_file(made[0], Target(bits=5), recipe, made[1])
    assert {c.layer for c in found.layers} == set("abef")
    planned = {t.layer: t.spec for t in plan_file(made[0], found.recipe).tensors}
    assert planned["c"] is not None and planned["c"].full_precision_matrix_mult
    assert planned["d"] is not None and planned["d"].format == "mxfp8"


def test_layers_that_no_format_fits(tmp_path: Path) -> None:
    save_file({"odd.weight": torch.randn(250, 250)}, tmp_path / "odd.safetensors")
    target = Target(bits=8, formats=("asym_w4a8_int8",), keep=False)
    with pytest.raises(RecipeError, match=r"'odd' \[250, 250\] fits none"):
        fit_budget_file(tmp_path / "odd.safetensors", target, RECIPE)


def test_nothing_lost_is_valid_json(made: tuple[Path, Path]) -> None:
    found = fit_budget_file(made[0], Target(bits=40), RECIPE)
    assert json.loads(found.json(), parse_constant=pytest.fail)["snr"] is None


def with_influences(path: Path, to: Path, **influences: float) -> Calibration:
    calibration = Calibration.load(path)
    calibration.influences = influences
    return Calibration.load(calibration.save(to, overwrite=True))


def test_layers_that_matter_in_the_end_get_more_bits(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    model, path = made
    target = Target(bits=6.5, formats=("nvfp4", "int8_tensorwise"))
    bits = {}
    for first, second in ((1.0, 1e-4), (1e-4, 1.0)):
        some = {n: first if n in "abc" else second for n in "abcdef"}
        calibration = with_influences(path, tmp_path / "i.safetensors", **some)
        found = fit_budget_file(model, target, RECIPE, calibration)
        assert not found.notes and "model's output" in found.measured
        for c in found.layers:
            assert c.effect == pytest.approx(c.error * some[c.layer])
        assert found.snr == pytest.approx(-10 * math.log10(sum(c.effect for c in found.layers)))
        bits[first] = sum(c.nbytes for c in found.layers if c.layer in "abc")
    assert bits[1.0] > 1.3 * bits[1e-4]


def test_layers_without_an_influence_count_as_the_middle(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    model, path = made
    calibration = with_influences(path, tmp_path / "i.safetensors", a=0.04, b=4.0, c=0.0)
    found = fit_budget_file(model, Target(bits=5, formats=("nvfp4",)), RECIPE, calibration)
    assert any("3 layers whose influence was not measured (d)" in note for note in found.notes)
    for c in found.layers:
        counted = {"a": 0.04, "b": 4.0, "c": 0.0}.get(c.layer, 0.4)
        assert c.effect == pytest.approx(c.error * counted)
    nothing = with_influences(path, tmp_path / "i.safetensors", a=0.0)
    found = fit_budget_file(model, Target(bits=5, formats=("nvfp4",)), RECIPE, nothing)
    assert any("counted alike" in note for note in found.notes), "zeros alone say nothing"


def test_never_worse_than_a_single_format_by_influence_too(
    made: tuple[Path, Path], tmp_path: Path
) -> None:
    model, path = made
    some = dict(zip("abcdef", (3.0, 0.01, 1.0, 0.0, 0.2, 10.0), strict=True))
    calibration = with_influences(path, tmp_path / "i.safetensors", **some)
    everything = fit_budget_file(model, Target(bits=16), RECIPE, calibration)
    for name, (size, snr) in everything.uniform.items():
        found = fit_budget_file(model, Target(size=size + 4096), RECIPE, calibration)
        assert found.snr >= snr - 1e-6, name
