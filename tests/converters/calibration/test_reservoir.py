"""The sample of tokens: uniform at any time, in memory as in a file."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from roundsmith.converters.calibration.reservoir import FileRows, MemoryRows, RowFile, Sampler
from roundsmith.errors import CheckpointError


def sampled(capacity, batches, seed):
    """Token numbers in the order of their slots."""
    sampler, slots, first = Sampler(capacity, (seed,)), np.full(capacity, -1), 0
    for count in batches:
        draw = sampler.draw(count)
        assert len(set(draw.slots)) == len(draw.slots)
        assert (np.diff(draw.index) > 0).all()
        assert ((slots[draw.slots] >= 0) == draw.replaces).all()
        slots[draw.slots] = first + draw.index
        sampler = sampler._replace(seen=sampler.seen + count)
        first += count
    kept = slots[sampler.filled()]
    assert (kept >= 0).all()
    return kept


@pytest.mark.parametrize("batches", [[60], [7] * 8 + [4], [3, 50, 7], [1] * 30])
def test_every_token_is_kept_and_comes_first_equally_often(batches):
    """Without this, rounding would be fitted to the first or last steps of a run."""
    runs, capacity, tokens = 1000, 12, sum(batches)
    kept, front = np.zeros(tokens), np.zeros(tokens)
    for seed in range(runs):
        chosen = sampled(capacity, batches, seed)
        kept[chosen] += 1
        front[chosen[:3]] += 1
    for counts, expected in ((kept, runs * capacity / tokens), (front, runs * 3 / tokens)):
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert chi_square < tokens + 5 * np.sqrt(2 * tokens), counts


def test_before_it_is_full_all_are_kept_in_random_order():
    orders = {tuple(sampled(20, [4, 5], seed)) for seed in range(50)}
    assert all(sorted(order) == list(range(9)) for order in orders)
    assert len(orders) == 50


def test_the_same_seed_keeps_the_same_tokens_and_another_others():
    assert (sampled(8, [30, 30], 1) == sampled(8, [30, 30], 1)).all()
    assert (sampled(8, [30, 30], 1) != sampled(8, [30, 30], 2)).any()


def test_rows_in_a_file_are_the_rows_in_memory(tmp_path):
    store = RowFile(tmp_path)
    FileRows(store, 5, 7).put(np.arange(5), torch.full((5, 7), 9.0).bfloat16())  # a neighbour
    pair = MemoryRows(6, 7), FileRows(store, 6, 7)
    for slots in ([5, 2, 3], [0, 1, 2], [4], [3, 4, 5]):
        rows = torch.randn(len(slots), 7).bfloat16()
        for kind in pair:
            kind.put(np.array(slots), rows)
    pair = [*pair, *(kind.copy() for kind in pair)]
    pair[0].put(np.array([1]), torch.zeros(1, 7).bfloat16())
    pair[1].put(np.array([1]), torch.zeros(1, 7).bfloat16())
    for slots in (np.arange(6), np.array([4, 1, 2])):
        assert torch.equal(pair[0].get(slots), pair[1].get(slots))
        assert torch.equal(pair[2].get(slots), pair[3].get(slots))
    assert not torch.equal(pair[0].get(np.arange(6)), pair[2].get(np.arange(6)))


def test_the_file_goes_with_its_last_user(tmp_path):
    rows = FileRows(RowFile(tmp_path), 3, 4)
    rows.put(np.arange(3), torch.ones(3, 4).bfloat16())
    assert len(list(tmp_path.iterdir())) == 1
    del rows
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere.*create it"):
        RowFile(tmp_path / "nowhere")
