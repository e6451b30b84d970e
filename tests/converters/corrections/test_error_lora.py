"""The factors: optimal in the measure asked for, however they are found."""

from __future__ import annotations

import pytest
import torch

from roundsmith.converters.corrections import bias_correction, error_lora
from roundsmith.converters.corrections.error_lora import leading_vectors, square_root


def layer(m=96, n=80, seed=0):
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(m, n, generator=g)
    return w, w + 0.1 * torch.rand(m, n, generator=g) - 0.05


def inputs(n, tokens=2000, seed=1):
    """Tokens whose features differ in size by a factor of a hundred, and correlate."""
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn(n, n, generator=g) / n**0.5 + torch.eye(n)
    return torch.randn(tokens, n, generator=g) @ mixing * torch.logspace(-1, 1, n)


def left(w, w_hat, a, b, x):
    return float((x @ (w - w_hat - b @ a).T).square().sum())


@pytest.mark.parametrize("shape", [(96, 80), (80, 96), (1, 7), (7, 1), (640, 600)])
@pytest.mark.parametrize("weighted", [False, True])
def test_shapes(shape, weighted):
    w, w_hat = layer(*shape)
    x = inputs(shape[1], 100)
    a, b = error_lora(w, w_hat, 8, x.T @ x / 100 if weighted else None)
    r = min(8, *shape)
    assert a.shape == (r, shape[1]) and b.shape == (shape[0], r)
    for t in (a, b):
        assert t.dtype == torch.float32 and t.is_contiguous() and t.isfinite().all()
    assert torch.allclose(a.norm(dim=1), b.norm(dim=0), rtol=1e-3)


def test_plain_is_the_truncated_svd():
    w, w_hat = layer()
    a, b = error_lora(w, w_hat, 5)
    u, s, v = torch.linalg.svd((w - w_hat).double(), full_matrices=False)
    assert torch.allclose((b @ a).double(), (u[:, :5] * s[:5]) @ v[:5], atol=1e-6)


def test_weighted_is_the_optimum_of_the_outputs():
    """Reduced-rank regression in float64 gives the least error there is; ours reaches it."""
    w, w_hat = layer()
    x = inputs(80)
    a, b = error_lora(w, w_hat, 8, x.T @ x / len(x))
    ours = left(w, w_hat, a, b, x)
    y = x.double() @ (w - w_hat).double().T
    best = torch.linalg.svdvals(y)[8:].square().sum().item()
    plain = left(w, w_hat, *error_lora(w, w_hat, 8), x)
    assert best * 0.999 < ours < best * 1.02
    assert ours < plain / 2


def test_full_rank_leaves_nothing():
    w, w_hat = layer()
    x = inputs(80)
    for moment in (None, x.T @ x / len(x)):
        a, b = error_lora(w, w_hat, 1000, moment)
        assert (w - w_hat - b @ a).abs().max() < 1e-4


def test_large_matrices_are_factored_as_well_as_by_the_full_svd():
    """White noise is the hardest: half a per cent of what the largest vectors hold may be missed;
    a spectrum that falls, as behind real inputs, leaves nothing to miss."""
    g = torch.Generator().manual_seed(0)
    noise = torch.rand(1100, 900, generator=g) - 0.5
    falling = noise * torch.linspace(1, 0.05, 900)
    for x, least in ((noise, 0.995), (falling, 0.999)):
        u = leading_vectors(x, 32)
        full = torch.linalg.svdvals(x)[:32].square().sum()
        assert torch.allclose(u.T @ u, torch.eye(32), atol=1e-5)
        assert least < float((u.T @ x).square().sum() / full) <= 1.0001
        assert torch.equal(u, leading_vectors(x, 32))
        assert not torch.equal(u, leading_vectors(x, 32, seed=1))


ODD = ("zero", "rank one", "dead features", "few tokens", "huge", "tiny")


@pytest.mark.parametrize("kind", ODD)
def test_odd_moments(kind):
    """Whatever the statistics, the factors are finite and no worse on them than nothing."""
    w, w_hat = layer()
    x = inputs(80)
    if kind == "zero":
        x = x * 0
    if kind == "rank one":
        x = x[:1].repeat(100, 1)
    if kind == "dead features":
        x[:, ::2] = 0
    if kind == "few tokens":
        x = x[:3]
    if kind == "huge":
        x = x * 1e12
    if kind == "tiny":
        x = x * 1e-12
    a, b = error_lora(w, w_hat, 8, x.T @ x / len(x))
    assert a.isfinite().all() and b.isfinite().all()
    zero = torch.zeros(8, 80), torch.zeros(96, 8)
    assert left(w, w_hat, a, b, x) <= left(w, w_hat, *zero, x)


def test_no_input_whatever_gets_worse():
    """Statistics of quite other inputs cost what could have been gained, never more."""
    w, w_hat = layer()
    x, other = inputs(80, seed=1), inputs(80, seed=2).flip(1)
    a, b = error_lora(w, w_hat, 8, other.T @ other / len(other))
    before = (x @ (w - w_hat).T).norm(dim=1)
    after = (x @ (w - w_hat - b @ a).T).norm(dim=1)
    assert (after <= before * 1.0001).all()


def test_a_huge_feature_does_not_drown_the_others():
    """Models have features ten thousand times the rest; 32 vectors are for more than that one."""
    w, w_hat = layer()
    x = inputs(80) / 10
    x[:, 5] *= 1e5
    a, b = error_lora(w, w_hat, 8, x.T @ x / len(x))
    y = x.double() @ (w - w_hat).double().T
    best = torch.linalg.svdvals(y)[8:].square().sum().item()
    y = x.double() @ (w.double() - w_hat.double() - b.double() @ a.double()).T
    assert y.square().sum().item() < best * 1.05


def test_a_moment_that_is_not_quite_positive_is_damped_more():
    moment = torch.ones(40, 40) * 1.05
    moment.diagonal().fill_(1)
    factor = square_root(moment)
    assert factor.isfinite().all() and torch.equal(factor, factor.tril())
    assert torch.allclose(square_root(4 * moment), 2 * factor)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_bad_input(bad):
    w, w_hat = layer()
    broken = w.clone()
    broken[3, 3] = bad
    with pytest.raises(ValueError, match="NaN or Inf"):
        error_lora(broken, w_hat, 4)
    moment = torch.eye(80)
    moment[2, 2] = bad
    with pytest.raises(ValueError, match="NaN or Inf"):
        error_lora(w, w_hat, 4, moment)
    with pytest.raises(ValueError, match="do not fit"):
        error_lora(w, w_hat[:-1], 4)
    with pytest.raises(ValueError, match="do not fit"):
        error_lora(w, w_hat, 4, torch.eye(96))
    with pytest.raises(ValueError, match="at least 1"):
        error_lora(w, w_hat, 0)
    with pytest.raises(ValueError, match="mean holds NaN"):
        bias_correction(w, w_hat, torch.full((80,), bad))
    with pytest.raises(ValueError, match="do not fit"):
        bias_correction(w, w_hat, torch.zeros(96))


def test_bias_correction_takes_off_the_mean_error():
    w, w_hat = layer()
    x = inputs(80) + torch.linspace(-3, 3, 80)
    bias = bias_correction(w, w_hat, x.mean(0))
    assert bias.shape == (96,)
    before = (x @ (w - w_hat).T).mean(0)
    after = (x @ (w - w_hat).T - bias).mean(0)
    assert after.abs().max() < 1e-3 * before.abs().max()
