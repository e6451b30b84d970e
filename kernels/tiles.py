"""Configurations of the products: tile sizes, warps, stages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from .machine import Machine

if TYPE_CHECKING:
    from .registry import Case


@dataclass(frozen=True)
class Tile:
    """How a product is cut for a device.

    Attributes:
        t: rows of ``x`` a program computes.
        n: columns of the result (rows of the weight) a program computes.
        k: columns of ``x`` it reads at a time.
        warps: warps a program runs on.
        stages: loads in flight.
        band: rows of tiles that run together, to share the cache.
        split: programs that share a sum.
    """

    t: int
    n: int
    k: int
    warps: int = 4
    stages: int = 3
    band: int = 8
    split: int = 1


def largest_step(columns: int, most: int) -> int:
    """The largest power of two up to ``most`` that divides ``columns``."""
    return min(columns & -columns, most) if columns else most


def fixed_tile(machine: Machine, case: Case) -> Tile:
    """The configuration that needs no measurement.

    Tiles fill the tensor cores of the device's generation; few rows get narrow tiles, so that there
    are enough programs. Columns read at a time lie within a group.
    """
    if case.op == "linear_4bit":
        return _few_rows(case)
    # 227 KB of shared memory; one sum a result, which FP8 and groups double.
    roomy = machine.at_least(9) and not machine.at_least(12)
    lean = case.dtype == torch.int8 and case.groups == 1
    if case.t <= 16:
        tile = Tile(16, 64, 128, warps=4, stages=4)
    elif case.t <= 64:
        tile = Tile(64, 64, 128, warps=4, stages=4)
    elif roomy and lean and case.t > 1024:
        tile = Tile(128, 256, 128, warps=8, stages=3)
    else:
        tile = Tile(128, 128, 128, warps=8, stages=3)
    return _fitted(tile, case)


def candidate_tiles(machine: Machine, case: Case) -> list[Tile]:
    """What autotuning measures; the fixed configuration is the first."""
    fixed = fixed_tile(machine, case)
    if case.op == "linear_4bit":
        found = [
            replace(fixed, n=n, warps=warps, split=split, stages=stages)
            for n in (16, 32, 64)
            for warps in (2, 4)
            for split in (1, 2, 4, 8)
            for stages in (3, 5)
        ]
    else:
        sizes = [(128, 256, 8), (128, 128, 8), (128, 128, 4), (64, 256, 8), (64, 128, 4)]
        sizes += [(128, 64, 4), (64, 64, 4)] if case.t <= 1024 else [(256, 128, 8)]
        sizes += [(16, 64, 4), (16, 128, 4), (32, 64, 4)] if case.t <= 64 else []
        found = [
            _fitted(Tile(t, n, k, warps=warps, stages=stages), case)
            for t, n, warps in sizes
            for k in (64, 128)
            for stages in (3, 4)
        ]
    return list(dict.fromkeys([fixed, *found]))


def _few_rows(case: Case) -> Tile:
    """Four-bit weights: each step in one group; split sums until some 512 programs run."""
    step = max(largest_step(case.group, 128), 32)
    n = 32 if case.n >= 4096 else 16
    split = 1
    while split < 8 and -(-case.n // n) * split < 512 and case.k // (2 * split) >= 8 * step:
        split *= 2
    return Tile(16, n, step, warps=4, stages=4, split=split)


def _fitted(tile: Tile, case: Case) -> Tile:
    if case.groups > 1:
        tile = replace(tile, k=largest_step(case.group, tile.k))
    if case.out_group:  # a tile's columns share a scale
        tile = replace(tile, n=case.out_group)
    return tile
