"""Where Triton's kernels run in these tests: in its interpreter, or compiled on a GPU.

Without Triton (Windows, macOS) its tests are skipped; on Linux, where the project installs it for
its tests, a missing Triton is a failure.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the operands of a Triton kernel lie."""
    if find_spec("triton") is None:
        if sys.platform == "linux":
            pytest.fail("Triton is not installed: pip install triton (dev.py setup does)")
        pytest.skip(f"Triton is not installed on {sys.platform}")
    if INTERPRETED:
        import triton

        from roundsmith.kernels.gpu import gemm

        kind = type(gemm._gemm_kernel).__name__
        assert kind == "InterpretedFunction", (
            f"kernels are {kind}: Triton {triton.__version__} was imported before the tests asked "
            "for its interpreter"
        )
        return torch.device("cpu")
    if not torch.cuda.is_available():
        pytest.fail("TRITON_INTERPRET=0 runs the kernels compiled, and there is no GPU")
    return torch.device("cuda")
