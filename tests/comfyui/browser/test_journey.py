"""What a person does on a first evening, in one page and with hands: from an empty canvas on.

Nothing here calls into the page's scripts to change anything; they are read only to find where
things are. The one text that is typed is what a person types: a word into the search of nodes.
"""

from __future__ import annotations

import pytest

from roundsmith.tests.models import MODEL_FILE

TEMPLATE = "quantize-and-sample"
SAYS_ALL = ".roundsmith-summary"

# Where a widget, an input or the first output of a node is on the page; "" for the title.
PLACE = """([id, part]) => {
    const { canvas } = window.app, node = window.app.rootGraph.getNodeById(id);
    const widget = node.widgets?.find(w => w.name === part);
    const at = widget
        ? [node.pos[0] + node.size[0] / 2, node.pos[1] + widget.last_y + 10]
        : part === "first output"
          ? node.getOutputPos(0)
          : part
            ? node.getInputPos(node.findInputSlot(part))
            : [node.pos[0] + 40, node.pos[1] - 15];
    const [x, y] = canvas.ds.convertOffsetToCanvas([...at]);
    const box = canvas.canvas.getBoundingClientRect();
    return [box.left + x, box.top + y];
}"""

# A place below the note at the left.
FREE = """() => {
    const { canvas } = window.app, nodes = window.app.rootGraph.nodes;
    const note = nodes.find(n => n.type === "MarkdownNote");
    const [x, y] = canvas.ds.convertOffsetToCanvas([note.pos[0], note.pos[1] + note.size[1] + 80]);
    const box = canvas.canvas.getBoundingClientRect();
    return [box.left + x, box.top + y];
}"""


class Person:
    """Hands and eyes on the page."""

    def __init__(self, canvas) -> None:
        self.canvas, self.page = canvas, canvas.page

    def place(self, kind: str, part: str = "") -> tuple[float, float]:
        """Where a part of the one node of a class is."""
        x, y = self.page.evaluate(PLACE, [self.canvas.node(kind), part])
        return float(x), float(y)

    def run(self) -> None:
        """Press Run; the prompt must come to its end."""
        self.canvas.run(300)
        status = list(self.canvas.server.get("/history").values())[-1]["status"]
        assert status["status_str"] == "success", status
        self.page.wait_for_timeout(800)

    def open_template(self) -> None:
        """The sidebar's templates, ours among the extensions', a thumbnail."""
        self.page.locator(".templates-tab-button").click()
        self.page.get_by_role("dialog").get_by_text("roundsmith", exact=True).first.click()
        self.page.get_by_test_id(f"template-workflow-{TEMPLATE}").click()
        self.page.wait_for_function("() => window.app.rootGraph.nodes.length > 5")
        self.page.wait_for_timeout(1500)

    def right_click(self, kind: str, item: str) -> None:
        """An item of a node's menu."""
        self.page.mouse.click(*self.place(kind), button="right")
        found = self.page.get_by_text(item, exact=True).last
        found.wait_for(timeout=5000)
        found.click()
        self.page.wait_for_timeout(1000)

    def find_node(self, word: str, title: str) -> None:
        """Double-click beside the nodes, type, press Enter, click where it belongs."""
        x, y = self.page.evaluate(FREE)
        self.canvas.open_search(x, y)
        self.page.keyboard.type(word)
        self.page.get_by_role("option", name=title).first.wait_for(timeout=5000)
        self.page.keyboard.press("Enter")
        self.page.wait_for_timeout(500)
        self.page.mouse.move(x, y, steps=4)
        self.page.wait_for_timeout(300)
        self.page.mouse.click(x, y)
        self.page.wait_for_timeout(700)

    def wire(self, kind: str, to: str, name: str) -> None:
        """Drag from a node's first output to another's input."""
        self.page.mouse.move(*self.place(kind, "first output"))
        self.page.mouse.down()
        self.page.mouse.move(*self.place(to, name), steps=12)
        self.page.wait_for_timeout(200)
        self.page.mouse.up()
        self.page.wait_for_timeout(500)
        found = self.page.evaluate(
            """([id, name]) => {
                const node = window.app.rootGraph.getNodeById(id);
                return node.getInputNode(node.findInputSlot(name))?.type;
            }""",
            [self.canvas.node(to), name],
        )
        assert found == kind, f"{to}.{name} is wired to {found}"

    def drop(self, path, kind: str) -> None:
        """A file of this machine, let go over a node."""
        x, y = self.place(kind)
        devtools = self.page.context.new_cdp_session(self.page)
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for event in ("dragEnter", "dragOver", "drop"):
            at = {"type": event, "x": x, "y": y, "data": data}
            devtools.send("Input.dispatchDragEvent", at)
            self.page.wait_for_timeout(200)
        devtools.detach()


