"""The demo inside a real ComfyUI: the shipped workflow, once for each format and digit."""

from __future__ import annotations

import copy
import io
import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load as load_bytes
from torch import Tensor

from ..errors import RoundsmithError
from ..layouts import get_format
from ..tests.models import FOLDER, MODEL_FILE, TEXT_ENCODER_FILE, VAE_FILE, taesd, text
from ..tests.models.install import install
from .demo import (
    ORIGINAL,
    STEPS,
    DemoResult,
    ProgressCallback,
    Row,
    name_of,
    signal_to_noise,
    sizes,
    variants,
    write_results,
)
from .demo_server import PACK, Server, start_server
from .demo_workflow import Prompt, find, only_for, source_of, to_prompt
from .recipe import Recipe

LOCAL = "http://127.0.0.1:8188"
WORKFLOW = PACK / "workflows" / "quantize-and-sample.json"
QUANTIZE = "RoundsmithQuantizeModel"
_SETTINGS = {"cfg": 1.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}


def run_demo_comfyui(
    output: str | Path,
    comfyui: str | Path = LOCAL,
    formats: Sequence[str] | None = None,
    seed: int = 0,
    steps: int = STEPS,
    progress: ProgressCallback | None = None,
    workflow: str | Path = WORKFLOW,
) -> DemoResult:
    """Quantize and sample the demo's model in ComfyUI; the files are those of ``run_demo``.

    Args:
        output: folder for the PNG grid, the table and its JSON.
        comfyui: the address of a running server that has the demo's files and this pack; or
            ComfyUI's folder: then one is started with a base directory of its own, and ended.
        formats, seed, steps, progress: as in ``run_demo``.
        workflow: the graph to run, as saved by the browser.
    """
    recipes = variants(formats)
    graph = json.loads(Path(workflow).read_text(encoding="utf-8"))

    def tell(what: str, done: int) -> None:
        if progress is not None:
            progress(what, done, len(recipes) + 1)

    rows: list[Row] = []
    latents: list[Tensor] = []
    pictures: list[Tensor] = []
    tell("ComfyUI", 0)
    with _server(comfyui) as server:
        base = _prepare(to_prompt(graph, server.get_json("/object_info")), steps)
        for index, recipe in enumerate([None, *recipes]):
            name = name_of(recipe) if recipe else ORIGINAL
            tell(name, index)
            started = time.perf_counter()
            made = [_sample(server, base, recipe, n, seed) for n in range(len(text.PROMPTS))]
            seconds = time.perf_counter() - started
            latents.append(torch.cat([latent for latent, _ in made]))
            pictures.append(torch.stack([picture for _, picture in made]))
            rows.append(_row(name, recipe, signal_to_noise(latents[0], latents[-1]), seconds))
    tell("pictures", len(recipes) + 1)
    return write_results(Path(output), rows, pictures)


@contextmanager
def _server(comfyui: str | Path) -> Iterator[Server]:
    if isinstance(comfyui, Path) or Path(comfyui).expanduser().is_dir():
        with start_server(Path(comfyui)) as (server, base):
            install(base)
            yield server
        return
    server = Server(comfyui)
    offered = server.get("/object_info/UNETLoader").decode()
    if MODEL_FILE not in offered:
        raise RoundsmithError(
            f"the ComfyUI at {server.url} lacks {MODEL_FILE}: run `roundsmith demo --install "
            "FOLDER`, FOLDER being the one that holds its 'models', then press r in the browser"
        )
    yield server


def _prepare(prompt: Prompt, steps: int) -> Prompt:
    """The workflow with the demo's files and settings, and the latent saved beside the picture."""
    prompt[find(prompt, "UNETLoader")]["inputs"]["unet_name"] = MODEL_FILE
    loader = prompt[find(prompt, "CLIPLoader", "RoundsmithLoadCLIP")]
    loader["inputs"].update(clip_name=TEXT_ENCODER_FILE, type="stable_diffusion")
    prompt[find(prompt, "VAELoader")]["inputs"]["vae_name"] = VAE_FILE
    empty = prompt[find(prompt, "EmptySD3LatentImage", "EmptyLatentImage")]
    empty["inputs"].update(width=64, height=64, batch_size=1)
    sampler = find(prompt, "KSampler")
    prompt[sampler]["inputs"].update(_SETTINGS, steps=steps)
    prefix = "roundsmith-demo/digit"
    prompt["picture"] = {
        "class_type": "SaveImage",
        "inputs": {"images": [find(prompt, "VAEDecode"), 0], "filename_prefix": prefix},
    }
    prompt["latent"] = {
        "class_type": "SaveLatent",
        "inputs": {"samples": [sampler, 0], "filename_prefix": prefix},
    }
    return prompt


