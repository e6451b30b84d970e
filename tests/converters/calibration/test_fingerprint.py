"""Telling the model statistics belong to from a fine-tune, and both from another model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from roundsmith.converters import MemorySource, ModelView
from roundsmith.converters.calibration import Fingerprint
from roundsmith.converters.calibration.fingerprint import normalised
from roundsmith.errors import CheckpointError, RoundsmithError


def network(seed=0, width=24, count=6):
    torch.manual_seed(seed)
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(count)))


def view_of(module, prefix="model.diffusion_model.", dtype=torch.float32):
    tensors = {f"{prefix}{k}": v.detach().to(dtype) for k, v in module.state_dict().items()}
    return ModelView(MemorySource(tensors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "model.diffusion_model."])
def test_a_model_and_its_file_are_the_same(dtype, prefix):
    mine = Fingerprint.of_module(network())
    assert len(mine.marks) == 6
    assert mine.check(Fingerprint.of_view(view_of(network(), prefix, dtype))) == []


def test_a_fine_tune_is_a_warning():
    tuned = network()
    with torch.no_grad():
        for layer in tuned:
            layer.weight += 0.3 * layer.weight.std() * torch.randn_like(layer.weight)
    (warning,) = Fingerprint.of_module(network()).check(Fingerprint.of_module(tuned))
    assert "fine-tune" in warning and "LoRA" in warning


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (network(seed=1), "nothing in common"),
        (network(width=32), "24×24"),
        (nn.ModuleDict({"other": nn.Linear(24, 24)}), "6 of its 6 layers are not in this one"),
        (network(seed=1, count=3), "3 of its 6 layers are not in this one"),
    ],
)
def test_another_model_is_an_error_that_says_why(other, why):
    with pytest.raises(RoundsmithError, match=f"another model.*{why}"):
        Fingerprint.of_module(network()).check(Fingerprint.of_module(other))


def test_a_layer_the_file_lacks_is_a_warning():
    (warning,) = Fingerprint.of_module(network()).check(Fingerprint.of_module(network(count=5)))
    assert "1 layers" in warning and "5" in warning


def test_a_part_of_the_model_is_the_model():
    """The weights it has are the same: its statistics serve."""
    (warning,) = Fingerprint.of_module(network()).check(Fingerprint.of_module(network(count=2)))
    assert "4 layers" in warning


def test_layers_without_values_are_told_by_shape_alone():
    with torch.device("meta"):
        empty = network()
    assert Fingerprint.of_module(empty).marks["0"] == ((24, 24), ())
    mine, other = Fingerprint.of_module(network()), Fingerprint.of_module(empty)
    (warning,) = mine.check(other)
    assert "names and shapes only" in warning
    assert other.check(mine) == [], "taken while its weights were elsewhere, as ComfyUI may do"


def test_zero_and_nan_weights_say_nothing():
    odd = network()
    with torch.no_grad():
        odd[0].weight.zero_()
        odd[1].weight.fill_(float("nan"))
    assert Fingerprint.of_module(odd).check(Fingerprint.of_module(network())) == []


def test_it_survives_a_file():
    mine = Fingerprint.of_module(network())
    again = Fingerprint.from_json(mine.to_json())
    assert again.marks.keys() == mine.marks.keys()
    assert again.check(mine) == []
    with pytest.raises(RoundsmithError, match="nothing in common"):
        again.check(Fingerprint.of_module(network(seed=1)))
    for text in ("", "[]", '{"a": [1]}', '{"a": [1, 2, ["x"]]}'):
        with pytest.raises(CheckpointError, match="fingerprint"):
            Fingerprint.from_json(text)


def test_names_without_what_checkpoints_put_around_them():
    assert normalised("model.diffusion_model.a.b.weight") == "a.b"
    assert normalised("diffusion_model.a.b") == "a.b"
    assert normalised("a.weight.b") == "a.weight.b"
