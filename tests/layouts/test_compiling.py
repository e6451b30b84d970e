"""``torch.compile(fullgraph=True)`` of a model of each format gives what the model gives."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch

from roundsmith.layouts import Format, get_format

from .running import CASES, quantized

WIDTH = 256


class Model(torch.nn.Module):
    """Two layers, with and without a bias, and something in between."""

    def __init__(self, fmt: Format, options: dict[str, Any], dtype: torch.dtype) -> None:
        super().__init__()
        self.first = torch.nn.Linear(WIDTH, WIDTH, dtype=dtype)
        self.second = torch.nn.Linear(WIDTH, WIDTH, bias=False, dtype=dtype)
        for layer in (self.first, self.second):
            w = quantized(fmt, layer.weight.detach().float(), options, dtype)
            layer.weight = torch.nn.Parameter(w, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.nn.functional.gelu(self.first(x), approximate="tanh")
        return self.second(hidden + x)


def compare(name: str, options: dict[str, Any], backend: str, inference: bool) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    model = Model(get_format(name), options, torch.float32)
    compiled = torch.compile(model, fullgraph=True, backend=backend)
    with torch.inference_mode(inference), torch.no_grad():
        for x in (torch.randn(2, 5, WIDTH), torch.randn(2, 5, WIDTH)):
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-4)
        weight = model.first.weight  # tracing leaves nothing behind in what layouts keep
        assert type(weight.dequantize()) is torch.Tensor


@pytest.mark.parametrize("inference", [False, True], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_traced(name: str, options: dict[str, Any], inference: bool) -> None:
    """Outside inference mode products arrive as transposes and ``mm`` or ``addmm``."""
    compare(name, options, "aot_eager", inference)


@pytest.mark.skipif(
    not any(shutil.which(compiler) for compiler in ("g++", "clang++", "cl")),
    reason="inductor needs a C++ compiler on a CPU, and there is none",
)
@pytest.mark.parametrize(("name", "options"), CASES)
def test_compiled_to_machine_code(name: str, options: dict[str, Any]) -> None:
    compare(name, options, "inductor", inference=True)


def test_dynamic_batches() -> None:
    """The operators' fake results follow symbolic shapes."""
    torch._dynamo.reset()
    model = Model(get_format("int8_blockwise"), {}, torch.bfloat16)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.no_grad():
        for rows in (3, 4, 9):
            x = torch.randn(rows, WIDTH, dtype=torch.bfloat16)
            torch.testing.assert_close(compiled(x), model(x))
