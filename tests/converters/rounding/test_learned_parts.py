"""Learned rounding's parts: ladder, objectives, optimizers, schedules, early stopping."""

from __future__ import annotations

import math

import pytest
import torch

from roundsmith.converters.rounding.learned.ladder import Ladder
from roundsmith.converters.rounding.learned.objectives import (
    OutputError,
    ProjectedError,
    kept_rank,
    singular_vectors,
)
from roundsmith.converters.rounding.learned.optimizers import AdamW, Original, RAdam
from roundsmith.converters.rounding.learned.options import LearnedOptions
from roundsmith.converters.rounding.learned.prodigy import Prodigy
from roundsmith.converters.rounding.learned.schedules import (
    Improvement,
    Plateau,
    make_schedule,
    small_mult_of,
)
from roundsmith.converters.rounding.learned.stopping import EarlyStop
from roundsmith.layouts.grids import E2M1, E4M3, E5M2, INT8, CodebookGrid

from .test_calibrated import CODEBOOK

CPU = torch.device("cpu")


# ---- ladder ----


@pytest.mark.parametrize(("grid", "size"), [(E4M3, 253), (E5M2, 247), (INT8, 255), (E2M1, 15)])
def test_ladder_holds_every_value_once(grid, size):
    """Sizes counted by hand from the formats: two zeros are one value."""
    ladder = Ladder(grid, CPU)
    assert len(ladder) == size
    assert (ladder.values.diff() > 0).all()
    assert ladder.values[-1] == grid.max == -ladder.values[0]
    rungs = torch.arange(size, dtype=torch.float32)
    assert torch.equal(ladder.at(rungs), ladder.values)
    assert torch.equal(ladder.positions(ladder.values), rungs)


def test_a_codebooks_ladder_has_its_values():
    """Whole steps apart or not: no position is worth anything but a value of the table."""
    for table in ((3.0, -1.0, 0.0, 1.0, 0.0), (0.1, 0.2, 0.3, 0.4)):
        ladder = Ladder(CodebookGrid.of("table", table), CPU)
        assert ladder.values.tolist() == torch.tensor(sorted(set(table))).tolist()
        assert torch.equal(ladder.at(torch.arange(len(ladder)).float()), ladder.values)


@pytest.mark.parametrize("grid", [E4M3, E5M2, INT8, E2M1, CODEBOOK])
def test_rounding_a_position_rounds_the_value(grid):
    ladder = Ladder(grid, CPU)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(5000, generator=draw) * grid.max / 2
    rounded = ladder.at(ladder.positions(x.clamp(-grid.max, grid.max)).round())
    assert torch.equal(rounded, grid.decode(grid.round(x.clone())))


# ---- objectives ----


def objectives():
    draw = torch.Generator().manual_seed(1)
    w, x = torch.randn(20, 30, generator=draw), torch.randn(100, 30, generator=draw)
    yield OutputError(x.T @ x, 0.01)
    yield ProjectedError(*singular_vectors(w, 5, full=False, seed=0))


@pytest.mark.parametrize("objective", list(objectives()), ids=lambda o: type(o).__name__)
def test_gradient_is_half_the_derivative(objective):
    error = torch.randn(20, 30, generator=torch.Generator().manual_seed(2), requires_grad=True)
    value = objective(error)
    (exact,) = torch.autograd.grad(value.parts.sum(), error)
    torch.testing.assert_close(value.gradient, exact / 2, rtol=1e-4, atol=1e-5)


def test_output_error_is_the_outputs_error():
    draw = torch.Generator().manual_seed(1)
    x, error = torch.randn(100, 30, generator=draw), torch.randn(20, 30, generator=draw)
    moment = x.T @ x / 100
    found = OutputError(moment, 0.0)(error).parts * moment.diagonal().mean()
    exact = (error @ x.T).square().mean(dim=1, keepdim=True)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "k"),
    [((3072, 3072), 614), ((384, 1536), 256), ((100, 300), 100), ((9000, 8000), 1280)],
)
def test_kept_rank(shape, k):
    assert kept_rank(shape, 0.2, 256, 1280) == k


def test_singular_vectors_approximate_the_exact_ones():
    draw = torch.Generator().manual_seed(4)
    w = torch.randn(80, 60, generator=draw) @ torch.diag(torch.logspace(0, -3, 60))
    u, _, vt = torch.linalg.svd(w.double())
    for full in (True, False):
        left, right = singular_vectors(w, 6, full=full, seed=0)
        assert left.shape == (80, 6)
        assert right.shape == (60, 6)
        for found, exact in ((left, u[:, :6]), (right, vt[:6].T)):
            overlap = torch.linalg.svdvals(found.double().T @ exact)
            assert overlap.min() > 0.999


