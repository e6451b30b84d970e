"""Configurations of the products: fixed ones, and the fastest of several, found once and kept.

Fixed ones need no measurement and depend on the device's generation only. With
``ROUNDSMITH_KERNELS=autotune`` the first call of each shape class measures the candidates, and
whole implementations against each other, on the real operands; the winners are kept on disk, one
file a device, and found again in the next run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from .machine import Machine
from .registry import Case, Implementation, give_up, mode
from .store import Store, folder
from .tiles import Tile, candidate_tiles, fixed_tile

_log = logging.getLogger(__name__)

Timer = Callable[[Callable[[], object]], float]


def tile_for(machine: Machine, case: Case, run: Callable[[Tile], object]) -> Tile:
    """The configuration for ``case``: fixed, or the fastest of the candidates on this machine."""
    if mode() != "autotune" or _recording():
        return fixed_tile(machine, case)
    return tuned_tile(store_of(machine), machine, case, run, elapsed)


def tuned_tile(
    store: Store, machine: Machine, case: Case, run: Callable[[Tile], object], timer: Timer
) -> Tile:
    """The kept configuration of ``case``'s shape class; measured and kept where there is none."""
    key = f"{case.op} {case.size_class()}"
    kept = store.get(key)
    choices = candidate_tiles(machine, case)
    if isinstance(kept, dict):
        for tile in choices:
            if asdict(tile) == kept:
                return tile
    best, fastest_time = fixed_tile(machine, case), float("inf")
    for tile in choices:
        try:
            taken = timer(partial(run, tile))
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # too much shared memory for this device, say
            _log.debug("%s: %s does not run: %s", key, tile, error)
            continue
        if taken < fastest_time:
            best, fastest_time = tile, taken
    if fastest_time < float("inf"):
        store.put(key, asdict(best))
    return best


def fastest(
    machine: Machine, case: Case, able: list[Implementation], arguments: Sequence[Any]
) -> list[Implementation]:
    """``able`` with the implementation in front that is fastest for ``case``'s shape class."""
    if _recording():
        return able
    return fastest_of(store_of(machine), machine, case, able, arguments, elapsed)


def fastest_of(
    store: Store,
    machine: Machine,
    case: Case,
    able: list[Implementation],
    arguments: Sequence[Any],
    timer: Timer,
) -> list[Implementation]:
    """:func:`fastest`, with what measures and what keeps given."""
    key = f"{case.op}/implementation {case.size_class()}"
    kept = store.get(key)
    if kept not in [found.name for found in able]:
        times: dict[str, float] = {}
        for found in able[:-1]:  # the reference is not what anyone waits for
            try:
                times[found.name] = timer(partial(found.run, machine, case, *arguments))
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                give_up(found, machine, case, error)
        if not times:
            return able[-1:]
        kept = min(times, key=times.__getitem__)
        store.put(key, kept)
    return sorted(able, key=lambda found: found.name != kept)


def elapsed(run: Callable[[], object], repeats: int = 10) -> float:
    """Median seconds of ``run`` on the current device, after two runs that are not counted."""
    run(), run()
    times = []
    for _ in range(repeats):
        if torch.cuda.is_available():
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            stop.record()
            stop.synchronize()
            times.append(start.elapsed_time(stop) / 1000)
        else:
            begun = time.perf_counter()
            run()
            times.append(time.perf_counter() - begun)
    return sorted(times)[repeats // 2]


@cache
def store_of(machine: Machine) -> Store:
    """Where this machine's configurations are kept: by device and Triton's version."""
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "windows"
    words = "".join(c if c.isalnum() else "-" for c in f"{machine.name} triton {triton}".lower())
    return Store(folder() / f"{words}.json")


def _recording() -> bool:
    """Whether a CUDA graph is being recorded, in which nothing can be measured."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
