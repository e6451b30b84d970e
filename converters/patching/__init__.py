"""Changes to a checkpoint beside its codes: planned, shown, written; the rest is copied."""

from .changes import Change, ChangeReport, same
from .patch import Patch
from .tool import Destination, Tool, run_tool

__all__ = ["Change", "ChangeReport", "Destination", "Patch", "Tool", "run_tool", "same"]
