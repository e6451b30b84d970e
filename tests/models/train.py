"""Train the demo's model: ``python -m roundsmith.tests.models.train [FOLDER]``.

Everything is drawn from fixed seeds and computed in float32 on the CPU, from scikit-learn's digits
and a generated text encoder: no download. The same machine, torch and number of threads give the
same files, bit for bit; elsewhere sums are taken in another order and the model is another,
equally good one.

On two cores a step takes 0.38 s (the first 1250), 0.56 s (the last 200) and 0.08 s (the 500 of the
autoencoder): 10.5 minutes in all, 18 minutes of processor time for the network alone.
``OMP_WAIT_POLICY=PASSIVE`` helps a lot where the cores are shared.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the customary name

from . import MODEL_FILE, VAE_FILE, taesd, text
from .flux import Flux
from .latents import digits, pictures, to_latents

SEED = 7
TEMPLATES = ("a handwritten {name}", "{name}", "the digit {name}", "the number {name}")
TEMPLATES += ("a handwritten {digit}", "{digit}", "the digit {digit}", "a drawing of {name}")
# Most steps see the head of the prompt only, where the words are; the last ones all 77 tokens.
SHORT_STEPS, SHORT_BATCH, FULL_STEPS, FULL_BATCH = 1250, 64, 200, 32
PICTURE_STEPS, PICTURE_BATCH = 500, 16


class Prompts:
    """Conditioning for labels: half the time the first wording, else another, sometimes none."""

    def __init__(self) -> None:
        wordings = [
            template.format(name=name, digit=digit)
            for template in TEMPLATES
            for digit, name in enumerate(text.NAMES)
        ]
        self.context, self.pooled = text.encode([*wordings, ""])

    def draw(
        self, labels: Tensor, tokens: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Context [B, tokens, 768] and pooled vector [B, 768], with a little noise."""
        count = len(labels)
        wording = torch.randint(2 * len(TEMPLATES), (count,), generator=generator)
        index = 10 * (wording - len(TEMPLATES)).clamp(min=0) + labels
        nothing = torch.rand(count, generator=generator) < 0.08
        index = torch.where(nothing, len(self.context) - 1, index)
        context, pooled = self.context[index, :tokens], self.pooled[index]
        noise = torch.randn(context.shape, generator=generator)
        return context + 0.02 * noise, pooled + 0.02 * noise[:, 0]


def loss_of(
    model: Flux, image: Tensor, prompt: tuple[Tensor, Tensor], generator: torch.Generator
) -> Tensor:
    """Flow matching: mean squared error of the velocity at a random point of the path."""
    level = torch.sigmoid(torch.randn(len(image), generator=generator) * 1.2)
    level = torch.where(torch.rand(len(image), generator=generator) < 0.1, 1 - level**4, level)
    noise = torch.randn(image.shape, generator=generator)
    mixed = torch.lerp(image, noise, level[:, None, None, None])
    return F.mse_loss(model(mixed, level, *prompt), noise - image)


def schedule(step: int, steps: int, warmup: int = 50) -> float:
    """Linear warm-up, then a cosine down to 2 %."""
    done = step / steps
    return min(1.0, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * done)))


def batches(count: int, size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """``steps`` index tensors of ``size``, pass after pass over ``count`` shuffled samples."""
    pool = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        while len(pool) < size:
            pool = torch.cat((pool, torch.randperm(count, generator=generator)))
        yield pool[:size]
        pool = pool[size:]


def train_flux(scale: float = 1.0) -> Flux:
    """The trained network with averaged weights, float32. ``scale`` shortens the training."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    ink, labels = digits()
    image, prompts = to_latents(ink, labels), Prompts()
    model, average = Flux(), Flux()
    model.initialise()
    average.load_state_dict(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    short, full = int(SHORT_STEPS * scale), int(FULL_STEPS * scale)
    steps, started, shown = short + full, time.perf_counter(), 0.0
    sizes = [SHORT_BATCH] * short + [FULL_BATCH] * full
    picks = batches(len(image), max(SHORT_BATCH, FULL_BATCH), steps, generator)
    for step, (pick, size) in enumerate(zip(picks, sizes, strict=True)):
        pick = pick[:size]
        drawn = torch.randint(6, 13, (1,), generator=generator)
        tokens = int(drawn) if step < short else text.POSITIONS
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * schedule(step, steps)
        loss = loss_of(model, image[pick], prompts.draw(labels[pick], tokens, generator), generator)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        decay = min(0.995, (step + 1) / (step + 20))
        with torch.no_grad():
            for kept, new in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
        shown = loss.item() if step == 0 else shown + 0.02 * (loss.item() - shown)
        if step % 50 == 49:
            seconds = time.perf_counter() - started
            print(f"flux {step + 1}/{steps}  loss {shown:.4f}  {seconds:.0f} s", flush=True)
    return average.eval().requires_grad_(False)


def train_autoencoder(scale: float = 1.0) -> tuple[nn.Sequential, nn.Sequential]:
    """The narrow encoder and decoder: each learns alone, for both ends of the map are known."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    ink, labels = digits()
    networks = taesd.encoder(taesd.WIDTH), taesd.decoder(taesd.WIDTH)
    for network in networks:
        network.to(memory_format=torch.channels_last)  # a third faster on CPUs
    optimizer = torch.optim.AdamW([*networks[0].parameters(), *networks[1].parameters()], lr=2e-3)
    steps, started = int(PICTURE_STEPS * scale), time.perf_counter()
    for step, pick in enumerate(batches(len(ink), PICTURE_BATCH, steps, generator)):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * schedule(step, steps)
        latent, picture = to_latents(ink[pick], labels[pick]), pictures(ink[pick], labels[pick])
        noisy = latent + 0.1 * torch.randn(latent.shape, generator=generator)
        painted, read = networks[1](noisy), networks[0](picture)
        errors = F.l1_loss(painted, picture), F.mse_loss(painted, picture), F.mse_loss(read, latent)
        optimizer.zero_grad()
        (errors[0] + 2 * errors[1] + 0.2 * errors[2]).backward()
        nn.utils.clip_grad_norm_([p for net in networks for p in net.parameters()], 1.0)
        optimizer.step()
        if step % 50 == 49:
            seconds, values = time.perf_counter() - started, [f"{e.item():.4f}" for e in errors]
            print(f"pictures {step + 1}/{steps}  {' '.join(values)}  {seconds:.0f} s", flush=True)
    return networks


def main() -> None:
    """Train both networks and write the two files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=Path(__file__).parent)
    parser.add_argument("--scale", type=float, default=1.0, help="fraction of the training steps")
    parser.add_argument("--only", choices=("flux", "pictures"), help="train one network only")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    torch.use_deterministic_algorithms(True)
    started = time.perf_counter()
    about = {"roundsmith": "demo model trained on scikit-learn's digits by tests/models/train.py"}
    if arguments.only != "pictures":
        state = {name: t.bfloat16() for name, t in train_flux(arguments.scale).state_dict().items()}
        save_file(state, arguments.folder / MODEL_FILE, metadata=about)
    if arguments.only != "flux":
        networks = train_autoencoder(arguments.scale)
        save_file(taesd.file_state(*networks), arguments.folder / VAE_FILE, metadata=about)
    seconds = time.perf_counter() - started
    print(f"done in {seconds:.0f} s, {time.process_time():.0f} s of processor time")


if __name__ == "__main__":
    main()
