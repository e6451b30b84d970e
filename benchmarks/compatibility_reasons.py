"""Why a tensor differs: a name for each reason, and a check that it is that and nothing else.

docs/compatibility.md has a line for each name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from compatibility_compare import HEADER, Difference, File
from torch import Tensor

from roundsmith.converters import MemorySource, ModelView

_EMBEDDINGS = ("embed_tokens", "shared")
_DEFAULTS = {"orig_dtype", "orig_shape", "per_row", "group_size"}
_BLOCKED = ("blockwise", "block3d")
_UNKNOWN = "?"


@dataclass
class Layers:
    """The files of one mode: what both were given, theirs, ours, and how codes were found."""

    source: File
    peer: File
    ours: File
    learned: bool = False
    _views: dict[int, ModelView] = field(default_factory=dict)

    def view(self, file: File) -> ModelView:
        """A file as a model, layers that cannot be read as plain tensors."""
        if id(file) not in self._views:
            self._views[id(file)] = ModelView(MemorySource(file.tensors, file.metadata), {})
        return self._views[id(file)]

    def weight(self, file: File, layer: str) -> Tensor | None:
        """A layer's float32 weight as a reader gets it."""
        name, model = f"{layer}.weight", self.view(file)
        if name not in model.names:
            return None
        return model.read_rows(name, 0, model.shape(name)[0]).float().clone()

    def noise(self, file: File, layer: str) -> float:
        """Squared error of a layer's weight."""
        made, original = self.weight(file, layer), self.weight(self.source, layer)
        if made is None or original is None:
            return math.inf
        return float((made - original).double().square().sum())

    def is_kept(self, layer: str) -> bool:
        """Whether our file has the weight as the source has it, which is not quantized."""
        name = f"{layer}.weight"
        a, b = self.ours.tensors.get(name), self.source.tensors.get(name)
        if a is None or b is None or a.dtype != b.dtype or a.dtype.itemsize == 1:
            return False
        return torch.equal(a, b)

    def is_zero(self, layer: str) -> bool:
        """Whether every weight of the layer is zero."""
        w = self.source.tensors.get(f"{layer}.weight")
        return w is not None and not w.float().any()


def reason(found: Difference, layers: Layers) -> str:
    """The name of the reason, ``?`` where there is none."""
    layer = found.name.rpartition(".")[0]
    return next((name for name, fits in REASONS.items() if fits(found, layer, layers)), _UNKNOWN)


Check = Callable[[Difference, str, Layers], bool]


def _recipe(d: Difference, layer: str, layers: Layers) -> bool:
    return d.name.startswith("metadata roundsmith_") and d.kind == "ours only"


def _metadata(d: Difference, layer: str, layers: Layers) -> bool:
    lost = d.name.startswith("metadata ") and d.kind == "ours only"
    return lost and HEADER not in d.name


def _header(d: Difference, layer: str, layers: Layers) -> bool:
    """Ours says what the layers' own tensors say, to the key, or is not touched."""
    if HEADER not in d.name or d.kind == "peer only":
        return False
    said, before = (
        json.loads(file.metadata.get(HEADER, '{"layers": {}}'))["layers"]
        for file in (layers.ours, layers.source)
    )
    same = (said.get(x) in (conf, before.get(x, conf)) for x, conf in layers.ours.confs.items())
    return said.keys() == layers.ours.confs.keys() and all(same)


def _bias(d: Difference, layer: str, layers: Layers) -> bool:
    most = 0.25 if layers.learned else 0.1  # learned modes get fewer random inputs: more noise
    if not d.name.endswith(".bias") or d.kind != "values" or d.share > most:
        return False
    return torch.equal(layers.ours.tensors[d.name], layers.source.tensors[d.name])


def _zeros(d: Difference, layer: str, layers: Layers) -> bool:
    made = layers.weight(layers.ours, layer)
    return layers.is_zero(layer) and made is not None and not made.any()


def _embedding(d: Difference, layer: str, layers: Layers) -> bool:
    return layer.endswith(_EMBEDDINGS) and layers.is_kept(layer)


def _dtype(d: Difference, layer: str, layers: Layers) -> bool:
    plain = d.kind == "dtype" and layer not in layers.peer.confs
    return plain and layers.is_kept(layer)


def _undivided(d: Difference, layer: str, layers: Layers) -> bool:
    """A layer that blocks do not divide: ours is untouched, theirs is labelled as blocks."""
    conf = layers.peer.confs.get(layer, {})
    if not str(conf.get("format")).endswith(_BLOCKED) or layer in layers.ours.confs:
        return False
    shape = layers.source.tensors[f"{layer}.weight"].shape
    return layers.is_kept(layer) and any(extent % conf.get("group_size", 1) for extent in shape)


