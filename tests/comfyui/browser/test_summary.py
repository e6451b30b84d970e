"""What a result's lines on its node say, from made-up facts, in both languages."""

from __future__ import annotations

import json

import pytest

from roundsmith import dev

SUMMARY = ".roundsmith-panel .roundsmith-summary"


def show(canvas, kind, facts, node="RoundsmithQuantizeModel"):
    """The text of a node whose result has these facts, as after loading a workflow."""
    canvas.page.evaluate("() => window.app.rootGraph.clear()")
    made = canvas.add(node, 100, 50)
    graph = canvas.page.evaluate(
        """([id, result]) => {
            window.app.rootGraph.getNodeById(id).properties.roundsmith = result;
            return window.app.rootGraph.serialize();
        }""",
        [made, {"kind": kind, "facts": facts, "warnings": ["one"], "report": None, "hidden": 0}],
    )
    canvas.load(graph)
    panel = canvas.page.locator(SUMMARY)
    panel.wait_for(timeout=5000)
    return panel.inner_text()


@pytest.fixture(params=["en", "zh"])
def told(request, canvas):
    """The canvas in a language, and which."""
    canvas.setting("Comfy.Locale", request.param)
    canvas.reload()
    canvas.page.wait_for_timeout(500)
    return canvas, request.param


WHY = "TypeError: <b>none</b>"
CALIBRATED = (
    ({"runs": 8, "seconds": 8}, "calibratedRuns", {"count": 8, "time": "8 s"}),
    ({"texts": 12, "seconds": 65}, "calibratedTexts", {"count": 12, "time": "1:05"}),
    ({"why": WHY}, "notCalibrated", {"why": WHY}),
)


def said(language, key, **values):
    """A message of the language's own file."""
    path = dev.ROOT / "locales" / language / "main.json"
    return json.loads(path.read_text(encoding="utf-8"))["roundsmith"][key].format(**values)


def test_lines(told):
    canvas, language = told
    for facts, key, values in CALIBRATED:
        lines = show(canvas, "quantize", {"calibrated": facts}).splitlines()
        assert said(language, key, **values) in lines
        warned = canvas.page.locator(f"{SUMMARY} > .roundsmith-warning").count()
        assert warned == ("why" in facts), "in the colour of warnings, and not behind a line"
    plain = show(canvas, "quantize", {"calibrated": None})
    for nonsense in ("text", {}, {"runs": "many", "seconds": 1}, [1]):
        assert show(canvas, "quantize", {"calibrated": nonsense}) == plain

    # Passes and slowdown of a calibration.
    facts = {"layers": 3, "seen": 9, "used": 9}
    node = "RoundsmithCalibrateSampler"
    lines = show(canvas, "calibration", {**facts, "passes": 2, "slowdown": 2.14}, node)
    often, slower = said(language, "passes", count=2), said(language, "slowdown", factor="2.1")
    assert f"{often}, {slower}" in lines.splitlines()
    once = show(canvas, "calibration", {**facts, "passes": 1, "slowdown": None}, node)
    assert said(language, "onePass") in once.splitlines()

    # A gain of exact activations beside an SNR that is not.
    for executed, key in ((30.0, "overNearestExact"), (35.0, "overNearest")):
        snrs = {"executed_snr": executed, "output_snr": 35.0, "gain": 4.0}
        lines = show(canvas, "quantize", snrs).splitlines()
        assert said(language, key, gain="+4.0 dB") in lines


def test_the_words_are_those_of_the_help():
    failed = "not calibrated: the model could not be run by itself (why)"
    assert said("en", "notCalibrated", why="why") == failed
    assert said("en", "calibratedRuns", count=8, time="8 s") == (
        "calibrated: itself, 8 short runs, 8 s"
    )
    slower = said("en", "slowdown", factor="2.1")
    assert f"{said('en', 'passes', count=2)}, {slower}" == (
        "2 passes, 2.1 × the time of plain sampling"
    )
    for language in ("en", "zh"):
        exact = said(language, "overNearestExact", gain="")
        assert exact != said(language, "overNearest", gain="")
