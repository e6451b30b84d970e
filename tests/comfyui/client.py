"""A ComfyUI server with the pack in it, and a client of its HTTP API and websocket."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp

from roundsmith import dev


class PromptError(Exception):
    """A prompt ended with an error of a node, or was refused: the server's words."""


class Server:
    """Runs ``main.py`` on a free port while the context is open.

    ``messages`` collects every websocket message of text: ``(type, data)``.
    """

    def __init__(self, base: Path) -> None:
        self.base = base
        self.messages: list[tuple[str, Any]] = []
        self._client = uuid.uuid4().hex

    def __enter__(self) -> Server:
        pack = self.base / "custom_nodes" / "roundsmith"
        if not pack.exists():
            try:
                pack.symlink_to(dev.ROOT, target_is_directory=True)
            except OSError:  # Windows without the right to make links
                shutil.copytree(dev.ROOT, pack, ignore=shutil.ignore_patterns(".*", "build"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        comfyui = dev.find_comfyui()
        command = [sys.executable, "main.py", "--cpu", "--listen", "127.0.0.1"]
        command += ["--port", str(self.port), "--base-directory", str(self.base)]
        command += ["--database-url", "sqlite:///:memory:", "--disable-api-nodes"]
        self.log = (self.base / "server.log").open("w+", encoding="utf-8")
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self._process = subprocess.Popen(
            command, cwd=comfyui, env=environment, stdout=self.log, stderr=subprocess.STDOUT
        )
        self._wait_until_up()
        listener = threading.Thread(target=lambda: asyncio.run(self._listen()), daemon=True)
        listener.start()
        while not self.messages:  # the server greets
            time.sleep(0.05)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.log.close()

    def _wait_until_up(self) -> None:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                self.get("/system_stats")
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.3)
        raise RuntimeError(f"the server did not start:\n{self.read_log()[-4000:]}")

    def read_log(self) -> str:
        """What the server printed."""
        return (self.base / "server.log").read_text(encoding="utf-8", errors="replace")

    async def _listen(self) -> None:
        url = f"ws://127.0.0.1:{self.port}/ws?clientId={self._client}"
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as socket:
            async for message in socket:
                if message.type is aiohttp.WSMsgType.TEXT:
                    data = json.loads(message.data)
                    self.messages.append((data["type"], data["data"]))

    def text(self, path: str) -> str:
        """GET, text back."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as response:
            return response.read().decode()

    def get(self, path: str) -> Any:
        """GET, JSON back."""
        return json.loads(self.text(path))

    def post(self, path: str, data: Mapping[str, Any]) -> Any:
        """POST JSON; JSON back, or None where the answer is empty. A refusal raises."""
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, json.dumps(data).encode(), method="POST")
        request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            raise PromptError(error.read().decode()) from error
        return json.loads(text) if text.strip() else None

    def queue(self, prompt: Mapping[str, Any]) -> str:
        """Queue a prompt in API form; its id."""
        body = {"prompt": prompt, "client_id": self._client}
        return str(self.post("/prompt", body)["prompt_id"])

    def wait(self, prompt_id: str, timeout: float = 120) -> dict[str, Any]:
        """The history entry of a finished prompt. Raises :class:`PromptError` on an error."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history and history[prompt_id]["status"]["completed"]:
                return dict(history[prompt_id])
            if prompt_id in history:
                for kind, data in history[prompt_id]["status"]["messages"]:
                    if kind == "execution_error":
                        raise PromptError(data["exception_message"])
                    if kind == "execution_interrupted":
                        raise PromptError("interrupted")
            time.sleep(0.1)
        raise TimeoutError(f"prompt {prompt_id} did not finish; log:\n{self.read_log()[-3000:]}")

    def run(self, prompt: Mapping[str, Any], timeout: float = 120) -> dict[str, Any]:
        """Queue and wait; the outputs of the prompt's nodes."""
        return dict(self.wait(self.queue(prompt), timeout)["outputs"])
