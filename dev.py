"""What a developer runs; needs only Python and pip, on Windows, macOS and Linux.

    python dev.py demo [ARGUMENTS]   quantize a small model and show what came out
    python dev.py test [ARGUMENTS]   run the tests; the arguments go to pytest (-k rounding)
    python dev.py lint               ruff, mypy and import-linter; ESLint where there is Node.js
    python dev.py setup              only install
    python dev.py summary            repeat the totals of the last test run

The first run makes .venv, or takes the environment it already runs in where that one has torch,
and installs the project into it. The tests in tests/comfyui run with ComfyUI's own interpreter
(COMFYUI_PYTHON, else the one found beside ComfyUI) through .venv-comfyui, which sees ComfyUI's
packages and adds what is missing: ComfyUI's environment itself is only read.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent
TORCH = "torch==2.13.0"  # where there is none yet; users keep the torch they have
REPORTS = ROOT / "build" / "reports"
COMFYUI_TESTS = ROOT / "tests" / "comfyui"
# Like `python -m`, but leaves the root off sys.path: ComfyUI has a module called `nodes` too.
LAUNCH = (
    "import runpy, sys; del sys.path[0]; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)
OVERLAY = ROOT / ".venv-comfyui"
NO_TESTS_RAN = 5  # pytest's exit status


def find_comfyui() -> Path | None:
    """Return ComfyUI's folder: COMFYUI_DIR, else ~/ComfyUI, else the one this pack sits in."""
    named = os.environ.get("COMFYUI_DIR")
    candidates = [Path(named)] if named else [Path.home() / "ComfyUI", ROOT.parent.parent]
    for folder in candidates:
        if (folder / "main.py").is_file() and (folder / "comfy").is_dir():
            return folder.resolve()
    return None


def find_comfyui_python(comfyui: Path) -> Path | None:
    """Return the interpreter that runs this ComfyUI, without resolving links: they say which."""
    named = os.environ.get("COMFYUI_PYTHON")
    candidates = [Path(named)] if named else []
    candidates += [interpreter(comfyui / name) for name in (".venv", "venv")]
    candidates.append(comfyui.parent / "python_embeded" / "python.exe")  # sic: Windows portable
    if belongs_to_comfyui():
        candidates.append(Path(sys.executable))
    return next((path.absolute() for path in candidates if path.is_file()), None)


def belongs_to_comfyui() -> bool:
    """Tell whether the running interpreter's environment is ComfyUI's."""
    return find_spec("comfyui_frontend_package") is not None


def interpreter(environment: Path) -> Path:
    """Return where a virtual environment keeps its interpreter."""
    windows = os.name == "nt"
    return environment / ("Scripts/python.exe" if windows else "bin/python")


def run(command: Sequence[str | Path], cwd: Path = ROOT) -> int:
    """Run a command in the foreground and return its exit status."""
    sys.stdout.flush()
    environment = {**os.environ, "PYTHONUTF8": "1"}
    return subprocess.run([str(part) for part in command], cwd=cwd, env=environment).returncode


def must(command: Sequence[str | Path]) -> None:
    """Run a command; stop with its exit status where it fails."""
    status = run(command)
    if status:
        print("dev.py: failed:", *command, file=sys.stderr)
        sys.exit(status)


def ask(python: Path, code: str) -> str:
    """Return what a line of Python prints in another interpreter."""
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def stamped(stamp: Path, *inputs: object) -> bool:
    """Tell whether the stamp was written for these inputs."""
    return stamp.is_file() and stamp.read_text(encoding="utf-8") == digest(*inputs)


def digest(*inputs: object) -> str:
    """Return one line that changes with the inputs and with what the project asks for."""
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    return hashlib.sha256(repr([project, *map(str, inputs)]).encode()).hexdigest()


def setup() -> Path:
    """Install the project where it is not yet and return the interpreter to use."""
    managed = Path(sysconfig.get_path("stdlib")) / "EXTERNALLY-MANAGED"
    ours = find_spec("torch") is not None and not belongs_to_comfyui()
    if ours and (sys.prefix != sys.base_prefix or not managed.exists()):
        python = Path(sys.executable)
        stamp = ROOT / "build" / "installed"
    else:
        python = interpreter(ROOT / ".venv")
        stamp = ROOT / ".venv" / "installed"
        if not python.is_file():
            must([sys.executable, "-m", "venv", ROOT / ".venv"])
    if not stamped(stamp, python):
        if ask(python, "import importlib.util as u; print(u.find_spec('torch') is None)") == "True":
            must([python, "-m", "pip", "install", TORCH])
        must([python, "-m", "pip", "install", "-e", f"{ROOT}[dev]"])
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(digest(python), encoding="utf-8")
    return python


def setup_comfyui(python: Path) -> Path:
    """Return an interpreter that sees ComfyUI's packages, then ours; nothing of ComfyUI changes."""
    stamp = OVERLAY / "installed"
    paths = "[path for path in sys.path if path.endswith('-packages')]"
    site = ask(python, f"import json, sys; print(json.dumps({paths}))")
    if not stamped(stamp, python, site):
        shutil.rmtree(OVERLAY, ignore_errors=True)
        version = ask(python, "import sys; print(sys.version_info[:2])")
        base = python
        if ask(python, "import importlib.util as u; print(u.find_spec('venv') is None)") == "True":
            base = Path(sys.executable)  # Windows portable has no venv
            if version != str(sys.version_info[:2]):
                sys.exit(f"dev.py: run me with Python {version}, the version of {python}")
        must([base, "-m", "venv", OVERLAY])
        pip = [str(interpreter(OVERLAY)), "-m", "pip", "install"]
        must([*pip, "--no-deps", "-e", ROOT])  # before ComfyUI's setuptools comes in sight
        ours = ask(interpreter(OVERLAY), "import sysconfig as s; print(s.get_path('purelib'))")
        lines = [f"import site; site.addsitedir({path!r})\n" for path in json.loads(site)]
        (Path(ours) / "comfyui.pth").write_text("".join(lines), encoding="utf-8")
        must([*pip, "-r", ROOT / "requirements.txt", "pytest", "hypothesis", "playwright"])
        stamp.write_text(digest(python, site), encoding="utf-8")
    return interpreter(OVERLAY)


