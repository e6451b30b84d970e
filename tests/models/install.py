"""Put the demo's files into a ComfyUI: ``python -m roundsmith.tests.models.install FOLDER``."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from roundsmith.converters import Recipe, quantize_file

from . import FOLDER, MODEL_FILE, QUANTIZED_FILE, TEXT_ENCODER_FILE, VAE_FILE
from .text import write_encoder


def install(comfyui: str | Path) -> list[Path]:
    """Put the demo's model (as trained, and in INT8), decoder and text encoder into a ComfyUI.

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

    def quantize(path: Path) -> object:
        recipe = Recipe(format="int8_tensorwise", convrot="auto")
        return quantize_file(FOLDER / MODEL_FILE, path, recipe, overwrite=True)

    makers: dict[str, Callable[[Path], object]] = {
        f"diffusion_models/{MODEL_FILE}": copy(MODEL_FILE),
        f"diffusion_models/{QUANTIZED_FILE}": quantize,
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
