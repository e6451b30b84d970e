"""Configurations: fixed, measured, kept on disk."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from roundsmith.kernels import store as stores
from roundsmith.kernels import tuning
from roundsmith.kernels.machine import Machine
from roundsmith.kernels.registry import Case, Implementation
from roundsmith.kernels.store import Store
from roundsmith.kernels.tiles import Tile, candidate_tiles, fixed_tile, largest_step

AMPERE = Machine("cuda", "NVIDIA GeForce RTX 3090", (8, 6), triton=True)
HOPPER = Machine("cuda", "NVIDIA H100", (9, 0), triton=True)
ROWS = Case("scaled_linear", torch.int8, 4096, 12288, 3072, 3072)
BLOCKS = Case("scaled_linear", torch.int8, 4096, 12288, 3072, 64, 64)
FOUR = Case("linear_4bit", torch.uint8, 1, 3072, 3072, 64)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache" / "device.json")


def slower_by_size(run) -> float:
    """A device on which small tiles are fast: ``run`` returns its tile."""
    tile = run()
    return tile.t * tile.n * tile.warps + tile.stages


def test_the_fastest_tile_is_found_once_and_kept(store: Store) -> None:
    measured: list[Tile] = []

    def run(tile: Tile) -> Tile:
        measured.append(tile)
        return tile

    best = tuning.tuned_tile(store, HOPPER, ROWS, run, slower_by_size)
    assert measured == candidate_tiles(HOPPER, ROWS)
    assert len(set(measured)) == len(measured) > 10
    assert slower_by_size(lambda: best) == min(slower_by_size(lambda t=t: t) for t in measured)
    measured.clear()
    for again in (store, Store(store.path)):  # this process, and the next one
        assert tuning.tuned_tile(again, HOPPER, ROWS, run, slower_by_size) == best
    similar = Case("scaled_linear", torch.int8, 3000, 12288, 3072, 3072)  # the same power of two
    assert tuning.tuned_tile(store, HOPPER, similar, run, slower_by_size) == best
    assert not measured
    fewer = Case("scaled_linear", torch.int8, 2048, 12288, 3072, 3072)
    tuning.tuned_tile(store, HOPPER, fewer, run, slower_by_size)
    assert measured


def test_tiles_that_do_not_run_are_left_out(store: Store) -> None:
    def run(tile: Tile) -> Tile:
        if tile.t < 128:
            raise RuntimeError("out of resource: shared memory")
        return tile

    assert tuning.tuned_tile(store, HOPPER, ROWS, run, slower_by_size).t == 128

    def never(tile: Tile) -> Tile:
        raise RuntimeError("no")

    other = Case("scaled_linear", torch.int8, 64, 64, 64, 64)
    assert tuning.tuned_tile(store, HOPPER, other, never, slower_by_size) == fixed_tile(
        HOPPER, other
    )
    assert list(json.loads(store.path.read_text())["values"]) == [
        f"scaled_linear {ROWS.size_class()}"
    ]


@pytest.mark.parametrize("case", [ROWS, BLOCKS, FOUR], ids=lambda case: case.size_class())
@pytest.mark.parametrize("machine", [AMPERE, HOPPER], ids=lambda machine: machine.name)
def test_tiles_fit_the_case(machine: Machine, case: Case) -> None:
    for tile in candidate_tiles(machine, case):
        assert case.group % tile.k == 0 or case.group == case.k
        for size in (tile.t, tile.n, tile.k):
            assert size >= 16
            assert size & (size - 1) == 0
    quantized = Case("scaled_linear_quantized", torch.int8, 64, 3072, 3072, 3072, 1, 64)
    assert {tile.n for tile in candidate_tiles(machine, quantized)} == {64}


def test_few_weight_rows_share_their_sums() -> None:
    narrow, wide = (Case("linear_4bit", torch.uint8, 1, n, 12288, 64) for n in (3072, 32768))
    assert fixed_tile(HOPPER, narrow).split > 1
    assert fixed_tile(HOPPER, wide).split == 1


def test_largest_step() -> None:
    assert [largest_step(n, 128) for n in (3072, 96, 64, 10, 7)] == [128, 32, 64, 2, 1]


def test_the_fastest_implementation_comes_first(store: Store) -> None:
    times = {"vendor": 3.0, "triton": 1.0}

    def found(name: str) -> Implementation:
        return Implementation("scaled_linear", name, lambda m, c: name, lambda m, c: True)

    able = [found("vendor"), found("triton"), found("eager")]

    def timer(run) -> float:
        return times[run()]

    names = [f.name for f in tuning.fastest_of(store, HOPPER, ROWS, able, (), timer)]
    assert names == ["triton", "vendor", "eager"]
    times["vendor"] = 0.5  # kept: not measured again
    assert tuning.fastest_of(store, HOPPER, ROWS, able, (), timer)[0].name == "triton"
    only = [able[0], able[2]]  # what was fastest is gone
    assert tuning.fastest_of(store, HOPPER, ROWS, only, (), timer)[0].name == "vendor"


# ---- the file -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"version": 99, "values": {"a": 1}}', '{"version": 1, "values": 3}']
)
def test_a_damaged_file_is_measured_anew(store: Store, text: str, caplog) -> None:
    store.path.parent.mkdir()
    store.path.write_text(text)
    assert store.get("a") is None
    assert str(store.path) in caplog.text
    store.put("a", 1)
    assert Store(store.path).get("a") == 1


def test_a_kept_value_that_is_no_tile_is_measured_anew(store: Store) -> None:
    store.put(f"scaled_linear {ROWS.size_class()}", {"t": 3})
    assert tuning.tuned_tile(store, HOPPER, ROWS, lambda tile: tile, slower_by_size) in (
        candidate_tiles(HOPPER, ROWS)
    )


def test_processes_add_to_one_file(store: Store) -> None:
    other = Store(store.path)
    assert other.get("b") is None
    store.put("a", 1)
    other.put("b", 2)
    assert json.loads(store.path.read_text())["values"] == {"a": 1, "b": 2}
    assert [path.name for path in store.path.parent.iterdir()] == [store.path.name]


def test_a_folder_that_cannot_be_written(tmp_path: Path, caplog) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "device.json")
    store.put("a", 1)
    assert store.get("a") == 1
    assert "not kept" in caplog.text


def test_where_configurations_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ROUNDSMITH_CACHE", str(tmp_path))
    tuning.store_of.cache_clear()
    path = tuning.store_of(AMPERE).path
    tuning.store_of.cache_clear()
    assert path.parent == tmp_path
    assert path.name.startswith("nvidia-geforce-rtx-3090-triton-")
    monkeypatch.delenv("ROUNDSMITH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(stores.sys, "platform", "linux")
    assert stores.folder() == tmp_path / "roundsmith" / "kernels"
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    monkeypatch.setattr(stores.sys, "platform", "win32")
    assert stores.folder() == tmp_path / "local" / "roundsmith" / "kernels"


def test_elapsed_measures() -> None:
    calls = []
    assert tuning.elapsed(lambda: calls.append(0), repeats=3) > 0
    assert len(calls) == 5
