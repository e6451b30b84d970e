"""What presets say about a model's layers, remembered: a plan made again asks nothing twice."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from .model import ModelView
from .preset_files import Preset
from .presets import Decision, Policy, resolve

Asked = tuple[str | tuple[str, ...] | None, tuple[Preset, ...]]
_known: WeakKeyDictionary[ModelView, dict[Asked, Decisions]] = WeakKeyDictionary()


class Decisions:
    """A policy that remembers what it decided.

    ``policy``: what decides.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._decided: dict[tuple[str, Sequence[int]], Decision] = {}

    def decide(self, layer: str, shape: tuple[int, ...]) -> Decision:
        """As :meth:`Policy.decide`."""
        asked = layer, shape
        found = self._decided.get(asked)
        if found is None:
            found = self._decided[asked] = self.policy.decide(layer, shape)
        return found


def decisions(
    model: ModelView, preset: str | tuple[str, ...] | None, own: tuple[Preset, ...]
) -> Decisions:
    """What ``preset`` says about ``model``'s layers. Raises RecipeError for an unknown preset.

    ``own``: a person's own presets. It is remembered as long as the model is.
    """
    known = _known.setdefault(model, {})
    if (preset, own) not in known:
        known[preset, own] = Decisions(resolve(preset, model.names, own))
    return known[preset, own]
