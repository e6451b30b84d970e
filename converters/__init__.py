"""What to do to a model: recipe, presets, plan, the streaming engine, report.

The names below load on first use: what edits a file's metadata needs neither torch nor formats.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import convert
    from .files import load_file, plan_file, quantize_file
    from .model import ModelView
    from .modules import quantize_module
    from .plan import Plan, make_plan
    from .progress import Progress
    from .recipe import Options, Recipe, Rule
    from .report import LayerReport, Report
    from .source import MemorySink, MemorySource, Sink, Source

_HOMES = {
    "LayerReport": ".report",
    "MemorySink": ".source",
    "MemorySource": ".source",
    "ModelView": ".model",
    "Options": ".recipe",
    "Plan": ".plan",
    "Progress": ".progress",
    "Recipe": ".recipe",
    "Report": ".report",
    "Rule": ".recipe",
    "Sink": ".source",
    "Source": ".source",
    "convert": ".engine",
    "load_file": ".files",
    "make_plan": ".plan",
    "plan_file": ".files",
    "quantize_file": ".files",
    "quantize_module": ".modules",
}
__all__ = [
    "LayerReport",
    "MemorySink",
    "MemorySource",
    "ModelView",
    "Options",
    "Plan",
    "Progress",
    "Recipe",
    "Report",
    "Rule",
    "Sink",
    "Source",
    "convert",
    "load_file",
    "make_plan",
    "plan_file",
    "quantize_file",
    "quantize_module",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
