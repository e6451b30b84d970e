"""A compact diffusion transformer of the Flux architecture, written for the tests and the demo.

Names and shapes of the state dict are those of published Flux checkpoints, so stock ComfyUI detects
and loads the file; hidden size, depth and the widths of the conditioning are read from the shapes.
Without ``guidance_in`` the model counts as the Schnell kind: flow matching, no time shift.

Shapes: ``latent`` [B, 16, H, W] with even H and W, ``timestep`` [B] in 0..1 (1 = pure noise),
``context`` [B, T, 768], ``y`` [B, 768]. The result is the velocity ``noise - image``, in the shape
of ``latent``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the customary name


@dataclass(frozen=True)
class FluxConfig:
    """Sizes of the network. ``sum(axes)`` is the width of a head."""

    channels: int = 16
    patch: int = 2
    hidden: int = 256
    mlp_ratio: int = 4
    double_blocks: int = 2
    single_blocks: int = 4
    context: int = 768
    vector: int = 768
    axes: tuple[int, int, int] = (16, 56, 56)
    theta: float = 10_000.0

    @property
    def heads(self) -> int:
        return self.hidden // sum(self.axes)


def timestep_embedding(timestep: Tensor, width: int = 256) -> Tensor:
    """Cosines and sines of ``1000 * timestep`` at geometrically falling frequencies, [B, width]."""
    exponents = torch.arange(width // 2, dtype=torch.float32, device=timestep.device) / (width // 2)
    angles = 1000.0 * timestep.float()[:, None] * torch.exp(-math.log(10_000.0) * exponents)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)


def rotary_angles(positions: Tensor, axes: tuple[int, ...], theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [tokens, sum(axes) / 2], for integer ``positions`` [tokens, axes]."""
    angles = []
    for index, width in enumerate(axes):
        exponents = torch.arange(0, width, 2, dtype=torch.float64) / width
        angles.append(positions[:, index, None].double() * theta**-exponents)
    stacked = torch.cat(angles, dim=-1)
    return stacked.cos().float(), stacked.sin().float()


