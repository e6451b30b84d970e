"""Finding out what a network wants to be given, by giving it vectors of impossible widths.

No table of model families: every entry of the conditioning first gets a width that no layer has,
each another. The first layer such a vector reaches refuses it, and its own width is the answer. One
step of sampling an answer, broken off at the network's entrance; when a step goes through, all that
is read is known. Where a network looks at widths before a layer does, those its configuration
and its layers suggest are tried.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import comfy.model_management as mm
from torch import nn

from .conditioning import CONTEXT, POOLED, TEXT, Field, Wanted, latent_shapes

FIRST_MARK = 27720
"""Widths to be refused: divisible by 1 to 12, as networks part vectors between layers."""
MARK_STEP = 2520
MOST_PARTS = 12
MOST_APPENDED = 2400
"""Numbers a model may append to a vector before a layer sees it (SDXL: picture sizes, 1536)."""
TEXT_NAMES = re.compile(r"te?xt|context|cap|cond|cross|encoder|(^|[._])y_")
MOST_GUESSES = 24
UNREAD_WIDTH = 4096
"""Of entries that models ask for without handing them on to a layer."""

Run = Callable[[Wanted], None]
"""Samples one step; whatever the network raises comes through."""


class Misfit(Exception):  # noqa: N818 - a message, never an error
    """A marked vector reached a layer: how wide the entry of that mark has to be."""

    def __init__(self, key: str, width: int) -> None:
        super().__init__(f"{key} has to be {width} wide")
        self.key, self.width = key, width


def find_wanted(model: Any, run: Run, pixels: int, frames: int, batch: int) -> Wanted:
    """What a model can be sampled with.

    Tried in turn: all a text becomes in one family or another, without masks, only its vectors,
    nothing; all that with a batch of films, of single pictures, of larger ones, and then with one
    sample at a time.

    Args:
        model: the ``BaseModel``, on its device.
        run: samples one step of it.
        pixels: height and width of the picture.
        frames: latent frames of a film.
        batch: samples a run.

    Raises what the network raised the first time, if nothing goes through.
    """
    first: Exception | None = None
    unmasked = tuple(field for field in TEXT if "mask" not in field.key)
    sizes = (
        *((batch, pixels, frames), (batch, pixels, 1), (batch, 2 * pixels, 1)),
        *((1, pixels, frames), (1, 2 * pixels, 1), (1, 4 * pixels, 1)),
    )
    for shapes in dict.fromkeys(latent_shapes(model.latent_format, *size) for size in sizes):
        for fields in (TEXT, unmasked, (CONTEXT, POOLED), (CONTEXT,), ()):
            try:
                return fit(model.diffusion_model, run, Wanted(shapes, fields, {}))
            except Exception as error:  # whatever a network raises, the next may do
                mm.throw_exception_if_processing_interrupted()
                first = first or error
                keys = ", ".join(field.key for field in fields)
                logging.debug("Roundsmith: %s with %s: %s", shapes, keys, error)
    assert first is not None
    raise first


def fit(network: nn.Module, run: Run, wanted: Wanted) -> Wanted:
    """``wanted`` with the widths its fields need, after a step that went through.

    Raises what the network raises.
    """
    try:
        return _answered(network, run, wanted)
    except Exception as error:
        if CONTEXT not in wanted.fields or CONTEXT.key in wanted.widths:
            raise
        for width in _guesses(network):
            try:
                guessed = Wanted(wanted.shapes, wanted.fields, {CONTEXT.key: width})
                return _answered(network, run, guessed)
            except Exception:  # the next guess
                mm.throw_exception_if_processing_interrupted()
        raise error


def offer(network: nn.Module, run: Run, wanted: Wanted, field: Field) -> Wanted | None:
    """``wanted`` with one more entry; None where the network does not want it."""
    fields = (*wanted.fields, field)
    try:
        more = _answered(network, run, Wanted(wanted.shapes, fields, wanted.widths))
    except Exception:  # it does without
        mm.throw_exception_if_processing_interrupted()
        return None
    read = not field.sized or more.widths.get(field.key) not in (None, UNREAD_WIDTH)
    return more if read else None


def reached(network: nn.Module, layers: Iterable[str], run: Callable[[], None]) -> set[str]:
    """Which of these layers ``run`` reaches."""
    seen: set[str] = set()
    hooks = [
        network.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: seen.add(name))
        for name in layers
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _answered(network: nn.Module, run: Run, wanted: Wanted) -> Wanted:
    """Run until no layer refuses a vector."""
    widths = dict(wanted.widths)
    sized = [f.key for f in wanted.fields if f.sized and f.key not in widths]
    marks = {key: FIRST_MARK + i * MARK_STEP for i, key in enumerate(sized)}
    while True:
        try:
            unknown = {key: mark for key, mark in marks.items() if key not in widths}
            with _refusing(network, unknown):
                known = {**unknown, **widths}
                run(Wanted(wanted.shapes, wanted.fields, known, frozenset(unknown)))
        except Misfit as answer:
            widths[answer.key] = answer.width
            continue
        return _verified(run, wanted, widths)


def _verified(run: Run, wanted: Wanted, widths: Mapping[str, int]) -> Wanted:
    """With entries that no layer received at any width, if they do no harm, or without them."""
    found = tuple(f for f in wanted.fields if not f.sized or f.key in widths)
    if len(found) == len(wanted.fields):
        return Wanted(wanted.shapes, found, widths)
    unread = {f.key: UNREAD_WIDTH for f in wanted.fields if f not in found}
    every = Wanted(wanted.shapes, wanted.fields, {**widths, **unread})
    try:
        run(every)
    except Exception:  # a model that looks at them
        mm.throw_exception_if_processing_interrupted()
        without = Wanted(wanted.shapes, found, widths)
        run(without)
        return without
    return every


@contextmanager
def _refusing(network: nn.Module, marks: Mapping[str, int]) -> Iterator[None]:
    """Have every layer of known width refuse marked vectors."""

    def check(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        got = arguments[0].shape[-1] if arguments and hasattr(arguments[0], "shape") else None
        wide = _width(module)
        if got is not None and got != wide and (answer := _answer(marks, got, wide)):
            raise Misfit(*answer)

    hooks = [m.register_forward_pre_hook(check) for m in network.modules() if _width(m)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _answer(marks: Mapping[str, int], got: int, wide: int) -> tuple[str, int] | None:
    """Which entry a vector of width ``got`` is from, and its width were ``got`` to be ``wide``."""
    for key, mark in marks.items():
        if got == mark:
            return key, wide
    for key, mark in marks.items():
        if mark < got < mark + min(MOST_APPENDED, wide):
            return key, wide - (got - mark)
    for key, mark in marks.items():
        if got and mark % got == 0 and mark // got <= MOST_PARTS:
            return key, wide * (mark // got)
    return None


def _width(module: nn.Module) -> int:
    """How wide the vectors are that a layer takes; 0 where that does not show."""
    shape = getattr(module, "normalized_shape", None)
    width = shape[-1] if shape else getattr(module, "in_features", 0)
    return width if isinstance(width, int) else 0


def _guesses(network: nn.Module) -> list[int]:
    """Widths a context may have, likely ones first."""
    layers = [(name, _width(m)) for name, m in network.named_modules() if _width(m)]
    named = [width for name, width in layers if TEXT_NAMES.search(name)]
    parts = [
        value
        for name, value in vars(network).items()
        if isinstance(value, int) and 1 < value <= MOST_PARTS and TEXT_NAMES.search(name)
    ]
    several = [width * part for part in parts for width in named]
    every = [*named, *several, *(width for _, width in layers)]
    return list(dict.fromkeys(every))[:MOST_GUESSES]
