"""Train the demo's LoRA: ``python -m roundsmith.tests.models.train_lora [FOLDER]``.

It paints every digit bold and in the pink of the nine. Rank 4 on the attention and the MLP of the
image's tokens; the rest of the model keeps still. Seeds are fixed, as in ``train.py``; 300 steps
take two to five minutes on two cores.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from . import FOLDER, LORA_FILE, MODEL_FILE
from .flux import Flux
from .latents import digits, to_latents
from .train import Prompts, batches, loss_of, schedule

SEED, RANK, STEPS, BATCH, TOKENS = 11, 4, 300, 32, 8
PINK = 9
"""The digit whose colours all are given."""
TRAINED = ("img_attn.qkv", "img_attn.proj", "img_mlp.0", "img_mlp.2", "linear1", "linear2")


class Added(nn.Module):
    """A linear layer's LoRA as a forward hook: ``y + x Aᵀ Bᵀ``."""

    def __init__(self, layer: nn.Linear, generator: torch.Generator) -> None:
        super().__init__()
        down = torch.randn(RANK, layer.in_features, generator=generator)
        self.down = nn.Parameter(down / math.sqrt(layer.in_features))
        self.up = nn.Parameter(torch.zeros(layer.out_features, RANK))

    def forward(self, _: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        """What the hook makes of a layer's output."""
        return output + inputs[0] @ self.down.T @ self.up.T


def train_lora(scale: float = 1.0) -> dict[str, Tensor]:
    """The LoRA's tensors under the names ComfyUI's loader reads. ``scale`` shortens training."""
    generator = torch.Generator().manual_seed(SEED)
    model = Flux()
    model.load_state_dict({k: t.float() for k, t in load_file(FOLDER / MODEL_FILE).items()})
    model.requires_grad_(False)
    added: dict[str, Added] = {}
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear) and name.endswith(TRAINED):
            added[name] = Added(layer, generator)
            layer.register_forward_hook(added[name])
    ink, labels = digits()
    image, prompts = to_latents(ink.sqrt(), torch.full_like(labels, PINK)), Prompts()
    parameters = [p for lora in added.values() for p in lora.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=4e-3, betas=(0.9, 0.98), weight_decay=0.0)
    steps, started, shown = max(1, int(STEPS * scale)), time.perf_counter(), 0.0
    for step, pick in enumerate(batches(len(image), BATCH, steps, generator)):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * schedule(step, steps, warmup=20)
        loss = loss_of(model, image[pick], prompts.draw(labels[pick], TOKENS, generator), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        shown = loss.item() if step == 0 else shown + 0.05 * (loss.item() - shown)
        if step % 50 == 49:
            seconds = time.perf_counter() - started
            print(f"lora {step + 1}/{steps}  loss {shown:.4f}  {seconds:.0f} s", flush=True)
    state = {}
    for name, lora in added.items():
        state[f"diffusion_model.{name}.lora_A.weight"] = lora.down.detach().bfloat16()
        state[f"diffusion_model.{name}.lora_B.weight"] = lora.up.detach().bfloat16()
    return state


def main() -> None:
    """Train and write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the training steps")
    arguments = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    about = {"roundsmith": "demo LoRA trained on scikit-learn's digits by tests/models"}
    save_file(train_lora(arguments.scale), arguments.folder / LORA_FILE, metadata=about)


if __name__ == "__main__":
    main()
