"""The demo's Flux in a real ComfyUI, in this process: stock loaders, stock sampler, on the CPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from roundsmith import dev

STEPS = 12
SETTINGS = (1.0, "euler", "simple")  # cfg, sampler, scheduler


def restart_in_comfyui() -> None:
    """Run this program with ComfyUI's packages, as `python dev.py test` runs its tests."""
    if Path(sys.prefix) == dev.OVERLAY:
        return
    comfyui = dev.find_comfyui()
    python = dev.find_comfyui_python(comfyui) if comfyui else None
    if python is None:
        raise SystemExit("no ComfyUI found: set COMFYUI_DIR and COMFYUI_PYTHON (see dev.py)")
    overlay = dev.setup_comfyui(python)
    os.execv(overlay, [str(overlay), *sys.argv])


class Demo:
    """ComfyUI with the demo's files.

    Attributes:
        model_file: the diffusion model, unquantized.
        clip: its text encoder, as ComfyUI's loader gives it.
        conditioning: what the sampler takes, by digit.
    """

    def __init__(self, base: Path) -> None:
        """Import ComfyUI with ``base`` as its base directory, and install the demo there."""
        sys.path.insert(0, str(dev.find_comfyui()))
        for folder in ("models", "output", "input", "temp", "custom_nodes"):
            (base / folder).mkdir()
        import comfy.options

        comfy.options.enable_args_parsing()
        arguments, sys.argv = sys.argv, ["main.py", "--cpu", "--base-directory", str(base)]
        import comfy.cli_args

        sys.argv = arguments
        import comfy.sd
        import comfy.utils

        from roundsmith.tests.models import MODEL_FILE, TEXT_ENCODER_FILE
        from roundsmith.tests.models.install import install
        from roundsmith.tests.models.text import PROMPTS

        comfy.utils.set_progress_bar_enabled(False)
        install(base)
        self.model_file = base / "models" / "diffusion_models" / MODEL_FILE
        encoder = base / "models" / "text_encoders" / TEXT_ENCODER_FILE
        kind = comfy.sd.CLIPType.STABLE_DIFFUSION
        self.clip = comfy.sd.load_clip([str(encoder)], clip_type=kind)
        with torch.inference_mode():
            self.conditioning = [
                self.clip.encode_from_tokens_scheduled(self.clip.tokenize(p)) for p in PROMPTS
            ]

    @torch.inference_mode()
    def load(self, path: Path) -> Any:
        """A model through ComfyUI's own loader."""
        import comfy.sd

        return comfy.sd.load_diffusion_model(str(path))

    @torch.inference_mode()
    def load_ours(self, path: Path) -> Any:
        """A model through Roundsmith's loader."""
        from roundsmith.bridge.loading import load_diffusion_model

        return load_diffusion_model(str(path))

    @torch.inference_mode()
    def sample(self, model: Any, digit: int, seed: int) -> Tensor:
        """The final latent."""
        import comfy.sample

        start, told = torch.zeros(1, 16, 8, 8), self.conditioning[digit]
        noise = comfy.sample.prepare_noise(start, seed)
        latent: Tensor = comfy.sample.sample(
            *(model, noise, STEPS, *SETTINGS, told, told, start), seed=seed, disable_pbar=True
        )
        return latent

    @torch.inference_mode()
    def calibrate(self, model: Any, digits: Sequence[int], seeds: Sequence[int]) -> Any:
        """A calibration on some digits, each with every seed, through the sampler node's code."""
        from roundsmith.bridge.calibrating import calibrate_sampler

        parts = []
        for digit in digits:
            told, start = self.conditioning[digit], {"samples": torch.zeros(1, 16, 8, 8)}
            own = [1000 * seed + digit for seed in seeds]
            parts.append(calibrate_sampler(model, told, told, start, own, STEPS, *SETTINGS)[0])
        merged = parts[0]
        for part in parts[1:]:
            merged = merged.merge(part)
        return merged

    @torch.inference_mode()
    def self_calibrate(self, model: Any, told: bool) -> Any:
        """A model's calibration by itself, with its text encoder or without. Prints the note."""
        from roundsmith.bridge.self_calibration import self_calibrate_model

        found = self_calibrate_model(model, self.clip if told else None, tell=lambda _: None)
        if found.calibration is None:
            raise SystemExit(found.note)
        print(f"self-calibrated: {found.note}", flush=True)
        return found.calibration
