"""How a file says which layers are quantized: one flat JSON object a layer, in two places.

- metadata ``_quantization_metadata``:
  ``{"format_version": "1.0", "layers": {"<layer>": {"format": "int8_blockwise", ...}}}``
- tensor ``<layer>.comfy_quant``: 1-D uint8, the UTF-8 text of ``{"format": "int8_blockwise", ...}``

ComfyUI overwrites the tensors' objects from the header's, so the header wins here too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import CheckpointError
from .tensors import TensorInfo, dtype_name

if TYPE_CHECKING:
    import torch

HEADER_KEY = "_quantization_metadata"
TENSOR_SUFFIX = ".comfy_quant"
FORMAT_VERSION = "1.0"


class Readable(Protocol):
    """What ``read_layers`` needs of a checkpoint."""

    @property
    def metadata(self) -> Mapping[str, str]: ...
    @property
    def tensors(self) -> Mapping[str, Any]: ...
    def read(self, name: str, /) -> torch.Tensor: ...
    def read_bytes(  # asked of files only
        self, name: str, start: int, stop: int, /
    ) -> bytearray | memoryview: ...


@dataclass(frozen=True)
class QuantizedLayers:
    """The quantized layers by name, and notes on what was odd and how it was read."""

    layers: dict[str, dict[str, Any]]
    notes: list[str]


def encode_conf(conf: Mapping[str, Any]) -> torch.Tensor:
    """A layer's object as the 1-D uint8 tensor stored under ``<layer>.comfy_quant``."""
    import torch

    return torch.frombuffer(bytearray(conf_bytes(conf)), dtype=torch.uint8)


def conf_bytes(conf: Mapping[str, Any]) -> bytes:
    """The bytes of :func:`encode_conf`'s tensor."""
    return json.dumps(dict(conf)).encode("utf-8")


def decode_conf(tensor: torch.Tensor) -> dict[str, Any]:
    """The object in a ``comfy_quant`` tensor, as stored.

    Raises CheckpointError where the tensor is not the UTF-8 text of a JSON object in uint8.
    """
    _check_text(tensor.dtype)
    return parse_conf(tensor.cpu().numpy().tobytes())


def read_conf(checkpoint: Readable, name: str) -> dict[str, Any]:
    """The object in a checkpoint's ``comfy_quant`` tensor; errors are :func:`decode_conf`'s.

    A file's is read without torch; other sources hold tensors already.
    """
    info = checkpoint.tensors[name]
    if not isinstance(info, TensorInfo):
        return decode_conf(checkpoint.read(name))
    _check_text(info.dtype_name)
    return parse_conf(checkpoint.read_bytes(name, 0, info.nbytes))


def _check_text(dtype: torch.dtype | str) -> None:
    found = dtype_name(dtype)
    if found != "U8":
        raise CheckpointError(f"it is {found or dtype} where JSON text in uint8 is expected")


def parse_conf(data: bytes | bytearray | memoryview) -> dict[str, Any]:
    """The object in the bytes of a ``comfy_quant`` tensor. Raises CheckpointError."""
    try:
        conf = json.loads(bytes(data).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"it does not hold valid JSON ({error})") from error
    if not isinstance(conf, dict):
        raise CheckpointError(f"it holds a JSON {type(conf).__name__} where an object is expected")
    return conf


def layers_metadata(layers: Mapping[str, Mapping[str, Any]]) -> str:
    """The ``_quantization_metadata`` text for these layers."""
    objects = {name: dict(conf) for name, conf in layers.items()}
    return json.dumps({"format_version": FORMAT_VERSION, "layers": objects})


