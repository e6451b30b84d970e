"""Results for the browser: plain data, kept in bounds, given only to pages of the server's own."""

from __future__ import annotations

import json
import math
import os
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from roundsmith import dev
from roundsmith.bridge import results
from roundsmith.errors import CheckpointError

from .client import PromptError
from .test_server import quantize_file


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where reports are kept during a test."""
    monkeypatch.setattr(results, "_folder", lambda: tmp_path)
    return tmp_path


def asked(server, path, **headers):
    """Status and text of a GET with headers."""
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_no_number_breaks_the_json(folder):
    """NaN and infinities are no JSON: one of them and the browser gets no result at all."""
    facts = {"snr": math.inf, "gain": math.nan, "half": "\ud800", "type": Path}
    summary = results.Result("compare", facts, (), {"rows": [{"snr": -math.inf}]}).summary()
    assert json.loads(json.dumps(summary, allow_nan=False))["facts"]["snr"] is None
    assert json.loads(results.kept(summary["report"]))["rows"] == [{"snr": None}]


def test_the_newest_reports_are_kept(folder, monkeypatch):
    monkeypatch.setattr(results, "KEPT", 3)
    names = []
    for number in range(6):
        names.append(results.keep({"number": number}))
        os.utime(folder / f"{names[-1]}.json", (number, number))
    results.keep({"number": 3})  # again: it is new once more
    found = {path.stem for path in folder.glob("*.json")}
    assert found == {names[3], names[4], names[5]}
    with pytest.raises(CheckpointError, match="run the node again"):
        results.kept(names[0])


def test_a_full_disk_does_not_cost_the_run(folder, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(results, "write_text", full)
    summary = results.Result("plan", {}, (), {"rows": [1]}).summary()
    assert summary["report"] is None


def test_a_node_carries_few_warnings_and_says_how_many_more(folder):
    warnings = tuple(map(str, range(50)))
    summary = results.Result("quantize", {}, warnings, {"rows": []}).summary()
    assert len(summary["warnings"]) == results.SHOWN and summary["hidden"] == 50 - results.SHOWN
    assert json.loads(results.kept(summary["report"]))["warnings"] == list(warnings)


@pytest.mark.parametrize(
    "name",
    ["../../settings", "..%2f..%2fcomfy.settings", "0" * 31, "0" * 32, "A" * 32, "%00" + "0" * 31,
     f"{'0' * 32}%0a", f"{'0' * 32}.json"],
)  # fmt: skip
def test_only_reports_are_given(server, name):
    status, text = asked(server, f"/roundsmith/reports/{name}")
    assert status in (400, 404)
    assert "Comfy." not in text


def test_other_origins_are_refused(server):
    """As ComfyUI's own routes do: a page of another site must not read what a person's files hold.
    """
    (result,) = server.run(quantize_file("origins"))["1"]["roundsmith"]
    path = f"/roundsmith/reports/{result['report']}"
    status, text = asked(server, path)
    assert status == 200 and json.loads(text)["rows"]
    assert asked(server, path, **{"Sec-Fetch-Site": "cross-site"})[0] == 403
    assert asked(server, path, Origin="http://evil.example")[0] == 403
    assert asked(server, path, Origin=f"http://127.0.0.1:{server.port}")[0] == 200


def test_every_language_has_every_word():
    words = {
        path.parent.name: json.loads(path.read_text(encoding="utf-8"))["roundsmith"]
        for path in (dev.ROOT / "locales").glob("*/main.json")
    }
    english = words.pop("en")
    for language, translated in words.items():
        assert translated.keys() == english.keys(), language
        for key, text in translated.items():
            named = sorted(text.split("{")[1:]), sorted(english[key].split("{")[1:])
            assert [n.split("}")[0] for n in named[0]] == [n.split("}")[0] for n in named[1]], key
    assert words, "there is more than English"


def test_a_refused_report_is_said_in_json(server):
    status, text = asked(server, f"/roundsmith/reports/{'0' * 32}")
    assert status == 400 and "run the node again" in json.loads(text)["error"]
    with pytest.raises(PromptError):
        server.post(f"/roundsmith/reports/{'0' * 32}", {})
