"""A ComfyUI server over HTTP: start one, queue prompts, fetch what they made."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import RoundsmithError

PACK = Path(__file__).resolve().parent.parent
_CHECK = "import torch; print(torch.cuda.is_available() or torch.backends.mps.is_available())"
_START_SECONDS, _PROMPT_SECONDS = 240, 600


class Server:
    """A running ComfyUI at ``url``."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/") if "://" in url else f"http://{url.rstrip('/')}"

    def get(self, path: str, **query: str) -> bytes:
        """The body at ``path``. Raises :class:`RoundsmithError` where there is no server."""
        return self._open(f"{path}?{urllib.parse.urlencode(query)}" if query else path, None)

    def get_json(self, path: str) -> Any:
        """The JSON at ``path``."""
        return json.loads(self.get(path))

    def run(self, prompt: dict[str, Any]) -> dict[str, dict[str, list[dict[str, str]]]]:
        """Run an API-format prompt; what each output node made, by node and kind."""
        body = json.dumps({"prompt": prompt, "client_id": "roundsmith-demo"}).encode()
        number = json.loads(self._open("/prompt", body))["prompt_id"]
        deadline = time.monotonic() + _PROMPT_SECONDS
        while time.monotonic() < deadline:
            entry = self.get_json(f"/history/{number}").get(number)
            if entry and entry.get("status", {}).get("status_str") == "error":
                raise RoundsmithError(f"ComfyUI at {self.url}: {_failure(entry['status'])}")
            if entry and entry.get("status", {}).get("completed", True):
                return entry["outputs"]
            time.sleep(0.05)
        raise RoundsmithError(f"ComfyUI at {self.url} has not finished after {_PROMPT_SECONDS} s")

    def fetch(self, made: dict[str, str]) -> bytes:
        """The file that an output node made."""
        return self.get("/view", **{name: made[name] for name in ("filename", "subfolder", "type")})

    def _open(self, path: str, body: bytes | None) -> bytes:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, body, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.read()
        except urllib.error.HTTPError as error:
            reply = error.read().decode(errors="replace")
            message = f"ComfyUI at {self.url} refused {path}: {reply[:1500]}"
            raise RoundsmithError(message) from error
        except OSError as error:
            raise RoundsmithError(
                f"no ComfyUI answers at {self.url} ({error}); start it, or give its folder"
            ) from error


def _failure(status: dict[str, Any]) -> str:
    for kind, details in status.get("messages", []):
        if kind == "execution_error":
            return f"{details.get('node_type')}: {details.get('exception_message', '').strip()}"
    return "the prompt failed"


@contextmanager
def start_server(comfyui: Path) -> Iterator[tuple[Server, Path]]:
    """Start the ComfyUI in this folder, with this pack and a base directory of its own.

    Yields the server and the base directory, whose ``models`` is empty; both are gone afterwards.
    ComfyUI's own folder is only read.
    """
    comfyui = comfyui.expanduser().resolve()
    if not (comfyui / "main.py").is_file():
        raise RoundsmithError(f"{comfyui}: no ComfyUI there (no main.py)")
    python = find_python(comfyui)
    with tempfile.TemporaryDirectory(prefix="roundsmith-demo-", ignore_cleanup_errors=True) as name:
        base = Path(name)
        for folder in ("models", "custom_nodes", "input", "output", "user"):
            (base / folder).mkdir()
        _link_pack(base / "custom_nodes" / "roundsmith")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [python, "main.py", "--listen", "127.0.0.1", "--port", port]
        command += ["--base-directory", base, "--disable-auto-launch"]
        command += [
            "--database-url",
            "sqlite:///:memory:",
        ]  # by default it lies in ComfyUI's folder
        checked = subprocess.run([python, "-c", _CHECK], capture_output=True, text=True)
        if checked.stdout.strip() != "True":
            command.append("--cpu")
        log = base / "server.log"
        with log.open("wb") as output:
            words = [str(part) for part in command]
            process = subprocess.Popen(words, cwd=comfyui, stdout=output, stderr=subprocess.STDOUT)
            try:
                server = Server(f"http://127.0.0.1:{port}")
                _wait(server, process, log)
                yield server, base
            finally:
                process.terminate()
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def find_python(comfyui: Path) -> Path:
    """The interpreter that runs this ComfyUI: COMFYUI_PYTHON, else the one beside it."""
    named = os.environ.get("COMFYUI_PYTHON")
    inside = "Scripts/python.exe" if os.name == "nt" else "bin/python"
    candidates = [Path(named)] if named else []
    candidates += [comfyui / ".venv" / inside, comfyui / "venv" / inside]
    candidates.append(comfyui.parent / "python_embeded" / "python.exe")  # sic: Windows portable
    for path in candidates:
        if path.is_file():
            return path.absolute()
    raise RoundsmithError(f"no interpreter found beside {comfyui}: set COMFYUI_PYTHON")


def _link_pack(target: Path) -> None:
    try:
        target.symlink_to(PACK, target_is_directory=True)
    except OSError:  # Windows without the right to make links
        ignored = shutil.ignore_patterns(".*", "build", "dist", "__pycache__", "demo-output")
        shutil.copytree(PACK, target, ignore=ignored)


def _wait(server: Server, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            server.get("/system_stats")
            return
        except RoundsmithError:
            time.sleep(0.3)
    tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
    raise RoundsmithError(f"ComfyUI did not start; the end of its log:\n{tail}")
