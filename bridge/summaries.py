"""What each kind of node's result says in the browser: the facts on the node, the rows behind it.

Rows of all kinds share the names of their columns, which the browser knows (``columns.mjs``).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..converters import Report
from ..converters.calibration import Calibration
from ..converters.choosing import Budget
from ..converters.comparing import Comparison
from ..converters.corrections import CalibrateReport
from ..converters.corrections.error_lora_report import HOW_TO_APPLY, ErrorLoraReport
from ..converters.inspecting import Inspection
from ..converters.patching import ChangeReport
from .results import Result
from .self_calibration import read_note


def of_report(report: Report, kind: str = "quantize", **facts: Any) -> Result:
    """The result of a conversion, or of a plan for one. ``facts``: more of them."""
    return of_reports((("", report),), kind, **facts)


def of_reports(
    parts: Sequence[tuple[str, Report]], kind: str = "quantize", **facts: Any
) -> Result:
    """The result of several conversions at once, as of a CLIP's encoders, by name."""
    reports = [report for _, report in parts]
    found = {
        "bytes_before": sum(report.bytes_before for report in reports),
        "bytes_after": sum(report.bytes_after for report in reports),
        "quantized": sum(report.quantized for report in reports),
        "kept": sum(x.action == "keep" for report in reports for x in report.layers),
        "executed_snr": _mean(x.executed_snr for r in reports for x in r.outcomes),
        "output_snr": _mean(x.output_snr for r in reports for x in r.outcomes),
        "weight_snr": _mean(x.weight_snr for r in reports for x in r.outcomes),
        "gain": _mean(x.gain for r in reports for x in r.outcomes),
        "methods": _count(x.method for report in reports for x in report.outcomes),
        "formats": _count(
            x.stored_as for r in reports for x in r.layers if x.action == "quantize"
        ),
        "calibrated": next(filter(None, (read_note(w) for r in reports for w in r.warnings)), None),
        "choice": "\n".join(filter(None, (report.choice for report in reports))),
        "seconds": sum(report.seconds for report in reports),
    }
    rows = [row for name, report in parts for row in _layers(report, name)]
    warnings = tuple(
        f"{name}: {text}" if name else text for name, r in parts for text in r.warnings
    )
    details = {"rows": rows, "recipe": json.loads(reports[0].recipe)}
    return Result(kind, {**found, **facts}, warnings, details)


def of_inspection(found: Inspection, name: str) -> Result:
    """What a file holds. ``name``: as ComfyUI lists it."""
    odd: dict[str, list[str]] = {}
    for suspicion in found.suspicious:
        odd.setdefault(suspicion.entry, []).append(suspicion.text)
    facts = {
        "file": name,
        "bytes_after": found.bytes,
        "model": found.model,
        "formats": dict(found.formats),
        "stock": found.stock,
        "roundsmith": not found.why_not_roundsmith,
        "quantized": sum(x.conf is not None for x in found.layers),
        "kept": sum(x.conf is None for x in found.layers),
        "against": found.reference,
        "weight_snr": _mean(x.snr for x in found.layers),
    }
    warnings = (
        *(f"not with stock ComfyUI: {why}" for why in found.why_not_stock),
        *(f"not with Roundsmith: {why}" for why in found.why_not_roundsmith),
        *(f"{x.entry}: {x.text}" for x in found.suspicious),
        *found.notes,
    )
    rows = [
        {
            "name": x.name,
            "shape": x.shape,
            "stored_as": x.stored_as,
            "action": "keep" if x.conf is None else "quantize",
            "bytes_after": x.bytes,
            "scale_least": None if x.scales is None else x.scales.least,
            "scale_largest": None if x.scales is None else x.scales.largest,
            "at_max": None if x.codes is None else x.codes.at_max,
            "input_scale": x.input_scale,
            "weight_snr": x.snr,
            "reason": "; ".join(odd.get(x.name, ())),
        }
        for x in found.layers
    ]
    recipe = found.recipe and json.loads(found.recipe)
    return Result("inspect", facts, warnings, {"rows": rows, "recipe": recipe, "made": found.made})


def of_comparison(found: Comparison) -> Result:
    """What a quantized model loses against its reference."""
    facts = {
        "snr": found.snr,
        "lossless": found.snr == math.inf,
        "what": found.what,
        "psnr": found.psnr,
        "psnr_what": found.psnr_what,
        "executed_snr": found.executed,
        "output_snr": found.exact,
        "device": found.device,
        "worst": [x.name for x in found.worst()],
    }
    only = {"the reference": found.only_reference, "the quantized model": found.only_quantized}
    warnings = [
        f"{len(names)} layers only in {where}: {', '.join(names[:3])}{', …' * (len(names) > 3)}"
        for where, names in only.items()
        if names
    ]
    rows = [
        {
            "name": x.name,
            "shape": x.shape,
            "stored_as": x.stored_as,
            "weight_snr": x.weight,
            "output_snr": x.exact,
            "executed_snr": x.executed,
            "tokens": x.tokens,
            "reason": x.note,
        }
        for x in found.layers
    ]
    steps = [asdict(step) for step in found.steps]
    return Result("compare", facts, (*found.notes, *warnings), {"rows": rows, "steps": steps})


