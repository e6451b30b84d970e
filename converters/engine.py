"""The engine: carries a plan out, streaming rows from a source to a sink.

A tensor is read, rounded and written a few rows at a time, small enough to stay in a core's cache,
by one worker a core; nothing holds a whole tensor unless its rounding needs to see it whole. The
output's header is known from the plan, so rows go straight to their place in the file.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

import torch
from torch import Tensor

from ..checkpoints import encode_conf
from ..errors import Cancelled, RecipeError
from ..layouts import Format, get_format
from ..layouts.codec import decode
from ..layouts.geometries import Geometry, Scales
from .model import ModelView
from .plan import Plan, TensorPlan, make_plan
from .recipe import Recipe
from .report import Progress, Report, make_report
from .rounding import nearest, scale_search
from .source import OpenSink, Sink, Source
from .stored import parts_of

ProgressCallback = Callable[[Progress], None]
CancelCallback = Callable[[], bool]
T = TypeVar("T")

_CPU_CHUNK = 1 << 20  # weights; smaller chunks spend their time on starting work
_GPU_CHUNK = 1 << 25
_COPY_CHUNK = 4 << 20  # bytes
_SNR_CHUNKS = 4
_TICK = 0.2  # seconds between looks at cancel


class _NonFiniteError(Exception):
    """A layer holds NaN or Inf."""

    def __init__(self, layer: str) -> None:
        super().__init__(layer)
        self.layer = layer


def convert(
    source: Source,
    open_sink: OpenSink,
    recipe: Recipe,
    progress: ProgressCallback | None = None,
    cancel: CancelCallback | None = None,
) -> Report:
    """Quantize ``source`` into a sink.

    Args:
        source: what to convert.
        open_sink: called with the output's entries and metadata; its context is left with an
            exception when the run fails, and may be opened again when layers turn out to hold NaN
            or Inf.
        recipe: the settings.
        progress: called several times a second; an exception it raises ends the run.
        cancel: looked at several times a second; True ends the run with :class:`Cancelled`.

    Returns:
        The report. Layers with NaN or Inf are kept as they are and named in it.
    """
    began = time.perf_counter()
    model = ModelView(source)
    device = _device(recipe.device)
    bad: dict[str, str] = {}
    warnings: list[str] = []
    while True:
        plan = make_plan(model, recipe, bad)
        with _Workers(device) as workers:
            run = _Run(model, plan, workers, device, progress, cancel)
            try:
                with open_sink(plan.entries, plan.metadata) as sink:
                    run.carry_out(sink)
                break
            except _NonFiniteError as found:
                bad.update(run.find_nonfinite(found.layer))
            except torch.OutOfMemoryError:
                if device.type == "cpu":
                    raise
                warnings.append(f"{device} ran out of memory: rounded on the CPU instead")
                device = torch.device("cpu")
    warnings += [f"{layer}: {reason}" for layer, reason in bad.items()]
    seconds = time.perf_counter() - began
    return make_report(plan, run.snr, warnings, seconds, recipe.to_json())


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("rounding runs on cpu or cuda")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RecipeError(
            f"device {name!r} is not usable here ({error}); choose auto or cpu"
        ) from error
    return device


class _Workers:
    """One thread a core on the CPU, a few for a GPU; torch's own threads are off meanwhile."""

    def __init__(self, device: torch.device) -> None:
        self.count = 3 if device.type == "cuda" else max(os.cpu_count() or 1, 1)
        self.pool = ThreadPoolExecutor(self.count, thread_name_prefix="roundsmith")
        self.local = threading.local()
        self.stopping = threading.Event()
        self.inference = torch.is_inference_mode_enabled()
        self._torch_threads = torch.get_num_threads()

    def __enter__(self) -> _Workers:
        torch.set_num_threads(1)
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._torch_threads)

    def submit(self, work: Callable[..., T], *args: object) -> Future[T]:
        return self.pool.submit(self._call, work, *args)

    def _call(self, work: Callable[..., T], *args: object) -> T:
        with torch.inference_mode(self.inference), torch.no_grad():
            return work(*args)

    def poll(self) -> None:
        """Called by long work now and then: ends it once the run is over."""
        if self.stopping.is_set():
            raise Cancelled("stopped")

    def buffer(self, slot: str, dtype: torch.dtype, elements: int, pinned: bool = False) -> Tensor:
        """A flat buffer of this thread's own, reused from call to call."""
        held: Tensor | None = getattr(self.local, slot, None)
        if held is None or held.dtype != dtype or held.numel() < elements:
            held = torch.empty(elements, dtype=dtype, pin_memory=pinned)
            setattr(self.local, slot, held)
        return held[:elements]


