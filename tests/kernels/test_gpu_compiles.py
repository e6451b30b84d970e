"""Kernels compile for the GPUs they are offered to, on a machine that has none.

The interpreter runs Python: what a compiler refuses, and whether tensor cores are used, shows only
here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SHARED = {75: 64, 80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}
"""KiB of shared memory that a program can have (CUDA C++ Programming Guide, table 23)."""


@pytest.fixture(scope="module")
def compiled(device, tmp_path_factory) -> list[list]:
    """What ``compiling.py`` prints; ``device`` fails or skips where Triton is missing."""
    folder = tmp_path_factory.mktemp("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(folder)}
    script = Path(__file__).with_name("compiling.py")
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def test_every_kernel_compiles(compiled) -> None:
    assert len(compiled) >= 25
    assert not [line for line in compiled if line[2] is not None]


def test_shared_memory_suffices(compiled) -> None:
    for name, capability, _, shared, _ in compiled:
        assert shared <= SHARED[capability] * 1024, (name, capability, shared)


def test_products_use_tensor_cores_of_their_generation(compiled) -> None:
    products = [line for line in compiled if line[0].startswith(("_gemm", "_linear"))]
    assert products
    for name, capability, _, _, instructions in products:
        kind = "s8" if " i8" in name else "e4m3" if "fp8" in name else "bf16"
        if not name.endswith("4096"):  # few rows: the memory's speed counts
            assert instructions, (name, capability)
        elif capability in (90, 100):
            unit = f"wgmma.mma_async{kind}" if capability == 90 else "tcgen05.mmakind"
            assert instructions == [unit], (name, capability)
        else:
            assert instructions == [f"mma.sync{kind}"], (name, capability)
