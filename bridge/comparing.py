"""Compare Models: sample two MODELs with the same seed and noise, and score what differs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import comfy.model_management as mm
import latent_preview
from torch import Tensor

from ..converters.calibration import Calibration
from ..converters.comparing import Comparison, StepScore
from ..converters.comparing.comparison import worst_first
from ..converters.comparing.scores import Power
from ..errors import RoundsmithError
from .capturing import model_capture, wrap_model
from .layer_scores import common_layers, layer_outputs, score_layers
from .pictures import pictures_of
from .progress import Messages
from .sampling import Latent, ksample
from .timing import measured

TOKENS = 128
"""Inputs of each layer it is scored on."""

MEMORY = 384 * 1024**2
"""Bytes they may take; where they do not fit, there are fewer."""

RECORDED_STEPS = 8
"""Steps that layers' inputs are taken from, spread over the run."""

Run = Callable[..., Latent]


class Compared(NamedTuple):
    """What a comparison of two MODELs gives.

    ``pictures`` are those of the reference and of the quantized model, each ``[B, H, W, 3]`` in
    0..1: decoded, or without a VAE approximate; None where the model has no approximation.
    """

    comparison: Comparison
    reference: Latent
    quantized: Latent
    pictures: tuple[Tensor, Tensor] | None


def compare_models(
    reference: Any,
    quantized: Any,
    positive: Any,
    negative: Any,
    latent: Latent,
    seed: int,
    steps: int,
    cfg: float,
    sampler_name: str,
    scheduler: str,
    denoise: float = 1.0,
    vae: Any = None,
) -> Compared:
    """Sample both models and score each step, the final latent, and every linear layer.

    A layer is scored on a sample of what it sees in the reference's run: with exact activations,
    and as ComfyUI's own layer computes it on the device it is loaded to, LoRAs and all.

    Args:
        reference, quantized: ModelPatchers of the same architecture; neither is changed.
        positive, negative, latent, seed, steps, cfg, sampler_name, scheduler, denoise: as for
            KSampler, for both.
        vae: decodes both latents; the PSNR is of the pictures then, else of the latents.

    Raises:
        RoundsmithError: a run failed, or the models have no layer in common.
    """
    names, only_reference, only_quantized = common_layers(reference, quantized)
    steps_run = _Steps(reference, steps)

    def run(model: Any) -> Latent:
        return ksample(
            *(model, seed, steps, cfg, sampler_name, scheduler),
            *(positive, negative, latent, denoise, steps_run.step),
        )

    capture = model_capture(reference, names, max_tokens=TOKENS, memory=MEMORY)
    recorded = wrap_model(reference, steps_run.sometimes(capture.hooks))
    with measured("sampling", reference.model_size() * steps * (2 if cfg > 1 else 1)):
        first = _guarded("reference", run, recorded)
    calibration = capture.finish()
    expected = dict(steps_run.counted(layer_outputs(recorded, calibration), calibration))
    steps_run.again()
    other = wrap_model(quantized, nullcontext)
    second = _guarded("quantized", run, other)
    executed = steps_run.counted(layer_outputs(other, calibration), calibration)
    scores = score_layers(reference, quantized, calibration, expected, executed)
    final = _power(first["samples"], second["samples"])
    pictures = pictures_of(quantized, first["samples"], second["samples"], vae)
    psnr, psnr_what = final.psnr(), "of the latents; peak: the range of the reference's values"
    if vae is not None and pictures is not None:
        psnr, psnr_what = _power(*pictures).psnr(1.0), "of the decoded pictures; peak 1"
    comparison = Comparison(
        snr=final.snr,
        what="final latent",
        layers=worst_first(scores),
        steps=steps_run.scores(final.snr),
        psnr=psnr,
        psnr_what=psnr_what,
        device=str(quantized.load_device),
        only_reference=only_reference,
        only_quantized=only_quantized,
        notes=(*calibration.notes, *steps_run.notes()),
    )
    return Compared(comparison, first, second, pictures)