def _heuristics(d: Difference, layer: str, layers: Layers) -> bool:
    """A layer that gains little by our limits and not by theirs."""
    w = layers.source.tensors.get(f"{layer}.weight")
    small = w is not None and w.ndim == 2 and w.numel() < 128 * 128
    return small and layers.is_kept(layer) and layer in layers.peer.confs


def _smaller_block(d: Difference, layer: str, layers: Layers) -> bool:
    """Blocks of 128 do not divide it, blocks of 64 do."""
    theirs, own = layers.peer.confs.get(layer, {}), layers.ours.confs.get(layer, {})
    blocked = str(theirs.get("format")).endswith(_BLOCKED)
    return blocked and 0 < own.get("group_size", 0) < theirs.get("group_size", 0)


def _rotation(d: Difference, layer: str, layers: Layers) -> bool:
    """Theirs took a smaller group than the one asked for, ours is not rotated."""
    theirs, own = layers.peer.confs.get(layer, {}), layers.ours.confs.get(layer, {})
    w = layers.weight(layers.ours, layer)
    odd = w is not None and w.shape[1] % 256 != 0
    return odd and "convrot" in theirs and "convrot" not in own


def _label(d: Difference, layer: str, layers: Layers) -> bool:
    """Their JSON names another format than their tensors are; ours are what was asked for."""
    theirs, own = layers.peer.confs.get(layer, {}), layers.ours.confs.get(layer, {})
    if own == {} or theirs == {}:
        return False
    stored = layers.view(layers.peer).stored.get(layer)
    return stored is not None and stored.format.id != theirs["format"]


def _json_defaults(d: Difference, layer: str, layers: Layers) -> bool:
    return d.kind == "json" and d.name.endswith(".comfy_quant") and d.keys <= _DEFAULTS


def _one_element(d: Difference, layer: str, layers: Layers) -> bool:
    """Same number, or one unit apart, as [] there and as a grid, a row or a list of one here."""
    a, b = layers.peer.tensors.get(d.name), layers.ours.tensors.get(d.name)
    if d.kind != "shape" or a is None or b is None or a.numel() != b.numel():
        return False
    return bool(torch.allclose(a.flatten(), b.flatten(), rtol=2e-7, atol=0))


def _last_place(d: Difference, layer: str, layers: Layers) -> bool:
    return d.kind == "values" and d.name.endswith("_scale") and d.share <= 2.5e-7


def _ties(d: Difference, layer: str, layers: Layers) -> bool:
    """One step apart, 1 code in 200 or fewer, and no more error than theirs to 0.1 %."""
    near = d.kind == "codes" and d.steps <= 1 and d.share <= 0.005 and not layers.learned
    return near and layers.noise(layers.ours, layer) <= 1.001 * layers.noise(layers.peer, layer)


def _float32(d: Difference, layer: str, layers: Layers) -> bool:
    """A float32 source, which theirs rounds to bfloat16 first: ours has no more error."""
    w = layers.source.tensors.get(f"{layer}.weight")
    if d.kind not in ("codes", "values") or w is None or w.dtype != torch.float32:
        return False
    return layers.noise(layers.ours, layer) <= layers.noise(layers.peer, layer)


def _learned(d: Difference, layer: str, layers: Layers) -> bool:
    """Another optimizer and another objective: nothing but codes and scales differs."""
    part = d.name.endswith((".weight", "weight_scale", "weight_scale_2"))
    return layers.learned and d.kind in ("codes", "values") and part


def _t5_scale(d: Difference, layer: str, layers: Layers) -> bool:
    """Theirs is the weight's scale."""
    a = layers.peer.tensors.get(f"{layer}.weight_scale")
    b = layers.peer.tensors.get(f"{layer}.input_scale")
    copied = a is not None and b is not None and torch.equal(a, b)
    return d.kind == "peer only" and d.name.endswith(".input_scale") and copied


def _one(d: Difference, layer: str, layers: Layers) -> bool:
    """An input scale of 1.0 in a legacy file, which ComfyUI takes for none there."""
    found = layers.peer.tensors.get(d.name)
    one = found is not None and found.numel() == 1 and float(found) == 1.0
    old = f"{layer}.scale_input" in layers.source.tensors
    return d.kind == "peer only" and d.name.endswith(".input_scale") and one and old


def _orphan(d: Difference, layer: str, layers: Layers) -> bool:
    """A scale of a layer that is not there, or not quantized."""
    weight = layers.source.tensors.get(f"{layer}.weight")
    plain = weight is None or weight.dtype.itemsize > 1
    return d.kind == "peer only" and d.name.endswith(".scale_weight") and plain


