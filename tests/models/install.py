"""Put the demo's files into a ComfyUI: ``python -m roundsmith.tests.models.install FOLDER``."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from roundsmith.converters import Recipe

from . import (
    ERROR_LORA_FILE,
    FOLDER,
    LEGACY_FILE,
    LORA_FILE,
    MIXED_FILE,
    MODEL_FILE,
    MXFP8_FILE,
    NVFP4_FILE,
    QUANTIZED_FILE,
    TEXT_ENCODER_FILE,
    VAE_FILE,
)
from .derived import (
    INT8,
    MIXED,
    MXFP8,
    NVFP4,
    write_error_lora,
    write_legacy,
    write_quantized,
)
from .text import write_encoder


def install(comfyui: str | Path) -> list[Path]:
    """Put the demo's files into a ComfyUI.

    The model as trained, in INT8, MXFP8 and NVFP4, in five formats at once, and in FP8 as older
    tools wrote it; its decoder, a LoRA, the error LoRA of NVFP4, and a text encoder.

    Args:
        comfyui: ComfyUI's folder or a base directory: the one that holds ``models``.

    Returns the files. One that is there already is written again: the names are the demo's
    own, and each appears only when complete.
    """
    models = Path(comfyui).expanduser() / "models"
    if not models.is_dir():
        raise FileNotFoundError(f"{models}: no such folder; give the one that holds 'models'")

    def copy(name: str) -> Callable[[Path], object]:
        return lambda path: shutil.copyfile(FOLDER / name, path)

    def quantize(recipe: Recipe) -> Callable[[Path], object]:
        return lambda path: write_quantized(path, recipe)

    makers: dict[str, Callable[[Path], object]] = {
        f"diffusion_models/{MODEL_FILE}": copy(MODEL_FILE),
        f"diffusion_models/{QUANTIZED_FILE}": quantize(INT8),
        f"diffusion_models/{MXFP8_FILE}": quantize(MXFP8),
        f"diffusion_models/{NVFP4_FILE}": quantize(NVFP4),
        f"diffusion_models/{MIXED_FILE}": quantize(MIXED),
        f"diffusion_models/{LEGACY_FILE}": write_legacy,
        f"loras/{LORA_FILE}": copy(LORA_FILE),
        f"loras/{ERROR_LORA_FILE}": lambda path: write_error_lora(
            models / "diffusion_models" / NVFP4_FILE, path
        ),
        f"vae/{VAE_FILE}": copy(VAE_FILE),
        f"text_encoders/{TEXT_ENCODER_FILE}": write_encoder,
    }
    written = []
    for name, make in makers.items():
        path = models / name
        path.parent.mkdir(exist_ok=True)
        partial = path.with_name(f".{path.name}.{os.getpid()}.roundsmith-partial")
        try:
            make(partial)
            shutil.copymode(FOLDER / MODEL_FILE, partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        written.append(path)
    return written


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="ComfyUI's folder, or its base directory")
    for path in install(parser.parse_args().folder):
        print(path)


if __name__ == "__main__":
    main()
