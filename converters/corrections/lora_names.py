"""What ComfyUI's LoRA loader calls the layers of a file.

It knows a diffusion model's layer as ``diffusion_model.<name>``, a text encoder's as
``text_encoders.<encoder>.transformer.<name>``, or ``text_encoders.transformer.<name>`` where the
encoder is not a CLIP (comfy/lora.py: ``model_lora_keys_unet``, ``model_lora_keys_clip``).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..model import ModelView
from ..presets import detect

_CLIPS = {768: "clip_l", 1024: "clip_h", 1280: "clip_g"}  # by width
_CLIP_LAYERS = ("text_model.", "text_projection")
_WRAPPED = re.compile(r"^text_encoders\.[^.]+\.transformer\.")
_FIRST_ENCODERS = ("cond_stage_model.transformer.", "conditioner.embedders.0.transformer.")
_ENCODER_NAMES = ("text_model.", "encoder.block.", "model.layers.")


class LoraNames:
    """Names for the layers of ``model``, a file of any kind."""

    def __init__(self, model: ModelView) -> None:
        found = detect(model.names)
        self._model = model
        self._prefix = found.prefix
        self._is_encoder = found.kind == "text_encoder" or _looks_like_encoder(model.names)
        self._foreign = tuple(part.prefix for part in found.parts if part.role == "vae")

    def of(self, layer: str) -> str | None:
        """The loader's name of a layer; None where it has none (VAEs, OpenCLIP)."""
        if _WRAPPED.match(layer):
            return layer
        for prefix in _FIRST_ENCODERS:
            if layer.startswith(prefix):
                return self._encoder(layer[len(prefix) :], layer)
        if layer.startswith(("cond_stage_model.", "conditioner.", *self._foreign)):
            return None
        if self._is_encoder:
            return self._encoder(layer.removeprefix("transformer."), layer)
        return "diffusion_model." + layer.removeprefix(self._prefix)

    def _encoder(self, name: str, layer: str) -> str | None:
        if not name.startswith(_CLIP_LAYERS):
            return f"text_encoders.transformer.{name}"
        clip = _CLIPS.get(min(self._model.shape(f"{layer}.weight")))
        return None if clip is None else f"text_encoders.{clip}.transformer.{name}"


def _looks_like_encoder(names: Sequence[str]) -> bool:
    inside = sum(name.startswith(_ENCODER_NAMES) for name in names)
    return inside * 2 > len(names)
