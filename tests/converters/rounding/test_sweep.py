"""The parts of calibrated rounding against float64 arithmetic written down naively."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from roundsmith.converters.rounding import Activations
from roundsmith.converters.rounding.hessian import damped, expected_gain, factor
from roundsmith.converters.rounding.judge import Candidate, Judge
from roundsmith.converters.rounding.quantizer import Quantizer, rounder
from roundsmith.converters.rounding.refit import refit
from roundsmith.converters.rounding.scale_search import best_scales
from roundsmith.converters.rounding.sweep import descend, sweep
from roundsmith.errors import RoundsmithError
from roundsmith.layouts.codec import decode, encode
from roundsmith.layouts.geometries import (
    PER_ROW,
    POWERS_OF_TWO,
    ROW_LEVELS,
    TWO_LEVELS,
    Geometry,
    Scales,
)
from roundsmith.layouts.grids import E2M1, E4M3, E5M2, INT8, Grid

from .test_calibrated import CODEBOOK, inputs, weights

GRIDS = (E4M3, E5M2, INT8, E2M1, CODEBOOK)


def moment(n: int, tokens: int = 800) -> Tensor:
    x = inputs(tokens, n)
    return x.t() @ x / tokens


def optq(w: Tensor, h: Tensor, grid: Grid, scale: Tensor, order: Tensor) -> Tensor:
    """OPTQ as published (Frantar et al. 2023, algorithm 1, blocks of one), float64: values."""
    w, scale = w.double().clone(), scale.double()
    inverse = torch.linalg.inv(h.double()[order][:, order])
    upper = torch.linalg.cholesky(inverse, upper=True)
    w = w[:, order]
    found = torch.zeros_like(w)
    for j in range(w.shape[1]):
        codes = grid.round((w[:, j] / scale[:, 0]).float())
        found[:, j] = grid.decode(codes).double() * scale[:, 0]
        error = (w[:, j] - found[:, j]) / upper[j, j]
        w[:, j + 1 :] -= error[:, None] * upper[j, j + 1 :]
    back = torch.empty_like(found)
    back[:, order] = found
    return back


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: g.name)
@pytest.mark.parametrize("block", [8, 40, 128])
def test_the_sweep_is_optq(grid: Grid, block: int) -> None:
    w, h = weights(24, 80), damped(moment(80), 0.01)
    scales = PER_ROW.scales(w, grid)
    made = factor(h)
    errors = sweep(
        w.t()[made.order], made, Quantizer(grid, scales, (24, 80), made.order), block=block
    )
    found = torch.empty_like(errors)
    found[made.order] = w.t()[made.order] - errors
    expected = optq(w, h, grid, scales.block, made.order.flip(0)).t()
    # float32 may tip a tie-like choice, after which a row goes another way
    same = (found - expected).abs().amax(dim=0) <= 1e-5 * scales.block[:, 0] * grid.max
    assert same.double().mean() > 0.9
    mine, theirs = (((e := w.t().double() - v) * (h.double() @ e)).sum() for v in (found, expected))
    assert abs(mine / theirs - 1) < 0.02


def test_the_factor_is_one() -> None:
    h = damped(moment(300), 0.01)
    made = factor(h)
    unit = made.feedback.double() + torch.eye(300)
    back = unit.t() @ torch.diag(made.pivots.double()) @ unit
    torch.testing.assert_close(back.float(), h[made.order][:, made.order], rtol=1e-4, atol=1e-5)
    assert not made.feedback.tril().any()
    assert torch.equal(made.importance()[made.order], made.pivots)
    first_first = h.double()[made.order.flip(0)][:, made.order.flip(0)]
    upper = torch.linalg.cholesky(torch.linalg.inv(first_first), upper=True)  # OPTQ's
    pivots = (1 / upper.diagonal().square()).flip(0)
    torch.testing.assert_close(made.pivots.double(), pivots, rtol=1e-4, atol=0)
    expected = 10 * (h.diagonal().double().mean() / pivots.mean()).log10()
    assert abs(expected_gain(h, made) - expected) < 1e-3


def pivots_in(order: Tensor, h: Tensor) -> Tensor:
    """Of the Cholesky factor of ``h`` with its columns in this order, float64."""
    return torch.linalg.cholesky(h.double()[order][:, order]).diagonal().square()


def one_by_one(h: Tensor) -> list[int]:
    """Sorted QR as published: of the columns left, the one with least left of it."""
    h, order = h.double().clone(), []
    for _ in range(len(h)):
        left = h.diagonal().clone()
        left[order] = torch.inf
        order.append(int(left.argmin()))
        column = h[:, order[-1]].clone()
        h -= torch.outer(column, column) / column[order[-1]]
    return order


def test_columns_are_ordered_so_that_errors_cost_least() -> None:
    h = damped(moment(300), 0.01)
    made, best = factor(h), torch.tensor(one_by_one(h))
    by_diagonal = pivots_in(torch.argsort(h.diagonal()), h).sum()
    least, mine = pivots_in(best, h).sum(), made.pivots.double().sum()
    assert least < mine < (least + by_diagonal) / 2
    again = factor(h, order=made.order)
    torch.testing.assert_close(again.feedback, made.feedback, rtol=1e-3, atol=1e-4)
    alone = factor(h, act_order=False)
    assert alone.order.tolist() == list(range(299, -1, -1))
    assert by_diagonal < alone.pivots.double().sum()


def test_a_singular_moment_is_factored_all_the_same() -> None:
    x = inputs(20, 64)
    made = factor(x.t() @ x)
    assert bool(torch.isfinite(made.feedback).all())
    with pytest.raises(RoundsmithError, match="not positive definite"):
        factor(-torch.eye(8))


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: g.name)
def test_rounding_in_arithmetic_is_the_grids(grid: Grid) -> None:
    g = torch.Generator().manual_seed(0)
    spread = torch.randn(50_000, generator=g) * 10 ** (torch.rand(50_000, generator=g) * 11 - 6)
    x = torch.cat((spread, torch.linspace(-8, 8, 25_601), torch.tensor([0.0, 1e9, -1e9, 1e-38])))
    assert torch.equal(rounder(grid)(x.clone()), grid.decode(grid.round(x.clone())))


def loss(h: Tensor, errors: Tensor) -> Tensor:
    """Of each row, ``[M]``, float64."""
    e = errors.double()
    return ((h.double() @ e) * e).sum(dim=0)


def scaled_rows(h: Tensor) -> Tensor:
    feedback = h / h.diagonal()[:, None]
    feedback.diagonal().zero_()
    return feedback


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: g.name)
def test_descent_ends_where_no_single_change_helps(grid: Grid) -> None:
    w, h = weights(6, 70), damped(moment(70), 0.01)
    scales = PER_ROW.scales(w, grid)
    quantizer = Quantizer(grid, scales, (6, 70))
    wt = w.t().contiguous()
    errors = wt - decode(encode(w, grid, scales), grid, scales).t()
    before = loss(h, errors)
    for _ in range(300):
        descend(wt, scaled_rows(h), quantizer, errors, block=48)
        after = loss(h, errors)
        assert bool((after <= before * (1 + 1e-5)).all()), "a pass made a row worse"
        before = after
    values = wt - errors
    for j in range(70):
        for factor_ in (0.9, 1.1):  # a neighbouring code, whatever the grid
            codes = grid.round(values[j] * factor_ / scales.block[:, 0])
            tried = errors.clone()
            tried[j] = wt[j] - grid.decode(codes) * scales.block[:, 0]
            assert bool((loss(h, tried) >= before * (1 - 1e-4)).all())


def test_variants_keep_the_best_of_each_row() -> None:
    w, h = weights(64, 128), damped(moment(128), 0.01)
    made, scales = factor(h), PER_ROW.scales(w, INT8)
    wt = w.t()[made.order]
    found = [
        loss(
            h[made.order][:, made.order],
            sweep(wt, made, Quantizer(INT8, scales, (64, 128), made.order, k), variants=k),
        )
        for k in (1, 8)
    ]
    assert bool((found[1] <= found[0] * (1 + 1e-4)).all()), "the plain sweep is among them"
    assert found[1].sum() < 0.99 * found[0].sum()


@pytest.mark.parametrize(
    "rule_of", ["rows", "blocks", "tensor", "powers", "two levels", "row levels"]
)
def test_refitted_scales_lose_less(rule_of: str) -> None:
    geometry = {
        "rows": PER_ROW,
        "blocks": Geometry(4, 16),
        "tensor": Geometry(None, None),
        "powers": Geometry(1, 16, POWERS_OF_TWO),
        "two levels": Geometry(1, 16, TWO_LEVELS),
        "row levels": Geometry(1, 16, ROW_LEVELS),
    }[rule_of]
    w, h = weights(8, 48), damped(moment(48), 0.01)
    w[:4, :16] = 0
    scales = geometry.scales(w, E2M1)
    codes = encode(w, E2M1, scales)
    errors = (w - decode(codes, E2M1, scales)).t().contiguous()
    before = loss(h, errors).sum()
    found = refit(w.t().contiguous(), h, errors, E2M1, geometry, scales, None)
    snapped = geometry.rule.snap(found.effective, found.tensor)
    torch.testing.assert_close(snapped.block, found.block)
    exact = (w - decode(codes, E2M1, found)).t()
    torch.testing.assert_close(errors, exact, rtol=1e-4, atol=1e-7)
    assert loss(h, exact).sum() <= before
    if rule_of == "rows":  # in closed form
        q = E2M1.decode(codes).double()
        hd = h.double()
        best = (w.double() @ hd * q).sum(1) / (q @ hd * q).sum(1)
        torch.testing.assert_close(found.block[:, 0].double(), best, rtol=1e-4, atol=0)


def test_tiny_problems_come_near_the_best_there_is() -> None:
    """Near the best of all combinations of the codes on either side."""
    w, h = weights(16, 8), damped(moment(8), 0.01)
    scales = Scales(torch.full((16, 1), 0.01))
    down = torch.floor(w / 0.01)
    choices = torch.tensor(list(itertools.product((0.0, 1.0), repeat=8)))
    tried = w[:, None] - (down[:, None] + choices) * 0.01
    best = torch.einsum("mki,ij,mkj->mk", tried, h, tried).amin(dim=1)
    made = factor(h)
    quantizer = Quantizer(INT8, scales, (16, 8), made.order, 8)
    swept = sweep(w.t()[made.order], made, quantizer, variants=8)
    errors = torch.empty_like(swept)
    errors[made.order] = swept
    descend(w.t().contiguous(), scaled_rows(h), Quantizer(INT8, scales, (16, 8)), errors)
    assert loss(h, errors).sum() < 1.1 * best.sum()


def test_a_weighted_search_minds_the_weights() -> None:
    w = weights(16, 64)
    importance = torch.ones(64)
    importance[::2] = 100
    plain, weighted = (best_scales(w, E2M1, PER_ROW, None, i) for i in (None, importance))
    errors = [
        ((w - decode(encode(w, E2M1, s), E2M1, s)).square() * importance).sum()
        for s in (plain, weighted)
    ]
    assert errors[1] < errors[0]
    parts = [best_scales(part, E2M1, PER_ROW, None, importance).block for part in w.split(4)]
    torch.testing.assert_close(torch.cat(parts), weighted.block)


def test_a_scale_that_would_lose_more_once_rounded_is_not_taken() -> None:
    """1.43 is nearer to 2 than to 1 in the exponent, but not in the error."""
    geometry = Geometry(1, 16, POWERS_OF_TWO)
    w, codes = torch.full((1, 16), 1.43), torch.ones(1, 16).to(E4M3.dtype)
    errors = (w - decode(codes, E4M3, Scales(torch.ones(1, 1)))).t().contiguous()
    kept = errors.clone()
    one = Scales(torch.ones(1, 1))
    found = refit(w.t().contiguous(), torch.eye(16), errors, E4M3, geometry, one, None)
    assert found.block.item() == 1
    assert torch.equal(errors, kept)


def test_the_judge_is_exact_where_float32_is_not() -> None:
    """Two large terms cancel, and what is left decides, far below float32's last bit of them."""
    g, wrong = torch.Generator().manual_seed(0), 0
    scales = Scales(torch.ones(1, 1))
    for _ in range(300):
        x = torch.randn(4, 64, generator=g)
        x[:, 0], x[:, 17] = 1e6, -1e6
        codes = torch.randint(-5, 6, (2, 64), generator=g).to(torch.int8)
        codes[:, [0, 17]] = 101
        first, second = (Candidate("nearest", c[None], scales) for c in codes)
        a, b = (float((x.double() @ c.double()).square().sum()) for c in codes)
        rough, other = (float((x @ c.float()[None].t()).square().sum()) for c in codes)
        wrong += other < rough and b > a
        judge = Judge(torch.zeros(1, 64), INT8, Activations(torch.eye(64), 64, x))
        kept = judge.best([first, second])
        if b > a:
            assert kept is first
        if kept is second:
            assert b < a
    assert wrong, "float32 could tell, so this tests nothing"
