"""What the tests in this process share: sampling, scores, LoRAs."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.sample
import comfy.sd
import comfy.utils
import torch
from torch import Tensor

from roundsmith.bridge.loading import load_diffusion_model
from roundsmith.bridge.operations import core_knows
from roundsmith.layouts import formats
from roundsmith.tests.models.text import encode

STEPS = 2
TOKENS = 8
"""Of a prompt's 77: the rest is padding, and costs most of the time on a CPU."""
CASES = [(name, {}) for name in formats()] + [
    ("int8_tensorwise", {"scaling": "tensor"}),
    ("int8_tensorwise", {"convrot": 64}),
    *((name, {"variant": v}) for name, fmt in formats().items() for v in fmt.variants[1:]),
]
"""Every format, with the options that change how it is stored."""
STOCK = [
    (name, options)
    for name, options in CASES
    if formats()[name].stock or core_knows(name, options.get("variant"))
]
LEAST_SNR = {
    **{"nvfp4": 20.0, "bnb_nf4": 20.0, "bnb_fp4": 18.0, "bnb_af4": 20.0, "float8_e5m2": 28.0},
    **{"convrot_w4a4": 8.0, "asym_w4a8_int8": 20.0},
}
"""dB of the final latent below which a format is broken; 32 where not listed."""


def case_id(value: Any) -> str:
    """A readable name for a parametrised case."""
    if isinstance(value, dict):
        return "-".join(f"{k}={v}" for k, v in value.items()) or "default"
    return str(value)


@functools.cache
def conditioning(prompt: str = "a handwritten three") -> list[Any]:
    """Conditioning the demo's text encoder gives, without running ComfyUI's."""
    context, pooled = encode([prompt])
    return [[context[:, :TOKENS], {"pooled_output": pooled}]]


@torch.inference_mode()
def sample(model: Any, seed: int = 1, steps: int = STEPS) -> Tensor:
    """The final latent after a few Euler steps."""
    align(model.model)
    latent = torch.zeros(1, 16, 8, 8)
    noise = comfy.sample.prepare_noise(latent, seed)
    positive = conditioning()
    return comfy.sample.sample(
        *(model, noise, steps, 1.0, "euler", "simple", positive, positive, latent),
        seed=seed,
        disable_pbar=True,
    )


@torch.inference_mode()
def align(module: torch.nn.Module) -> None:
    """Move plain weights to 64 bytes, as torch allocates: in a file the header's length decides.

    A CPU's product of one row sums in another order where its matrix begins elsewhere.
    """
    for parameter in module.parameters():
        if type(parameter.data) is Tensor and parameter.data_ptr() % 64:
            parameter.data = parameter.data.clone()


@torch.inference_mode()
def load_stock(path: Path) -> Any:
    """A model through ComfyUI's own loader."""
    return comfy.sd.load_diffusion_model(str(path))


@torch.inference_mode()
def load_ours(path: Path) -> Any:
    """A model through our loader."""
    return load_diffusion_model(str(path))


def snr(reference: Tensor, other: Tensor) -> float:
    """dB of ``reference`` over its difference to ``other``."""
    noise = (reference.double() - other.double()).pow(2).sum().item()
    return 10 * math.log10(reference.double().pow(2).sum().item() / max(noise, 1e-30))


def least_snr(format: str) -> float:
    """The score below which a format is broken."""
    return LEAST_SNR.get(format, 32.0)


def lora(strength: float = 0.8, layers: tuple[str, ...] = ("qkv", "linear1")) -> dict[str, Tensor]:
    """A LoRA that visibly changes the demo model, rank 4, as a file holds it."""
    generator = torch.Generator().manual_seed(5)
    state = {}
    shapes = {
        "double_blocks.0.img_attn.qkv": (768, 256),
        "double_blocks.1.img_attn.qkv": (768, 256),
        "single_blocks.0.linear1": (1792, 256),
        "single_blocks.3.linear1": (1792, 256),
    }
    for name, (rows, columns) in shapes.items():
        if name.rsplit(".", 1)[1] in layers:
            down = torch.randn(4, columns, generator=generator) / columns**0.5
            up = torch.randn(rows, 4, generator=generator) * strength / 2
            state[f"diffusion_model.{name}.lora_A.weight"] = down
            state[f"diffusion_model.{name}.lora_B.weight"] = up
    return state


@torch.inference_mode()
def with_lora(model: Any, state: dict[str, Tensor] | None = None, strength: float = 1.0) -> Any:
    """The model with a LoRA, by ComfyUI's own loader; every key of it must be used."""
    state = state or lora()
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    patches = comfy.lora.load_lora(state, keys)
    assert len(patches) == len(state) // 2
    new = model.clone()
    assert len(new.add_patches(patches, strength)) == len(patches)
    return new


def hooks_on(module: torch.nn.Module) -> int:
    """How many hooks a module and those in it have."""
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in module.modules())


def tokens_seen(
    module: torch.nn.Module, layers: Iterable[str], run: Callable[[], object]
) -> dict[str, Tensor]:
    """What plain torch hooks see of the inputs of ``layers`` during ``run``, float64 ``[k, N]``."""
    seen: dict[str, list[Tensor]] = {name: [] for name in layers}

    def hook(name: str) -> Callable[..., None]:
        def keep(_: torch.nn.Module, args: tuple[Tensor, ...]) -> None:
            seen[name].append(args[0].detach().reshape(-1, args[0].shape[-1]).double())

        return keep

    handles = [module.get_submodule(n).register_forward_pre_hook(hook(n)) for n in seen]
    with torch.inference_mode():
        run()
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts) for name, parts in seen.items()}
