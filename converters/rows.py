"""Reading a source's matrices by rows, by several threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..layouts import Format
from .model import ModelView
from .plan import TensorPlan
from .workers import Workers

_CPU_CHUNK = 1 << 20  # weights; smaller chunks spend their time on starting work
_GPU_CHUNK = 1 << 25


class NonFiniteError(Exception):
    """A layer holds NaN or Inf."""

    def __init__(self, layer: str) -> None:
        super().__init__(layer)
        self.layer = layer


class Rows:
    """A model's matrices as float32 on ``device``.

    Args:
        model: the source.
        workers: do the work on chunks of rows.
        device: where weights are rounded.

    Attributes:
        tick: called many times a second; an exception it raises ends the work.
    """

    def __init__(self, model: ModelView, workers: Workers, device: torch.device) -> None:
        self.model, self.workers, self.device = model, workers, device
        self.tick: Callable[[], None] = lambda: None

    def chunks(self, t: TensorPlan, step: int, whole: bool = False) -> list[tuple[int, int]]:
        """Row ranges of about a cache's size, multiples of ``step``."""
        rows, cols = t.shape
        target = _GPU_CHUNK if self.device.type == "cuda" else _CPU_CHUNK
        height = rows if whole else max(target // max(cols, 1) // step, 1) * step
        return [(start, min(start + height, rows)) for start in range(0, rows, height)]

    def read(self, t: TensorPlan, start: int, stop: int) -> Tensor:
        """Rows of a matrix, in a buffer of the calling thread's own."""
        dtype = self.model.buffer_dtype(t.name)
        assert dtype is not None
        count = (stop - start) * t.shape[1]
        cuda = self.device.type == "cuda"
        raw = self.workers.buffer("raw", dtype, count, pinned=cuda).view(-1, t.shape[1])
        rows = self.model.read_rows(t.name, start, stop, out=raw)
        if cuda:
            return rows.to(self.device, non_blocking=True).to(torch.float32, copy=True)
        values = self.workers.buffer("values", torch.float32, count).view(-1, t.shape[1])
        return values.copy_(rows)

    def read_whole(self, t: TensorPlan) -> Tensor:
        """A whole matrix of its own, on the CPU. Raises :class:`NonFiniteError`."""
        values = self.model.read_rows(t.name, 0, t.shape[0]).to(torch.float32, copy=True).cpu()
        if not bool(torch.isfinite(values.sum())) and not bool(torch.isfinite(values).all()):
            raise NonFiniteError(t.layer)
        return values

    def absmax(self, t: TensorPlan, fmt: Format) -> Tensor:
        """Largest magnitude of the transformed matrix. Raises :class:`NonFiniteError`."""
        assert t.spec is not None
        spec = t.spec

        def peak(start: int, stop: int) -> Tensor:
            low, high = torch.aminmax(fmt.transform(self.read(t, start, stop), spec))
            return torch.maximum(-low, high).cpu()

        found = torch.stack(self.map(peak, self.chunks(t, 1))).amax()
        check_finite(t, found)
        return found

    def count_nonfinite(self, t: TensorPlan) -> int:
        """How many weights are NaN or Inf."""

        def count(start: int, stop: int) -> int:
            return int((~torch.isfinite(self.read(t, start, stop))).sum())

        return sum(self.map(count, self.chunks(t, 1)))

    def map(self, work: Callable[..., object], chunks: list[tuple[int, int]]) -> list:
        """``work(start, stop)`` on every chunk, by the workers; results in order."""
        return self.workers.map(work, iter(chunks), self.tick)


def check_finite(t: TensorPlan, magnitude: Tensor) -> None:
    """Raise :class:`NonFiniteError` where a maximum says that the layer holds NaN or Inf."""
    if not bool(torch.isfinite(magnitude).all()):
        raise NonFiniteError(t.layer)


def iter_layers(tensors: tuple[TensorPlan, ...], first: str) -> Iterator[TensorPlan]:
    """The layers to be quantized from ``first`` on."""
    reached = False
    for t in tensors:
        reached = reached or t.layer == first
        if reached and t.action == "quantize":
            yield t