# ---- optimizers ----


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda u, p: AdamW(u, p, 0.01), lambda p: torch.optim.AdamW([p], lr=0.05, weight_decay=0)),
        (RAdam, lambda p: torch.optim.RAdam([p], lr=0.05)),
    ],
)
def test_adam_and_radam_step_like_torchs(ours, theirs):
    draw = torch.Generator().manual_seed(5)
    bends = torch.rand(4, 6, generator=draw) + 0.1
    mine, other = torch.ones(4, 6), torch.ones(4, 6, requires_grad=True)
    rule = ours(torch.ones(4, 6), torch.zeros(4, 6)) if ours is RAdam else AdamW(
        torch.ones(4, 6), mine, 0.0
    )  # fmt: skip
    reference = theirs(other)
    for _ in range(30):
        rule.step(mine, bends * mine, 0.05)
        other.grad = (bends * other).detach()
        reference.step()
    torch.testing.assert_close(mine, other.detach(), rtol=1e-4, atol=1e-5)


def test_weight_decay_pulls_to_the_start():
    start = torch.full((2, 2), 3.0)
    rule, positions = AdamW(torch.ones(2, 2), start, 0.5), torch.full((2, 2), 7.0)
    rule.step(positions, torch.zeros(2, 2), 0.1)
    torch.testing.assert_close(positions, torch.full((2, 2), 7.0 - 0.05 * 4))


def test_original_moves_the_weights_by_the_rate():
    """Whatever the gradient's size: ``rate`` steps of the grid, root mean square."""
    draw = torch.Generator().manual_seed(6)
    unit = torch.rand(5, 7, generator=draw) + 0.5
    unit[0, 0] = 0  # a weight that cannot move
    for size in (1e-6, 1.0, 1e6):
        positions = torch.zeros(5, 7)
        gradient = torch.randn(5, 7, generator=draw) * size
        gradient[0, 0] = 0
        Original(unit, torch.ones(1, 7)).step(positions, gradient, 0.01)
        moved = (positions * unit).square().mean().sqrt()
        torch.testing.assert_close(moved, 0.01 * unit.square().mean().sqrt())
        assert positions[0, 0] == 0


def test_prodigy_finds_the_distance():
    """From a first guess of 1e-6 and a rate of 1, on problems whose distances differ a lot."""
    for distance in (0.01, 1.0, 100.0):
        positions = torch.full((4, 4), distance)
        rule = Prodigy(torch.ones(4, 4), positions)
        for _ in range(300):
            rule.step(positions, positions.clone(), 1.0)
        assert 1e-2 * distance < rule.distance < 1.5 * distance
        assert positions.abs().max() < 0.2 * distance


# ---- schedules ----


@pytest.mark.parametrize(
    ("shape", "influence", "patience", "factor"),
    [
        ((100, 100), 1.0, 9, 0.92),
        ((400, 100), 1.0, 18, 0.96),
        ((100, 600), 1.0, 22, 0.97),
        ((400, 100), 0.5, 14, 0.94),
        ((400, 100), 0.0, 9, 0.92),
    ],
)
def test_plateau_parameters(shape, influence, patience, factor):
    plateau = Plateau(shape, 9, 0.92, 4, 1e-10, influence)
    assert plateau.patience == patience
    assert round(plateau.factor, 2) == factor
    assert plateau.cooldown == round(4 * (1 + (math.sqrt(max(shape) / 100) - 1) * influence))


def rates(options, losses, shape=(64, 64), rate=None):
    schedule, progress = make_schedule(options, shape), Improvement.of(options)
    rate = options.rate if rate is None else rate
    for loss in losses:
        rate = schedule.next(rate, progress.see(loss), progress)
        yield rate


def test_exponential():
    found = list(rates(LearnedOptions(lr=1.0, gamma=0.5, lr_min=0.2), [1.0] * 5))
    assert found == [0.5, 0.25, 0.2, 0.2, 0.2]


def test_plateau_waits_lowers_and_cools_down():
    options = LearnedOptions(schedule="plateau", lr=1.0, patience=2, factor=0.5, cooldown=3)
    found = list(rates(options, [1.0] * 10))
    # one improvement, two stalled steps, then three uncounted ones
    assert found == [1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]


