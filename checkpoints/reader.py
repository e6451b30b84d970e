"""Lazy reading of a checkpoint: one .safetensors file, or several behind an index.

Opening reads the headers only. Tensors and rows are read by position into the tensor's own memory; nothing is mapped,
and reads may run in several threads at once.
"""

from __future__ import annotations

import threading
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import TracebackType

import torch

from ..errors import CheckpointError
from .files import PositionalFile, byte_view
from .header import Header, TensorInfo, parse_header, parse_json
from .quantization import merge_metadata

_INDEX_SUFFIX = ".safetensors.index.json"


class Checkpoint:
    """A readable checkpoint; use ``Checkpoint.open`` and, to free its file handles, a ``with`` block."""

    def __init__(self, path: Path, headers: dict[Path, Header]) -> None:
        self.path = path
        """What was opened: the file, or the index."""
        self.files = tuple(headers)
        """The .safetensors files, one, or the shards in order."""
        self.metadata, self.notes = merge_metadata(
            {file: header.metadata for file, header in headers.items()}
        )
        self.tensors: dict[str, TensorInfo] = {}
        """Every tensor by name, in the order of the bytes in the files."""
        for header in headers.values():
            self.notes.extend(header.notes)
            self.tensors.update(header.tensors)
        self._open_files: dict[Path, PositionalFile] = {}
        self._lock = threading.Lock()
        self._closed = False

    @classmethod
    def open(cls, path: str | Path) -> Checkpoint:
        """Open a .safetensors file, a ``*.safetensors.index.json``, or a folder holding one of them.

        Raises CheckpointError, naming the file and the way out, for anything else and for damaged files.
        """
        path = Path(path)
        if path.is_dir():
            path = _find_in_folder(path)
        if not path.exists():
            raise CheckpointError(f"{path} does not exist: check the path")
        if path.suffix.lower() == ".json":
            return cls(path, _read_index(path))
        return cls(path, {path: parse_header(path)})

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together, headers not counted."""
        return sum(info.nbytes for info in self.tensors.values())

    def read(self, name: str) -> torch.Tensor:
        """Read one tensor into new CPU memory. Raises CheckpointError for unknown names and opaque dtypes."""
        info = self._info(name)
        tensor = torch.empty(info.shape, dtype=self._dtype(info))
        self._fill(info, byte_view(tensor), 0)
        return tensor

    def read_rows(
        self, name: str, start: int, stop: int, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Read rows ``start`` to ``stop`` (of the first dimension) of one tensor.

        ``out``, a contiguous CPU tensor of the same dtype and trailing shape with at least ``stop - start`` rows, is
        filled and returned (its first rows, where it has more) and nothing is allocated.
        Raises CheckpointError for unknown names and opaque dtypes, ValueError for rows or an ``out`` that do not fit.
        """
        info = self._info(name)
        dtype = self._dtype(info)
        if not info.shape:
            raise ValueError(f"tensor {name!r} is a scalar and has no rows: use read()")
        if not 0 <= start <= stop <= info.shape[0]:
            raise ValueError(
                f"rows {start} to {stop} of tensor {name!r}, which has {info.shape[0]}"
            )
        shape = (stop - start, *info.shape[1:])
        if out is None:
            out = torch.empty(shape, dtype=dtype)
        elif (
            out.dtype != dtype
            or out.dim() != len(shape)
            or out.shape[1:] != shape[1:]
            or out.shape[0] < shape[0]
            or out.device.type != "cpu"
            or not out.is_contiguous()
        ):
            raise ValueError(
                f"tensor {name!r}: out must be a contiguous CPU {dtype} {shape}, "
                f"not {out.device.type} {out.dtype} {tuple(out.shape)}"
            )
        elif out.shape[0] > shape[0]:
            out = out[: shape[0]]
        row_bytes = info.nbytes // info.shape[0] if info.shape[0] else 0
        self._fill(info, byte_view(out), start * row_bytes)
        return out

    def read_bytes(self, name: str, start: int = 0, stop: int | None = None) -> bytearray:
        """Bytes ``start`` to ``stop`` (the end, where None) of one tensor, of any dtype, opaque ones too."""
        info = self._info(name)
        stop = info.nbytes if stop is None else stop
        if not 0 <= start <= stop <= info.nbytes:
            raise ValueError(f"bytes {start} to {stop} of tensor {name!r}, which has {info.nbytes}")
        buffer = bytearray(stop - start)
        self._fill(info, memoryview(buffer), start)
        return buffer

    def close(self) -> None:
        """Close the files, after reads under way in other threads. Harmless twice."""
        with self._lock:
            self._closed = True
            files = list(self._open_files.values())
            self._open_files.clear()
        for file in files:
            file.close()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise CheckpointError(f"{self.path} has no tensor {name!r}")
        return self.tensors[name]

    def _dtype(self, info: TensorInfo) -> torch.dtype:
        if info.dtype is None:
            raise CheckpointError(
                f"tensor {info.name!r} in {info.file} has dtype {info.dtype_name}, which cannot be computed with here: "
                "it can only be copied, so exclude it"
            )
        return info.dtype

    def _fill(self, info: TensorInfo, buffer: memoryview, start: int) -> None:
        try:
            count = self._file(info.file).read_into(buffer, info.offset + start)
        except OSError as error:
            raise CheckpointError(
                f"cannot read tensor {info.name!r} from {info.file}: {error.strerror or error}"
            ) from error
        if count < len(buffer):
            raise CheckpointError(
                f"{info.file} ended inside tensor {info.name!r}: the file was changed while it was being read; start again"
            )

    def _file(self, path: Path) -> PositionalFile:
        with self._lock:
            if self._closed:
                raise ValueError(f"{self.path} is closed")
            if path not in self._open_files:
                self._open_files[path] = PositionalFile(path, "rb")
            return self._open_files[path]


