"""The demo: quantize a small trained model to every format and see what each one paints.

The model, its decoder and its prompts come with the package (``tests/models``); nothing is
downloaded and ComfyUI is not needed.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file as load_plain
from torch import Tensor, nn

from ..errors import FormatError, RoundsmithError
from ..layouts import formats as known_formats
from ..layouts import get_format
from ..tests.models import FOLDER, MODEL_FILE, VAE_FILE, taesd, text
from ..tests.models.flux import Flux
from ..tests.models.sampling import sample, starting_noise
from .files import load_file, plan_file, quantize_file
from .plan import Plan
from .progress import human_bytes
from .recipe import Recipe

ProgressCallback = Callable[[str, int, int], None]
STEPS = 12
ORIGINAL = "original, bfloat16"
GRID_FILE, TABLE_FILE, JSON_FILE = (f"roundsmith-demo.{kind}" for kind in ("png", "txt", "json"))


@dataclass(frozen=True)
class Row:
    """What became of one format.

    Attributes:
        name: the format with its options, or ``ORIGINAL``.
        stock: stock ComfyUI loads the file.
        bits: bits a weight over the quantized layers, scales included.
        bytes: size of the whole file.
        snr: 10·log10(‖z‖² / ‖z − ẑ‖²) in dB over the final latents of the ten digits.
        quantize_seconds: time taken here; None where it is part of sampling.
        sample_seconds: time for the ten digits.
    """

    name: str
    stock: bool
    bits: float
    bytes: int
    snr: float
    quantize_seconds: float | None
    sample_seconds: float


@dataclass(frozen=True)
class DemoResult:
    """The rows, the original first, and the files written."""

    rows: tuple[Row, ...]
    grid: Path
    table_file: Path
    json_file: Path

    def table(self) -> str:
        """The rows as text."""
        return table(self.rows)


def variants(names: Iterable[str] | None = None) -> list[Recipe]:
    """Recipes of the formats (all by default): each variant and scaling it has, and rotated where
    it can be."""
    recipes = []
    chosen = list(known_formats()) if names is None else [get_format(name).id for name in names]
    for name in chosen:
        fmt = known_formats()[name]
        for variant in fmt.variants or (None,):
            choices: list[tuple[str | None, str | None]]
            choices = [(scaling, None) for scaling in fmt.scalings or (None,)]
            if fmt.rotates and not fmt.always_rotates:
                choices.append(("row" if fmt.scalings else None, "auto"))
            recipes += [
                Recipe(
                    format=name, variant=variant, scaling=scaling, convrot=convrot,
                    rounding="nearest", scale_search=False,
                )
                for scaling, convrot in choices
            ]  # fmt: skip
    if not recipes:
        raise FormatError(f"no format asked for; known: {', '.join(known_formats())}")
    return recipes


def name_of(recipe: Recipe) -> str:
    """``int8_tensorwise row convrot``."""
    fmt = get_format(recipe.format)
    scaling = recipe.scaling if len(fmt.scalings) > 1 else None
    rotated = "convrot" if recipe.convrot else None
    return " ".join(filter(None, (fmt.id, recipe.variant, scaling, rotated)))


def load_flux(tensors: dict[str, Tensor]) -> Flux:
    """The demo's network over these tensors: quantized weights as they are, the rest in float32."""
    with torch.device("meta"):
        model = Flux()
    for name, tensor in tensors.items():
        owner, _, attribute = name.rpartition(".")
        module = model.get_submodule(owner)
        if attribute in module._parameters:
            plain = type(tensor) is Tensor
            value = nn.Parameter(tensor.float() if plain else tensor, requires_grad=False)
            module.register_parameter(attribute, value)
    missing = [name for name, tensor in model.named_parameters() if tensor.is_meta]
    if missing:
        raise FormatError(f"the quantized model lacks {missing[0]!r}")
    return model.eval()


def run_demo(
    output: str | Path,
    formats: Sequence[str] | None = None,
    seed: int = 0,
    steps: int = STEPS,
    progress: ProgressCallback | None = None,
    keep_models: bool = False,
) -> DemoResult:
    """Quantize the demo's model to every format, paint the ten digits with each, compare.

    Args:
        output: folder for the PNG grid, the table and its JSON; made where it is not there.
        formats: ids of the formats to show; by default all, with their scalings and rotations.
        seed: of the first digit's noise, the next digit has the next; all formats share them.
        steps: of the sampler.
        progress: called with (what, done, count) before each format and at the end; it may raise.
        keep_models: leave the quantized models in ``output`` too.
    """
    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    recipes, source = variants(formats), FOLDER / MODEL_FILE
    context, pooled = text.encode(text.PROMPTS)
    noise = torch.cat([starting_noise(1, seed + digit) for digit in range(len(text.PROMPTS))])
    decoder = taesd.load_decoder(load_plain(FOLDER / VAE_FILE))
    rows, latents = [], []

    def paint(tensors: dict[str, Tensor]) -> tuple[Tensor, float]:
        model, started = load_flux(tensors), time.perf_counter()
        with torch.inference_mode():
            latent = sample(model, noise, context, pooled, steps)
        return latent, time.perf_counter() - started

    def tell(what: str, done: int) -> None:
        if progress is not None:
            progress(what, done, len(recipes) + 1)

    tell(ORIGINAL, 0)
    reference, seconds = paint(load_plain(source))
    latents.append(reference)
    rows.append(Row(ORIGINAL, True, 16.0, source.stat().st_size, math.inf, None, seconds))
    for index, recipe in enumerate(recipes):
        name = name_of(recipe)
        tell(name, index + 1)
        path = output / f"{source.stem}-{name.replace(' ', '-')}.safetensors"
        try:
            started = time.perf_counter()
            quantize_file(source, path, recipe, overwrite=True)
            taken = time.perf_counter() - started
            latent, seconds = paint(load_file(path, dtype=torch.float32))
        finally:
            if not keep_models:
                path.unlink(missing_ok=True)
        latents.append(latent)
        snr = signal_to_noise(reference, latent)
        rows.append(Row(name, *sizes(recipe), snr, taken, seconds))
    tell("pictures", len(recipes) + 1)
    with torch.inference_mode():
        pictures = [decoder(latent).clamp(0, 1) for latent in latents]
    return write_results(output, rows, pictures)