def of_budget(found: Budget, before: int) -> Result:
    """A format for each layer. ``before``: bytes of the file it was chosen for."""
    facts = {
        "bytes_before": before,
        "bytes_after": found.size,
        "snr": found.snr,
        "measured": found.measured,
        "quantized": sum(x.spec is not None for x in found.layers),
        "kept": sum(x.spec is None for x in found.layers),
        "formats": _count(x.spec.describe() for x in found.layers if x.spec),
    }
    rows = [
        {
            "name": x.layer,
            "stored_as": x.spec.describe() if x.spec else "",
            "action": "quantize" if x.spec else "keep",
            "bytes_after": x.nbytes,
            "snr": -10 * math.log10(x.error) if x.error > 0 else None,
        }
        for x in found.layers
    ]
    curve = {"curve": found.curve, "uniform": found.uniform}
    recipe = json.loads(found.recipe.to_json())
    return Result("budget", facts, found.notes, {"rows": rows, "recipe": recipe, **curve})


def of_change(report: ChangeReport) -> Result:
    """What a tool changed in a file, or would change."""
    facts = {
        "tool": report.title,
        "file": Path(report.path).name,
        "bytes_after": report.bytes,
        "changes": len(report.changes),
        "copied": report.copied,
        "kinds": _count(f"{x.where} {x.what}" for x in report.changes),
        "found": {name: _text(value) for name, value in report.facts.items()},
    }
    rows = [
        {
            "name": x.entry,
            "where": x.where,
            "what": x.what,
            "before": _text(x.before),
            "after": _text(x.after),
        }
        for x in report.changes
    ]
    return Result("change", facts, report.notes, {"rows": rows} if rows else {})


def of_scales(report: CalibrateReport) -> Result:
    """Input scales that were set, or would be."""
    facts = {
        "file": Path(report.path).name,
        "bytes_after": Path(report.path).stat().st_size if report.path else None,
        "changes": report.changed,
        "meaning": report.meaning,
    }
    rows = [
        {
            "name": x.name,
            "before": x.before,
            "input_scale": x.scale,
            "reach": x.reach,
            "largest": x.largest,
            "reason": x.reason,
        }
        for x in report.layers
    ]
    return Result("change", facts, report.warnings, {"rows": rows})


def of_error_lora(report: ErrorLoraReport) -> Result:
    """What an error LoRA takes back."""
    executed = report.gain("executed")
    facts = {
        "file": Path(report.path).name,
        "bytes_after": report.bytes,
        "corrected": len(report.corrected),
        "layers": len(report.layers),
        "gain": report.gain("output") if executed is None else executed,
        "executed": executed is not None,
        "weight_gain": report.gain("weight"),
        "hint": HOW_TO_APPLY,
    }
    rows = [asdict(layer) for layer in report.layers]
    return Result("lora", facts, report.warnings, {"rows": rows})


def of_calibration(found: Calibration, **facts: Any) -> Result:
    """What was recorded. ``facts``: of the file it went to, where it did."""
    summaries = {layer: found.summary(layer) for layer in found.layers}
    known = [s for s in summaries.values() if s is not None]
    how = {"passes": 1, **found.settings}
    if how.get("runs"):
        how = {}  # merged: each run has its own
    told = {
        "layers": len(known),
        "unreached": len(found.unreached),
        "seen": max((s.count for s in known), default=0),
        "used": max((s.available for s in known), default=0),
        "passes": how.get("passes"),
        "slowdown": how.get("slowdown"),
    }
    rows = [
        {"name": layer}
        if s is None
        else {
            "name": layer,
            "inputs": s.features,
            "tokens": s.count,
            "used": s.available,
            "nonfinite": s.nonfinite,
        }
        for layer, s in summaries.items()
    ]
    details = {"rows": rows, "settings": found.settings}
    return Result("calibration", {**told, **facts}, (*found.warnings, *found.notes), details)


def of_files(written: Mapping[str, int], **facts: Any) -> Result:
    """Files that were written, with their bytes."""
    return Result("saved", {"files": dict(written), "bytes_after": sum(written.values()), **facts})


def _layers(report: Report, part: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = report.to_dict()["layers"]
    for row, layer in zip(rows, report.layers, strict=True):
        row["name"] = f"{part}.{layer.name}" if part else layer.name
        row["gain"] = layer.outcome and layer.outcome.gain
    return rows


def _count(names: Iterable[str]) -> dict[str, int]:
    return dict(Counter(names).most_common())


def _mean(values: Iterable[float | None]) -> float | None:
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None


def _text(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)
