"""Results for the browser: a summary that a node carries, and details it asks for.

A summary is small and goes with the node's outputs (and into the saved workflow). Details, a row a
layer, are kept in ComfyUI's user folder under the hash of their content; the newest stay.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import folder_paths

from ..checkpoints.text import write_text
from ..errors import CheckpointError

KEPT = 200
"""Reports kept; older ones go."""

SHOWN = 20
"""Warnings a node carries; the details have all."""


@dataclass(frozen=True)
class Result:
    """What a node made, for the browser.

    Attributes:
        kind: which panel shows it: ``quantize``, ``plan``, ``inspect``, ``compare``, ``budget``,
            ``change``, ``lora``, ``calibration``, ``saved``.
        facts: numbers and short texts by name; the browser knows how to say them.
        warnings: what a person should know.
        details: everything else, as plain data; empty where the facts are all there is. ``rows``
            are the lines of the table, objects with the same keys.
    """

    kind: str
    facts: Mapping[str, Any]
    warnings: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """What the node carries: the details kept, and named by their id."""
        shown = {"kind": self.kind, "facts": self.facts, "warnings": self.warnings}
        report = _kept_or_none({**shown, **self.details}) if self.details else None
        some = {"warnings": self.warnings[:SHOWN], "hidden": len(self.warnings[SHOWN:])}
        return dict(plain({**shown, **some, "report": report}))


def plain(value: Any) -> Any:
    """Data as JSON has it: infinities and NaN are null, what it has no word for is text."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()  # half a character in a file's name
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [plain(item) for item in value]
    return str(value)


def keep(document: Mapping[str, Any]) -> str:
    """Keep a report; its id."""
    text = json.dumps(plain(document), ensure_ascii=False, allow_nan=False)
    name = hashlib.sha256(text.encode()).hexdigest()[:32]
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / f"{name}.json", text, overwrite=True)
    found = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    for path in found[:-KEPT]:
        path.unlink(missing_ok=True)
    return name


def kept(name: str) -> str:
    """A report as JSON text. Raises :class:`CheckpointError` for one that is not there."""
    path = _folder() / f"{name}.json"
    if re.fullmatch(r"[0-9a-f]{32}", name) is None or not path.is_file():
        raise CheckpointError("these details are no longer kept; run the node again")
    return path.read_text(encoding="utf-8")


def _kept_or_none(document: Mapping[str, Any]) -> str | None:
    """A run that took an hour does not fail because its details find no place."""
    try:
        return keep(document)
    except (OSError, CheckpointError) as error:
        logging.warning("Roundsmith: the details of a result are not kept: %s", error)
        return None


def _folder() -> Path:
    return Path(folder_paths.get_user_directory()) / "roundsmith" / "reports"
