"""Short runs of a MODEL from noise: told prompts of ours, random things, and nothing."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import comfy.model_management as mm
import comfy.sample
import torch
from torch import Tensor

from .capturing import model_layers, wrap_model
from .conditioning import (
    BESIDE_TEXT,
    TOKEN_SCALES,
    Draw,
    Wanted,
    conditioning,
    draw_latent,
    latent_shapes,
)
from .passes import Callback, Run
from .probing import find_wanted, offer, reached
from .prompts import PROMPTS

PIXELS = 128
"""Of a picture's side on a CPU; twice that on anything faster."""
FRAMES = 3
BATCH = len(TOKEN_SCALES)
SAMPLES = 8 * BATCH
STEPS = 6
"""Of a run; some take one or two fewer, for other noise levels."""
SECONDS = 60.0
"""What all runs may take; fewer samples are drawn where the model is slow."""
SLOWDOWN = 2.5
"""Times the time of a step that one takes which is recorded: docs/benchmarks.md, "Capturing"."""
FEWEST_SAMPLES = 2 * BATCH
RANDOM_EACH = 4
"""Every so many runs with prompts, one with random conditioning."""
SAID_SIZE = {"width": 1024, "height": 1024}
"""What models that ask for the picture's size are told: the one they know best."""


@dataclass(frozen=True)
class Told:
    """What a run is told: its conditioning, made anew each time, for so many samples."""

    batch: int
    make: Callable[[Draw], Any]


@dataclass(frozen=True)
class Plan:
    """How to run a model: each run samples once; ``what`` it is told, and notes, for the person."""

    runs: Sequence[Run]
    what: str
    notes: Sequence[str]


def plan_runs(
    patcher: Any, clip: Any = None, seed: int = 0, passes: Callable[[], int] = lambda: 1
) -> Plan:
    """Find out how the model can be run, and plan the runs. A few single steps are sampled.

    Args:
        patcher: the ModelPatcher; it is not changed.
        clip: its CLIP, for built-in prompts; or None.
        seed: of noise and conditioning.
        passes: how often all runs will be done, asked once the model is where it runs.

    Raises what the model raises, if it cannot be run in any way that was tried.
    """
    plain = wrap_model(patcher, nullcontext)
    latent_format = plain.model.latent_format
    wanted = Wanted(latent_shapes(latent_format, 1, _pixels(plain), FRAMES), (), {})
    notes: list[str] = []
    random: list[Told] = []
    prompts = _prompts(clip, notes)
    try:
        wanted = _discovered(plain, seed)
    except Exception as error:
        mm.throw_exception_if_processing_interrupted()
        if not prompts:
            raise
        notes.append(f"random conditioning was not taken: {type(error).__name__}: {error}")
    else:
        random = [_random(wanted)]
    what = "told random things and nothing"
    if prompts:
        beside = Wanted(
            wanted.shapes, tuple(f for f in wanted.fields if f in BESIDE_TEXT), wanted.widths
        )
        prompts = [Told(p.batch, partial(_with, p, beside)) for p in prompts]
        what = "told built-in prompts" + (", random things and nothing" if random else "")
    timed = (random or prompts)[0]
    step = partial(_run, wanted.shapes, timed, 1, seed, plain)
    if not random:
        step()  # loads the model
    times = passes()
    samples = _affordable(step, timed.batch, times)
    if samples < SAMPLES:
        often = f", in each of {times} passes that memory asks for" if times > 1 else ""
        notes.append(f"the model is slow: {samples} samples were drawn instead of {SAMPLES}{often}")
    runs = []
    for index, told in enumerate(_in_turn(prompts, random)):
        if samples <= 0:
            break
        runs.append(partial(_run, wanted.shapes, told, max(STEPS - index % 3, 1), seed + index))
        samples -= told.batch
    return Plan(runs, what, notes)


def _in_turn(prompts: Sequence[Told], random: Sequence[Told]) -> Iterator[Told]:
    """Prompts over and over, with random conditioning in between; or that alone."""
    if not prompts:
        yield from itertools.cycle(random)
    for index, told in enumerate(itertools.cycle(prompts), 1):
        yield told
        if index % (RANDOM_EACH - 1) == 0:
            yield from random


