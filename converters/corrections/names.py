"""One layer, many spellings: names in files, in modules, in LoRAs.

``model.diffusion_model.double_blocks.0.img_attn.qkv`` of a checkpoint is
``double_blocks.0.img_attn.qkv`` of a diffusion model's file and of a calibration, and
``lora_unet_double_blocks_0_img_attn_qkv`` of a LoRA.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_SUFFIXES = re.compile(r"\.(?:weight|input_scale|scale_input)$")
_DOTTED = re.compile(
    r"^(?:model\.diffusion_model|diffusion_model|model\.model|net|unet|transformer"
    r"|base_model\.model|text_encoders?(?:_\d+)?|cond_stage_model|conditioner\.embedders\.\d+"
    r"|(?:clip_[lgh]|t5xxl)(?=\.transformer\.))\."
)
_WRAPPED = re.compile(r"^[^.]+\.transformer\.(?=(?:text_model|encoder|model|shared)\b)")
_FLAT = re.compile(r"^(?:lora_(?:unet|transformer|te\d*)|lycoris)_+")


def canonical(name: str) -> str:
    """What all spellings of a layer have in common: no prefix, ``_`` for ``.``."""
    name = _SUFFIXES.sub("", name)
    while True:
        shorter = _WRAPPED.sub("", _DOTTED.sub("", name, count=1), count=1)
        if shorter == name:
            break
        name = shorter
    return _FLAT.sub("", name).replace(".", "_")


class LayerNames:
    """Finds a model's layers by foreign spellings of their names.

    Args:
        layers: the model's own names, without ``.weight``.
    """

    def __init__(self, layers: Iterable[str]) -> None:
        self._own = set(layers)
        self._by_canonical: dict[str, list[str]] = {}
        for layer in sorted(self._own):
            self._by_canonical.setdefault(canonical(layer), []).append(layer)

    def find(self, name: str) -> str | None:
        """The layer that ``name`` means; None where it is none, or could be several."""
        name = _SUFFIXES.sub("", name)
        if name in self._own:
            return name
        found = self._by_canonical.get(canonical(name), ())
        return found[0] if len(found) == 1 else None
