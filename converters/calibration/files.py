"""A calibration as one safetensors file.

Tensors of record ``i``: ``records.<i>.mean``, ``.absmax`` (F32 ``[N]``), ``.histogram`` (I64),
``.tokens`` (BF16 ``[k, N]``) and, where it has one, ``.moment`` (F32 ``[N, N]``). The metadata:

- ``roundsmith.calibration``: the version of this layout. In version 1 no calls were set aside;
- ``layers``: JSON, layer to the number of its record, null for a layer never reached;
- ``records``: JSON list, the numbers of each record (see ``Summary``);
- ``settings``, ``notes``, ``fingerprint``: JSON;
- ``influences``: JSON, layer to a number; only where they were measured.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import torch

from ...checkpoints import Checkpoint, CheckpointWriter, Entry
from ...errors import CheckpointError
from .calibration import Calibration, Shelf
from .fingerprint import Fingerprint
from .histogram import BINS
from .record import Record, Summary

VERSION = 2
_READABLE = ("1", "2")
_MARK = "roundsmith.calibration"
_MOST = 1 << 53  # tokens: float64 counts no further


def save(calibration: Calibration, path: str | Path, overwrite: bool = False) -> Path:
    """Write ``calibration`` to ``path``, a record at a time. Raises CheckpointError."""
    numbers: dict[int, int] = {}
    shelves: list[Shelf] = []
    layers: dict[str, int | None] = {}
    for name, shelf in calibration.shelves.items():
        if shelf is not None and id(shelf) not in numbers:
            numbers[id(shelf)] = len(shelves)
            shelves.append(shelf)
        layers[name] = None if shelf is None else numbers[id(shelf)]
    metadata = {
        _MARK: str(VERSION),
        "layers": json.dumps(layers),
        "records": json.dumps([asdict(shelf.summary) for shelf in shelves]),
        "settings": json.dumps(calibration.settings),
        "notes": json.dumps(calibration.notes),
        "fingerprint": calibration.fingerprint.to_json(),
    }
    if calibration.influences:
        metadata["influences"] = json.dumps(calibration.influences)
    entries: dict[str, Entry] = {}
    for number, shelf in enumerate(shelves):
        entries.update(_entries(number, shelf.summary))
    path = Path(path)
    with CheckpointWriter(path, entries, metadata, overwrite=overwrite) as writer:
        for number, shelf in enumerate(shelves):
            record = shelf.load()
            for name in _entries(number, shelf.summary):
                writer.write(name, getattr(record, name.rpartition(".")[2]))
    return path


def load(path: str | Path) -> Calibration:
    """Open a calibration. Tensors are read as they are asked for. Raises CheckpointError."""
    path = Path(path)
    file = Checkpoint.open(path)
    version = file.metadata.get(_MARK)
    if version is None:
        raise CheckpointError(
            f"{path} is not a calibration: it holds no statistics of activations; choose a file "
            "saved by Save Calibration or Calibration.save"
        )
    if version not in _READABLE:
        raise CheckpointError(
            f"{path} is a calibration of version {version!r}, and this program reads versions "
            f"{' and '.join(_READABLE)}: update the program, or calibrate again"
        )
    layers = _json(file, "layers", dict)
    summaries = [_summary(path, number, item) for number, item in enumerate(_json(file, "records"))]
    shelves = [_shelf(file, number, summary) for number, summary in enumerate(summaries)]
    found: dict[str, Shelf | None] = {}
    for name, number in layers.items():
        if number is not None and not (isinstance(number, int) and 0 <= number < len(shelves)):
            raise _damaged(path, f"layer {name!r} refers to record {number!r}, which is not there")
        found[name] = None if number is None else shelves[number]
    try:
        fingerprint = Fingerprint.from_json(file.metadata.get("fingerprint", ""))
    except CheckpointError as error:
        raise _damaged(path, str(error)) from error
    settings, notes = _json(file, "settings", dict), _json(file, "notes")
    for run in (settings, *_list(path, settings.get("runs"), dict)):
        if type(run.get("calls") or 0) not in (int, float):
            raise _damaged(path, f"its calls are {run['calls']!r}")
    _list(path, notes, str)
    return Calibration(found, settings, notes, fingerprint, _influences(file))


def _influences(file: Checkpoint) -> dict[str, float]:
    """Files of before, and those of runs that did not measure them, have none."""
    if "influences" not in file.metadata:
        return {}
    found = _json(file, "influences", dict)
    for layer, value in found.items():
        if type(value) not in (int, float) or not 0 <= value < math.inf:
            raise _damaged(file.path, f"the influence of layer {layer!r} makes no sense: {value!r}")
    return found


def _entries(number: int, summary: Summary) -> dict[str, Entry]:
    n = summary.features
    entries: dict[str, Entry] = {
        "mean": (torch.float32, (n,)),
        "absmax": (torch.float32, (n,)),
        "histogram": (torch.int64, (BINS,)),
        "tokens": (torch.bfloat16, (summary.kept, n)),
    }
    if summary.moment_count is not None:
        entries["moment"] = (torch.float32, (n, n))
    return {f"records.{number}.{name}": entry for name, entry in entries.items()}


def _shelf(file: Checkpoint, number: int, summary: Summary) -> Shelf:
    entries = _entries(number, summary)
    for name, entry in entries.items():
        info = file.tensors.get(name)
        if info is None:
            raise _damaged(file.path, f"tensor {name!r} is missing")
        if (info.dtype, info.shape) != entry[:2]:
            found = f"{info.dtype_name} {list(info.shape)}"
            raise _damaged(file.path, f"tensor {name!r} is {found}, not as declared")

    def read() -> Record:
        tensors = {name.rpartition(".")[2]: file.read(name) for name in entries}
        return Record(
            features=summary.features,
            count=summary.count,
            nonfinite=summary.nonfinite,
            capacity=summary.capacity,
            moment_count=summary.moment_count or 0,
            held=summary.held,
            held_seen=summary.held_seen,
            **tensors,
        )

    return Shelf(summary, read)


def _summary(path: Path, number: int, item: Any) -> Summary:
    try:
        summary = Summary(**item)
    except TypeError:
        raise _damaged(path, f"the numbers of record {number} are incomplete") from None
    numbers = [value for value in astuple(summary) if value is not None]
    if (
        not all(type(value) is int and 0 <= value < _MOST for value in numbers)
        or summary.features < 1
        or (summary.held > summary.kept)
    ):
        raise _damaged(path, f"the numbers of record {number} make no sense: {item}")
    return summary


def _json(file: Checkpoint, key: str, kind: type[dict[str, Any]] | type[list[Any]] = list) -> Any:
    try:
        value = json.loads(file.metadata.get(key, ""))
    except ValueError as error:
        raise _damaged(file.path, f"its {key} cannot be read ({error})") from error
    if not isinstance(value, kind):
        raise _damaged(file.path, f"its {key} are not as they should be")
    return value


def _list(path: Path, value: Any, kind: type) -> list[Any]:
    """A list of the settings, or of the notes; none is an empty one."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise _damaged(path, "its settings or notes are not as they should be")
    return value


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path} is a damaged calibration: {why}; calibrate again")
