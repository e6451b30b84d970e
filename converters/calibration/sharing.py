"""Which layers are fed by the same tensors, and so share a record.

Layers join when the first tensor each of them sees is the same. What a tensor adds to a shared
record waits until every layer of the group has seen it; layers that do not are given a copy of the
record without it. So a record never holds a token that one of its layers did not see.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .accumulator import Accumulator, Batch

_PROBED = 16  # values of each of three tokens


@dataclass(eq=False)
class _Group:
    """Layers with the same inputs so far.

    ``tensors`` counts those committed or pending; ``first`` is the first of them while it is the
    only one.
    """

    accumulator: Accumulator
    layers: set[str]
    tensors: int = 0
    first: _Seen | None = None
    pending: tuple[_Seen, Batch] | None = None


@dataclass(eq=False)
class _Seen:
    """A tensor that some layers were called with; the reference does not keep it alive."""

    reference: weakref.ref[Tensor]
    state: tuple[Any, ...]
    group: _Group
    layers: set[str] = field(default_factory=set)


class Sharing:
    """The records of all layers, fed call by call."""

    def __init__(self, make: Callable[[str, int], Accumulator]) -> None:
        """``make(layer, features)`` starts a record."""
        self._make = make
        self._groups: dict[str, _Group] = {}
        self._seen: dict[int, list[_Seen]] = {}

    def feed(self, layer: str, x: Tensor) -> None:
        """``layer`` was called with ``x`` (``[..., N]``)."""
        state = _state(x)
        seen = self._match(layer, x, state)
        if seen is None:
            self._add(layer, x, state)
        else:
            self._groups[layer] = seen.group
            seen.group.layers.add(layer)
            seen.layers.add(layer)
            self._commit_if_seen_by_all(seen.group)

    def settle(self) -> None:
        """The model's call is over: layers that were left out of it stay without it."""
        for group in {id(g): g for g in self._groups.values()}.values():
            self._settle(group)
        self._seen.clear()

    def abandon(self) -> None:
        """The model's call ended in an error: what was still pending is dropped."""
        for group in self._groups.values():
            if group.pending is not None:
                group.pending = None
                group.tensors -= 1
        self._seen.clear()

    def finish(self) -> dict[str, Accumulator]:
        """The record of every layer that was reached; shared ones are the same object."""
        self.settle()
        return {layer: group.accumulator for layer, group in self._groups.items()}

    def _match(self, layer: str, x: Tensor, state: tuple[Any, ...]) -> _Seen | None:
        """The tensor, if it has been added to the record of ``layer`` or to the one it can join.

        Called with the same tensor twice, a layer sees its tokens twice.
        """
        group = self._groups.get(layer)
        for seen in self._seen.get(id(x), ()):
            same = seen.reference() is x and seen.state == state and layer not in seen.layers
            if same and (seen.group is group or (group is None and seen.group.first is seen)):
                return seen
        return None

    def _add(self, layer: str, x: Tensor, state: tuple[Any, ...]) -> None:
        if layer in self._groups:
            self._settle(self._groups[layer])
        else:
            self._groups[layer] = _Group(self._make(layer, x.shape[-1]), {layer})
        group = self._groups[layer]
        seen = _Seen(weakref.ref(x), state, group, {layer})
        if group.layers == seen.layers:
            group.accumulator.add(x)
        else:
            group.pending = (seen, group.accumulator.digest(x))
        self._forget_dead()
        others = [s for s in self._seen.get(id(x), ()) if s.group is not group]
        self._seen[id(x)] = [*others, seen]
        group.tensors += 1
        group.first = seen if group.tensors == 1 else None

    def _commit_if_seen_by_all(self, group: _Group) -> None:
        if group.pending is not None and group.pending[0].layers >= group.layers:
            batch = group.pending[1]
            group.pending = None
            group.accumulator.commit(batch)

    def _settle(self, group: _Group) -> None:
        if group.pending is None:
            return
        seen = group.pending[0]
        left_out = group.layers - seen.layers
        others = _Group(group.accumulator.fork(), left_out, group.tensors - 1)
        self._groups.update(dict.fromkeys(left_out, others))
        group.layers -= left_out
        self._commit_if_seen_by_all(group)

    def _forget_dead(self) -> None:
        for key in [k for k, seen in self._seen.items() if seen[-1].reference() is None]:
            del self._seen[key]


def _state(x: Tensor) -> tuple[Any, ...]:
    """What changes when a tensor is written to. Inference tensors keep no version: their values at
    a few places stand in for it.
    """
    where = (x.data_ptr(), tuple(x.shape), x.stride())
    if not x.is_inference():
        return (*where, x._version)
    if x.numel() == 0:
        return where
    tokens = []
    for part in (0, 1, 2):
        row = x
        while row.dim() > 1:
            row = row[(len(row) - 1) * part // 2]
        tokens.append(row[:_PROBED])
    values = torch.stack(tokens).cpu().contiguous().view(torch.uint8)
    return (*where, values.numpy().tobytes())