class _Run:
    """One attempt at carrying out a plan."""

    def __init__(
        self,
        model: ModelView,
        plan: Plan,
        workers: _Workers,
        device: torch.device,
        progress: ProgressCallback | None,
        cancel: CancelCallback | None,
    ) -> None:
        self.model, self.plan, self.workers, self.device = model, plan, workers, device
        self.progress, self.cancel = progress, cancel
        self.snr: dict[str, float] = {}
        self.total = sum(t.bytes_before for t in plan.tensors)
        self._position = ("", 0, 0)

    def carry_out(self, sink: Sink) -> None:
        """Write every tensor of the plan to ``sink``. Raises :class:`_NonFiniteError`."""
        done = 0
        for index, t in enumerate(self.plan.tensors, 1):
            self._position = (t.layer, index, done)
            self._tick()
            if t.action == "quantize":
                self._quantize(t, sink)
            elif t.action != "remove":
                self._copy(t, sink)
            self.model.release()
            done += t.bytes_before
        self._position = (self._position[0], self._position[1], done)
        self._tick()

    def find_nonfinite(self, first: str) -> dict[str, str]:
        """All layers from ``first`` on that were to be quantized and hold NaN or Inf, with the
        reason.
        """
        found: dict[str, str] = {}
        layers = [t for t in self.plan.tensors if t.action == "quantize"]
        start = next(i for i, t in enumerate(layers) if t.layer == first)
        for t in layers[start:]:
            counts = sum(self._map(self._count_nonfinite, t, self._chunks(t, 1)))
            self.model.release()
            if counts:
                found[t.layer] = f"{counts} weights are NaN or Inf; kept as it is"
        return found

    # ---- the pool ----------------------------------------------------------------------------

    def _tick(self) -> None:
        if self.cancel is not None and self.cancel():
            raise Cancelled("cancelled; nothing was written under the destination's name")
        if self.progress is not None:
            layer, index, done = self._position
            self.progress(Progress(layer, index, len(self.plan.tensors), done, self.total))

    def _map(
        self,
        work: Callable[..., T],
        t: TensorPlan,
        chunks: Iterator[tuple[int, int]],
        *args: object,
    ) -> list[T]:
        """Run ``work(t, start, stop, *args)`` on every chunk, a few ahead; results in order."""
        futures: list[Future[T]] = []
        pending: set[Future[T]] = set()
        looked = time.monotonic()
        try:
            for start, stop in chunks:
                pending.add(future := self.workers.submit(work, t, start, stop, *args))
                futures.append(future)
                while len(pending) > 2 * self.workers.count:
                    finished, pending = wait(pending, _TICK, FIRST_COMPLETED)
                    for each in finished:
                        each.result()
                    if time.monotonic() - looked > _TICK:
                        self._tick()
                        looked = time.monotonic()
            while pending:
                finished, pending = wait(pending, _TICK, FIRST_COMPLETED)
                for each in finished:
                    each.result()
                if not finished:
                    self._tick()
            return [future.result() for future in futures]
        except BaseException:
            self.workers.stopping.set()
            for future in pending:
                future.cancel()
            wait(pending)
            raise

    def _chunks(self, t: TensorPlan, step: int, whole: bool = False) -> Iterator[tuple[int, int]]:
        """Row ranges of about a cache's size, multiples of ``step``."""
        rows, cols = t.shape
        target = _GPU_CHUNK if self.device.type == "cuda" else _CPU_CHUNK
        height = rows if whole else max(target // max(cols, 1) // step, 1) * step
        return ((start, min(start + height, rows)) for start in range(0, rows, height))

    # ---- one tensor --------------------------------------------------------------------------

    def _quantize(self, t: TensorPlan, sink: Sink) -> None:
        assert t.spec is not None and t.options is not None
        fmt = get_format(t.spec.format)
        geometry = fmt.geometry(t.spec)
        search = bool(t.options.scale_search)
        whole = search and geometry.rows is None
        step = math.lcm(geometry.row_step, fmt.padding[0])
        absmax = None
        if geometry.needs_tensor_absmax and not whole:
            peaks = self._map(self._absmax, t, self._chunks(t, 1), fmt)
            absmax = torch.stack(peaks).amax()
            self._check(t, absmax)
        chunks = list(self._chunks(t, step, whole))
        sampled = {chunks[i * len(chunks) // _SNR_CHUNKS][0] for i in range(_SNR_CHUNKS)}
        results = self._map(
            self._encode, t, iter(chunks), fmt, geometry, search, absmax, sampled, sink
        )
        padded = fmt.padded_shape((t.shape[0], t.shape[1]))
        scales = self._join([scales for scales, _, _ in results], geometry)
        for suffix, part in fmt.pack_scales(scales, t.spec, padded).items():
            sink.write(f"{t.layer}.{suffix}", part)
        assert t.conf is not None
        sink.write(f"{t.layer}.comfy_quant", encode_conf(t.conf))
        signal, noise = sum(r[1] for r in results), sum(r[2] for r in results)
        self.snr[t.layer] = 10 * math.log10(signal / noise) if signal and noise else math.inf

    @staticmethod
    def _join(parts: list[Scales], geometry: Geometry) -> Scales:
        if geometry.rows is None:
            return parts[0]
        return Scales(torch.cat([part.block for part in parts]), parts[0].tensor)

    def _read(self, t: TensorPlan, start: int, stop: int) -> Tensor:
        """Rows as float32 on the device, in a buffer of this thread's own."""
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

    def _absmax(self, t: TensorPlan, start: int, stop: int, fmt: Format) -> Tensor:
        assert t.spec is not None
        w = fmt.transform(self._read(t, start, stop), t.spec)
        low, high = torch.aminmax(w)
        return torch.maximum(-low, high).cpu()

    def _count_nonfinite(self, t: TensorPlan, start: int, stop: int) -> int:
        return int((~torch.isfinite(self._read(t, start, stop))).sum())

    def _encode(
        self,
        t: TensorPlan,
        start: int,
        stop: int,
        fmt: Format,
        geometry: Geometry,
        search: bool,
        absmax: Tensor | None,
        sampled: set[int],
        sink: Sink,
    ) -> tuple[Scales, float, float]:
        """Round and write some rows; returns their scales, and signal and noise where sampled."""
        assert t.spec is not None
        w = fmt.transform(self._read(t, start, stop), t.spec)
        if search and absmax is None:
            self._check(t, torch.maximum(-w.amin(), w.amax()))
        kept = w.clone() if start in sampled else None
        peak = None if absmax is None else absmax.to(w.device)
        if search:
            poll = self.workers.poll
            codes, scales = scale_search(w, fmt.grid, geometry, peak, poll=poll)
        else:
            codes, scales = nearest(w, fmt.grid, geometry, peak)
        if absmax is None:
            self._check(t, scales.block)
        sink.write_rows(f"{t.layer}.weight", start, fmt.pack_codes(codes).cpu())
        signal = noise = 0.0
        if kept is not None:
            signal = float(kept.square().sum())
            noise = float(decode(codes, fmt.grid, scales).sub_(kept).square_().sum())
        tensor = None if scales.tensor is None else scales.tensor.cpu()
        return Scales(scales.block.cpu(), tensor), signal, noise

    @staticmethod
    def _check(t: TensorPlan, magnitude: Tensor) -> None:
        if not bool(torch.isfinite(magnitude).all()):
            raise _NonFiniteError(t.layer)

    # ---- what is not rounded -----------------------------------------------------------------

    def _copy(self, t: TensorPlan, sink: Sink) -> None:
        stored = self.model.stored_layer(t.name)
        if stored is not None:
            assert t.conf is not None
            for suffix, part in parts_of(self.model.source, stored).items():
                sink.write(f"{t.layer}.{suffix}", part)
            sink.write(f"{t.layer}.comfy_quant", encode_conf(t.conf))
            return
        size = self.model.described(t.name).nbytes
        for first in range(0, size, _COPY_CHUNK):
            data = self.model.source.read_bytes(t.name, first, min(first + _COPY_CHUNK, size))
            sink.write_bytes(t.name, first, data)
            if first:
                self._tick()
