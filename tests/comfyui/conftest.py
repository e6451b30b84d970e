"""A ComfyUI to test in: imported on the CPU with a base directory of its own, and as a server."""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from roundsmith import dev
from roundsmith.tests.conftest import why_no_comfyui

BASE = Path()
"""ComfyUI's base directory while these tests run."""

if why_no_comfyui() is None:
    BASE = Path(tempfile.mkdtemp(prefix="roundsmith-comfyui-"))
    atexit.register(shutil.rmtree, BASE, ignore_errors=True)
    sys.path.insert(0, str(dev.find_comfyui()))
    (BASE / "models").mkdir()
    import comfy.options

    comfy.options.enable_args_parsing()
    arguments, sys.argv = sys.argv, ["main.py", "--cpu", "--base-directory", str(BASE)]
    import comfy.cli_args

    sys.argv = arguments


@pytest.fixture(scope="session", autouse=True)
def base() -> Path:
    """The base directory, with the demo's files in ``models``; gone when Python ends."""
    from roundsmith.tests.models.install import install

    for folder in ("output", "input", "temp", "custom_nodes", "models/loras", "models/checkpoints"):
        (BASE / folder).mkdir(exist_ok=True, parents=True)
    install(BASE)
    return BASE


@pytest.fixture(scope="session")
def demo(base: Path) -> Path:
    """The demo's unquantized diffusion model."""
    from roundsmith.tests.models import MODEL_FILE

    return base / "models" / "diffusion_models" / MODEL_FILE


@pytest.fixture(scope="session")
def encoder(base: Path) -> Path:
    """The demo's text encoder: CLIP-L's shape, random weights."""
    from roundsmith.tests.models import TEXT_ENCODER_FILE

    return base / "models" / "text_encoders" / TEXT_ENCODER_FILE


@pytest.fixture(scope="session")
def quantized(demo: Path) -> Callable[..., Path]:
    """Files of the demo model in any format, each made once: ``quantized("mxfp8")``."""
    from roundsmith.converters import Recipe, quantize_file

    made: dict[str, Path] = {}

    def make(format: str, **options: Any) -> Path:
        name = "-".join([format, *(f"{k}-{v}" for k, v in options.items())])
        if name not in made:
            made[name] = demo.with_name(f"{name}.safetensors")
            quantize_file(demo, made[name], Recipe(format=format, rounding="nearest", **options))
        return made[name]

    return make


@pytest.fixture(scope="session")
def reference(demo: Path) -> Any:
    """The final latent of the unquantized model, as stock ComfyUI samples it."""
    from .support import load_stock, sample

    return sample(load_stock(demo))


@pytest.fixture(scope="session")
def server(base: Path) -> Iterator[Any]:
    """A running ComfyUI server with the pack in its custom_nodes."""
    from .client import Server

    with Server(base) as running:
        yield running
