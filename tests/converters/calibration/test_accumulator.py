"""Statistics gathered online, against those of all tokens at once in float64."""

from __future__ import annotations

import pytest
import torch

from roundsmith.converters.calibration import accumulator as module
from roundsmith.converters.calibration.accumulator import Accumulator
from roundsmith.converters.calibration.budget import Size
from roundsmith.converters.calibration.record import held_rows, set_aside
from roundsmith.converters.calibration.reservoir import RowFile


def stream(count=9, tokens=50, width=24, seed=0):
    generator = torch.Generator().manual_seed(seed)
    spread = torch.linspace(0.2, 3, width)
    return [torch.randn(2, tokens, width, generator=generator) * spread + 1 for _ in range(count)]


def recorded(batches, size, **options):
    accumulator = Accumulator(batches[0].shape[-1], size, **options)
    for x in batches:
        accumulator.add(x)
    accumulator.finish()
    return accumulator.record()


def second_moment(record):
    """Sum of x·xᵀ over every token the record knows."""
    tokens = record.tokens.double()
    return record.moment.double() * record.moment_count + tokens.T @ tokens


@pytest.mark.parametrize("size", [Size(64, True), Size(64, False), Size(5000, False)])
def test_statistics_over_all_tokens_are_exact(size, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 24 * 7)  # so that a batch takes several chunks
    batches = stream()
    everything = torch.cat([x.reshape(-1, 24) for x in batches]).double()
    record = recorded(batches, size)
    assert record.count == len(everything) == 900
    torch.testing.assert_close(record.mean.double(), everything.mean(0), rtol=1e-6, atol=1e-6)
    assert torch.equal(record.absmax, everything.abs().amax(0).float())
    assert int(record.histogram.sum()) == everything.numel()
    assert record.percentile(100) == float(everything.abs().max().float())
    assert record.tokens.shape == (min(size.rows, 900), 24)


@pytest.mark.parametrize("split", [[900], [200, 40, 640, 20], [1] * 6 + [894], [63, 1, 1, 835]])
def test_every_token_is_in_the_sample_or_in_the_moment_and_never_in_both(split):
    # Bfloat16 values, so that what passes through the sample is exact too.
    everything = torch.cat([x.reshape(-1, 24) for x in stream()]).bfloat16().float()
    record = recorded(list(everything.split(split)), Size(64, True))
    assert record.moment_count == 900 - 64
    expected = everything.double().T @ everything.double()
    torch.testing.assert_close(second_moment(record), expected, rtol=1e-5, atol=1e-3)
    assert torch.equal(record.moment, record.moment.T)
    rows = {tuple(row) for row in everything.tolist()}
    sample = [tuple(row) for row in record.tokens.float().tolist()]
    assert len(set(sample)) == 64 and rows.issuperset(sample)


def test_what_calls_set_aside_keep_is_in_nothing_that_is_fitted(tmp_path):
    """Else errors on them would read better than other calls will see."""
    batches = [x.reshape(-1, 24).bfloat16().float() for x in stream(count=40)]
    aside = [call for call in range(40) if set_aside(call)]
    assert len(aside) == 5 and aside[0] == 7  # one of eight
    others = torch.cat([x for call, x in enumerate(batches) if call not in aside]).double()
    mine = {tuple(row) for call in aside for row in batches[call].tolist()}
    for size, store in ((Size(64, True), None), (Size(5000, False), RowFile(tmp_path))):
        record = recorded(batches, size, store=store)
        split = record.split()
        assert split.apart and split.count == len(others) == 3500
        torch.testing.assert_close(
            split.moment.double(), others.T @ others / 3500, rtol=1e-5, atol=1e-3
        )
        held = {tuple(row) for row in split.held.tolist()}
        assert len(held) == record.held == (48 if size.moment else 500) and held <= mine
        assert record.held_seen == 500 and record.count == 4000


def test_a_sample_makes_room_for_calls_set_aside_and_stays_uniform():
    """All slots are the sample's until the eighth call, which takes some, also half full."""
    batches = [x.reshape(-1, 24).bfloat16().float() for x in stream(count=24, tokens=5)]
    for rows in (40, 60, 90, 300):
        record = recorded(batches, Size(rows, False))
        aside = held_rows(rows, moment=False)
        assert record.held == min(aside, 30) and record.capacity == rows
        assert len(record.tokens) == record.held + min(rows - aside, 210)
        known = {tuple(row) for row in torch.cat(batches).tolist()}
        kept = [tuple(row) for row in record.tokens.tolist()]
        assert len(set(kept)) == len(kept) and known.issuperset(kept)
    assert recorded(batches[:7], Size(40, False)).tokens.shape == (40, 24)


