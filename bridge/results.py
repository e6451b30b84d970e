"""Results for the browser: a summary that a node carries, and details it asks for.

A summary is small and goes with the node's outputs (and into the saved workflow). Details, a row a
layer, are kept in ComfyUI's user folder under the hash of their content; the newest stay.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import folder_paths

from ..checkpoints.text import write_text
from ..converters import Report
from ..errors import CheckpointError

KEPT = 200
"""Reports kept; older ones go."""


@dataclass(frozen=True)
class Result:
    """What a node made, for the browser.

    Attributes:
        kind: which panel shows it: ``quantize``, ``plan``, ``inspect``, ``compare``, ``budget``,
            ``change``.
        facts: numbers and short texts by name; the browser knows how to say them.
        warnings: what a person should know.
        details: everything else, as plain data; empty where the facts are all there is.
    """

    kind: str
    facts: Mapping[str, Any]
    warnings: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """What the node carries: the details kept, and named by their id."""
        shown = {"kind": self.kind, "facts": dict(self.facts), "warnings": list(self.warnings)}
        return {**shown, "report": keep({**shown, **self.details}) if self.details else None}


def of_report(report: Report, kind: str = "quantize") -> Result:
    """The result of a conversion, or of a plan for one."""
    data = report.to_dict()
    facts = {
        "bytes_before": report.bytes_before,
        "bytes_after": report.bytes_after,
        "quantized": report.quantized,
        "kept": sum(layer.action == "keep" for layer in report.layers),
        "executed_snr": report.mean_executed_snr,
        "output_snr": report.mean_output_snr,
        "weight_snr": report.mean_snr,
        "gain": report.mean_gain,
        "methods": report.methods(),
    }
    return Result(kind, facts, report.warnings, {"layers": data["layers"], "table": report.table()})


def keep(document: Mapping[str, Any]) -> str:
    """Keep a report; its id."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False)
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


def _folder() -> Path:
    return Path(folder_paths.get_user_directory()) / "roundsmith" / "reports"
