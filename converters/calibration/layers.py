"""Which modules are linear layers, which of them are meant, and what they were called with."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ...errors import RecipeError

IsLinear = Callable[[nn.Module], bool]
Layers = str | Sequence[str] | None


def is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies its input's last dimension by a matrix ``[out, in]``."""
    if isinstance(module, nn.Linear):
        return True
    weight = getattr(module, "weight", None)
    widths = (getattr(module, "out_features", None), getattr(module, "in_features", None))
    return isinstance(weight, Tensor) and weight.dim() == 2 and tuple(weight.shape) == widths


def features(module: nn.Module) -> int:
    """Width of a linear layer's input."""
    weight = getattr(module, "weight", None)
    return int(getattr(module, "in_features", 0) or (weight.shape[1] if weight is not None else 0))


def pick(
    module: nn.Module, layers: Layers = None, linear: IsLinear = is_linear
) -> dict[str, nn.Module]:
    """The linear layers of ``module`` by name, in its order.

    Args:
        module: the model.
        layers: a regular expression searched in the names; names; or None for all.
        linear: which modules are linear layers.

    Raises:
        RecipeError: a bad expression, an unknown name, or nothing left.
    """
    known = {name: child for name, child in module.named_modules() if linear(child)}
    if layers is None:
        chosen = known
    elif isinstance(layers, str):
        try:
            pattern = re.compile(layers)
        except re.error as error:
            raise RecipeError(f"layers: {layers!r} is no regular expression: {error}") from error
        chosen = {name: child for name, child in known.items() if pattern.search(name)}
    else:
        unknown = [name for name in layers if name not in known]
        if unknown:
            raise RecipeError(
                f"layers: the model has no linear layer {unknown[0]!r}; its first are "
                f"{', '.join(list(known)[:3]) or '(none)'}"
            )
        chosen = {name: known[name] for name in layers}
    if not chosen:
        matching = f" that matches {layers!r}" if known else ""
        raise RecipeError(f"layers: the model has no linear layer{matching}")
    return chosen


def input_of(args: Sequence[Any], kwargs: Mapping[str, Any], width: int) -> Tensor | None:
    """The floating tensor ``[..., width]`` a layer was called with: the first, however nested."""
    for x in tensors_in((args, kwargs)):
        if x.dim() and x.shape[-1] == width and x.is_floating_point() and not x.is_meta:
            return x
    return None


def tensors_in(value: Any) -> Iterator[Tensor]:
    """All tensors in mappings, tuples and lists, however nested."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors_in(item)
