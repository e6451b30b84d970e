"""Which implementation of an operation runs, for a machine and a case of it.

Implementations of an operation share its signature and its result, within stated bounds. They are
registered in order of preference, each with what it accepts; the eager reference accepts
everything and comes last. What fails (a kernel that does not compile on some device) is logged
once, counted, and not tried again for such cases.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .machine import Machine

_log = logging.getLogger(__name__)

EAGER = "eager"
SETTING = "ROUNDSMITH_KERNELS"
MODES = ("auto", "autotune", "eager")


@dataclass(frozen=True)
class Case:
    """What an operation is asked for, as far as the choice depends on it.

    Attributes:
        op: the operation.
        dtype: of the codes; uint8 for packed 4-bit codes.
        t: rows of activations (0 where there are none).
        n: outputs, rows of the weight (0 where there are none).
        k: inputs, columns.
        group: columns that share a scale; ``k`` for one a row.
        rows: weight rows that share a scale.
        out_group: columns of a quantized result that share a scale, else 0.
        float_dtype: of floating operands and results.
    """

    op: str
    dtype: torch.dtype
    t: int = 0
    n: int = 0
    k: int = 0
    group: int = 0
    rows: int = 1
    out_group: int = 0
    float_dtype: torch.dtype = torch.float32

    @property
    def groups(self) -> int:
        """Groups of columns."""
        return self.k // max(self.group, 1)

    def size_class(self) -> str:
        """Shapes that share tuned configurations: rows of activations by powers of two."""
        t = 1 << max(self.t - 1, 0).bit_length() if self.t else 0
        dtype, floats = (str(d).removeprefix("torch.") for d in (self.dtype, self.float_dtype))
        out = f" o{self.out_group}" if self.out_group else ""
        return f"{dtype} {floats} t{t} n{self.n} k{self.k} g{self.group} r{self.rows}{out}"


@dataclass(frozen=True)
class Implementation:
    """One way to run an operation.

    Attributes:
        op: the operation.
        name: ``eager``, ``triton``, or another library's.
        run: ``(machine, case, *arguments) → result``.
        accepts: whether it can run a case on a machine, and is worth it.
    """

    op: str
    name: str
    run: Callable[..., Any]
    accepts: Callable[[Machine, Case], bool]


_implementations: dict[str, list[Implementation]] = {}
_failed: set[tuple[str, str, str, torch.dtype, int, int]] = set()
failures: Counter[str] = Counter()
"""How often an implementation (``op/name``) has failed and another one has run instead."""


def register(implementation: Implementation) -> None:
    """Add an implementation, less preferred than those its operation has."""
    _implementations.setdefault(implementation.op, []).append(implementation)


def mode() -> str:
    """The person's choice, ``ROUNDSMITH_KERNELS``: see docs/kernels.md."""
    chosen = os.environ.get(SETTING, MODES[0]).strip().lower() or MODES[0]
    if chosen not in MODES:
        raise ValueError(f"{SETTING}={chosen!r}: it takes {', '.join(MODES)}")
    return chosen


def candidates(machine: Machine, case: Case) -> list[Implementation]:
    """What can run ``case``, preferred first; the eager reference is always the last."""
    known = _implementations[case.op]
    if mode() == EAGER:
        return known[-1:]
    return [
        found
        for found in known
        if found.name == EAGER
        or (_key(found, machine, case) not in _failed and found.accepts(machine, case))
    ]


def call(machine: Machine, case: Case, *arguments: Any) -> Any:
    """Run ``case`` with the implementation chosen for it."""
    able = candidates(machine, case)
    if len(able) > 2 and mode() == "autotune":
        from .tuning import fastest

        able = fastest(machine, case, able, arguments)
    for implementation in able[:-1]:
        try:
            return implementation.run(machine, case, *arguments)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            give_up(implementation, machine, case, error)
    return able[-1].run(machine, case, *arguments)


def give_up(implementation: Implementation, machine: Machine, case: Case, error: Exception) -> None:
    """Note that an implementation fails for such cases; another one runs from now on."""
    failures[f"{case.op}/{implementation.name}"] += 1
    key = _key(implementation, machine, case)
    if key not in _failed:
        _failed.add(key)
        _log.warning(
            "%s: the %s kernel failed on %s for %s (%s: %s); another one takes its place. "
            "Results are the same. %s=eager keeps to PyTorch.",
            case.op,
            implementation.name,
            machine.name,
            case.size_class(),
            type(error).__name__,
            str(error).strip().split("\n")[-1][:200],
            SETTING,
        )


def _key(
    found: Implementation, machine: Machine, case: Case
) -> tuple[str, str, str, torch.dtype, int, int]:
    return (case.op, found.name, machine.name, case.dtype, case.group, case.rows)