def pytest(python: Path, report: str, arguments: Sequence[str | Path]) -> int:
    """Run pytest and leave its counts in a report."""
    return run([python, "-c", LAUNCH, "pytest", f"--junitxml={REPORTS / report}.xml", *arguments])


def split(arguments: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Sort pytest's arguments into options, ordinary tests and tests that need ComfyUI."""
    options, ordinary, theirs = [], [], []
    for word in arguments:
        path = (ROOT / word.split("::")[0]).resolve()
        if not path.exists() or not path.is_relative_to(ROOT / "tests"):
            options.append(word)
        elif path.is_relative_to(COMFYUI_TESTS):
            theirs.append(word)
        else:
            ordinary.append(word)
            theirs += [str(COMFYUI_TESTS)] if path == ROOT / "tests" else []
    if not ordinary and not theirs:
        return options, [str(ROOT / "tests")], [str(COMFYUI_TESTS)]
    return options, ordinary, theirs


def test(arguments: Sequence[str]) -> int:
    """Run the tests: the ordinary ones, then, where there is a ComfyUI, those that need it."""
    comfyui = find_comfyui()
    comfyui_python = find_comfyui_python(comfyui) if comfyui else None
    shutil.rmtree(REPORTS, ignore_errors=True)
    statuses = []
    if comfyui_python is None:  # they are counted as skipped
        statuses.append(pytest(setup(), "ordinary", arguments))
    else:
        options, ordinary, theirs = split(arguments)
        if ordinary:
            skip = f"--ignore={COMFYUI_TESTS}"
            statuses.append(pytest(setup(), "ordinary", [*options, skip, *ordinary]))
        if theirs:
            print(f"\nComfyUI at {comfyui}, with {comfyui_python}")
            python = setup_comfyui(comfyui_python)
            statuses.append(pytest(python, "comfyui", [*options, *theirs]))
    summary()
    failed = [status for status in statuses if status not in (0, NO_TESTS_RAN)]
    return failed[0] if failed else min(statuses)


def summary() -> int:
    """Print the totals of the last test run, over all its parts."""
    total = dict.fromkeys(("tests", "failures", "errors", "skipped"), 0)
    for report in REPORTS.glob("*.xml"):
        for suite in ElementTree.parse(report).getroot().iter("testsuite"):
            for key in total:
                total[key] += int(suite.get(key, 0))
    failed = total["failures"] + total["errors"]
    passed = total["tests"] - failed - total["skipped"]
    print(f"{passed} passed, {failed} failed, {total['skipped']} skipped")
    return 0


def lint() -> int:
    """Run ruff on the files, mypy and import-linter on a copy called `roundsmith`.

    The package is the root of the repository, whose folder may have any name; mypy and
    import-linter go by names of folders, so they get one that is right.
    """
    python = setup()
    copy = ROOT / "build" / "lint" / "roundsmith"
    shutil.rmtree(copy, ignore_errors=True)
    for path in sources():
        target = copy / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(path, target)
    config = ROOT / "pyproject.toml"
    linter = "import importlinter.cli as cli; cli.lint_imports_command()"
    statuses = [
        run([python, "-m", "ruff", "check", "--output-format=concise", ROOT]),
        run([python, "-m", "mypy", "--config-file", config, "-p", "roundsmith"], cwd=copy.parent),
        run([python, "-c", linter, "--config", config, "--no-cache"], cwd=copy.parent),
        lint_browser(),
    ]
    return max(statuses)


def lint_browser() -> int:
    """Run ESLint on what the browser loads, where there are node and npm."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        print("ESLint left out: there is no node and npm here to check web/ with")
        return 0
    modules = ROOT / "node_modules"
    stamp, wanted = modules / "installed", (ROOT / "package.json").read_text(encoding="utf-8")
    if not stamped(stamp, wanted):
        quiet = ("--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error")
        must([npm, "install", *quiet])
        stamp.write_text(digest(wanted), encoding="utf-8")
    return run([node, modules / "eslint" / "bin" / "eslint.js", "--max-warnings", "0", "web"])


def sources() -> list[Path]:
    """Return the Python files of the package and of its tests."""
    tops = ("bridge", "checkpoints", "cli", "converters", "kernels", "layouts", "nodes", "tests")
    return [*ROOT.glob("*.py"), *(path for top in tops for path in (ROOT / top).rglob("*.py"))]


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status."""
    command, *rest = arguments or ["--help"]
    rest = rest[1:] if rest[:1] == ["--"] else rest
    if command == "demo":
        return run([setup(), "-c", LAUNCH, "roundsmith", "demo", *rest])
    if command == "test":
        return test(rest)
    if command in ("lint", "setup", "summary") and not rest:
        if command == "setup":
            print(setup())
            return 0
        return lint() if command == "lint" else summary()
    print(__doc__)
    return 0 if command in ("-h", "--help", "help") else 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
