"""Two files tensor by tensor: what is equal, what differs and how."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

HEADER = "_quantization_metadata"
_CODES = (torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8)


@dataclass(frozen=True)
class Difference:
    """One tensor (or key of the metadata) that the two files do not have alike.

    Attributes:
        name: the tensor, or ``metadata <key>``.
        kind: ``peer only``, ``ours only``, ``shape``, ``dtype``, ``codes``, ``values``, ``json``.
        shown: how they differ.
        share: of the codes, how many differ; of values, the largest relative difference.
        steps: of codes, how many steps of the grid they are apart at most.
        keys: of JSON, the keys that differ.
    """

    name: str
    kind: str
    shown: str
    share: float = 0.0
    steps: int = 0
    keys: frozenset[str] = frozenset()


@dataclass
class File:
    """A file's tensors and metadata."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]
    confs: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> File:
        """Everything in the file at ``path``."""
        with safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        confs = {
            name.removesuffix(".comfy_quant"): json.loads(bytes(tensor.tolist()))
            for name, tensor in tensors.items()
            if name.endswith(".comfy_quant")
        }
        return cls(tensors, metadata, confs)


def compare(peer: File, ours: File) -> Iterator[Difference | str]:
    """Each tensor and metadata key of either file: its name where equal, else the difference."""
    for name in sorted({*peer.tensors, *ours.tensors}):
        yield _tensor(name, peer.tensors.get(name), ours.tensors.get(name))
    for key in sorted({*peer.metadata, *ours.metadata}):
        yield _text(f"metadata {key}", peer.metadata.get(key), ours.metadata.get(key))


def _tensor(name: str, peer: Tensor | None, ours: Tensor | None) -> Difference | str:
    for found, kind in ((ours, "peer only"), (peer, "ours only")):
        if found is None:
            other = peer if ours is None else ours
            assert other is not None
            return Difference(name, kind, _what(other))
    assert peer is not None and ours is not None
    if name.endswith(".comfy_quant"):
        return _json(name, *(json.loads(bytes(t.tolist())) for t in (peer, ours)))
    if peer.dtype != ours.dtype:
        return Difference(name, "dtype", f"{_what(peer)} → {_what(ours)}")
    if peer.shape != ours.shape:
        same = peer.numel() == ours.numel() and _same(peer.reshape(-1), ours.reshape(-1))
        shown = f"{list(peer.shape)} → {list(ours.shape)}{', same values' if same else ''}"
        return Difference(name, "shape", shown, share=0.0 if same else 1.0)
    if _same(peer, ours):
        return name
    return _codes(name, peer, ours) if peer.dtype in _CODES else _values(name, peer, ours)


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))


def _what(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def _codes(name: str, peer: Tensor, ours: Tensor) -> Difference:
    """Codes as their places on the grid, so that neighbours are one step apart."""
    places = []
    for codes in (peer, ours):
        if codes.dtype == torch.int8:
            place = codes.int()
        elif codes.dtype == torch.uint8:  # two codes of 4 bits, or exponents
            raw = codes.int()
            place = raw if name.endswith("scale") else torch.stack((raw >> 4, raw & 15))
            if not name.endswith("scale"):
                place = torch.where(place > 7, 8 - place, place)
        else:
            raw = codes.view(torch.uint8).int()
            place = torch.where(raw > 127, 128 - raw, raw)
        places.append(place)
    apart = (places[0] - places[1]).abs()
    different, steps = int((apart > 0).sum()), int(apart.max())
    if different == 0:
        return Difference(name, "codes", "signs of zeros only", 0.0, 0)
    shown = f"{different} of {apart.numel()} codes differ, by {steps} step{'s' * (steps > 1)}"
    return Difference(name, "codes", shown, different / apart.numel(), steps)


def _values(name: str, peer: Tensor, ours: Tensor) -> Difference:
    a, b = peer.double(), ours.double()
    largest = float((a - b).abs().max() / a.abs().max().clamp_min(1e-30))
    if not torch.isfinite(a).all():
        return Difference(name, "values", "theirs are not finite", float("inf"))
    return Difference(name, "values", f"apart by {largest:.1e} of the largest", largest)


def _text(name: str, peer: str | None, ours: str | None) -> Difference | str:
    if peer == ours:
        return name
    if ours is None or peer is None:
        return Difference(name, "peer only" if ours is None else "ours only", "")
    if name.endswith(HEADER):
        return _json(name, *(json.loads(t)["layers"] for t in (peer, ours)), by_layer=True)
    return Difference(name, "values", f"{peer[:40]!r} → {ours[:40]!r}", 1.0)


def _json(
    name: str, peer: dict[str, Any], ours: dict[str, Any], by_layer: bool = False
) -> Difference | str:
    if peer == ours:
        return name
    if by_layer:
        layers = {*peer, *ours}
        pairs = [(peer.get(layer, {}), ours.get(layer, {})) for layer in layers]
    else:
        pairs = [(peer, ours)]
    shown: dict[str, None] = {}
    keys = set()
    for theirs, our in pairs:
        for key in sorted({*theirs, *our}):
            if theirs.get(key) != our.get(key):
                keys.add(key)
                if by_layer:
                    shown[key] = None
                else:
                    shown[f"{key}: {theirs.get(key, '–')} → {our.get(key, '–')}"] = None
    return Difference(name, "json", ", ".join(shown), keys=frozenset(keys))
