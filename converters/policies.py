"""What presets say about a model's layers, remembered: a plan made again asks nothing twice."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from .model import ModelView
from .presets import Decision, Policy, resolve, user_presets_file

Asked = tuple[str | tuple[str, ...] | None, str, int]
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


def decisions(model: ModelView, preset: str | tuple[str, ...] | None) -> Decisions:
    """What ``preset`` says about ``model``'s layers. Raises RecipeError for an unknown preset.

    It is remembered as long as the model is, until the person's own presets change.
    """
    file = user_presets_file()
    changed = file.stat().st_mtime_ns if file.is_file() else 0
    asked = preset, str(file), changed
    known = _known.setdefault(model, {})
    if asked not in known:
        known[asked] = Decisions(resolve(preset, model.names))
    return known[asked]
