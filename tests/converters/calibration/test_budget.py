"""Memory: what fits is planned, kept to, and changes nothing but sampling noise."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from roundsmith.converters.calibration import Calibration, Capture, capture, plan_passes
from roundsmith.converters.calibration.budget import Size, nbytes, size, tokens_within, usable
from roundsmith.errors import RecipeError
from roundsmith.tests.models import FOLDER, MODEL_FILE
from roundsmith.tests.models.flux import Flux
from roundsmith.tests.models.sampling import sample, starting_noise

MB = 2**20
WIDTHS = {f"layer{i}": (256, 1280, 3072, 1024)[i % 4] for i in range(20)}


def demo():
    """The demo's trained model, and something to sample it with."""
    model = Flux()
    weights = load_file(FOLDER / MODEL_FILE)
    model.load_state_dict({k.removeprefix("model.diffusion_model."): v for k, v in weights.items()})
    return model.float().requires_grad_(False)


def run(model, seeds=1):
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(4, 77, 768, generator=generator)
    pooled = torch.randn(4, 768, generator=generator)
    for seed in range(seeds):
        sample(model, starting_noise(4, seed, size=16), context, pooled, steps=8)


@pytest.fixture(scope="module")
def captured():
    """The same run under no budget, and under 1 GB, 64 MB and 12 MB."""
    model, found = demo(), {}
    for budget in (None, 1024 * MB, 64 * MB, 12 * MB):
        with capture(model, memory=budget, max_tokens=8192) as found[budget]:
            run(model)
    return found


@pytest.mark.parametrize("features", [1, 64, 256, 1024, 1792, 1793, 4096])
def test_a_moment_is_kept_where_it_takes_less_than_the_tokens(features):
    kept = size(features, 4096)
    assert kept.moment == (features <= 1792)
    assert nbytes(features, kept) <= nbytes(features, size(features, 4096)._replace(
        rows=4096, moment=False))  # fmt: skip


def test_allowing_more_never_takes_less():
    """The search for the most tokens that fit relies on it."""
    for features in (1, 100, 600, 1024, 3000):
        costs = [nbytes(features, size(features, 4096, allowed)) for allowed in range(1, 4097, 7)]
        assert costs == sorted(costs)
        tokens = nbytes(features, Size(100, False))
        assert nbytes(features, size(features, 4096, 100)) <= tokens


def test_the_most_tokens_that_fit_are_kept():
    for budget in (40 * MB, 64 * MB, 100 * MB):
        tokens = tokens_within(WIDTHS, 4096, budget)
        total = [
            sum(nbytes(n, size(n, 4096, t)) for n in WIDTHS.values()) for t in (tokens, tokens + 1)
        ]
        assert total[0] <= usable(budget) < total[1]
    assert tokens_within(WIDTHS, 4096, None) == tokens_within(WIDTHS, 4096, 10**10) == 4096


def test_a_budget_that_holds_nothing_useful_says_what_would():
    with pytest.raises(RecipeError, match="at least") as caught:
        tokens_within(WIDTHS, 4096, 3 * MB)
    enough = int(str(caught.value).split("at least ")[1].split(", or")[0].replace(",", ""))
    assert tokens_within(WIDTHS, 4096, enough) >= 64


def test_passes_hold_every_layer_once_in_order_and_fit():
    groups = plan_passes(WIDTHS, 4096, 64 * MB)
    assert [name for group in groups for name in group] == list(WIDTHS)
    assert len(groups) > 1
    for group in groups:
        assert tokens_within({name: WIDTHS[name] for name in group}, 4096, 64 * MB) == 4096
    assert plan_passes(WIDTHS, 4096, None) == [list(WIDTHS)]
    assert plan_passes({}, 4096, 64 * MB) == []
    assert len(plan_passes(WIDTHS, 4096, 64 * MB, stored=True)) < len(groups)