def _discovered(plain: Any, seed: int) -> Wanted:
    """What the model can be sampled with, so that as many of its layers as can be are reached."""
    network = plain.model.diffusion_model
    run = partial(_one_step, plain, seed)
    wanted = find_wanted(plain.model, run, _pixels(plain), FRAMES, BATCH)
    layers = model_layers(plain)
    seen = reached(network, layers, partial(run, wanted))
    for field in BESIDE_TEXT:
        if len(seen) == len(layers):
            break
        more = offer(network, run, wanted, field)
        if more is None:
            continue
        now = reached(network, layers, partial(run, more))
        if len(now) > len(seen):
            wanted, seen = more, now
    return wanted


def _pixels(plain: Any) -> int:
    return PIXELS if mm.is_device_cpu(plain.load_device) else 2 * PIXELS


def _one_step(plain: Any, seed: int, wanted: Wanted) -> None:
    _run(wanted.shapes, _random(wanted), 1, seed, plain)


def _random(wanted: Wanted) -> Told:
    return Told(wanted.shapes[0][0], partial(conditioning, wanted))


def _affordable(step: Callable[[], None], batch: int, passes: int) -> int:
    """How many samples there is time for, each of them recorded in every pass.

    Args:
        step: samples a batch, one step of it, unrecorded.
        batch: its samples.
        passes: how often all runs are done.
    """
    began = time.monotonic()
    step()
    seconds = (time.monotonic() - began) / batch * STEPS * SLOWDOWN * passes
    return max(FEWEST_SAMPLES, min(SAMPLES, int(SECONDS / max(seconds, 1e-6))))


def _run(
    shapes: tuple[tuple[int, ...], ...],
    told: Told,
    steps: int,
    seed: int,
    model: Any,
    callback: Callback | None = None,
) -> None:
    """Sample once, without guidance: both of its branches are among what runs are told."""
    generator = torch.Generator().manual_seed(seed)
    shapes = tuple((told.batch, *shape[1:]) for shape in shapes)
    draw = Draw(model.model.diffusion_model, shapes, generator, turn=seed)
    entries = {**SAID_SIZE, **_guidance(model, seed)}
    given = [[context, {**entries, **more}] for context, more in told.make(draw)]
    noise = draw_latent(shapes, generator)
    comfy.sample.sample(
        *(model, noise, steps, 1.0, "euler", "simple", given, given, noise * 0.0),
        callback=callback,
        disable_pbar=True,
        seed=seed,
    )


def _guidance(model: Any, seed: int) -> dict[str, float]:
    """For models told how strongly to follow the prompt: mostly what they know best."""
    embedded = bool(model.model.model_config.unet_config.get("guidance_embed"))
    return {"guidance": 1.0 + seed % 5} if embedded and seed % 2 else {}


def _with(told: Told, beside: Wanted, draw: Draw) -> Any:
    """What a text became, with what else the network takes."""
    ((_, entries),) = conditioning(beside, draw)
    return [[context, {**entries, **own}] for context, own in told.make(draw)]


def _prompts(clip: Any, notes: list[str]) -> list[Told]:
    """The built-in prompts, encoded, several to a run where their shapes agree."""
    if clip is None:
        return []
    try:
        encoded = [
            clip.encode_from_tokens_scheduled(clip.tokenize(prompt), show_pbar=False)
            for prompt in PROMPTS
        ]
    except Exception as error:  # a model can do without
        mm.throw_exception_if_processing_interrupted()
        logging.warning("Roundsmith: the CLIP could not encode a prompt", exc_info=error)
        notes.append(f"the CLIP could not encode prompts: {type(error).__name__}: {error}")
        return []
    told = []
    for start in range(0, len(encoded), BATCH):
        group = encoded[start : start + BATCH]
        joined = _joined(group)
        singles = [Told(1, lambda _, c=c: c) for c in group]
        told += singles if joined is None else [Told(len(group), lambda _, c=joined: c)]
    return told


def _joined(group: Sequence[Any]) -> Any:
    """Conditionings of one sample each as one of several; None where they do not fit together."""
    if any(len(conditioning) != 1 for conditioning in group):
        return None
    entries = [{"": context, **more} for ((context, more),) in group]
    joined: dict[str, Any] = {}
    for key, first in entries[0].items():
        values = [e.get(key) for e in entries]
        if any(e.keys() != entries[0].keys() for e in entries):
            return None
        if isinstance(first, Tensor):
            if first.shape[:1] != (1,) or any(v.shape != first.shape for v in values):
                return None
            joined[key] = torch.cat(values)
        elif any(v != first for v in values):
            return None
        else:
            joined[key] = first
    return [[joined.pop(""), joined]]
