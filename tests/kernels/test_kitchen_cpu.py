"""Our backend for comfy-kitchen on a CPU gives its eager backend's results, to the last bit."""

from __future__ import annotations

import comfy_kitchen
import pytest
import torch
from comfy_kitchen.registry import registry

from roundsmith.kernels import kitchen_cpu

from .cases import codes, floats, positive


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Offered whatever this machine's CPU can."""
    monkeypatch.setattr(kitchen_cpu, "slow_int8", lambda: True)
    assert kitchen_cpu.register_backend()
    assert kitchen_cpu.register_backend()


def both(name: str, given: dict) -> tuple[torch.Tensor, torch.Tensor]:
    assert registry.get_capable_backend(name, given) == kitchen_cpu.NAME
    ours = registry.get_implementation(name, kwargs=given)(**given)
    return registry.get_implementation(name, backend="eager")(**given), ours


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("scalar", [False, True])
@pytest.mark.parametrize("convrot", [False, True])
@pytest.mark.parametrize(("t", "n", "k"), [(1, 17, 64), (5, 48, 4096)])
def test_int8_linear(dtype, biased, scalar, convrot, t: int, n: int, k: int) -> None:
    given = {
        "x": floats(t, k, dtype)[None], "weight": codes(n, k, torch.int8),
        "weight_scale": torch.tensor(0.01) if scalar else positive(n, 1),
        "bias": floats(1, n, dtype)[0] if biased else None, "out_dtype": dtype,
        "convrot": convrot, "convrot_groupsize": 64,
    }  # fmt: skip
    assert torch.equal(*both("int8_linear", given))


def test_sums_are_exact_beyond_what_float32_adds() -> None:
    x, w = codes(3, 13824, torch.int8), codes(5, 13824, torch.int8)
    x[0], w[0] = 127, 127
    w[1] = torch.arange(13824) % 37 + 90  # large, and odd as often as not
    found = kitchen_cpu.integer_sums(x.float(), w.float())
    assert torch.equal(found.long(), x.long() @ w.long().t())
    assert found[0, 0] == 127 * 127 * 13824


def test_w4a8() -> None:
    if not hasattr(registry._backends["eager"], "w4a8_int8_linear"):
        pytest.skip("this comfy-kitchen has no W4A8")
    stored = torch.randint(0, 256, (33, 128), dtype=torch.uint8).view(torch.int8)
    given = {
        "x": floats(5, 256, torch.bfloat16), "qdata": stored,
        "s_rel": positive(33, 16).mul(100).to(torch.float8_e4m3fn),
        "s_channel": positive(33) / 100, "codebook": torch.linspace(-1, 1, 16),
        "bias": floats(1, 33)[0], "group_size": 16, "convrot_groupsize": 64,
        "out_dtype": torch.bfloat16,
    }  # fmt: skip
    assert torch.equal(*both("w4a8_int8_linear", given))


def test_what_more_is_asked_stays_with_comfy_kitchen() -> None:
    x, w = floats(2, 64), codes(8, 64, torch.int8)
    given = {"x": x, "weight": w, "weight_scale": torch.tensor(0.1), "out_dtype": x.dtype}
    assert registry.get_capable_backend("int8_linear", given) == kitchen_cpu.NAME
    given["residual"] = torch.zeros(2, 8)
    assert registry.get_capable_backend("int8_linear", given) == "eager"
    assert comfy_kitchen.list_backends()[kitchen_cpu.NAME]["capabilities"] == [
        "int8_linear",
        "w4a8_int8_linear",
    ]