@pytest.fixture
def another(demo):
    """The demo's model under another name."""
    path = demo.with_name("my-fine-tune.safetensors")
    path.hardlink_to(demo)
    yield path
    path.unlink()


def test_from_an_empty_canvas(another, canvas):
    """Template, Run, details, right-click, picker, drop: each step's result is seen."""
    page, person = canvas.page, Person(canvas)
    person.open_template()
    assert canvas.value(canvas.node("UNETLoader"), "unet_name") == MODEL_FILE
    person.run()
    said = page.locator(".roundsmith-panel").filter(has=page.locator(SAYS_ALL)).first
    assert "→" in said.inner_text()
    canvas.shot("journey-1-run")

    page.locator(".roundsmith-panel .roundsmith-button").first.click()
    dialog = page.locator("dialog.roundsmith-details")
    dialog.locator(".rows .row").first.wait_for(timeout=5000)
    dialog.get_by_role("columnheader", name="executed").get_by_role("button").click()
    assert "dB" in dialog.locator(".rows").inner_text()
    canvas.shot("journey-2-details")
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached", timeout=5000)

    person.right_click("CLIPLoader", "Quantize this text encoder…")
    person.right_click("UNETLoader", "Inspect this file…")
    person.run()
    canvas.shot("journey-3-right-click")
    assert page.locator(SAYS_ALL).count() == 3, "the model, the text encoder, the file"

    person.find_node("quantization recipe", "Quantization Recipe")
    person.wire("RoundsmithQuantizationRecipe", "RoundsmithQuantizeModel", "recipe")
    page.mouse.click(*person.place("RoundsmithQuantizationRecipe", "roundsmith_pick"))
    picker = page.locator(".roundsmith-picker")
    picker.locator(".result strong").wait_for(timeout=15000)
    assert MODEL_FILE in picker.get_by_label("Model file").input_value(), "found along the wires"
    assert picker.locator(".bar.sensitive").count(), "the run before measured it"
    before = picker.locator(".result strong").inner_text()
    page.get_by_role("treeitem", name="single_blocks.1", exact=True).click()
    page.get_by_label("Choose a format for them…").select_option("keep")
    page.wait_for_timeout(200)
    picker.locator(".ok:enabled").wait_for(timeout=15000)
    assert picker.locator(".result strong").inner_text() != before
    canvas.shot("journey-4-picker")
    page.get_by_role("button", name="OK").click()
    person.run()
    canvas.shot("journey-5-picked")
    assert any("29 layers" in text for text in page.locator(SAYS_ALL).all_inner_texts())
    rules = canvas.value(canvas.node("RoundsmithQuantizationRecipe"), "layer_rules")
    assert rules == r"keep: ^single_blocks\.1\."

    person.drop(another, "UNETLoader")
    loader = canvas.node("UNETLoader")
    page.wait_for_function(
        """([id, name]) => window.app.rootGraph.getNodeById(id).widgets[0].value === name""",
        arg=[loader, another.name],
        timeout=10000,
    )
    person.run()
    canvas.shot("journey-6-dropped")
