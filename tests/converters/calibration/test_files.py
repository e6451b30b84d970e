"""Calibrations in files: complete, lazily read, and clear about what is wrong with one."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from roundsmith.converters.calibration import Calibration, Fingerprint, capture
from roundsmith.errors import CheckpointError, DestinationExistsError

FIELDS = ("mean", "absmax", "histogram", "tokens", "moment")


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.wide, self.unused = (
            nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(64, 8), nn.Linear(8, 8)
        )  # fmt: skip

    def forward(self, x, y):
        return self.a(x) + self.b(x) + self.wide(y)


def captured(seed=0, **options):
    model, generator = Network(), torch.Generator().manual_seed(seed)
    with capture(model, max_tokens=100, **options) as calibration:
        for _ in range(5):
            x, y = (torch.randn(100, n, generator=generator) for n in (8, 64))
            model(x, y)
    return calibration


@pytest.fixture
def saved(tmp_path):
    return captured().save(tmp_path / "c.safetensors")


def metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


def rewritten(path, tensors=None, **changes):
    """The file with tensors and metadata replaced; a value None: without it."""
    replaced = {k: v for k, v in {**metadata(path), **changes}.items() if v is not None}
    save_file({**load_file(path), **(tensors or {})}, path, metadata=replaced)
    return path


def test_what_is_saved_is_what_is_loaded(saved):
    original, loaded = captured(), Calibration.load(saved)
    assert loaded.layers == original.layers == ("a", "b", "wide", "unused")
    assert loaded.notes == original.notes and loaded.warnings == original.warnings
    assert loaded.settings["seed"] == 0 and loaded.settings["slowdown"] > 1
    assert loaded.shares("b") == ("a", "b") and loaded.record("unused") is None
    for layer in ("a", "wide"):
        mine, its = original.record(layer), loaded.record(layer)
        assert mine.summary == its.summary == loaded.summary(layer)
        for field in FIELDS:
            left, right = getattr(mine, field), getattr(its, field)
            assert (left is None and right is None) or torch.equal(left, right), field
    assert loaded.record("a").moment is not None and loaded.record("wide").moment is None
    assert loaded.check(Fingerprint.of_module(Network())) == []


def test_files_of_before_calls_were_set_aside_are_read(saved):
    """Their tokens set aside are the front of the sample, as they were."""
    records = json.loads(metadata(saved)["records"])
    for numbers in records:
        del numbers["held"], numbers["held_seen"]
    old = {"records": json.dumps(records), "roundsmith.calibration": "1"}
    record = Calibration.load(rewritten(saved, **old)).record("wide")
    split = record.split()
    assert not split.apart and len(split.held) == 16
    assert torch.equal(split.held, record.tokens[: len(split.held)].float())


def test_tokens_in_a_store_are_saved_too(tmp_path, saved):
    path = captured(store=tmp_path).save(tmp_path / "stored.safetensors")
    mine, its = Calibration.load(path).record("wide"), Calibration.load(saved).record("wide")
    assert torch.equal(mine.tokens, its.tokens)


def test_only_what_is_asked_for_is_read(saved):
    """Opening must not depend on data: it is there for files of many gigabytes."""
    loaded = Calibration.load(saved)
    with safe_open(saved, "pt") as file:
        start = 8 + int.from_bytes(saved.read_bytes()[:8], "little")
        assert "records.1.tokens" in file.keys()  # noqa: SIM118 - not a dict
    header = saved.read_bytes()[:start]
    offsets = json.loads(header[8:])["records.1.tokens"]["data_offsets"]
    with saved.open("r+b") as file:
        file.seek(start + offsets[0])
        file.write(bytes(offsets[1] - offsets[0]))
    assert not loaded.record("wide").tokens.any()


def test_an_existing_file_is_kept_unless_told(saved):
    before = saved.read_bytes()
    with pytest.raises(DestinationExistsError):
        captured(seed=1).save(saved)
    assert saved.read_bytes() == before
    captured(seed=1).save(saved, overwrite=True)
    assert saved.read_bytes() != before


@pytest.mark.parametrize("kept", [0.001, 0.3, 0.99])
def test_a_truncated_file_is_named(saved, kept):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(CheckpointError, match=r"c\.safetensors"):
        Calibration.load(saved)


def test_a_file_cut_short_while_in_use_is_named(saved):
    loaded = Calibration.load(saved)
    with saved.open("r+b") as file:
        file.truncate(len(saved.read_bytes()) // 2)
    with pytest.raises(CheckpointError, match=r"c\.safetensors ended inside"):
        loaded.record("wide"), loaded.record("a")


def test_another_safetensors_file_is_not_a_calibration(tmp_path):
    save_file({"a.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a calibration"):
        Calibration.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"roundsmith.calibration": "99"}, "version '99'"),
        ({"layers": "{"}, "its layers cannot be read"),
        ({"layers": None}, "its layers cannot be read"),
        ({"layers": "[]"}, "its layers are not as they should be"),
        ({"layers": '{"a": 7}'}, "refers to record 7"),
        ({"layers": '{"a": "x"}'}, "refers to record 'x'"),
        ({"records": "[{}]"}, "record 0 are incomplete"),
        ({"records": "[3]"}, "record 0 are incomplete"),
        ({"fingerprint": "no"}, "fingerprint"),
        ({"settings": "3"}, "settings"),
    ],
)
def test_damaged_metadata_is_named(saved, metadata, message):
    with pytest.raises(CheckpointError, match=rf"c\.safetensors .*{message}"):
        Calibration.load(rewritten(saved, **metadata))


def test_tensors_that_contradict_the_metadata_are_named(saved):
    rewritten(saved, {"records.0.mean": torch.zeros(9)})
    with pytest.raises(CheckpointError, match=r"'records.0.mean' is F32 \[9\]"):
        Calibration.load(saved)


@pytest.mark.parametrize("field", ["mean", "absmax", "tokens", "moment"])
def test_statistics_with_nan_are_a_problem_of_their_layer(saved, field):
    name = f"records.0.{field}"
    tensor = load_file(saved)[name]
    tensor.view(-1)[3] = float("nan")
    loaded = Calibration.load(rewritten(saved, {name: tensor}))
    assert loaded.record("a").problem() == f"its statistics hold NaN or Inf ({field})"
    assert loaded.record("wide").problem() == ""


def test_influences_are_kept_and_files_without_have_none(saved, tmp_path):
    assert Calibration.load(saved).influences == {}, "as in files of before"
    calibration = captured()
    calibration.influences = {"a": 0.25, "wide": 0.0}
    loaded = Calibration.load(calibration.save(tmp_path / "i.safetensors"))
    assert loaded.influences == {"a": 0.25, "wide": 0.0}
    assert loaded.influence("a.weight") == 0.25 and loaded.influence("b") is None


@pytest.mark.parametrize("value", ["[]", '{"a": -1}', '{"a": "x"}', '{"a": NaN}', "{"])
def test_influences_that_make_no_sense_are_refused(saved, value):
    with pytest.raises(CheckpointError, match="damaged"):
        Calibration.load(rewritten(saved, influences=value))
