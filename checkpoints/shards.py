"""Which files make up a checkpoint: what a folder holds, what an index promises."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

from ..errors import CheckpointError
from .header import Header, parse_header
from .strict_json import parse_json

_INDEX_SUFFIX = ".safetensors.index.json"


def find_in_folder(folder: Path) -> Path:
    """The one index in a folder, or else the one .safetensors file. Raises CheckpointError."""
    try:
        files = sorted(path for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise CheckpointError(f"cannot read {folder}: {error.strerror or error}") from error
    files = [path for path in files if not path.name.startswith(".")]
    indexes = [path for path in files if path.name.endswith(_INDEX_SUFFIX)]
    found = indexes or [path for path in files if path.suffix.lower() == ".safetensors"]
    if len(found) == 1:
        return found[0]
    if not found:
        raise CheckpointError(f"{folder} holds no .safetensors file: name the file itself")
    names = ", ".join(path.name for path in found[:5]) + (", ..." if len(found) > 5 else "")
    kind = "indexes" if indexes else ".safetensors files and no index"
    raise CheckpointError(f"{folder} holds {len(found)} {kind} ({names}): name the one you mean")


def read_index(index: Path) -> dict[Path, Header]:
    """The headers of the shards of a ``*.safetensors.index.json``, in its order.

    A tensor the index does not list is read all the same, with a note. Raises CheckpointError for a
    shard or tensor that is missing, listed outside the index's folder or there twice.
    """
    try:
        content = parse_json(index.read_bytes(), str(index))
    except OSError as error:
        raise CheckpointError(f"cannot read {index}: {error.strerror or error}") from error
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index} is not an index of shards, it has no weight_map: name a .safetensors file"
        )
    promised: dict[Path, list[str]] = {}
    for name, file in weight_map.items():
        promised.setdefault(_shard_path(index, name, file), []).append(name)
    headers: dict[Path, Header] = {}
    owners: dict[str, Path] = {}
    for shard, names in promised.items():
        if not shard.is_file():
            raise CheckpointError(
                f"{index} promises tensor {names[0]!r} in {shard.name}, which is not there: fetch "
                "that file too"
            )
        headers[shard] = header = parse_header(shard)
        for name in names:
            if name not in header.tensors:
                raise CheckpointError(
                    f"{index} promises tensor {name!r} in {shard.name}, which lacks it: fetch both "
                    "files again"
                )
        for name in header.tensors:
            if name in owners:
                raise CheckpointError(
                    f"tensor {name!r} is in two shards of {index}, {owners[name].name} and "
                    f"{shard.name}: they do not belong together; fetch them again"
                )
            owners[name] = shard
            if name not in weight_map:
                header.notes.append(
                    f"{index} does not list tensor {name!r} of {shard.name}; it is read too"
                )
    return headers


def _shard_path(index: Path, name: str, file: object) -> Path:
    # An index may come from anywhere: only plain names below its own folder are followed. Links in
    # the folder are, for download caches keep files behind them and an index cannot make one.
    plain = isinstance(file, str) and file.strip(". ") != "" and "\0" not in file
    for flavour in (PurePosixPath, PureWindowsPath) if plain else ():
        parsed = flavour(str(file))
        plain = plain and not parsed.anchor and ".." not in parsed.parts
    if not plain:
        raise CheckpointError(
            f"{index} places tensor {name!r} in {file!r}, which is not a file in its own folder: "
            "the index is damaged or malicious; fetch the checkpoint from its source"
        )
    return index.parent / str(file)
