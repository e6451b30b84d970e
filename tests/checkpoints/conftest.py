"""Files made byte by byte, so that they can be wrong in one way at a time."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from roundsmith.checkpoints import files

RawFile = Callable[..., Path]


@pytest.fixture
def raw_file(tmp_path: Path) -> RawFile:
    """``raw_file(header, data=b"", name=...)``: a file of that header (JSON or bytes) and data."""

    def write(header: Any, data: bytes = b"", name: str = "model.safetensors") -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        path = tmp_path / name
        path.write_bytes(struct.pack("<Q", len(text)) + text + data)
        return path

    return write


@pytest.fixture(params=["shared descriptor", "handle per thread"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test with the reads and writes of POSIX systems and with those of Windows."""
    if request.param == "handle per thread":
        monkeypatch.setattr(files, "SHARED_DESCRIPTOR", False)
    elif not files.SHARED_DESCRIPTOR:
        pytest.skip("this system has no preadv")
