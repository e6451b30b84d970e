"""Threads that work on rows of a tensor, a few chunks ahead of each other."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import Cancelled

T = TypeVar("T")
_TICK = 0.2  # seconds between looks at what else happens


class Workers:
    """One thread a core on the CPU, a few for a GPU; torch's own threads are off meanwhile."""

    def __init__(self, device: torch.device) -> None:
        self.count = 3 if device.type == "cuda" else max(os.cpu_count() or 1, 1)
        self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="roundsmith")
        self._local = threading.local()
        self._stopping = threading.Event()
        self._inference = torch.is_inference_mode_enabled()
        self._torch_threads = torch.get_num_threads()

    def __enter__(self) -> Workers:
        torch.set_num_threads(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        torch.set_num_threads(self._torch_threads)

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Give torch its threads back for work on a whole tensor."""
        torch.set_num_threads(self._torch_threads)
        try:
            yield
        finally:
            torch.set_num_threads(1)

    def map(
        self, work: Callable[..., T], items: Iterator[tuple[object, ...]], tick: Callable[[], None]
    ) -> list[T]:
        """Run ``work(*item)`` for every item; results in order.

        ``tick`` is called several times a second, and may raise to end the work.
        """
        futures: list[Future[T]] = []
        pending: set[Future[T]] = set()
        looked = time.monotonic()
        try:
            for item in items:
                pending.add(future := self._pool.submit(self._call, work, *item))
                futures.append(future)
                while len(pending) > 2 * self.count:
                    finished, pending = wait(pending, _TICK, FIRST_COMPLETED)
                    for each in finished:
                        each.result()
                    if time.monotonic() - looked > _TICK:
                        tick()
                        looked = time.monotonic()
            while pending:
                finished, pending = wait(pending, _TICK, FIRST_COMPLETED)
                for each in finished:
                    each.result()
                if not finished:
                    tick()
            return [future.result() for future in futures]
        except BaseException:
            self._stopping.set()
            for future in pending:
                future.cancel()
            wait(pending)
            raise

    def _call(self, work: Callable[..., T], *args: object) -> T:
        with torch.inference_mode(self._inference), torch.no_grad():
            return work(*args)

    def poll(self) -> None:
        """Called by long work now and then: ends it once the run is over."""
        if self._stopping.is_set():
            raise Cancelled("stopped")

    def buffer(self, slot: str, dtype: torch.dtype, elements: int, pinned: bool = False) -> Tensor:
        """A flat buffer of this thread's own, reused from call to call."""
        held: Tensor | None = getattr(self._local, slot, None)
        if held is None or held.dtype != dtype or held.numel() < elements:
            held = torch.empty(elements, dtype=dtype, pin_memory=pinned)
            setattr(self._local, slot, held)
        return held[:elements]
