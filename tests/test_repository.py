"""What a release needs and no other test sees: lists that repeat one another, names, sizes."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import roundsmith
from roundsmith import dev

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
TESTS = ROOT / "tests"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
COMFYUI = {
    *("comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution"),
    *("aiohttp", "folder_paths", "latent_preview", "node_helpers", "nodes", "server"),
}
NOT_SHIPPED = {"build", "dist", "tests"}
IMPORTED_AS = {"pillow": "PIL"}
OPTIONAL = {"triton"}  # comes with torch where there is one


def tracked() -> list[Path]:
    """Return the files git tracks."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git clone")
    names = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in names.stdout.split("\0") if name and (ROOT / name).is_file()]


def imported(path: Path) -> Iterator[str]:
    """Yield the top-level names of the packages a file imports by absolute name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]


def test_the_tests_run_on_this_clone() -> None:
    assert Path(roundsmith.__file__).resolve().parent == ROOT


def test_requirements_repeat_the_dependencies_but_torch() -> None:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    required = [line for line in lines if line and not line.startswith("#")]
    declared = PROJECT["project"]["dependencies"]
    assert required == [line for line in declared if not line.startswith("torch>")]
    assert not any(line.startswith("torch") for line in required), "ComfyUI's torch must stay"


def test_versions_agree() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (\S+)", changelog, re.MULTILINE)
    assert newest is not None
    assert newest[1] == PROJECT["project"]["version"] == roundsmith.__version__


def test_every_package_is_installed() -> None:
    tops = [path for path in ROOT.iterdir() if path.is_dir() and path.name.isidentifier()]
    folders = [init.parent for top in tops for init in top.rglob("__init__.py")]
    paths = [folder.relative_to(ROOT).parts for folder in folders]
    names = {".".join(["roundsmith", *parts]) for parts in paths if parts[0] not in NOT_SHIPPED}
    listed = set(PROJECT["tool"]["setuptools"]["packages"])
    assert listed == {*names, "roundsmith", "roundsmith.tests.models"}


def test_every_import_is_declared() -> None:
    lines = PROJECT["project"]["dependencies"]
    names = [re.split(r"\W", line.replace("-", "_"))[0] for line in lines]
    declared = {IMPORTED_AS.get(name, name) for name in names}
    known = {*sys.stdlib_module_names, *declared, *OPTIONAL}
    undeclared = []
    for path in dev.sources():
        if TESTS not in path.parents:
            inside = path.relative_to(ROOT).parts[0] in ("nodes", "bridge")
            allowed = {*known, *COMFYUI} if inside else known
            undeclared += [f"{path.name}: {name}" for name in {*imported(path)} - allowed]
    assert undeclared == [], "declare it in pyproject.toml and requirements.txt"


def test_only_tests_import_the_package_by_name() -> None:
    named = [path for path in dev.sources() if "roundsmith" in imported(path)]
    assert [path for path in named if TESTS not in path.parents] == [], (
        "ComfyUI loads the pack under another name: import relatively"
    )


def test_tests_reach_the_package_by_name() -> None:
    climbing = [
        str(path)
        for path in TESTS.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level > len(path.relative_to(TESTS).parts)
    ]
    assert climbing == [], "to pytest the package has the name of the clone's folder: a second copy"


def test_no_file_outgrew_its_subject() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in dev.sources()}
    assert {str(path): length for path, length in lengths.items() if length > 400} == {}


def test_the_commands_in_the_documents_exist() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    named = set(re.findall(r"python dev\.py (\w+)", text))
    known = set(re.findall(r"python dev\.py (\w+)", dev.__doc__ or ""))
    assert named <= known


def test_no_file_names_a_folder_of_somebody_s_machine() -> None:
    pattern = re.compile(rb"(?<![\w.~/])/(root|home|Users)/\w|[A-Z]:\\Users\\\w")
    assert [path for path in tracked() if pattern.search(path.read_bytes())] == []


def node_ids() -> set[str]:
    """Return the names under which ComfyUI knows the nodes."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "nodes").glob("*.py"))
    return set(re.findall(r"node_id=\"(\w+)\"", text))


def test_every_node_has_a_help_page() -> None:
    assert node_ids() == {page.stem for page in (ROOT / "web" / "docs").glob("*.md")}


def test_every_translation_covers_every_node() -> None:
    for translation in (ROOT / "locales").glob("*/nodeDefs.json"):
        translated = json.loads(translation.read_text(encoding="utf-8"))
        assert node_ids() == set(translated), translation.parent.name


def test_every_example_workflow_has_a_picture() -> None:
    workflows = {path.stem for path in (ROOT / "workflows").glob("*.json")}
    assert workflows == {path.stem for path in (ROOT / "workflows").glob("*.jpg")}


def test_the_scripts_wanted_at_the_start_are_asked_for_at_once() -> None:
    """``web/roundsmith.js`` names what ``features.mjs`` imports, directly or not, and no more."""
    app = ROOT / "web" / "app"
    wanted, found = ["features", "frontend"], set()
    while wanted:
        name = wanted.pop()
        if name not in found:
            found.add(name)
            text = (app / f"{name}.mjs").read_text(encoding="utf-8")
            wanted += re.findall(r'^import .*?from "\./(\w+)\.mjs";', text, re.MULTILINE)
    start = (ROOT / "web" / "roundsmith.js").read_text(encoding="utf-8")
    named = re.findall(r'"(\w+)"', start[start.index("START = [") : start.index("];")])
    assert sorted(found) == named
