"""Which format? What ``format="auto"`` chooses for a model, a device and a goal, and why.

Each format says what quality to expect of it and which GPUs multiply its codes
(``Format.candidates``). Where they are, activations are rounded too, which is
faster and less exact; elsewhere weights are decoded first. So the same format is not the same on
two devices, and the choice is made for one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch

from ..errors import RecipeError
from ..layouts import Candidate, Format, Spec, formats, get_format
from .options import Goal

_FIT = 0.85  # share of the device's memory that weights may take; the rest is for activations
_GOOD, _USABLE = (
    35.0,
    20.0,
)  # dB of a layer's outputs as executed: hardly to be seen; still a picture
_LIKE = 1.0  # dB: no reason to prefer what fewer loaders read
_FEATURES = 1024  # inputs of a layer that every ConvRot group divides
_SPEEDS = ("decoded first", "8-bit products", "4-bit products")


@dataclass(frozen=True)
class Device:
    """Where the model will run.

    Attributes:
        name: for people.
        capability: CUDA compute capability; None: not a CUDA GPU, of whose products INT8 ones are
            all that is known.
        memory: bytes.
    """

    name: str
    capability: tuple[int, int] | None = None
    memory: int | None = None


@dataclass(frozen=True)
class Alternative:
    """One way to store the whole model.

    Attributes:
        format: its format.
        candidate: the options, and the quality to expect.
        size: bytes of the file.
        fits: it leaves the device room for activations.
        speed: 0 decoded first, 1 products of 8-bit codes, 2 of 4-bit codes.
        snr: dB of the layers' outputs to expect as executed there.
    """

    format: Format
    candidate: Candidate
    size: int
    fits: bool
    speed: int
    snr: float

    def describe(self) -> str:
        """The format with its options: ``int8_tensorwise convrot auto``."""
        options = (f"{name} {value}" for name, value in self.candidate.options.items())
        return " ".join([self.format.id, *options])


@dataclass(frozen=True)
class Suggestion:
    """The choice, its reason, and what else there was."""

    chosen: Alternative
    reason: str
    alternatives: tuple[Alternative, ...]

    def table(self) -> str:
        """The reason, and a line for each alternative, the chosen one marked."""
        lines = [self.reason, f"  {'':40}{'GB':>8}  {'dB':>5}  {'speed':16}{'loads with'}"]
        for x in sorted(self.alternatives, key=lambda x: -x.snr):
            mark = "→" if x is self.chosen else " "
            loader = "stock ComfyUI" if x.format.stock else "Roundsmith"
            room = "" if x.fits else ", too large here"
            lines.append(
                f"{mark} {x.describe():40}{x.size / 1e9:8.2f}  {x.snr:5.1f}  "
                f"{_SPEEDS[x.speed]:16}{loader}{room}"
            )
        return "\n".join(lines)


def this_device() -> Device:
    """The first GPU, else the CPU."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        cuda = torch.version.hip is None  # AMD's numbers are not compute capabilities
        capability = (properties.major, properties.minor) if cuda else None
        return Device(properties.name, capability, properties.total_memory)
    return Device("the CPU")


def suggest(goal: Goal, device: Device, size_of: Callable[[Format, Candidate], int]) -> Suggestion:
    """Choose a format.

    Args:
        goal: ``quality``: the most exact that fits; ``balance``: the most exact of those whose
            codes are multiplied; ``smallest``: the smallest that still gives a picture;
            ``fastest``: the fewest bits a product, then the most exact.
        device: where the model will run.
        size_of: bytes of the model's file in a format.

    Raises:
        RecipeError: no format suits the model.
    """
    found = [
        _alternative(fmt, candidate, device, size_of(fmt, candidate))
        for fmt in formats().values()
        for candidate in fmt.candidates
    ]
    if not found:
        raise RecipeError("format auto: no format to choose from")
    room = [x for x in found if x.fits]
    if not room:
        chosen = min(found, key=lambda x: x.size)
        why = f"the smallest; even so it does not leave {device.name} room for activations"
        return Suggestion(chosen, _reason(goal, chosen, why), tuple(found))
    chosen, why = _CHOICES[goal](room, device)
    return Suggestion(chosen, _reason(goal, chosen, why), tuple(found))


