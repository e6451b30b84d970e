"""A tiny autoencoder in the TAESD form, which ComfyUI's ``VAELoader`` reads as a VAE.

The layout (which layer has which index) is TAESD's: three halvings, 64 channels, sixteen latent
channels. Training runs at ``WIDTH`` channels, a tenth of the work, and :func:`widen` stores the
result at 64: the channels added are zero and never wake, so both compute the same picture.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the customary name

STORED_WIDTH, WIDTH, CHANNELS = 64, 16, 16
VAE_SCALE, VAE_SHIFT = 0.3611, 0.1159  # how ComfyUI scales a Flux latent outside the sampler


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        convs = [nn.Conv2d(width, width, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x) + x)


class SoftClamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


def decoder(width: int = STORED_WIDTH) -> nn.Sequential:
    """Latents [B, 16, h, w], in the sampler's scale, to pictures [B, 3, 8h, 8w] in 0..1."""
    layers: list[nn.Module] = [SoftClamp(), nn.Conv2d(CHANNELS, width, 3, padding=1), nn.ReLU()]
    for _ in range(3):
        layers += [Block(width) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(width, width, 3, padding=1, bias=False)]
    return nn.Sequential(*layers, Block(width), nn.Conv2d(width, 3, 3, padding=1))


def encoder(width: int = STORED_WIDTH) -> nn.Sequential:
    """Pictures [B, 3, 8h, 8w] in 0..1 to latents [B, 16, h, w] in the sampler's scale."""
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1), Block(width)]
    for _ in range(3):
        layers.append(nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False))
        layers += [Block(width) for _ in range(3)]
    return nn.Sequential(*layers, nn.Conv2d(width, CHANNELS, 3, padding=1))


def widen(narrow: nn.Sequential, wide: nn.Sequential) -> dict[str, Tensor]:
    """The narrow network's tensors in the wide one's shapes, zeros elsewhere."""
    state = {name: torch.zeros_like(tensor) for name, tensor in wide.state_dict().items()}
    for name, tensor in narrow.state_dict().items():
        state[name][tuple(slice(0, size) for size in tensor.shape)] = tensor
    return state


def file_state(narrow_encoder: nn.Sequential, narrow_decoder: nn.Sequential) -> dict[str, Tensor]:
    """The state dict of the VAE file, float16."""
    parts = {
        "taesd_encoder": widen(narrow_encoder, encoder()),
        "taesd_decoder": widen(narrow_decoder, decoder()),
    }
    state = {f"{part}.{name}": t for part, tensors in parts.items() for name, t in tensors.items()}
    state["vae_scale"], state["vae_shift"] = torch.tensor(VAE_SCALE), torch.tensor(VAE_SHIFT)
    return {name: tensor.half() if tensor.ndim else tensor for name, tensor in state.items()}


def load_decoder(state: dict[str, Tensor]) -> nn.Sequential:
    """The decoder, float32 and ready to use, from the file's state dict."""
    prefix, network = "taesd_decoder.", decoder()
    found = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    network.load_state_dict({name: tensor.float() for name, tensor in found.items()})
    return network.eval().requires_grad_(False)
