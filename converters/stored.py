"""Which layers of a source are quantized already, and how: ``comfy_quant``, legacy files, bare
scales.

- ``comfy_quant``: the layer's JSON names the format.
- legacy ``fp8_scaled``: a marker tensor ``scaled_fp8`` (2 elements: full-precision products), and
  ``L.scale_weight`` / ``L.scale_input``. A layer is FP8 only if its weight's dtype is; other layers
  may carry dummy scales, which are dropped.
- 8-bit weights with a ``weight_scale`` and no JSON: the shapes decide.
- layers as other libraries keep them, which formats know by the names of their tensors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..checkpoints import read_layers
from ..errors import FormatError
from ..layouts import Format, formats, identify
from .legacy_layout import MARKER, OLD_NAMES
from .parts import parts_by_layer
from .source import Source

_NAMES: Mapping[torch.dtype | None, str] = {
    torch.float8_e4m3fn: "float8_e4m3fn",
    torch.float8_e5m2: "float8_e5m2",
    torch.int8: "int8_tensorwise",
}


@dataclass(frozen=True)
class StoredLayer:
    """A quantized layer of a source.

    Attributes:
        conf: its JSON, flat.
        format: what the JSON and the shapes say it is.
        parts: names in the source by suffix (``weight``, ``weight_scale``, ...).
    """

    conf: dict[str, Any]
    format: Format
    parts: dict[str, str]


@dataclass
class StoredLayers:
    """The quantized layers of a source by name; names that belong to the bookkeeping; notes."""

    layers: dict[str, StoredLayer] = field(default_factory=dict)
    bookkeeping: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def stored_layers(source: Source, problems: dict[str, str] | None = None) -> StoredLayers:
    """Find the quantized layers of ``source``.

    Args:
        source: the tensors.
        problems: where given, takes why a layer cannot be read, by layer; such layers count as
            plain tensors then.

    Raises:
        FormatError: naming a layer it cannot read, without ``problems``.
    """
    described = read_layers(source)
    found = StoredLayers(notes=list(described.notes))
    found.bookkeeping.update(n for n in source.tensors if n.endswith(".comfy_quant"))
    parts = parts_by_layer(source)
    foreign = _foreign(source)
    for layer in {**foreign, **described.layers}:
        try:
            if layer in foreign:
                fmt, names = foreign[layer]
                conf = fmt.foreign_conf(names, source.read)
                _keep(found, source, layer, StoredLayer(conf, fmt, names))
            else:
                _add(found, source, layer, described.layers[layer], parts[layer])
        except FormatError as error:
            if problems is None:
                raise
            problems[layer] = str(error)
    _find_legacy(found, source, parts, problems)
    return found


def _foreign(source: Source) -> dict[str, tuple[Format, dict[str, str]]]:
    """Layers that a format knows as another library's: the format, and its parts by suffix."""
    found = {}
    for fmt in formats().values():
        for layer, parts in fmt.foreign(source.tensors).items():
            found[layer] = fmt, parts
    return found


def _keep(found: StoredLayers, source: Source, layer: str, stored: StoredLayer) -> None:
    """Note a layer. Raises :class:`FormatError` where its tensors and its JSON disagree."""
    try:
        stored.format.normalise(empty_parts(source, stored.parts), stored.conf)
    except FormatError as error:
        raise FormatError(f"layer {layer!r}: {error}") from error
    found.layers[layer] = stored
    found.bookkeeping.update(name for suffix, name in stored.parts.items() if suffix != "weight")


def _add(
    found: StoredLayers, source: Source, layer: str, conf: dict[str, Any], parts: dict[str, str]
) -> None:
    shapes = {suffix: tuple(source.tensors[name].shape) for suffix, name in parts.items()}
    dtype = source.tensors[parts["weight"]].dtype
    fmt = identify(conf, shapes, dtype, layer)
    if fmt.id != conf["format"]:
        if conf["format"] not in fmt.aliases:
            found.notes.append(f"{layer}: labelled {conf['format']}, its tensors are {fmt.id}")
        conf = {**conf, "format": fmt.id}
        conf.pop("group_size", None)  # of the format it was labelled as
        group = fmt.group_size_of(shapes)
        if group is not None:
            conf["group_size"] = group
    _keep(found, source, layer, StoredLayer(conf, fmt, parts))


def _find_legacy(
    found: StoredLayers,
    source: Source,
    parts: Mapping[str, dict[str, str]],
    problems: dict[str, str] | None,
) -> None:
    markers = {
        name.removesuffix(MARKER): _elements(source, name)
        for name in source.tensors
        if name == MARKER or name.endswith("." + MARKER)
    }
    found.bookkeeping.update(prefix + MARKER for prefix in markers)
    dummies = []
    for layer, suffixes in parts.items():
        renamed = {OLD_NAMES.get(suffix, suffix): name for suffix, name in suffixes.items()}
        known = layer in found.layers or layer in (problems or ())
        if known or "weight_scale" not in renamed or "weight" not in renamed:
            continue
        name = _NAMES.get(source.tensors[renamed["weight"]].dtype)
        if name is None:
            dummies.append(layer)
            found.bookkeeping.update(suffixes[s] for s in OLD_NAMES if s in suffixes)
            continue
        full = any(n == 2 for prefix, n in markers.items() if layer.startswith(prefix))
        try:
            _add_guessed(found, source, layer, name, renamed, full)
        except FormatError as error:
            if problems is None:
                raise
            problems[layer] = str(error)
    if dummies:
        found.notes.append(
            f"{len(dummies)} high-precision layers carry scales that nothing uses (for example "
            f"{dummies[0]}); dropped"
        )


def _add_guessed(
    found: StoredLayers,
    source: Source,
    layer: str,
    name: str,
    parts: dict[str, str],
    full_precision: bool,
) -> None:
    conf: dict[str, Any] = {"format": name}
    if full_precision:
        conf["full_precision_matrix_mult"] = True
    _add(found, source, layer, conf, parts)


def empty_parts(source: Source, parts: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """The tensors of a layer without their values: shapes and dtypes only."""
    found = {}
    for suffix, name in parts.items():
        described = source.tensors[name]
        if described.dtype is not None:
            found[suffix] = torch.empty(described.shape, dtype=described.dtype, device="meta")
    return found


def _elements(source: Source, name: str) -> int:
    return torch.Size(source.tensors[name].shape).numel()


def parts_of(source: Source, stored: StoredLayer) -> dict[str, torch.Tensor]:
    """Read a stored layer's tensors, repaired where the file deviates."""
    parts = {suffix: source.read(name) for suffix, name in stored.parts.items()}
    return stored.format.normalise(parts, stored.conf)


def iter_plain(source: Source, stored: StoredLayers) -> Iterator[str]:
    """Names of the tensors a reader sees: everything but the bookkeeping of quantized layers."""
    return (name for name in source.tensors if name not in stored.bookkeeping)