def rotate(x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Turn neighbouring pairs of the last dimension by the given angles."""
    cos, sin = (part.to(x.dtype) for part in rotary)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)


def attend(qkv: Tensor, norm: QKNorm) -> tuple[Tensor, Tensor, Tensor]:
    """Split [B, T, 3 * hidden] into normalised queries and keys, and values, [B, heads, T, d]."""
    width = norm.query_norm.scale.shape[0]
    q, k, v = qkv.unflatten(-1, (3, -1, width)).permute(2, 0, 3, 1, 4)
    return norm.query_norm(q), norm.key_norm(k), v


def join_heads(q: Tensor, k: Tensor, v: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Attention with rotary positions; the heads come back side by side, [B, T, hidden]."""
    out = F.scaled_dot_product_attention(rotate(q, rotary), rotate(k, rotary), v)
    return out.transpose(1, 2).flatten(2)


class Embedder(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.in_layer = nn.Linear(width, hidden)
        self.out_layer = nn.Linear(hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(F.silu(self.in_layer(x)))


class Scale(nn.Module):
    """Root-mean-square normalisation over the last dimension; the parameter is called ``scale``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.scale.shape, self.scale.to(x.dtype))


class QKNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query_norm = Scale(width)
        self.key_norm = Scale(width)


class Modulation(nn.Module):
    """From the conditioning vector: ``count`` vectors [B, 1, hidden] (shift, scale, gate, ...)."""

    def __init__(self, hidden: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.lin = nn.Linear(hidden, count * hidden)

    def forward(self, vec: Tensor) -> tuple[Tensor, ...]:
        return self.lin(F.silu(vec))[:, None].chunk(self.count, dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm without parameters, then scale and shift."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


class SelfAttention(nn.Module):
    def __init__(self, hidden: int, head: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(hidden, 3 * hidden)
        self.norm = QKNorm(head)
        self.proj = nn.Linear(hidden, hidden)


class DoubleBlock(nn.Module):
    """Image and text tokens keep weights of their own and meet in one attention."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden, config.hidden * config.mlp_ratio
        for stream in ("img", "txt"):
            mlp = (nn.Linear(hidden, inner), nn.GELU(approximate="tanh"), nn.Linear(inner, hidden))
            setattr(self, f"{stream}_mod", Modulation(hidden, 6))
            setattr(self, f"{stream}_attn", SelfAttention(hidden, sum(config.axes)))
            setattr(self, f"{stream}_mlp", nn.Sequential(*mlp))

    def forward(
        self, img: Tensor, txt: Tensor, vec: Tensor, rotary: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        img_mod, txt_mod = self.img_mod(vec), self.txt_mod(vec)
        img_qkv = attend(self.img_attn.qkv(modulate(img, *img_mod[:2])), self.img_attn.norm)
        txt_qkv = attend(self.txt_attn.qkv(modulate(txt, *txt_mod[:2])), self.txt_attn.norm)
        q, k, v = (torch.cat(pair, dim=2) for pair in zip(txt_qkv, img_qkv, strict=True))
        txt_out, img_out = join_heads(q, k, v, rotary).split((txt.shape[1], img.shape[1]), dim=1)
        img = img + img_mod[2] * self.img_attn.proj(img_out)
        img = img + img_mod[5] * self.img_mlp(modulate(img, *img_mod[3:5]))
        txt = txt + txt_mod[2] * self.txt_attn.proj(txt_out)
        txt = txt + txt_mod[5] * self.txt_mlp(modulate(txt, *txt_mod[3:5]))
        return img, txt


class SingleBlock(nn.Module):
    """Text and image tokens in one sequence; attention and MLP run side by side."""

    def __init__(self, config: FluxConfig) -> None:
        super().__init__()
        hidden, inner = config.hidden, config.hidden * config.mlp_ratio
        self.split = (3 * hidden, inner)
        self.linear1 = nn.Linear(hidden, 3 * hidden + inner)
        self.linear2 = nn.Linear(hidden + inner, hidden)
        self.norm = QKNorm(sum(config.axes))
        self.modulation = Modulation(hidden, 3)

    def forward(self, x: Tensor, vec: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        shift, scale, gate = self.modulation(vec)
        qkv, inner = self.linear1(modulate(x, shift, scale)).split(self.split, dim=-1)
        attention = join_heads(*attend(qkv, self.norm), rotary)
        merged = torch.cat((attention, F.gelu(inner, approximate="tanh")), dim=-1)
        return x + gate * self.linear2(merged)


class FinalLayer(nn.Module):
    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, width)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden, 2 * hidden))

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(vec)[:, None].chunk(2, dim=-1)
        return self.linear(modulate(x, shift, scale))


class Flux(nn.Module):
    """The network; see the module's text for shapes."""

    def __init__(self, config: FluxConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or FluxConfig()
        width = config.channels * config.patch**2
        self.img_in = nn.Linear(width, config.hidden)
        self.txt_in = nn.Linear(config.context, config.hidden)
        self.time_in = Embedder(256, config.hidden)
        self.vector_in = Embedder(config.vector, config.hidden)
        self.double_blocks = nn.ModuleList(DoubleBlock(config) for _ in range(config.double_blocks))
        self.single_blocks = nn.ModuleList(SingleBlock(config) for _ in range(config.single_blocks))
        self.final_layer = FinalLayer(config.hidden, width)

    def initialise(self) -> None:
        """Xavier weights, zero biases; gates and the last layer start at zero."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
                if name.endswith((".lin", "adaLN_modulation.1", "final_layer.linear")):
                    nn.init.zeros_(module.weight)

    def positions(self, text: int, rows: int, columns: int) -> Tensor:
        """[text + rows * columns, 3]: zeros for text, (0, row, column) for image tokens."""
        grid = torch.zeros(rows, columns, 3, dtype=torch.long)
        grid[..., 1] = torch.arange(rows)[:, None]
        grid[..., 2] = torch.arange(columns)
        return torch.cat((torch.zeros(text, 3, dtype=torch.long), grid.flatten(0, 1)))

    def forward(
        self,
        latent: Tensor,
        timestep: Tensor,
        context: Tensor,
        y: Tensor,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Predict ``noise - image``. ``guidance`` is accepted and unused, as in Flux Schnell."""
        patch, (height, width) = self.config.patch, latent.shape[-2:]
        rows, columns = height // patch, width // patch
        tokens = F.pixel_unshuffle(latent, patch).flatten(2).transpose(1, 2)
        positions = self.positions(context.shape[1], rows, columns)
        angles = rotary_angles(positions, self.config.axes, self.config.theta)
        rotary = (angles[0].to(latent.device), angles[1].to(latent.device))

        img, txt = self.img_in(tokens), self.txt_in(context)
        vec = self.time_in(timestep_embedding(timestep).to(img.dtype)) + self.vector_in(y)
        for block in self.double_blocks:
            img, txt = block(img, txt, vec, rotary)
        x = torch.cat((txt, img), dim=1)
        for block in self.single_blocks:
            x = block(x, vec, rotary)
        out = self.final_layer(x[:, context.shape[1] :], vec)
        return F.pixel_shuffle(out.transpose(1, 2).unflatten(2, (rows, columns)), patch)
