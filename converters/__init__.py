"""What to do to a model: recipe, presets, plan, the streaming engine, report."""

from .engine import convert
from .files import load_file, plan_file, quantize_file
from .model import ModelView
from .modules import quantize_module
from .plan import Plan, make_plan
from .recipe import Options, Recipe, Rule
from .report import LayerReport, Progress, Report
from .source import MemorySink, MemorySource, Sink, Source

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