def test_passes_can_be_limited():
    groups = plan_passes(WIDTHS, 4096, 32 * MB, max_passes=3)
    assert [name for group in groups for name in group] == list(WIDTHS)
    assert len(groups) == 3 < len(plan_passes(WIDTHS, 4096, 32 * MB))
    costs = [sum(nbytes(WIDTHS[n], size(WIDTHS[n], 4096)) for n in group) for group in groups]
    assert max(costs) < 2 * min(costs)


def test_a_small_budget_gives_the_same_statistics_up_to_sampling_noise(captured):
    whole = captured[None]
    assert [captured[b].settings["tokens"] for b in (None, 1024 * MB)] == [8192, 8192]
    assert captured[12 * MB].settings["tokens"] < captured[64 * MB].settings["tokens"] < 8192
    for layer in whole.layers:
        exact = whole.record(layer)
        for budget in (1024 * MB, 64 * MB, 12 * MB):
            record = captured[budget].record(layer)
            assert record.count == exact.count
            torch.testing.assert_close(record.mean, exact.mean)
            assert torch.equal(record.absmax, exact.absmax)
            assert torch.equal(record.histogram, exact.histogram)
            available = record.summary.available
            energy, true = (float(r.mean_square().sum()) for r in (record, exact))
            # Tokens differ in length; of a like spread, n of them give the mean within 1/sqrt(n).
            assert energy == pytest.approx(true, rel=4 / available**0.5), (layer, budget)


def test_moments_under_a_budget_are_those_without_up_to_sampling_noise(captured):
    layer = "single_blocks.1.linear1"
    exact, sampled = (captured[budget].record(layer) for budget in (None, 12 * MB))
    assert exact.moment is not None and sampled.moment is None
    true, estimate = (r.split().moment for r in (exact, sampled))
    # The variance of a mean of x·xᵀ over n tokens, all entries together: (E|x|⁴ − |E x·xᵀ|²) / n.
    fourth = exact.tokens.float().square().sum(1).square().mean()
    expected = ((fourth - true.square().sum()) / sampled.split().count).sqrt()
    assert 0.5 * expected < (estimate - true).norm() < 2 * expected


def test_a_reduction_is_said(captured):
    assert captured[None].notes == captured[1024 * MB].notes == []
    (note,) = captured[64 * MB].notes
    assert "67,108,864 bytes" in note and str(captured[64 * MB].settings["tokens"]) in note


def test_passes_together_keep_what_one_pass_without_a_budget_does(captured):
    model = demo()
    widths = Capture(model).widths
    parts = []
    for group in plan_passes(widths, 8192, 64 * MB):
        watch = Capture(model, group, max_tokens=8192, memory=64 * MB)
        with watch.hooks():
            run(model)
        parts.append(watch.finish())
    assert len(parts) > 1
    joined, whole = Calibration.join(parts), captured[None]
    assert joined.layers == whole.layers and joined.notes == []
    for layer in joined.layers:
        assert torch.equal(joined.record(layer).tokens, whole.record(layer).tokens)


MEASURE = """
import json, resource, sys
from roundsmith.converters.calibration import capture
from roundsmith.tests.converters.calibration.test_budget import demo, run

def peak():
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024

model = demo()
run(model)
before = peak()
with capture(model, memory=int(sys.argv[1]), max_tokens=16384) as calibration:
    run(model)
held = sum(shelf.load().nbytes for shelf in set(calibration.shelves.values()))
print(json.dumps({"grown": peak() - before, "held": held}))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no getrusage")
@pytest.mark.parametrize("budget", [64 * MB, 1024 * MB])
def test_the_whole_process_grows_by_no_more_than_the_budget_and_a_fifth(budget):
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, str(budget)], capture_output=True, text=True, check=True
    )
    measured = json.loads(result.stdout)
    assert measured["grown"] < 1.2 * budget, measured
    assert measured["held"] > 0.4 * min(budget, 100 * MB), measured  # it was put to use