def _find_in_folder(folder: Path) -> Path:
    try:
        files = sorted(
            path for path in folder.iterdir() if path.is_file() and not path.name.startswith(".")
        )
    except OSError as error:
        raise CheckpointError(f"cannot read {folder}: {error.strerror or error}") from error
    indexes = [path for path in files if path.name.endswith(_INDEX_SUFFIX)]
    found = indexes or [path for path in files if path.suffix == ".safetensors"]
    if len(found) == 1:
        return found[0]
    if not found:
        raise CheckpointError(f"{folder} holds no .safetensors file: name the file itself")
    names = ", ".join(path.name for path in found[:5]) + (", ..." if len(found) > 5 else "")
    kind = "indexes" if indexes else ".safetensors files and no index"
    raise CheckpointError(f"{folder} holds {len(found)} {kind} ({names}): name the one you mean")


def _read_index(index: Path) -> dict[Path, Header]:
    try:
        content = parse_json(index.read_bytes(), str(index))
    except OSError as error:
        raise CheckpointError(f"cannot read {index}: {error.strerror or error}") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index} is not an index of shards: it has no weight_map; name a .safetensors file"
        )
    promised: dict[Path, list[str]] = {}
    for name, file in weight_map.items():
        promised.setdefault(_shard_path(index, name, file), []).append(name)
    headers: dict[Path, Header] = {}
    owners: dict[str, Path] = {}
    for shard, names in promised.items():
        if not shard.is_file():
            raise CheckpointError(
                f"{index} promises {shard.name}, for tensor {names[0]!r} and others, which is not there: download it too"
            )
        headers[shard] = header = parse_header(shard)
        for name in names:
            if name not in header.tensors:
                raise CheckpointError(
                    f"{index} promises tensor {name!r} in {shard.name}, which lacks it: fetch both files again"
                )
        for name in header.tensors:
            if name in owners:
                raise CheckpointError(
                    f"tensor {name!r} is in two shards of {index}, {owners[name].name} and {shard.name}: "
                    "they do not belong together; fetch the shards again"
                )
            owners[name] = shard
            if name not in weight_map:
                header.notes.append(
                    f"{index} does not list tensor {name!r} of {shard.name}; it is read all the same"
                )
    return headers


def _shard_path(index: Path, name: str, file: object) -> Path:
    # The index may come from anywhere: only plain paths below its own folder are followed.
    if (
        not isinstance(file, str)
        or not file
        or "\0" in file
        or any(
            flavour(file).is_absolute() or flavour(file).anchor or ".." in flavour(file).parts
            for flavour in (PurePosixPath, PureWindowsPath)
        )
    ):
        raise CheckpointError(
            f"{index} places tensor {name!r} in {file!r}, which is not a file of its own folder: "
            "the index is wrong or malicious, so it is not followed"
        )
    return index.parent / file
