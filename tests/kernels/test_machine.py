"""What counts as a device without room."""

import pytest
import torch

from roundsmith.kernels.machine import out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cusolver error: CUSOLVER_STATUS_ALLOC_FAILED, when calling ..."),
        RuntimeError("CUDA error: out of memory"),
    ],
)
def test_no_room(error: RuntimeError) -> None:
    assert out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory")],
)
def test_something_else(error: Exception) -> None:
    assert not out_of_memory(error)