def read_layers(checkpoint: Readable) -> QuantizedLayers:
    """Which layers of a checkpoint are quantized, and how, by the header and the tensors together.

    Names are the file's, prefixes included. Where the two differ the header wins; keys in only one
    are kept; a nested ``{"params": {...}}`` is flattened; a layer whose ``.weight`` is not in the
    file is left out. Each of these is noted. Raises CheckpointError, naming the file and the layer,
    for text that is not a JSON object.
    """
    where = str(getattr(checkpoint, "path", "the checkpoint"))
    notes: list[str] = []
    in_header = _header_layers(checkpoint.metadata.get(HEADER_KEY), where, notes)
    in_tensors = _tensor_layers(checkpoint, where)
    layers: dict[str, dict[str, Any]] = {}
    for name in {**in_header, **in_tensors}:
        if f"{name}.weight" not in checkpoint.tensors:
            source = "the header" if name in in_header else name + TENSOR_SUFFIX
            notes.append(f"{name}: quantized, says {source}, but it has no weight here; left out")
            continue
        header = _flat(name, in_header.get(name, {}), notes)
        tensor = _flat(name, in_tensors.get(name, {}), notes)
        if name in in_header and name in in_tensors and header != tensor:
            notes.append(f"{name}: {_difference(header, tensor)}")
        layers[name] = {**tensor, **header}
    return QuantizedLayers(layers, notes)


def merge_metadata(
    files: Mapping[Path, Mapping[str, str]],
) -> tuple[dict[str, str], list[str]]:
    """One metadata for the shards of a checkpoint, and notes where they disagree.

    The layers of their ``_quantization_metadata`` are put together; of any other key the first
    shard's value is kept. One file's metadata stay as they are.
    """
    merged: dict[str, str] = {}
    notes: list[str] = []
    layers: dict[str, Any] = {}
    for file, metadata in files.items():
        for key, value in metadata.items():
            if key == HEADER_KEY and len(files) > 1:
                for name, conf in _header_layers(value, str(file), notes).items():
                    if layers.setdefault(name, conf) != conf:
                        notes.append(
                            f"{name}: the metadata of {file.name} contradict an earlier shard's; "
                            "ignored"
                        )
            elif merged.setdefault(key, value) != value:
                notes.append(
                    f"the metadata {key!r} of {file.name} differ from an earlier shard's; ignored"
                )
    if layers:
        merged[HEADER_KEY] = layers_metadata(layers)
    return merged, notes


def _header_layers(text: str | None, where: str, notes: list[str]) -> dict[str, dict[str, Any]]:
    if text is None:
        return {}
    what = f"{where}: its {HEADER_KEY}"
    way_out = "remove this metadata or fetch the file again"
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{what} is not valid JSON ({error}); {way_out}") from error
    layers = content.get("layers", {}) if isinstance(content, dict) else None
    if not isinstance(layers, dict):
        raise CheckpointError(f"{what} does not hold an object of layers; {way_out}")
    if "layers" not in content:
        notes.append(f"{what} has no layers")
    version = content.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        notes.append(f"{what} has format_version {version!r}; read as {FORMAT_VERSION}")
    for name, conf in layers.items():
        if not isinstance(conf, dict):
            raise CheckpointError(f"{what} of layer {name!r} is not an object; {way_out}")
    return layers


def _tensor_layers(checkpoint: Readable, where: str) -> dict[str, dict[str, Any]]:
    layers = {}
    for key in checkpoint.tensors:
        if key.endswith(TENSOR_SUFFIX):
            try:
                layers[key.removesuffix(TENSOR_SUFFIX)] = read_conf(checkpoint, key)
            except CheckpointError as error:
                raise CheckpointError(
                    f"{where}: tensor {key!r} cannot be read: {error}; fetch or export the file "
                    "again"
                ) from error
    return layers


def _flat(name: str, conf: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    params = conf.get("params")
    if not isinstance(params, dict):
        return conf
    notes.append(f"{name}: its settings are nested under 'params'; read as if they were not")
    return {**params, **{key: value for key, value in conf.items() if key != "params"}}


def _difference(header: dict[str, Any], tensor: dict[str, Any]) -> str:
    parts = []
    for key in {**header, **tensor}:
        if key not in tensor:
            parts.append(f"{key} is only in the header, {header[key]!r}")
        elif key not in header:
            parts.append(f"{key} is only in comfy_quant, {tensor[key]!r}")
        elif header[key] != tensor[key]:
            parts.append(
                f"{key} is {header[key]!r} in the header, which is used, and {tensor[key]!r} in "
                "comfy_quant"
            )
    return "; ".join(parts)
