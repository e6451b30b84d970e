"""Digits as sixteen-channel latents, and the pictures they stand for.

ComfyUI previews a Flux latent by a fixed linear map from sixteen channels to red, green and blue.
``DIRECTIONS`` is the pseudo-inverse of that map: a latent built from it previews as exactly the
colours put in. The thirteen dimensions the preview cannot see carry smooth features of the digit
(blurs, slopes, curvature ...), so that all sixteen channels say something, at unit scale.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the customary name

# The latent of pure red, green and blue (preview range -1..1), and the preview of a zero latent.
DIRECTIONS = torch.tensor(
    [
        [-1.3484, -0.1407, 2.3641, -0.6519, 0.7798, -0.9409, -0.6559, -0.3247,
         -0.8422, 0.7894, -2.0345, 1.2720, 0.7308, -2.8406, 1.2633, -1.4814],
        [0.5625, -0.6543, -3.5796, -0.2228, 1.1994, 1.9824, 1.6735, 0.1970,
         -0.9923, 3.0053, 2.5278, -1.0990, 0.4577, 3.1135, -3.2266, -0.5157],
        [1.1996, 1.4792, 0.6247, 1.3121, -0.5594, -0.6773, 0.5882, -0.3773,
         2.6978, -2.7896, -0.7343, 0.1193, 0.5408, -2.4301, 0.7457, -0.2506],
    ]
)  # fmt: skip
PREVIEW_OF_ZERO = torch.tensor([-0.0329, -0.0718, -0.0851])
LUMA = torch.tensor([0.299, 0.587, 0.114])
FEATURE_SCALE = 0.55

# One ink and one paper colour a digit, 0..1: pale ink on dark paper, the hues around the wheel.
INKS = torch.tensor(
    [
        [0.884, 0.780, 0.684],
        [0.812, 0.828, 0.628],
        [0.727, 0.863, 0.663],
        [0.676, 0.876, 0.732],
        [0.663, 0.863, 0.839],
        [0.716, 0.820, 0.916],
        [0.788, 0.772, 0.972],
        [0.873, 0.737, 0.937],
        [0.924, 0.724, 0.868],
        [0.937, 0.737, 0.761],
    ]
)
PAPERS = torch.tensor(
    [
        [0.125, 0.094, 0.065],
        [0.103, 0.108, 0.048],
        [0.078, 0.119, 0.059],
        [0.063, 0.123, 0.080],
        [0.059, 0.119, 0.112],
        [0.075, 0.106, 0.135],
        [0.097, 0.092, 0.152],
        [0.122, 0.081, 0.141],
        [0.137, 0.077, 0.120],
        [0.141, 0.081, 0.088],
    ]
)


def digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's digits: intensities [1797, 8, 8] in 0..1 and labels [1797]."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.from_numpy(data.images).float() / 16, torch.from_numpy(data.target).long()


def features(ink: Tensor) -> Tensor:
    """Thirteen smooth descriptions of intensities [B, 8, 8], each near zero mean: [B, 13, 8, 8]."""
    x = F.pad(ink[:, None], (2, 2, 2, 2), mode="replicate")
    line = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    slope = torch.tensor([-1.0, -2.0, 0.0, 2.0, 1.0]) / 6
    bend = torch.tensor([1.0, 0.0, -2.0, 0.0, 1.0]) / 2
    pairs = [(line, line), (line, slope), (slope, line), (slope, slope), (line, bend), (bend, line)]
    kernels = torch.stack([torch.outer(a, b) for a, b in pairs])[:, None]
    soft, across, down, twist, bend_x, bend_y = F.conv2d(x, kernels).unbind(1)
    ramp = torch.linspace(-1, 1, ink.shape[-1])
    tall = F.max_pool2d(x, 3, 1)[:, 0, 1:-1, 1:-1]
    thin = -F.max_pool2d(-x, 3, 1)[:, 0, 1:-1, 1:-1]
    stack = [
        *(soft - 0.3, across, down, 2 * twist, bend_x, bend_y, ink - soft),
        *(tall - 0.6, thin - 0.1, ink * (1 - ink) * 3 - 0.2),
        *(soft * ramp, soft * ramp[:, None], across * down * 4),
    ]
    return torch.stack(stack, dim=1) * 2


def hidden_basis() -> Tensor:
    """Orthonormal basis [16, 13] of what the preview cannot see."""
    columns = torch.cat((DIRECTIONS.T.double(), torch.eye(16, dtype=torch.float64)), dim=1)
    basis: list[Tensor] = []
    for column in columns.T:
        for other in basis:
            column = column - (column @ other) * other
        if column.norm() > 0.2 or len(basis) < 3:
            basis.append(column / column.norm())
    return torch.stack(basis[3:16], dim=1).float()


def to_latents(ink: Tensor, labels: Tensor) -> Tensor:
    """Latents [B, 16, 8, 8], in the sampler's scale, of intensities [B, 8, 8] of these digits."""
    colour = PAPERS[labels][..., None, None] * (1 - ink[:, None])
    colour = (colour + INKS[labels][..., None, None] * ink[:, None]) * 2 - 1
    seen = torch.einsum("cn,bchw->bnhw", DIRECTIONS, colour - PREVIEW_OF_ZERO[:, None, None])
    unseen = torch.einsum("nf,bfhw->bnhw", hidden_basis(), features(ink))
    return seen + FEATURE_SCALE * unseen


def preview(latents: Tensor) -> Tensor:
    """ComfyUI's preview of latents [B, 16, H, W]: colours [B, 3, H, W] in 0..1."""
    matrix = torch.linalg.pinv(DIRECTIONS.double()).float()
    colours = torch.einsum("nc,bnhw->bchw", matrix, latents) + PREVIEW_OF_ZERO[:, None, None]
    return ((colours + 1) / 2).clamp(0, 1)


def intensities(latents: Tensor) -> Tensor:
    """The digit's intensities [B, 8, 8] back from latents, by luminance alone, about 0..1."""
    luma = torch.einsum("c,bchw->bhw", LUMA, preview(latents))
    low, high = (PAPERS @ LUMA).mean(), (INKS @ LUMA).mean()
    return ((luma - low) / (high - low)).clamp(0, 1)


def pictures(ink: Tensor, labels: Tensor) -> Tensor:
    """What the decoder learns to paint: crisp strokes with a soft glow, [B, 3, 64, 64] in 0..1."""
    around = F.avg_pool2d(F.pad(ink[:, None], (1, 1, 1, 1), mode="replicate"), 3, 1)
    sharp = ink[:, None] + 0.6 * (ink[:, None] - around)  # opens the loops of small digits
    fine = F.interpolate(sharp, scale_factor=8, mode="bicubic", align_corners=False)
    stroke = smoothstep(fine, 0.36, 0.78)
    glow = smoothstep(fine, 0.0, 0.80) * 0.30
    inks, papers = INKS[labels][..., None, None], PAPERS[labels][..., None, None]
    vivid = inks + 0.5 * (inks - inks.mean(1, keepdim=True)) + 0.06
    ground = papers * 0.8 + (vivid - papers) * glow
    return (ground + (vivid - ground) * stroke).clamp(0, 1)


def smoothstep(x: Tensor, low: float, high: float) -> Tensor:
    """0 below ``low``, 1 above ``high``, smooth between."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)
