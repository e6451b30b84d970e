"""What a loaded layer holds, and what a product needs besides."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from roundsmith.layouts import get_format
from roundsmith.layouts.own_tensor import OwnLayout

from .running import CASES, quantized, stored


def held(weight: Any) -> int:
    """Bytes of the storages that a running weight keeps on its device."""
    values = [getattr(weight._params, field.name) for field in dataclasses.fields(weight._params)]
    tensors = [weight._qdata, *(value for value in values if isinstance(value, torch.Tensor))]
    return sum(
        {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values()
    )


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("shape", [(512, 1024), (257, 512)], ids=str)
def test_a_loaded_layer_takes_its_files_bytes(name: str, options: dict, shape: tuple) -> None:
    """And at most 1 % more; before its first product and after."""
    fmt = get_format(name)
    w = torch.randn(shape)
    if fmt.fit(fmt.bind(features=shape[1], **options), shape).spec is None:
        shape = (shape[0] // 64 * 64, shape[1])
        w = w[: shape[0]]
    parts, conf = stored(fmt, w, options)
    weight = fmt.read(parts, conf, shape, torch.bfloat16)
    file = sum(part.nbytes for part in parts.values())
    assert held(weight) <= file * 1.01
    with torch.inference_mode():
        torch.nn.functional.linear(torch.randn(2, shape[1], dtype=torch.bfloat16), weight)
    assert held(weight) <= file * 1.01


def peak_of(run: Callable[[], object]) -> int:
    """Bytes by which the process grew at most during ``run``."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def read(name: str) -> int:
        line = next(line for line in status.read_text().split("\n") if line.startswith(name))
        return int(line.split()[1]) * 1024

    reset.write_text("5")  # the high-water mark starts anew
    before = read("VmRSS")
    run()
    return read("VmHWM") - before


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_product_decodes_a_tile_at_a_time(name: str, options: dict) -> None:
    """Never a model; with layouts of our own not even one layer: 64 MiB in float32 here."""
    fmt = get_format(name)
    weight = quantized(fmt, torch.randn(4096, 4096), options, torch.float32)
    x = torch.randn(2, 4096)
    with torch.inference_mode():
        torch.nn.functional.linear(x, weight)  # tables, threads
        # What a product needs, each one needs; pages the system took back meanwhile come on top.
        peak = min(peak_of(lambda: torch.nn.functional.linear(x, weight)) for _ in range(3))
    whole = 4096 * 4096 * 4
    assert peak <= (whole * 0.9 if issubclass(weight.layout_cls, OwnLayout) else whole * 5)
