"""Watching what a module's linear layers are called with."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, nn

from ...errors import RecipeError, RoundsmithError
from .accumulator import Accumulator
from .budget import size, tokens_within
from .calibration import Calibration, Shelf
from .fingerprint import Fingerprint
from .layers import IsLinear, Layers, features, input_of, is_linear, pick
from .reservoir import RowFile
from .sharing import Sharing


class Capture:
    """Statistics of the inputs of ``module``'s linear layers, call by call.

    Wrap each call of the module in :meth:`hooks`; :meth:`finish` gives the result. Nothing is on
    the module outside of ``hooks``. :func:`capture` does both for a block of code.

    Attributes:
        widths: input width of each watched layer, by name.
        notes: what a person should know.
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Layers = None,
        *,
        max_tokens: int = 4096,
        memory: int | None = None,
        store: str | Path | None = None,
        seed: int = 0,
        linear: IsLinear = is_linear,
    ) -> None:
        """Prepare to watch.

        Args:
            module: any torch module.
            layers: which of its linear layers: a regular expression searched in their names, a list
                of names, or None for all.
            max_tokens: tokens to keep of each record; narrow layers keep a second moment of all
                tokens instead.
            memory: bytes the statistics may take, together with the work on them; where they do not
                fit, fewer tokens are kept, and ``notes`` says so.
            store: a folder for a temporary file that holds the tokens instead of memory.
            seed: of the choice of tokens.
            linear: which modules are linear layers.

        Raises:
            RecipeError: no such layers, or a budget that cannot be kept.
            CheckpointError: the folder cannot be written to.
        """
        if max_tokens < 1:
            raise RecipeError(f"max_tokens: {max_tokens} tokens are too few: at least 1")
        if seed < 0:
            raise RecipeError(f"seed: {seed} is negative; choose 0 or more")
        self._modules = pick(module, layers, linear)
        self._module: nn.Module | None = module
        self.widths = {name: features(child) for name, child in self._modules.items()}
        self.fingerprint = Fingerprint.of_module(module, self._modules, linear)
        self.notes: list[str] = []
        self._allowed = tokens_within(self.widths, max_tokens, memory, store is not None)
        if self._allowed < max_tokens and memory is not None:
            self.notes.append(
                f"{len(self.widths)} layers at {max_tokens} tokens do not fit in {memory:,} bytes: "
                f"{self._allowed} tokens of each were kept; several passes, or a folder for the "
                "tokens, would keep them all"
            )
        self.settings: dict[str, Any] = {
            "max_tokens": max_tokens,
            "tokens": self._allowed,
            "memory": memory,
            "seed": seed,
            "layers": len(self.widths),
            "run": uuid4().hex[:12],
        }
        self._store = None if store is None else RowFile(store)
        self._sharing: Sharing | None = Sharing(self._start)
        self._clock = _Clock()
        self._lock = threading.Lock()
        self._strange: set[str] = set()

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Watch one call of the module; also times it.

        After an error inside, what the call had added so far stays in the statistics, and ``notes``
        says so: :meth:`discard` them, or keep them knowing that.
        """
        with self._watching(), self._clock.call():
            yield

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch any number of calls of the module, which are timed one by one."""
        module = self._open()
        with self._watching(), ExitStack() as stack:
            before, after = self._clock.hooks()
            for handle in (
                module.register_forward_pre_hook(before),
                module.register_forward_hook(after, always_call=True),
            ):
                stack.callback(handle.remove)
            yield

    @contextmanager
    def _watching(self) -> Iterator[None]:
        self._open()
        with ExitStack() as stack:
            for name, child in self._modules.items():
                hook = child.register_forward_pre_hook(self._hook(name), with_kwargs=True)
                stack.callback(hook.remove)
            try:
                yield
            except BaseException as error:
                if self._sharing is not None:
                    self._sharing.abandon()
                kind = type(error).__name__
                self.notes.append(f"a call of the model ended in {kind}: statistics are partial")
                raise
        if self._sharing is not None:
            with plain_mode("cpu"):
                self._sharing.settle()

    def finish(self) -> Calibration:
        """The statistics. The capture is over then."""
        self._open()
        sharing, self._sharing = self._sharing, None
        self._module = None
        self._modules = {}
        assert sharing is not None
        with plain_mode("cpu"):
            accumulators = sharing.finish()
            shelves = _shelved(accumulators, stored=self._store is not None)
        ordered = {name: shelves.get(name) for name in self.widths}
        notes = list(self.notes)
        if self._strange:
            name = min(self._strange)
            notes.append(
                f"{len(self._strange)} layers were called without a tensor as wide as their "
                f"weights ({name}): those calls were left out"
            )
        settings = {**self.settings, **self._clock.settings()}
        return Calibration(ordered, settings, notes, self.fingerprint)

    def discard(self) -> None:
        """Give up everything captured. Harmless twice."""
        self._sharing = self._store = self._module = None
        self._modules = {}

    def _open(self) -> nn.Module:
        if self._module is None:
            raise RoundsmithError("this capture is over: begin another")
        return self._module

    def _start(self, layer: str, width: int) -> Accumulator:
        entropy = (int(self.settings["seed"]), zlib.crc32(layer.encode()))
        kept = size(width, self.settings["max_tokens"], self._allowed)
        return Accumulator(width, kept, entropy, self._store)

    def _hook(self, name: str) -> Callable[..., None]:
        width = self.widths[name]

        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = input_of(args, kwargs, width)
            if x is None:
                self._strange.add(name)
            elif x.numel():
                with self._lock:
                    self._feed(name, x)

        return hook

    def _feed(self, name: str, x: Tensor) -> None:
        if self._sharing is None:
            return
        with self._clock.hook(x), plain_mode(x.device.type):
            if type(x) not in (Tensor, nn.Parameter) and hasattr(x, "dequantize"):
                x = x.dequantize()  # codes with scales
            self._sharing.feed(name, x)


