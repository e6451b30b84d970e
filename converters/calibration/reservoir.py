"""A uniform sample of a stream of tokens, in memory or in a file.

Algorithm R (Vitter 1985), many tokens at a time: token ``t`` (from 0) takes slot ``j``, drawn
uniformly from 0..t, if ``j`` is below the capacity. The first tokens fill the slots in random
order, so the sample's front is a uniform sample too, at any time.
"""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...checkpoints.files import PositionalFile, byte_view
from ...errors import CheckpointError

Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Draw:
    """Which of a batch of tokens are kept.

    Attributes:
        index: positions in the batch, ascending.
        slots: the slot each takes, all different.
        replaces: whether the slot holds a token of an earlier batch.
    """

    index: Indices
    slots: Indices
    replaces: NDArray[np.bool_]


class Sampler(NamedTuple):
    """Where algorithm R is; a value, so that a draw can be taken back.

    Attributes:
        capacity: slots.
        entropy: seeds the draws, which are the same for the same tokens in the same batches.
        seen: tokens drawn for so far.
    """

    capacity: int
    entropy: tuple[int, ...]
    seen: int = 0

    def draw(self, count: int) -> Draw:
        """What happens to the next ``count`` tokens; of two that take one slot the later stays."""
        filling = min(max(self.capacity - self.seen, 0), count)
        order = self._order() if self.seen < self.capacity else None
        generator = np.random.default_rng((*self.entropy, self.seen))
        seen_before = np.arange(self.seen + filling, self.seen + count, dtype=np.float64)
        slots = np.floor(generator.random(count - filling) * (seen_before + 1)).astype(np.int64)
        index = np.flatnonzero(slots < self.capacity)
        slots, index = slots[index], index + filling
        if order is not None:
            slots = np.concatenate((order[self.seen : self.seen + filling], slots))
            index = np.concatenate((np.arange(filling), index))
        _, last = np.unique(slots[::-1], return_index=True)
        winners = np.sort(len(slots) - 1 - last)
        index, slots = index[winners], slots[winners]
        replaces = np.ones(len(slots), dtype=bool)
        if order is not None:
            taken = np.zeros(self.capacity, dtype=bool)
            taken[order[: self.seen]] = True
            replaces = taken[slots]
        return Draw(index, slots, replaces)

    @property
    def kept(self) -> int:
        """How many tokens there are in its slots."""
        return min(self.seen, self.capacity)

    def filled(self) -> Indices:
        """The slots that hold a token, ascending."""
        if self.seen >= self.capacity:
            return np.arange(self.capacity)
        return np.sort(self._order()[: self.seen])

    def _order(self) -> Indices:
        return np.random.default_rng(self.entropy).permutation(self.capacity)


class Rows(Protocol):
    """``capacity`` bfloat16 rows of one width, each readable and writable by its slot."""

    def put(self, slots: Indices, rows: Tensor) -> None: ...
    def get(self, slots: Indices) -> Tensor: ...
    def copy(self) -> Rows: ...


class MemoryRows:
    """Rows in memory, which the system hands out as they are first written."""

    def __init__(self, capacity: int, width: int) -> None:
        self._rows = torch.empty(capacity, width, dtype=torch.bfloat16, device="cpu")

    def put(self, slots: Indices, rows: Tensor) -> None:
        """Write ``rows`` (bfloat16 ``[n, width]``) to ``slots`` ``[n]``."""
        self._rows[torch.from_numpy(slots)] = rows

    def get(self, slots: Indices) -> Tensor:
        """The rows of ``slots``; all of them in order: without a copy."""
        if len(slots) == len(self._rows) and bool((slots == np.arange(len(slots))).all()):
            return self._rows
        return self._rows[torch.from_numpy(slots)]

    def copy(self) -> MemoryRows:
        """The same rows in memory of their own."""
        twin = MemoryRows(0, self._rows.shape[1])
        twin._rows = self._rows.clone()
        return twin


class RowFile:
    """A temporary file for the rows of many layers; gone when the last user of it is."""

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        if not folder.is_dir():
            raise CheckpointError(
                f"cannot keep activations in {folder}: there is no such folder; create it first"
            )
        try:
            with tempfile.NamedTemporaryFile(
                dir=folder, prefix="roundsmith-", suffix=".rows", delete=False
            ) as file:
                self.path = Path(file.name)
            self.file = PositionalFile(self.path, "r+b")
        except OSError as error:
            raise CheckpointError(
                f"cannot keep activations in {folder}: {error.strerror or error}; choose another"
            ) from error
        self._end = 0
        weakref.finalize(self, _remove, self.file)

    def claim(self, nbytes: int) -> int:
        """The offset of ``nbytes`` more bytes."""
        self._end += nbytes
        return self._end - nbytes


def _remove(file: PositionalFile) -> None:
    file.close()
    file.path.unlink(missing_ok=True)


class FileRows:
    """Rows in a file."""

    def __init__(self, store: RowFile, capacity: int, width: int) -> None:
        self._store, self._capacity, self._width = store, capacity, width
        self._start = store.claim(capacity * width * 2)

    def put(self, slots: Indices, rows: Tensor) -> None:
        """Write ``rows`` (bfloat16 ``[n, width]``) to ``slots`` ``[n]``."""
        order = np.argsort(slots)
        rows = rows[torch.from_numpy(order)]
        try:
            for first, stop in _runs(slots[order]):
                view = byte_view(rows[first:stop])
                self._store.file.write_from(view, self._offset(slots[order[first]]))
        except OSError as error:
            raise CheckpointError(
                f"cannot write activations to {self._store.path}: {error.strerror or error}; make "
                "room, choose another folder, or keep fewer tokens"
            ) from error

    def get(self, slots: Indices) -> Tensor:
        """The rows of ``slots``, read."""
        rows = torch.empty(len(slots), self._width, dtype=torch.bfloat16, device="cpu")
        for first, stop in _runs(slots):
            view = byte_view(rows[first:stop])
            if self._store.file.read_into(view, self._offset(slots[first])) < len(view):
                raise CheckpointError(f"{self._store.path} was cut short while it was in use")
        return rows

    def copy(self) -> FileRows:
        """The same rows elsewhere in the file."""
        twin = FileRows(self._store, self._capacity, self._width)
        step = max(2**20 // max(self._width, 1), 1)
        for first in range(0, self._capacity, step):
            slots = np.arange(first, min(first + step, self._capacity))
            buffer = bytearray(len(slots) * self._width * 2)
            count = self._store.file.read_into(memoryview(buffer), self._offset(first))
            self._store.file.write_from(memoryview(buffer)[:count], twin._offset(first))
        return twin

    def _offset(self, slot: int | np.int64) -> int:
        return self._start + int(slot) * self._width * 2


def _runs(slots: Indices) -> Sequence[tuple[int, int]]:
    """Stretches of consecutive slots, as positions (first, stop)."""
    if len(slots) == 0:
        return []
    breaks = np.flatnonzero(np.diff(slots) != 1) + 1
    bounds = [0, *breaks.tolist(), len(slots)]
    return list(pairwise(bounds))
