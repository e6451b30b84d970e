"""Which implementation is chosen, on imaginary machines; what happens when one fails."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch

from roundsmith import kernels
from roundsmith.kernels import registry, vendors
from roundsmith.kernels.machine import CPU, Machine
from roundsmith.kernels.registry import Case, Implementation, candidates

INT8, FP8, E5M2 = torch.int8, torch.float8_e4m3fn, torch.float8_e5m2
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def nvidia(major: int, minor: int, triton: bool = True, **abilities: bool) -> Machine:
    fp8 = (major, minor) >= (8, 9)
    return Machine(
        "cuda", f"sm_{major}{minor}", (major, minor), triton=triton, int8=True,
        **{"float8_rows": fp8, **abilities},
    )  # fmt: skip


TURING, AMPERE, ADA = nvidia(7, 5), nvidia(8, 6), nvidia(8, 9)
HOPPER = nvidia(9, 0, float8_sums=True, float8_blocks=True)
BLACKWELL = nvidia(12, 0)
WINDOWS_ADA = nvidia(8, 9, triton=False, float8_sums=True)
WINDOWS_AMPERE = nvidia(8, 6, triton=False)
AMD = Machine("cuda", "gfx1100", int8=True)
APPLE = Machine("mps", "mps")


@pytest.fixture(autouse=True)
def without_comfy_kitchens_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(registry.SETTING, raising=False)
    monkeypatch.setattr(vendors, "kitchen_accelerates_int8", lambda: False)


def chosen(machine: Machine, op: str, dtype: torch.dtype, **shape) -> str:
    shape = {"t": 1024, "n": 3072, "k": 3072, "float_dtype": BF16, **shape}
    shape.setdefault("group", shape["k"])
    return candidates(machine, Case(op, dtype, **shape))[0].name


BLOCK = {"group": 128, "rows": 128}
ROW_BLOCK = {"group": 64, "rows": 1}


@pytest.mark.parametrize(
    ("machine", "dtype", "shape", "name"),
    [
        # INT8, one scale a row
        (CPU, INT8, {}, "eager"),
        (TURING, INT8, {}, "torch int8"),  # Triton has no INT8 product for it
        (AMPERE, INT8, {}, "triton"),
        (HOPPER, INT8, {}, "triton"),
        (BLACKWELL, INT8, {}, "triton"),
        (WINDOWS_AMPERE, INT8, {}, "torch int8"),
        (AMD, INT8, {}, "torch int8"),
        (APPLE, INT8, {}, "eager"),
        # by blocks
        (AMPERE, INT8, BLOCK, "triton"),
        (AMPERE, INT8, ROW_BLOCK, "triton"),
        (TURING, INT8, BLOCK, "torch int8"),
        (AMPERE, INT8, {"k": 3000, "group": 10}, "torch int8"),  # groups no kernel steps through
        (AMPERE, INT8, {"k": 16, "n": 16}, "torch int8"),  # less than a step
        # FP8, one scale a row
        (CPU, FP8, {}, "eager"),
        (AMPERE, FP8, {}, "eager"),
        (ADA, FP8, {}, "torch rows"),
        (HOPPER, FP8, {}, "torch rows"),
        (ADA, FP8, {"float_dtype": FP16}, "triton"),  # cuBLAS gives bfloat16 there
        (HOPPER, FP8, {"float_dtype": FP32}, "torch rows"),
        (ADA, FP8, {"n": 3000}, "triton"),  # not whole sixteens
        (WINDOWS_ADA, FP8, {}, "torch rows"),
        (nvidia(8, 9, triton=False), FP8, {"float_dtype": FP16}, "torch rounded"),
        # by blocks
        (ADA, FP8, BLOCK, "triton"),
        (HOPPER, FP8, BLOCK, "torch blocks"),
        (HOPPER, FP8, {**BLOCK, "float_dtype": FP16}, "triton"),
        (HOPPER, FP8, {**BLOCK, "n": 3000, "rows": 3000}, "triton"),
        (HOPPER, FP8, ROW_BLOCK, "triton"),
        (WINDOWS_ADA, FP8, ROW_BLOCK, "torch groups"),
        (ADA, E5M2, {}, "eager"),
    ],
    ids=lambda value: getattr(value, "name", str(value)).removeprefix("torch."),
)
def test_products(machine: Machine, dtype: torch.dtype, shape: dict, name: str) -> None:
    assert chosen(machine, "scaled_linear", dtype, **shape) == name


@pytest.mark.parametrize(
    ("machine", "dtype", "shape", "name"),
    [
        (CPU, INT8, {}, "eager"),
        (AMPERE, INT8, {}, "codes"),
        (APPLE, INT8, {}, "eager"),
        (AMPERE, FP8, {}, "triton"),  # decoded
        (ADA, FP8, {}, "codes"),
        (ADA, FP8, ROW_BLOCK, "codes"),
        (WINDOWS_ADA, FP8, ROW_BLOCK, "codes"),
        (nvidia(8, 9, triton=False), FP8, ROW_BLOCK, "eager"),  # no sums in float32
        (ADA, E5M2, {}, "triton"),
        (AMD, FP8, {}, "eager"),
    ],
    ids=lambda value: getattr(value, "name", str(value)).removeprefix("torch."),
)
def test_linear(machine: Machine, dtype: torch.dtype, shape: dict, name: str) -> None:
    assert chosen(machine, "linear", dtype, **shape) == name


def test_comfy_kitchens_int8_layer_where_it_has_a_kernel(monkeypatch) -> None:
    monkeypatch.setattr(vendors, "kitchen_accelerates_int8", lambda: True)
    assert chosen(AMPERE, "linear", INT8) == "comfy-kitchen"
    assert chosen(AMPERE, "linear", INT8, rows=3072) == "comfy-kitchen"
    assert chosen(AMPERE, "linear", INT8, **BLOCK) == "codes"
    assert chosen(CPU, "linear", INT8) == "eager"
    assert chosen(ADA, "linear", FP8) == "codes"


@pytest.mark.parametrize("op", ["quantize_rows", "quantize_blocks", "gelu_quantize", "dequantize"])
def test_kernels_without_a_product_run_from_turing_on(op: str) -> None:
    assert chosen(TURING, op, INT8) == chosen(TURING, op, FP8) == "triton"
    assert chosen(WINDOWS_ADA, op, INT8) == chosen(CPU, op, FP8) == chosen(AMD, op, INT8) == "eager"
    assert chosen(ADA, op, INT8, float_dtype=torch.float64) == "eager"


def test_weight_blocks_too_large_for_registers() -> None:
    assert chosen(ADA, "quantize_blocks", INT8, **BLOCK) == "triton"
    assert chosen(ADA, "quantize_blocks", INT8, group=3072, rows=3072) == "eager"


def test_requantized_results_have_groups_of_a_tiles_width() -> None:
    assert chosen(AMPERE, "scaled_linear_quantized", INT8, out_group=128) == "triton"
    assert chosen(AMPERE, "scaled_linear_quantized", INT8, out_group=96) == "eager"
    assert chosen(TURING, "scaled_linear_quantized", INT8, out_group=128) == "eager"


def test_four_bit_products_are_for_few_rows() -> None:
    four = {"group": 64, "t": 1}
    assert chosen(AMPERE, "linear_4bit", torch.uint8, **four) == "triton"
    assert chosen(AMPERE, "linear_4bit", torch.uint8, **{**four, "t": 16}) == "triton"
    assert chosen(AMPERE, "linear_4bit", torch.uint8, **{**four, "t": 17}) == "eager"
    assert chosen(AMPERE, "linear_4bit", torch.uint8, **four, k=3071) == "eager"
    assert chosen(AMPERE, "linear_4bit", torch.uint8, **four, float_dtype=FP32) == "eager"
    assert chosen(TURING, "linear_4bit", torch.uint8, **four) == "eager"
    assert chosen(TURING, "dequantize_4bit", torch.uint8, **four) == "triton"
    assert chosen(CPU, "linear_4bit", torch.uint8, **four) == "eager"


def test_which_machines_multiply_codes() -> None:
    for machine in (CPU, TURING, AMPERE, BLACKWELL, WINDOWS_AMPERE, AMD):
        assert machine.multiplies(INT8)
    assert not APPLE.multiplies(INT8)
    assert [m.multiplies(FP8) for m in (CPU, AMPERE, ADA, HOPPER)] == [False, False, True, True]
    assert WINDOWS_ADA.multiplies(FP8, groups=24)
    assert not nvidia(8, 9, triton=False).multiplies(FP8, groups=24)
    assert not ADA.multiplies(E5M2)


def test_the_reference_comes_last_for_every_operation() -> None:
    """It accepts everything, so that there always is an implementation."""
    for op, known in registry._implementations.items():
        assert known[-1].name == "eager", op
        assert [found.name for found in known].count("eager") == 1
        assert known[-1].accepts(APPLE, Case(op, torch.float64))


def test_a_person_can_keep_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(registry.SETTING, "eager")
    assert chosen(HOPPER, "scaled_linear", INT8) == "eager"
    monkeypatch.setenv(registry.SETTING, "fast")
    with pytest.raises(ValueError, match=r"ROUNDSMITH_KERNELS='fast': it takes auto, autotune"):
        chosen(HOPPER, "scaled_linear", INT8)


# ---- failures -----------------------------------------------------------------------------------


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """An operation whose first implementation does not compile; yields what ran."""
    ran: list[str] = []

    def fails(*_: object) -> str:
        ran.append("triton")
        raise RuntimeError("PassManager::run failed")

    def works(*_: object) -> str:
        ran.append("eager")
        return "result"

    table = [
        Implementation("op", "triton", fails, lambda m, c: True),
        Implementation("op", "eager", works, lambda m, c: True),
    ]
    monkeypatch.setitem(registry._implementations, "op", table)
    monkeypatch.setattr(registry, "_failed", set())
    monkeypatch.setattr(registry, "failures", type(registry.failures)())
    yield ran


def test_what_does_not_compile_is_replaced_logged_once_and_counted(broken, caplog) -> None:
    case = Case("op", INT8, t=5, n=64, k=64, group=64)
    with caplog.at_level(logging.WARNING):
        assert registry.call(AMPERE, case) == "result"
        assert registry.call(AMPERE, case) == "result"
        assert registry.call(AMPERE, Case("op", INT8, t=99, n=64, k=64, group=64)) == "result"
    assert broken == ["triton", "eager", "eager", "eager"]
    assert registry.failures == {"op/triton": 1}
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert "op: the triton kernel failed on sm_86" in message
    assert "PassManager::run failed" in message
    assert registry.call(AMPERE, Case("op", FP8)) == "result"  # another case is tried
    assert registry.failures == {"op/triton": 2}


def test_a_full_device_is_no_reason_to_give_a_kernel_up(broken, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("full")

    table = registry._implementations["op"]
    monkeypatch.setitem(
        registry._implementations, "op",
        [Implementation("op", "triton", full, lambda m, c: True), table[1]],
    )  # fmt: skip
    with pytest.raises(torch.OutOfMemoryError):
        registry.call(AMPERE, Case("op", INT8))
    assert not registry.failures


def test_every_operator_passes_pytorchs_own_checks() -> None:
    """Schemas, fake results and tracing."""
    x, codes = torch.randn(3, 64), torch.randint(-127, 127, (8, 64), dtype=torch.int8)
    row, scale = torch.rand(3, 2), torch.rand(8, 2)
    x_codes = torch.randint(-127, 127, (3, 64), dtype=torch.int8)
    packed, table = torch.randint(0, 255, (256,), dtype=torch.uint8), torch.randn(16)
    absmax, bias = torch.rand(8), torch.randn(8)
    for operator, arguments in (
        (kernels.quantize_rows, (x, INT8, 32)),
        (kernels.quantize_blocks, (x, INT8, 3, 32)),
        (kernels.gelu_quantize, (x, None, INT8, 32, "tanh")),
        (kernels.gelu_quantize, (x_codes, row, INT8, 32, "none")),
        (kernels.dequantize, (codes, scale, BF16)),
        (kernels.linear, (x[None], codes, scale, bias, FP32)),
        (kernels.scaled_linear, (x_codes, row, codes, scale, None, FP16)),
        (kernels.scaled_linear_quantized, (x_codes, row, codes, scale, bias, 3, "tanh")),
        (kernels.dequantize_4bit, (packed, absmax, table, 64, (8, 64), FP32)),
        (kernels.linear_4bit, (x, packed, absmax, table, 64, (8, 64), bias)),
    ):
        torch.library.opcheck(operator, arguments)


def test_loading_the_package_twice_is_harmless() -> None:
    """ComfyUI loads the pack from its folder though an installed copy may be there already."""
    import importlib.util
    import sys

    from roundsmith.kernels import operators

    name = f"{operators.__package__}.second"
    spec = importlib.util.spec_from_file_location(name, operators.__file__)
    second = importlib.util.module_from_spec(spec)
    sys.modules[name] = second
    try:
        spec.loader.exec_module(second)
    finally:
        del sys.modules[name]
    x, scale = torch.randint(-127, 127, (2, 8), dtype=torch.int8), torch.rand(2, 1)
    assert torch.equal(second.dequantize(x, scale), operators.dequantize(x, scale))