def test_threshold():
    for mode, second, better in (("rel", 9.5, False), ("rel", 8.9, True), ("abs", 9.95, False),
                                 ("abs", 9.8, True)):  # fmt: skip
        progress = Improvement(0.1, mode)
        assert progress.see(10.0)
        assert progress.see(second) is better


@pytest.mark.parametrize(
    ("stalled", "factor"),
    [(1, 1.25), (49, 1.25), (50, 1.375), (75, 1.5), (100, 1.75), (125, 2.0), (150, 2.25),
     (200, 2.5), (250, 2.75), (300, 3.0), (999, 3.0)],
)  # fmt: skip
def test_adaptive_raises(stalled, factor):
    for counter in ("no-reset", "simple-reset"):
        options = LearnedOptions(schedule="adaptive", counter=counter, small_mult=1.0)
        *_, before, after = rates(options, [1.0] * (stalled + 1) + [0.5])
        raised = factor if counter == "no-reset" else 1.25
        assert after / before == pytest.approx(raised)


@pytest.mark.parametrize(
    ("stalled", "factor", "floor"),
    [(1, 0.95, 9e-8), (25, 0.95, 9e-8), (26, 0.97, 8e-8), (51, 0.985, 7e-8), (76, 0.9875, 6e-8),
     (101, 0.98875, 5e-8), (151, 0.99, 4e-8), (201, 0.99125, 3e-8), (251, 0.9925, 2e-8),
     (301, 0.995, 5e-9)],
)  # fmt: skip
def test_adaptive_lowers(stalled, factor, floor):
    options = LearnedOptions(schedule="adaptive", small_mult=1.0)
    *_, before, after = rates(options, [1.0] * (stalled + 1), rate=1.0)
    assert after / before == pytest.approx(factor)
    schedule, progress = make_schedule(options, (8, 8)), Improvement.of(options)
    for _ in range(stalled + 1):
        improved = progress.see(1.0)
    assert schedule.next(floor * 1.001, improved, progress) == floor
    assert schedule.next(floor / 2, improved, progress) == floor / 2, "a stall raised the rate"


def test_adaptive_is_capped():
    options = LearnedOptions(schedule="adaptive", lr=90.0, small_mult=1.0)
    assert list(rates(options, [1.0])) == [100.0]


def test_small_mult():
    assert small_mult_of((64, 64)) == pytest.approx(math.gamma(4 / 64 + 1))
    assert small_mult_of((3072, 768)) == pytest.approx(100 ** (3072 / 768**2))
    assert small_mult_of((768, 3072)) == pytest.approx(10 ** (3072 / 768**2))
    for thin in ((10**6, 1), (1, 10**6), (5000, 4), (0, 64)):
        assert 0 < small_mult_of(thin) <= 2


@pytest.mark.parametrize("shape", [(1536, 384), (10**6, 1), (1, 10**6), (384, 64)])
def test_stalls_lower_the_rate_whatever_the_shape(shape):
    options = LearnedOptions(schedule="adaptive")
    found = list(rates(options, [1.0] * 900, shape))
    assert found[-1] < found[0] / 10


def test_prodigy_waits_for_its_distance():
    options = LearnedOptions(optimizer="prodigy", gamma=0.5)
    found = list(rates(options, [1.0] * 52))
    assert found[49] == 1.0
    assert found[51] == 0.25


# ---- early stopping ----


def stops(options, losses, best=lambda: 1.0, rate=1.0):
    stop, progress = EarlyStop(options), Improvement.of(options)
    for step, loss in enumerate(losses):
        progress.see(loss)
        reason = stop.reason(loss, rate, progress, best)
        if reason:
            return step, reason
    return None


def test_early_stop():
    options = LearnedOptions(stop_stall=20, stop_gain=0)
    assert stops(options, [1.0, 1e-8]) == (1, "loss")
    assert stops(options, [1.0], rate=1e-10) == (0, "rate")
    assert stops(options, [1.0] * 30) == (20, "stall")
    assert stops(options, [1.0] * 20) is None


def test_early_stop_on_gain():
    options = LearnedOptions(stop_gain=0.01)
    assert stops(options, [1.0] * 100) == (49, "gain")
    falling = iter([1.0, 0.98, 0.96, 0.955])
    assert stops(options, [1.0] * 110, best=lambda: next(falling)) == (99, "gain")