class _Steps:
    """Keeps the latents of the first run's steps, and scores those of the second against them."""

    def __init__(self, model: Any, steps: int) -> None:
        self._show = latent_preview.prepare_callback(model, 2 * steps)
        self._steps = steps
        self._second = False
        self._at = 0
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._noisy: list[float] = []
        self._denoised: list[float] = []
        self._missed = 0
        self._chosen = {
            round(i * (steps - 1) / max(RECORDED_STEPS - 1, 1)) for i in range(RECORDED_STEPS)
        }
        self.messages = Messages("reference")
        self.messages.send(0, step=0, steps=steps)

    def sometimes(self, around: Callable[[], Any]) -> Callable[[], Any]:
        """``around`` in the steps whose inputs are recorded, nothing in the others."""

        @contextmanager
        def context() -> Iterator[None]:
            with around() if self._at in self._chosen else nullcontext():
                yield

        return context

    def again(self) -> None:
        """The second run begins."""
        self._second, self._at = True, 0
        self.messages.again("compared")

    def counted(
        self, outputs: Iterator[tuple[str, Tensor]], calibration: Calibration
    ) -> Iterator[tuple[str, Tensor]]:
        """Layers' outputs as they come, told one by one."""
        self.messages.again("scoring")
        count = len(calibration.layers)
        for index, (name, output) in enumerate(outputs, 1):
            self.messages.send(index / count, layer=name, index=index, count=count)
            yield name, output

    def step(self, step: int, denoised: Any, noisy: Any, _: int) -> None:
        """A sampler's callback; ``noisy`` is the latent before the step."""
        mm.throw_exception_if_processing_interrupted()
        if not self._second:
            self._kept.append((noisy.detach().to("cpu", copy=True), denoised.detach().cpu()))
        elif self._at < len(self._kept):
            mine, its = self._kept[self._at]
            self._noisy.append(_power(mine, noisy.detach().cpu()).snr)
            self._denoised.append(_power(its, denoised.detach().cpu()).snr)
        else:
            self._missed += 1
        self._at += 1
        at = min(step, self._steps - 1) + (self._steps if self._second else 0)
        self._show(at, denoised, noisy, 2 * self._steps)
        done = min(step + 1, self._steps)
        self.messages.send(done / self._steps, step=done, steps=self._steps)

    def scores(self, final: float) -> tuple[StepScore, ...]:
        """A step's latent is the one the next begins with; the last's is the final latent."""
        after = [*self._noisy[1:], final]
        return tuple(
            StepScore(number, noisy, denoised)
            for number, (noisy, denoised) in enumerate(zip(after, self._denoised, strict=True), 1)
        )

    def notes(self) -> list[str]:
        """What to say of samplers that choose their steps by what they see."""
        if not self._missed and len(self._noisy) == len(self._kept):
            return []
        taken = len(self._noisy) + self._missed
        return [
            f"the sampler took {len(self._kept)} steps with the reference and {taken} with the "
            "quantized model: steps are compared by their number"
        ]


def _guarded(which: str, run: Run, model: Any) -> Latent:
    try:
        return run(model)
    except RoundsmithError:
        raise
    except Exception as error:
        if mm.is_oom(error):
            raise  # ComfyUI frees its models and says what can be done
        raise RoundsmithError(
            f"sampling the {which} model failed: {type(error).__name__}: {error}. If a KSampler "
            "fails on the same inputs, mend them there first."
        ) from error


def _power(reference: Any, other: Any) -> Power:
    power = Power()
    for mine, its in zip(_tensors(reference), _tensors(other), strict=True):
        power.add(mine, its)
    return power


def _tensors(samples: Any) -> list[Tensor]:
    """The tensors of a latent: several where it is of pictures and sound."""
    return list(samples.unbind()) if getattr(samples, "is_nested", False) else [samples]