@contextmanager
def capture(
    module: nn.Module,
    layers: Layers = None,
    max_tokens: int = 4096,
    memory: int | None = None,
    store: str | Path | None = None,
    seed: int = 0,
) -> Iterator[Calibration]:
    """Capture what the linear layers of ``module`` are called with inside the ``with`` block.

    ::

        with roundsmith.capture(model) as calibration:
            model(inputs)
        calibration.save("model.calibration.safetensors")

    The calibration is complete when the block is left; nothing stays on the module. After an error
    in the block there are no statistics: asking for them says why. Arguments and errors are those
    of :class:`Capture`.
    """
    watch = Capture(module, layers, max_tokens=max_tokens, memory=memory, store=store, seed=seed)
    calibration = Calibration.pending()
    try:
        with watch.watching():
            yield calibration
    except BaseException as error:
        watch.discard()
        calibration.close(f"the capture ended in {type(error).__name__}: {error}")
        raise
    calibration.take(watch.finish())


def _shelved(accumulators: dict[str, Accumulator], stored: bool) -> dict[str, Shelf]:
    """Records by layer. In memory, each accumulator is let go as its record is made."""
    layers: dict[int, list[str]] = {}
    for name, accumulator in accumulators.items():
        layers.setdefault(id(accumulator), []).append(name)
    shelves: dict[str, Shelf] = {}
    for names in layers.values():
        taken = [accumulators.pop(name) for name in names]
        taken[0].finish()
        if stored:
            shelf = Shelf(taken[0].summary, taken[0].record)
        else:
            shelf = Shelf.keeping(taken[0].record())
        shelves.update(dict.fromkeys(names, shelf))
    return shelves


@contextmanager
def plain_mode(device: str) -> Iterator[None]:
    """Without gradients, and whatever mode the model runs in, tensors usable in all of them."""
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(device, enabled=False),
    ):
        yield


class _Clock:
    """How long calls of the model took, and how much of it the capture did."""

    def __init__(self) -> None:
        self._calls = 0
        self._depth = 0
        self._began = 0.0
        self._total = 0.0
        self._mine = 0.0

    @contextmanager
    def call(self) -> Iterator[None]:
        self._enter()
        try:
            yield
        finally:
            self._leave()

    def hooks(self) -> tuple[Callable[..., None], Callable[..., None]]:
        def before(*_: Any) -> None:
            self._enter()

        def after(*_: Any) -> None:
            self._leave()

        return before, after

    @contextmanager
    def hook(self, x: Tensor) -> Iterator[None]:
        if x.device.type == "cuda":
            torch.cuda.current_stream(x.device).synchronize()  # the model's own work, so far
        began = time.perf_counter()
        try:
            yield
        finally:
            if self._depth:
                self._mine += time.perf_counter() - began

    def settings(self) -> dict[str, Any]:
        alone = self._total - self._mine
        slowdown = round(self._total / alone, 3) if self._calls and alone > 0 else None
        return {
            "calls": self._calls, "seconds": round(self._total, 3), "slowdown": slowdown
        }  # fmt: skip

    def _enter(self) -> None:
        if self._depth == 0:
            self._began = time.perf_counter()
        self._depth += 1

    def _leave(self) -> None:
        if self._depth == 0:
            return
        self._depth -= 1
        if self._depth == 0:
            self._total += time.perf_counter() - self._began
            self._calls += 1