def test_a_wide_moment_is_formed_in_panels():
    batches = stream(count=3, tokens=40, width=600)
    record = recorded([x.bfloat16() for x in batches], Size(16, True))
    everything = torch.cat([x.bfloat16().double().reshape(-1, 600) for x in batches])
    torch.testing.assert_close(
        second_moment(record), everything.T @ everything, rtol=1e-4, atol=1e-2
    )
    assert torch.equal(record.moment, record.moment.T)


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn]
)
def test_any_floating_dtype(dtype):
    batches = [x.to(dtype) for x in stream()]
    mine = recorded(batches, Size(64, True))
    same = recorded([x.float() for x in batches], Size(64, True))
    torch.testing.assert_close(mine.mean, same.mean, rtol=1e-5, atol=1e-5)
    assert torch.equal(mine.absmax, same.absmax)
    assert torch.equal(mine.histogram, same.histogram)
    assert torch.equal(mine.tokens, same.tokens)


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(0, 1),
        lambda x: x[:, ::2],
        lambda x: x[:, :, None].expand(-1, -1, 3, -1),
        lambda x: torch.cat((x, x), -1)[..., :24],
        lambda x: x[0, 0],
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    ],
)
def test_any_strides_and_leading_dimensions(view, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 24 * 7)
    batches = [view(x) for x in stream()]
    mine = recorded(batches, Size(8, True))
    same = recorded([x.reshape(-1, 24).clone() for x in batches], Size(8, True))
    torch.testing.assert_close(mine.mean, same.mean)
    torch.testing.assert_close(mine.moment, same.moment, rtol=1e-4, atol=1e-4)
    assert torch.equal(mine.histogram, same.histogram)
    assert torch.equal(mine.tokens, same.tokens)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_with_nan_or_inf_are_counted_and_left_out(bad, dtype, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 24 * 30)
    clean = [x.to(dtype) for x in stream()]
    dirty = []
    for x in clean:
        noise = x[:, :3].clone()
        noise[..., 5] = bad
        dirty.append(torch.cat((x[:, :11], noise, x[:, 11:]), 1))
    mine, same = recorded(dirty, Size(64, True)), recorded(clean, Size(64, True))
    assert mine.nonfinite == 9 * 2 * 3 and same.nonfinite == 0
    assert mine.count == same.count
    assert torch.equal(mine.histogram, same.histogram)
    assert torch.equal(mine.tokens, same.tokens)
    torch.testing.assert_close(mine.moment, same.moment, rtol=1e-4, atol=1e-4)
    assert not mine.problem()


def test_nothing_but_nan_is_a_problem_that_is_named():
    record = recorded([torch.full((30, 8), float("nan"))], Size(16, True))
    assert record.count == 0 and record.nonfinite == 30
    assert "30 tokens held NaN" in record.problem()
    assert record.split().count == 0


def test_no_tokens_at_all():
    record = recorded([torch.empty(0, 8), torch.empty(3, 0, 8)], Size(16, True))
    assert record.problem() == "empty"
    assert record.percentile(99) == 0


def test_a_batch_can_be_given_up_and_a_fork_goes_its_own_way(tmp_path):
    first, second, third = stream(count=3)
    for store in (None, RowFile(tmp_path)):
        a = Accumulator(24, Size(64, True), store=store)
        a.add(first)
        batch = a.digest(second)
        b = a.fork()
        a.commit(batch)
        b.add(third)
        for mine, seen in ((a, [first, second]), (b, [first, third])):
            mine.finish()
            same = recorded(seen, Size(64, True))
            record = mine.record()
            assert torch.equal(record.tokens, same.tokens)
            torch.testing.assert_close(record.moment, same.moment, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(record.mean, same.mean)


def test_half_of_the_tokens_at_most_are_set_aside_and_the_rest_is_fitted():
    batches = [x.reshape(-1, 24).bfloat16().float() for x in stream()]
    everything = torch.cat(batches).double()
    record = recorded([everything.float()], Size(512, True))  # one call: none to set aside
    split = record.split()
    assert not split.apart
    assert len(split.held) == record.held_count == 112  # an eighth of 900
    assert split.count == 900 - 112
    held = split.held.double()
    expected = (everything.T @ everything - held.T @ held) / split.count
    torch.testing.assert_close(split.moment.double(), expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(
        record.mean_square().double(), everything.square().mean(0), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize(("tokens", "held"), [(1, 0), (2, 1), (10, 5), (64, 16), (4096, 512)])
def test_a_handful_is_set_aside_of_few_tokens(tokens, held):
    record = recorded([torch.randn(tokens, 4)], Size(5000, False))
    assert len(record.split().held) == held
    assert record.split().count == tokens - held
