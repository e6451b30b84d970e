"""A plan for machines, and as a layer config to edit."""

from __future__ import annotations

import json
import re

from .plan import Plan


def plan_json(plan: Plan) -> str:
    """The plan for machines."""
    rows = [
        {
            "name": t.name,
            "action": t.action,
            "shape": list(t.shape),
            "format": t.spec.format if t.spec else (t.conf or {}).get("format"),
            "stored_as": t.spec.describe() if t.spec else None,
            "reason": t.reason,
            "bytes_before": t.bytes_before,
            "bytes_after": t.bytes_after,
        }
        for t in plan.tensors
    ]
    top = {
        "preset": plan.preset,
        "evidence": plan.evidence,
        "choice": None if plan.choice is None else plan.choice.table(),
        "warnings": plan.warnings,
    }
    return json.dumps({**top, "size": plan.size, "tensors": rows}, ensure_ascii=False)


def template(plan: Plan) -> str:
    """A layer config to edit, as JSON: what is planned for each linear layer, with its shape."""
    entries: dict[str, dict[str, object]] = {}
    for t in plan.tensors:
        if t.action not in ("quantize", "keep") or len(t.shape) != 2:
            continue
        asked: dict[str, object] = {"skip": True}
        if t.spec is not None:
            named = ("format", "scaling", "group_size", "convrot", "variant")
            said = {name: getattr(t.spec, name) for name in named}
            asked = {name: value for name, value in said.items() if value is not None}
        entries[f"^{re.escape(t.layer)}$"] = {**asked, "_shape": list(t.shape)}
    return json.dumps(entries, indent=2)
