"""Finished layers of a run that was cancelled: kept in a folder, found again by what made them.

A layer's name in the folder is the hash of its weights, its statistics and its settings, so a layer
is reused exactly when the result would be the same. They go when the run is complete.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

_VERSION = 1  # of the solvers: raised when the same input gives another result
_SUFFIX = ".layer.safetensors"
_DAY = 24 * 60 * 60.0


class Finished(NamedTuple):
    """A solved layer: file tensors by suffix, and what is reported of it."""

    parts: dict[str, Tensor]
    facts: dict[str, Any]


class Journal:
    """Solved layers in a folder. A folder that cannot be written to is given up, and says so.

    Args:
        folder: made when the first layer is kept.
        shared: whether runs of other models keep their layers there too.

    Attributes:
        note: why nothing is kept, or "".
    """

    def __init__(self, folder: Path, shared: bool = False) -> None:
        self.folder, self.shared = folder, shared
        self.note = ""
        self._used: set[Path] = set()
        self._made: set[Path] = set()

    @staticmethod
    def key(settings: str, tensors: Iterable[Tensor]) -> str:
        """The name of a layer with these settings, weights and statistics."""
        digest = hashlib.blake2b(f"{_VERSION} {settings}".encode(), digest_size=16)
        for tensor in tensors:
            flat = tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8)
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(flat.numpy().data)
        return digest.hexdigest()

    def find(self, key: str) -> Finished | None:
        """A layer that was finished before."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, "pt") as file:
                facts = json.loads((file.metadata() or {})["facts"])
                parts = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                found = Finished(parts, facts)
        except (OSError, SafetensorError, ValueError, KeyError):  # half-written: solve it again
            return None
        self._used.add(path)
        return found

    def made(self, key: str) -> bool:
        """Whether a layer was finished in this run, not in one before."""
        return self._path(key) in self._made

    def keep(self, key: str, layer: Finished) -> None:
        """Remember a finished layer; appears under its name only when complete."""
        if self.note:
            return
        path = self._path(key)
        partial = path.with_suffix(f".{os.getpid()}.part")
        tensors = {name: part.contiguous().cpu() for name, part in layer.parts.items()}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            save_file(tensors, partial, {"facts": json.dumps(layer.facts)})
            partial.replace(path)
            self._made.add(path)
        except (OSError, SafetensorError) as error:
            self.note = f"finished layers cannot be kept in {self.folder}: {error}"
            with suppress(OSError):
                partial.unlink()

    def clear(self) -> None:
        """Forget all layers: the run is complete. In a shared folder those of this run, and those
        nobody came back for in a day. Files that are not layers stay."""
        for path in (*self.folder.glob(f"*{_SUFFIX}"), *self.folder.glob("*.part")):
            with suppress(OSError):
                old = time.time() - path.stat().st_mtime > _DAY
                if not self.shared or old or path in self._used | self._made:
                    path.unlink()
        with suppress(OSError):
            self.folder.rmdir()

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"
