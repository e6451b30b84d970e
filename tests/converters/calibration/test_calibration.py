"""Calibrations together: runs merged, passes joined, parts and names found."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from roundsmith.converters.calibration import Calibration, Capture, Fingerprint, capture
from roundsmith.errors import RoundsmithError


class Network(nn.Module):
    def __init__(self, seed=0, width=8):
        super().__init__()
        torch.manual_seed(seed)
        self.a, self.b, self.wide = nn.Linear(width, 8), nn.Linear(width, 8), nn.Linear(64, 8)

    def forward(self, x, y=None):
        return self.a(x) + self.b(x) + (0 if y is None else self.wide(y))


def batches(count, seed, width=8, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(100, width, generator=generator) + shift for _ in range(count)]


def captured(xs, ys=None, max_tokens=64, model=None, **options):
    model = model or Network()
    with capture(model, max_tokens=max_tokens, **options) as calibration:
        for index, x in enumerate(xs):
            model(x, None if ys is None else ys[index])
    return calibration


def known_moment(record):
    total = record.tokens.float().T @ record.tokens.float()
    return total + record.moment * record.moment_count


def test_two_runs_merged_are_as_one_run():
    xs, more = batches(4, 0), [x.bfloat16().float() for x in batches(3, 1, shift=1.0)]
    xs = [x.bfloat16().float() for x in xs]
    merged, whole = captured(xs).merge(captured(more)), captured([*xs, *more])
    mine, its = merged.record("a"), whole.record("a")
    assert mine.summary == its.summary
    assert torch.equal(mine.absmax, its.absmax) and torch.equal(mine.histogram, its.histogram)
    torch.testing.assert_close(mine.mean, its.mean)
    torch.testing.assert_close(known_moment(mine), known_moment(its), rtol=1e-4, atol=1e-2)
    assert merged.shares("a") == ("a", "b")
    assert len(merged.settings["runs"]) == 2
    assert len(merged.merge(whole).settings["runs"]) == 3


@pytest.mark.parametrize(("first", "second"), [((40, 64), (5, 64)), ((10, 64), (10, 32))])
def test_a_merged_sample_has_tokens_in_proportion(first, second):
    """Else a short run would weigh as much as a long one."""
    (count_a, max_a), (count_b, max_b) = first, second
    a = captured(batches(count_a, 2), batches(count_a, 0, 64), max_a)
    b = captured(batches(count_b, 3), batches(count_b, 1, 64, 99.0), max_b)
    tokens = a.merge(b).record("wide").tokens.float()
    assert len(tokens) == 64
    share = float((tokens.mean(1) > 50).float().mean())
    assert share == pytest.approx(count_b / (count_a + count_b), abs=1 / 64)


def test_samples_that_were_not_full_are_kept_whole():
    xs, ys = [x[:80] for x in batches(2, 0)], [y[:80] for y in batches(2, 0, 64)]
    merged = captured(xs[:1], ys[:1], 169).merge(captured(xs[1:], ys[1:], 169)).record("wide")
    rows = {tuple(row) for row in torch.cat(ys).bfloat16().tolist()}
    assert {tuple(row) for row in merged.tokens.tolist()} == rows and merged.capacity == 169
    front = merged.tokens[:80].float()
    assert 16 < sum(bool((ys[0].bfloat16() == row).all(1).any()) for row in front) < 64


def test_a_moment_and_a_sample_merge_in_proportion():
    """A run that kept a sample only stands for all its tokens, not for those it kept."""
    xs = batches(10, 0)
    a = captured(xs, batches(10, 1, 64), max_tokens=256)
    b = captured(xs, [3 * y for y in batches(10, 2, 64)], max_tokens=169)
    assert a.record("wide").moment is not None and b.record("wide").moment is None
    for merged in (a.merge(b), b.merge(a)):
        record = merged.record("wide")
        assert record.count == 2000
        energy = record.split().moment.diagonal().mean()
        assert float(energy) == pytest.approx(5, rel=0.05)  # half 1, half 9


def test_calls_set_aside_stay_set_aside():
    """Merged with a run of few calls too, none of which is."""
    a = captured(batches(16, 0), batches(16, 1, 64, 9.0), max_tokens=256)
    for many, moment in ((256, True), (169, False)):
        b = captured(batches(24, 2), batches(24, 3, 64, -9.0), max_tokens=many)
        few = captured(batches(2, 4), batches(2, 5, 64), max_tokens=many)
        record = a.merge(few).merge(b).record("wide")
        mine = [c.record("wide").tokens[: c.record("wide").held] for c in (a, b)]
        known = {tuple(row) for part in mine for row in part.tolist()}
        held = record.tokens[: record.held]
        assert known.issuperset(tuple(row) for row in held.tolist())
        assert record.held_seen == 500 and record.count == 4200
        share = float((held.float().mean(1) > 0).float().mean())
        assert share == pytest.approx(0.4, abs=0.1), "in proportion"
        assert record.split().count == 4200 - 500 if moment else record.split().count > 140


def test_a_layer_reached_in_one_run_only():
    a, b = captured(batches(2, 0)), captured(batches(2, 1), batches(2, 2, 64))
    assert a.record("wide") is None
    for merged in (a.merge(b), b.merge(a)):
        assert merged.record("wide").count == 200
        assert merged.record("a").count == 400


def test_runs_of_different_models_do_not_merge():
    with pytest.raises(RoundsmithError, match="another model"):
        captured(batches(1, 0)).merge(captured(batches(1, 0), model=Network(seed=1)))
    a, b = captured(batches(1, 0)), captured(batches(1, 0, 4), model=Network(width=4))
    a.fingerprint = b.fingerprint = Fingerprint({})
    with pytest.raises(RoundsmithError, match="'a' has 8 inputs in one calibration and 4"):
        a.merge(b)


def test_passes_over_groups_of_layers_join_to_one():
    xs, ys = batches(4, 0), batches(4, 1, 64)
    whole = captured(xs, ys)
    parts = []
    for group in (["a", "b"], ["wide"]):
        model = Network()
        watch = Capture(model, group, max_tokens=64)
        for x, y in zip(xs, ys, strict=True):
            with watch.hooks():
                model(x, y)
        parts.append(watch.finish())
    joined = Calibration.join(parts)
    assert joined.layers == whole.layers and joined.settings["passes"] == 2
    assert joined.settings["layers"] == 3
    assert joined.check(Fingerprint.of_module(Network())) == []
    for layer in joined.layers:
        assert torch.equal(joined.record(layer).tokens, whole.record(layer).tokens)
    with pytest.raises(RoundsmithError, match="'a' was captured in two passes"):
        Calibration.join([parts[0], whole])


def test_names_are_found_whatever_a_checkpoint_puts_before_them():
    calibration = captured(batches(1, 0))
    record = calibration.record("a")
    for name in ("a", "a.weight", "diffusion_model.a", "model.diffusion_model.a.weight"):
        assert calibration.record(name) is record
    assert calibration.record("c") is None and calibration.summary("c") is None


def test_a_part_under_a_prefix():
    model = nn.ModuleDict({"clip_l": nn.ModuleDict({"transformer": Network()})})
    with capture(model) as calibration:
        model["clip_l"]["transformer"](batches(1, 0)[0])
    part = calibration.under("clip_l.transformer.")
    assert part.layers == ("a", "b", "wide")
    assert part.record("a") is calibration.record("clip_l.transformer.a")
    assert part.check(Fingerprint.of_module(Network())) == []
    with pytest.raises(RoundsmithError, match="another model"):
        part.check(Fingerprint.of_module(Network(seed=1)))


def test_too_few_tokens_and_nan_are_warned_of():
    xs = [torch.randn(20, 8)]
    xs[0][3, 3] = float("nan")
    calibration = captured(xs, [torch.full((20, 64), float("inf"))])
    text = "\n".join(calibration.warnings)
    assert "1 of 3 layers saw only NaN or Inf (wide)" in text
    assert "2 of 3 layers saw tokens with NaN or Inf, which were left out (a, b)" in text
    assert "2 of 3 layers saw fewer than 64 tokens" in text
