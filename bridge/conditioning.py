"""Conditioning without an encoder: what a network is told, drawn at random in its own shapes.

ComfyUI hands a network's conditioning around as named entries, and a model family reads those it
knows. A :class:`Field` makes one of them; entries nobody reads do no harm. How wide the vectors
of an entry are is known to the network alone: :mod:`.probing` asks it.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import comfy.nested_tensor
import torch
from torch import Tensor, nn

TOKENS = 32
"""Of a text: few, as networks take any number, and most of a picture's tokens are its own."""
MOST_TOKENS = 77
"""Where a network has room for so many only, and takes no fewer: CLIP's."""
MORE_TOKENS = 256
"""Of a text, where a network reads it through a second encoder."""
TOKEN_SCALES = (0.0, 1.0, 0.3, 0.1)
POOLED_SCALES = (0.0, 0.1, 0.5, 0.25)
"""Root mean square of the vectors, in turn over the samples; 0 is the null conditioning.

Text encoders differ by two orders of magnitude, and many networks normalise what they are given.
Pooled vectors of different texts differ less than tokens do.
"""


@dataclass(frozen=True)
class Draw:
    """What the values of one run's conditioning are made from."""

    network: nn.Module
    shapes: tuple[tuple[int, ...], ...]
    """Of the latents, batch first; more than one where a model samples several at once."""
    generator: torch.Generator
    turn: int = 0
    """Which scale the first sample has."""
    blank: bool = False
    """Whether the values do not matter: then vectors are zero, and take no memory."""

    @property
    def batch(self) -> int:
        """Samples in the run."""
        return self.shapes[0][0]

    @property
    def tokens(self) -> int:
        """Tokens in a text."""
        return min(getattr(self.network, "text_len", TOKENS), MOST_TOKENS)

    def vectors(self, *shape: int) -> Tensor:
        """Random vectors float32 ``[batch, *shape]``, each sample at its own scale."""
        if self.blank:
            return torch.zeros(()).expand(self.batch, *shape)
        every = TOKEN_SCALES if len(shape) > 1 else POOLED_SCALES
        scales = torch.tensor([every[(self.turn + i) % len(every)] for i in range(self.batch)])
        values = torch.randn(self.batch, *shape, generator=self.generator)
        return values * scales.reshape(-1, *(1 for _ in shape))

    def codes(self, *shape: int) -> Tensor:
        """Random token ids int64 ``shape`` that every embedding of the network has."""
        sizes = [m.num_embeddings for m in self.network.modules() if isinstance(m, nn.Embedding)]
        high = max(min(sizes, default=100), 1)
        return torch.randint(min(high, 1000), shape, generator=self.generator)


@dataclass(frozen=True)
class Field:
    """One entry of a conditioning.

    Attributes:
        key: its name in ComfyUI.
        make: its value from a :class:`Draw` and a width.
        sized: whether its width has to be found.
    """

    key: str
    make: Callable[[Draw, int], Any]
    sized: bool = True


def _tokens(draw: Draw, width: int) -> Tensor:
    return draw.vectors(draw.tokens, width)


def _more_tokens(draw: Draw, width: int) -> Tensor:
    return draw.vectors(MORE_TOKENS, width)


def _mask(draw: Draw, tokens: int) -> Tensor:
    return torch.ones(draw.batch, tokens, dtype=torch.int64)


def _vector(draw: Draw, width: int) -> Tensor:
    return draw.vectors(width)


def _layers(draw: Draw, width: int) -> Tensor:
    indices = getattr(draw.network, "llama_layers", None) or [0]
    return draw.vectors(max(indices) + 1, draw.tokens, width)


def _lyrics(draw: Draw, width: int) -> Tensor:
    if hasattr(draw.network, "lyric_embs"):
        return draw.codes(draw.batch, draw.tokens)
    return draw.vectors(draw.tokens, width)


