"""A small file of measured choices, shared by processes, that may be lost at any time."""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

_log = logging.getLogger(__name__)
_VERSION = 1


def folder() -> Path:
    """The platform's cache folder of this project; ``ROUNDSMITH_CACHE`` names another."""
    named = os.environ.get("ROUNDSMITH_CACHE")
    if named:
        return Path(named)
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "roundsmith" / "kernels"


class Store:
    """Values by key in a JSON file; a file that cannot be read counts as empty."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._values: dict[str, Any] | None = None

    def get(self, key: str) -> Any:
        """The value kept under ``key``, or None."""
        if self._values is None:
            self._values = self._read()
        return self._values.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep ``value``; what other processes kept meanwhile stays.

        The file is replaced whole. Where it cannot be written, the value lasts as long as the
        process, and the log says so once.
        """
        self._values = {**(self._values or {}), **self._read(), key: value}
        text = json.dumps({"version": _VERSION, "values": self._values}, indent=1, sort_keys=True)
        temporary = None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=self.path.name)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, self.path)
        except OSError as error:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            _log.warning("kernel configurations are not kept in %s: %s", self.path, error)

    def _read(self) -> dict[str, Any]:
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            _log.warning("%s cannot be read and is measured anew: %s", self.path, error)
            return {}
        values = content.get("values") if isinstance(content, dict) else None
        if not isinstance(values, dict) or content.get("version") != _VERSION:
            _log.warning("%s is not a file of kernel configurations; measured anew", self.path)
            return {}
        return values