def write_results(output: Path, rows: Sequence[Row], pictures: Sequence[Tensor]) -> DemoResult:
    """Write the grid, the table and its JSON into ``output``; one picture tensor a row."""
    from .demo_picture import draw_grid

    output.mkdir(parents=True, exist_ok=True)
    grid, table_file, json_file = (output / name for name in (GRID_FILE, TABLE_FILE, JSON_FILE))
    draw_grid([row.name for row in rows], [caption(row) for row in rows], pictures).save(grid)
    table_file.write_text(table(rows) + "\n", encoding="utf-8")
    listed = [{**asdict(row), "snr": row.snr if math.isfinite(row.snr) else None} for row in rows]
    json_file.write_text(json.dumps(listed, indent=2) + "\n", encoding="utf-8")
    return DemoResult(tuple(rows), grid, table_file, json_file)


def signal_to_noise(reference: Tensor, other: Tensor) -> float:
    """10·log10(‖reference‖² / ‖reference − other‖²) in dB; infinite where both are equal."""
    error = (reference.double() - other.double()).square().sum().item()
    power = reference.double().square().sum().item()
    return math.inf if error == 0 else 10 * math.log10(power / error)


def sizes(recipe: Recipe) -> tuple[bool, float, int]:
    """Whether stock ComfyUI loads the file, its bits a weight and its bytes, all from the plan."""
    plan = plan_file(FOLDER / MODEL_FILE, recipe)
    return get_format(recipe.format).stock, bits_a_weight(plan), plan.size


def bits_a_weight(plan: Plan) -> float:
    """Stored bits, scales included, for each weight of the quantized layers."""
    layers = [tensor for tensor in plan.tensors if tensor.action == "quantize"]
    count = sum(math.prod(layer.shape) for layer in layers)
    return 8 * sum(layer.bytes_after for layer in layers) / max(count, 1)


def caption(row: Row) -> str:
    """The second line beside a row of pictures."""
    if row.name == ORIGINAL:
        return human_bytes(row.bytes)
    return f"{row.bits:.2f} bits   {human_bytes(row.bytes)}   {row.snr:.1f} dB"


def table(rows: Sequence[Row]) -> str:
    """Text table; ``*`` marks formats that stock ComfyUI does not load."""
    cells = [("format", "bits/weight", "bytes", "latent SNR dB", "quantize s", "sample s")]
    for row in rows:
        snr = f"{row.snr:.1f}" if math.isfinite(row.snr) else "-"
        taken = "-" if row.quantize_seconds is None else f"{row.quantize_seconds:.1f}"
        cells.append((
            row.name if row.stock else f"{row.name} *", f"{row.bits:.2f}", f"{row.bytes:,}", snr,
            taken, f"{row.sample_seconds:.1f}",
        ))  # fmt: skip
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = []
    for first, *rest in cells:
        numbers = (cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))
        lines.append("  ".join([first.ljust(widths[0]), *numbers]))
    lines.insert(1, "-" * len(lines[0]))
    if not all(row.stock for row in rows):
        lines.append("* loaded by Roundsmith's loader node, not by stock ComfyUI")
    return "\n".join(lines)


def main(args: argparse.Namespace) -> int:
    """``roundsmith demo``: install the files, or run with or without ComfyUI. The exit status."""
    if args.install is not None:
        from ..tests.models.install import install

        try:
            print(*install(args.install), sep="\n")
        except FileNotFoundError as error:
            raise RoundsmithError(str(error)) from error
        return 0

    def tell(what: str, done: int, count: int) -> None:
        print(f"[{done}/{count}] {what}", file=sys.stderr, flush=True)

    if args.comfyui is None:
        result = run_demo(args.output, args.formats or None, progress=tell)
    else:
        from .demo_comfyui import find_comfyui, run_demo_comfyui

        where = args.comfyui or find_comfyui()
        result = run_demo_comfyui(args.output, where, args.formats or None, progress=tell)
    as_json = getattr(args, "json", False)
    print(result.json_file.read_text(encoding="utf-8") if as_json else result.table())
    print(f"pictures: {result.grid}", file=sys.stderr)
    return 0
