"""What all tests share: those that need ComfyUI are counted as skipped where it cannot run.

The modules in tests/comfyui may import ComfyUI at their top: without it they are not imported,
only read for the names of their tests.

Triton kernels run in its interpreter, on the CPU. It reads the variable when it is imported, which
comfy-kitchen does, so it is set before anything else. ``TRITON_INTERPRET=0`` runs the same tests
compiled, on the GPU.
"""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

os.environ.setdefault("TRITON_INTERPRET", "1")

from roundsmith import dev

pytest.register_assert_rewrite(f"{__package__}.contract", "roundsmith.tests.contract")
COMFYUI_NEEDS = ("aiohttp", "einops", "torchsde", "transformers")
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def why_no_comfyui() -> str | None:
    """Return why ComfyUI cannot be imported here, or None where it can."""
    if Path(sys.prefix) == dev.OVERLAY:
        return None  # a missing package is an error there
    comfyui = dev.find_comfyui()
    if comfyui is None:
        return "no ComfyUI at COMFYUI_DIR or ~/ComfyUI"
    if all(find_spec(name) for name in COMFYUI_NEEDS):
        return None
    if dev.find_comfyui_python(comfyui) is None:
        return f"no interpreter found for {comfyui}: set COMFYUI_PYTHON"
    return "`python dev.py test` runs these, with ComfyUI's interpreter"


class SkippedTest(pytest.Item):
    """A test that was read, not imported."""

    def runtest(self) -> None:
        pytest.skip(why_no_comfyui() or "")


class SkippedModule(pytest.Module):
    """A module whose tests are listed from its text."""

    def collect(self) -> Iterator[pytest.Item]:
        for scope in ast.parse(self.path.read_text(encoding="utf-8")).body:
            prefix = f"{scope.name}::" if isinstance(scope, ast.ClassDef) else ""
            for node in scope.body if isinstance(scope, ast.ClassDef) else [scope]:
                name = getattr(node, "name", "")
                if isinstance(node, FUNCTIONS) and name.startswith("test"):
                    yield SkippedTest.from_parent(self, name=prefix + name)


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> pytest.Module | None:
    """List the tests of tests/comfyui without importing them where ComfyUI cannot run."""
    if module_path.is_relative_to(dev.COMFYUI_TESTS) and why_no_comfyui():
        return SkippedModule.from_parent(parent, path=module_path)
    return None
