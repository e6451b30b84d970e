"""What a device is, as far as choosing a kernel goes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch


@dataclass(frozen=True)
class Machine:
    """A device's abilities. Tests make imaginary ones.

    Attributes:
        type: torch's device type.
        name: the device's own name, for the folder of tuned configurations.
        capability: CUDA compute capability of an NVIDIA device, else None.
        triton: Triton is installed and drives the device.
        int8: ``torch._int_mm`` runs on it.
        float8_rows: ``torch._scaled_mm`` takes one scale a row.
        float8_sums: the same with a float32 result, as sums over groups need.
        float8_blocks: ``torch._scaled_mm`` takes scales over 1×128 and 128×128 blocks.
    """

    type: str
    name: str = ""
    capability: tuple[int, int] | None = None
    triton: bool = False
    int8: bool = False
    float8_rows: bool = False
    float8_sums: bool = False
    float8_blocks: bool = False

    def at_least(self, major: int, minor: int = 0) -> bool:
        """Whether it is an NVIDIA device of at least this compute capability."""
        return self.capability is not None and self.capability >= (major, minor)

    def multiplies(self, dtype: torch.dtype, groups: int = 1) -> bool:
        """Whether it multiplies codes of ``dtype`` in ``groups`` without decoding them.

        INT8 codes are multiplied on a CPU too, so that they give there what they give elsewhere.
        """
        if dtype == torch.int8:
            return self.type == "cpu" or self.int8 or (self.triton and self.at_least(8))
        if dtype != torch.float8_e4m3fn:
            return False
        if self.triton and self.at_least(8, 9):
            return True
        return self.float8_rows if groups == 1 else self.float8_sums


CPU = Machine("cpu", name="cpu")


_NO_ROOM = ("out of memory", "ALLOC_FAILED")


def out_of_memory(error: BaseException) -> bool:
    """Whether a device had no room: torch's own error, or that of a library it calls (cuBLAS and
    cuSOLVER say ``…_STATUS_ALLOC_FAILED``)."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_ROOM)


def machine(device: torch.device) -> Machine:
    """Describe ``device``; probed once."""
    return CPU if device.type == "cpu" else _describe(device.type, device.index)


def hardware_product(dtype: torch.dtype, device: torch.device, groups: int = 1) -> bool:
    """Whether ``device`` multiplies matrices of ``dtype`` codes in ``groups`` without decoding."""
    return machine(device).multiplies(dtype, groups)


@cache
def _describe(kind: str, index: int | None) -> Machine:
    device = torch.device(kind, index) if index is not None else torch.device(kind)
    if kind != "cuda":
        return Machine(kind, name=kind, int8=_runs_int8(device))
    name = torch.cuda.get_device_name(device)
    if torch.version.hip is not None:
        return Machine(kind, name=name, int8=_runs_int8(device), float8_rows=_runs_rows(device))
    capability = torch.cuda.get_device_capability(device)
    fp8 = capability >= (8, 9)
    return Machine(
        kind,
        name=name,
        capability=capability,
        triton=find_spec("triton") is not None and capability >= (7, 5),
        int8=_runs_int8(device),
        float8_rows=fp8 and _runs_rows(device),
        float8_sums=fp8 and _runs_rows(device, torch.float32),
        float8_blocks=fp8 and _runs_blocks(device),
    )


def _runs_int8(device: torch.device) -> bool:
    a = torch.ones(32, 32, dtype=torch.int8)
    try:
        a = a.to(device)
        return bool((torch._int_mm(a, a.t()) == 32).all())
    except (RuntimeError, NotImplementedError):
        return False


def _runs_rows(device: torch.device, out_dtype: torch.dtype = torch.bfloat16) -> bool:
    scale = 2.0 ** torch.arange(-4, 28).div(8, rounding_mode="floor")[:, None]
    try:
        a = torch.ones(32, 32, device=device).to(torch.float8_e4m3fn)
        s = scale.to(device)
        y = torch._scaled_mm(a, a.t(), scale_a=s, scale_b=s.t(), out_dtype=out_dtype)
        return bool((y.float() == 32 * s * s.t()).all())
    except (RuntimeError, NotImplementedError, TypeError):
        return False


def _runs_blocks(device: torch.device) -> bool:
    """With scales that differ by block: a device that takes them otherwise gives another result."""
    from .vendors import torch_float8_blocks

    try:
        ones = torch.ones(256, 512, device=device).to(torch.float8_e4m3fn)
        x_scale = 2.0 ** (torch.arange(256 * 4, device=device).view(256, 4) % 5).float()
        w_scale = 2.0 ** (torch.arange(8, device=device).view(2, 4) % 3).float()
        y = torch_float8_blocks(ones, x_scale, ones, w_scale, None, torch.float32)
        expected = 128 * x_scale @ w_scale.repeat_interleave(128, dim=0).t()
        return bool((y - expected).abs().max() <= expected.abs().max() * 2**-7)
    except (RuntimeError, NotImplementedError, TypeError):
        return False