def _seen_picture(draw: Draw, width: int) -> Any:
    hidden = draw.vectors(257, width)
    return types.SimpleNamespace(
        last_hidden_state=hidden,
        penultimate_hidden_states=hidden,
        image_embeds=hidden[:, 0],
        image_sizes=[(3, 256, 256)],
    )


def _latent(draw: Draw, channels: int | None = None) -> Tensor:
    batch, own, *size = draw.shapes[0]
    return torch.randn(batch, channels or own, *size, generator=draw.generator)


CONTEXT = Field("cross_attn", _tokens)
POOLED = Field("pooled_output", _vector)
TEXT = (
    CONTEXT,
    POOLED,
    Field("attention_mask", lambda draw, _: _mask(draw, draw.tokens), sized=False),
    Field("conditioning_mt5xl", _more_tokens),
    Field("attention_mask_mt5xl", lambda draw, _: _mask(draw, MORE_TOKENS), sized=False),
    Field("conditioning_llama3", _layers),
    Field("conditioning_byt5small", _tokens),
    Field("conditioning_lyrics", _lyrics),
    Field("t5xxl_ids", lambda draw, _: draw.codes(draw.tokens), sized=False),
    Field("t5xxl_weights", lambda draw, _: torch.ones(draw.tokens), sized=False),
)
"""What a text becomes in one family or another."""
BESIDE_TEXT = (
    Field("clip_vision_output", _seen_picture),
    Field("reference_latents", lambda draw, _: [_latent(draw)], sized=False),
    Field("vace_frames", lambda draw, _: [_latent(draw, 32)], sized=False),
    Field("pose_video_latent", lambda draw, _: _latent(draw), sized=False),
    Field("audio_embed", _more_tokens),
)
"""What else networks take: offered where layers stay unreached without it."""


@dataclass(frozen=True)
class Wanted:
    """What a network is sampled with.

    Attributes:
        shapes: of the latents, batch first.
        fields: the entries of its conditioning.
        widths: of the vectors, by the entry's name.
        marked: entries whose width is not known yet.
    """

    shapes: tuple[tuple[int, ...], ...]
    fields: tuple[Field, ...]
    widths: Mapping[str, int]
    marked: frozenset[str] = frozenset()


def conditioning(wanted: Wanted, draw: Draw, **settings: Any) -> list[Any]:
    """A conditioning as ComfyUI's samplers take it, random and null over the samples of the batch.

    Args:
        wanted: which entries, and how wide.
        draw: what they are drawn from.
        settings: further entries, as ``guidance``.
    """
    entries = {
        f.key: f.make(replace(draw, blank=f.key in wanted.marked), wanted.widths.get(f.key, 0))
        for f in wanted.fields
    }
    context = entries.pop(CONTEXT.key, None)
    return [[context, {**entries, **settings}]]


def latent_shapes(
    latent_format: Any, batch: int, pixels: int, frames: int
) -> tuple[tuple[int, ...], ...]:
    """Shapes of the latents of a small picture, film or sound.

    Args:
        latent_format: the model's, as ComfyUI gives it.
        batch: samples.
        pixels: height and width of the picture.
        frames: latent frames of a film.
    """
    channels = latent_format.latent_channels
    name = type(latent_format).__name__
    side = max(pixels // max(latent_format.spacial_downscale_ratio, 1), 4)
    if name == "LTXAV":
        return (batch, channels, frames, side, side), (batch, 8, 8 * frames, 16)
    if name == "ACEAudio":
        return ((batch, channels, 16, side * side // 16),)
    size = {1: (side * side,), 2: (side, side), 3: (frames, side, side)}
    return ((batch, channels, *size[latent_format.latent_dimensions]),)


def draw_latent(shapes: Iterable[tuple[int, ...]], generator: torch.Generator) -> Any:
    """Noise of these shapes, float32; a nested tensor where there are several."""
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    return tensors[0] if len(tensors) == 1 else comfy.nested_tensor.NestedTensor(tensors)