@lru_cache(maxsize=1024)
def expected_snr(spec: Spec, device: Device) -> float | None:
    """dB of the outputs to expect of a layer stored like this, as executed on ``device``; None
    where nothing is known of the format. Of several candidates the one most alike counts."""
    fmt = get_format(spec.format)

    def unlike(candidate: Candidate) -> int:
        asked = fmt.bind(**candidate.options, features=_FEATURES)
        rotated = bool(asked.convrot) != bool(spec.convrot)
        others = [asked.variant != spec.variant, asked.group_size != spec.group_size]
        return 4 * others[0] + 2 * rotated + others[1]

    nearest = min(fmt.candidates, key=unlike, default=None)
    if nearest is None:
        return None
    exact = spec.full_precision_matrix_mult or not _multiplied(fmt, nearest, device)
    return nearest.snr if exact else nearest.executed


def mean_snr(levels: Iterable[float | None]) -> float | None:
    """dB of the mean relative error of layers, which all count alike; those of which nothing is
    known (None) do not. None where that is all of them, infinite where nothing is lost."""
    errors = [10 ** (-level / 10) for level in levels if level is not None]
    if not errors:
        return None
    mean = sum(errors) / len(errors)
    return -10 * math.log10(mean) if mean else math.inf


def _multiplied(fmt: Format, candidate: Candidate, device: Device) -> bool:
    """Whether ``device`` multiplies the codes, activations rounded as well."""
    if device.capability is None:  # CPUs and AMD's GPUs multiply INT8 codes
        return fmt.grid.dtype == torch.int8 and candidate.bits == 8
    return candidate.multiplied(device.capability)


def _alternative(fmt: Format, candidate: Candidate, device: Device, size: int) -> Alternative:
    multiplied = _multiplied(fmt, candidate, device)
    fits = device.memory is None or size <= _FIT * device.memory
    speed = 0 if not multiplied else 2 if candidate.bits == 4 else 1
    return Alternative(
        fmt, candidate, size, fits, speed, candidate.executed if multiplied else candidate.snr
    )


def _reason(goal: Goal, chosen: Alternative, why: str) -> str:
    return f"format auto, {goal}: {chosen.describe()}, {why}"


def _most_exact(found: list[Alternative]) -> Alternative:
    """The most exact; of those as good, one that every ComfyUI loads, then the smallest."""
    best = max(x.snr for x in found)
    near = [x for x in found if x.snr >= best - _LIKE]
    return min(near, key=lambda x: (not x.format.stock, x.size, -x.snr))


def _quality(room: list[Alternative], device: Device) -> tuple[Alternative, str]:
    return _most_exact(room), f"the most exact that fits {device.name}"


def _balance(room: list[Alternative], device: Device) -> tuple[Alternative, str]:
    fast = [x for x in room if x.speed and x.snr >= _GOOD]
    if fast:
        return _most_exact(fast), f"the most exact that {device.name} multiplies without decoding"
    good = [x for x in room if x.snr >= _GOOD]
    if good:
        return _most_exact(good), f"the most exact that fits {device.name}"
    return _most_exact(room), f"the most exact of the few that fit {device.name}"


def _smallest(room: list[Alternative], device: Device) -> tuple[Alternative, str]:
    usable = [x for x in room if x.snr >= _USABLE] or room
    least = min(x.size for x in usable)
    near = [x for x in usable if x.size <= 1.02 * least]
    return _most_exact(near), "the smallest that still gives a good picture"


def _fastest(room: list[Alternative], device: Device) -> tuple[Alternative, str]:
    usable = [x for x in room if x.snr >= _USABLE] or room
    speed = max(x.speed for x in usable)
    chosen = _most_exact([x for x in usable if x.speed == speed])
    return chosen, f"{_SPEEDS[speed]} on {device.name}"


_CHOICES = {
    "quality": _quality,
    "balance": _balance,
    "smallest": _smallest,
    "fastest": _fastest,
}