def _sample(
    server: Server, base: Prompt, recipe: Recipe | None, digit: int, seed: int
) -> tuple[Tensor, Tensor]:
    """The final latent [1, 16, 8, 8], in the sampler's scale, and the picture [3, 64, 64]."""
    prompt = copy.deepcopy(base)
    sampler, quantize = find(prompt, "KSampler"), find(prompt, QUANTIZE)
    prompt[sampler]["inputs"]["seed"] = seed + digit
    prompt[source_of(prompt, sampler, "positive")]["inputs"]["text"] = text.PROMPTS[digit]
    if recipe is None:
        loader = prompt[quantize]["inputs"]["model"]
        for node in prompt.values():
            for name, value in node["inputs"].items():
                if value == [quantize, 0]:
                    node["inputs"][name] = loader
    else:
        kept = {k: v for k, v in prompt[quantize]["inputs"].items() if not k.startswith("format")}
        prompt[quantize]["inputs"] = {**kept, **_recipe_inputs(recipe)}
    outputs = server.run(only_for(prompt, ["picture", "latent"]))
    latent = load_bytes(server.fetch(outputs["latent"]["latents"][0]))["latent_tensor"].float()
    with Image.open(io.BytesIO(server.fetch(outputs["picture"]["images"][0]))) as image:
        pixels = np.asarray(image.convert("RGB"), dtype=np.float32) / 255
    scaled = (latent - taesd.VAE_SHIFT) * taesd.VAE_SCALE
    return scaled, torch.from_numpy(pixels).movedim(-1, 0)


def _recipe_inputs(recipe: Recipe) -> dict[str, Any]:
    """The inputs of the quantizing node: format, its options, how codes are chosen."""
    search = {None: "auto", True: "on", False: "off"}[recipe.scale_search]
    inputs: dict[str, Any] = {"rounding": recipe.rounding, "scale_search": search}
    inputs["format"] = recipe.format
    fmt = get_format(recipe.format)
    if fmt.scalings:
        inputs["format.scaling"] = recipe.scaling or fmt.scalings[0]
    if fmt.group_sizes:
        inputs["format.group_size"] = str(recipe.group_size or fmt.group_sizes[0])
    if fmt.forms:
        inputs["format.form"] = recipe.form or fmt.forms[0]
    if fmt.variants:
        inputs["format.variant"] = recipe.variant or fmt.variants[0]
    if fmt.rotates:
        default = "auto" if fmt.always_rotates else "none"
        inputs["format.convrot"] = str(recipe.convrot or default)
    return inputs


def _row(name: str, recipe: Recipe | None, snr: float, seconds: float) -> Row:
    if recipe is None:
        size = (FOLDER / MODEL_FILE).stat().st_size
        return Row(name, True, 16.0, size, math.inf, None, seconds)
    return Row(name, *sizes(recipe), snr, None, seconds)


def find_comfyui() -> str | Path:
    """The server at ComfyUI's usual address, else the folder: COMFYUI_DIR, ~/ComfyUI or two up."""
    try:
        Server(LOCAL).get("/system_stats")
        return LOCAL
    except RoundsmithError:
        pass
    named = os.environ.get("COMFYUI_DIR")
    for folder in [Path(named)] if named else [Path.home() / "ComfyUI", PACK.parent.parent]:
        if (folder / "main.py").is_file() and (folder / "comfy").is_dir():
            return folder
    raise RoundsmithError(
        f"no ComfyUI answers at {LOCAL} and none is at COMFYUI_DIR or ~/ComfyUI: "
        "give its address or its folder after --comfyui"
    )