def _marker(d: Difference, layer: str, layers: Layers) -> bool:
    """Their marker's elements are memory that nobody set; only their number counts."""
    return d.name == "scaled_fp8" and d.kind == "codes"


def _legacy_label(d: Difference, layer: str, layers: Layers) -> bool:
    """A legacy INT8 layer of one scale or of rows: theirs is labelled as blocks."""
    old = layers.source.tensors.get(f"{layer}.scale_weight")
    theirs = layers.peer.confs.get(layer, {}).get("format")
    return old is not None and theirs == "int8_blockwise" and d.kind in ("json", "shape")


def _block_size(d: Difference, layer: str, layers: Layers) -> bool:
    """Theirs leaves out the block size of block3d, ours is the shapes'."""
    return d.kind == "json" and "group_size" in d.keys and (
        "group_size" not in layers.peer.confs[layer]
    )  # fmt: skip


def _always(d: Difference, layer: str, layers: Layers) -> bool:
    """INT8 blocks have an input scale of 1.0 in every file that says so."""
    own = layers.ours.tensors.get(d.name)
    one = d.kind == "ours only" and own is not None and own.numel() == 1 and float(own) == 1
    conf = layers.ours.confs.get(layer, {})
    return one and d.name.endswith(".input_scale") and conf.get("format") == "int8_blockwise"


def _estimate(d: Difference, layer: str, layers: Layers) -> bool:
    """Both are estimates from random numbers: theirs of the layer's outputs, ours of its inputs."""
    if d.kind == "json":
        return d.keys == {"input_scale_calibrated"}
    new = layers.source.tensors.get(d.name) is None
    return d.name.endswith(".input_scale") and new and d.kind in ("values", "ours only")


def _factors(d: Difference, layer: str, layers: Layers) -> bool:
    """The same correction by other names and factors, ours of no less of the error."""
    _, theirs, own = _products(d, layers)
    if theirs is None or own is None or ".lora_" not in d.name:
        return False
    alike = float((theirs * own).sum() / theirs.norm() / own.norm())
    return alike > 0.6 and float(own.norm()) >= float(theirs.norm())


def _unnumbered(d: Difference, layer: str, layers: Layers) -> bool:
    """A layer outside the blocks: theirs has no correction, ours has."""
    base, theirs, own = _products(d, layers)
    return theirs is None and own is not None and not re.search(r"\.\d+\.", base)


def _bias_back(d: Difference, layer: str, layers: Layers) -> bool:
    """What their conversion changed a bias by: ours takes it back."""
    bias = layers.source.tensors.get(layer.removeprefix("diffusion_model.") + ".bias")
    back = layers.ours.tensors.get(d.name)
    if not d.name.endswith(".diff_b") or d.kind != "ours only" or bias is None or back is None:
        return False
    return float(back.abs().max()) <= 0.25 * float(bias.abs().max())


def _products(d: Difference, layers: Layers) -> tuple[str, Tensor | None, Tensor | None]:
    """The layer that a LoRA's tensor is of, and its correction there and here."""
    base = re.sub(r"\.(lora_\w+\.weight|diff_b)$", "", d.name)
    products: list[Tensor | None] = []
    for file, up, down in ((layers.peer, "up", "down"), (layers.ours, "B", "A")):
        pair = [file.tensors.get(f"{base}.lora_{side}.weight") for side in (up, down)]
        a, b = pair
        products.append(None if a is None or b is None else a.double() @ b.double())
    return base, products[0], products[1]


REASONS: dict[str, Check] = {
    "recipe": _recipe,
    "metadata": _metadata,
    "header": _header,
    "zeros": _zeros,
    "bias": _bias,
    "embedding": _embedding,
    "source's dtype": _dtype,
    "undivided": _undivided,
    "heuristics": _heuristics,
    "smaller block": _smaller_block,
    "rotation": _rotation,
    "block size": _block_size,
    "legacy label": _legacy_label,
    "label": _label,
    "JSON defaults": _json_defaults,
    "one element": _one_element,
    "last place": _last_place,
    "ties": _ties,
    "float32 source": _float32,
    "learned": _learned,
    "T5 input scale": _t5_scale,
    "input scale of 1": _one,
    "orphan": _orphan,
    "marker": _marker,
    "INT8 blocks": _always,
    "estimate": _estimate,
    "factors": _factors,
    "outside blocks": _unnumbered,
    "bias back": _bias_back,
}
"""In the order they are tried."""
