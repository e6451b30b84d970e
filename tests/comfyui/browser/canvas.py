"""What a person does on the canvas, for tests."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

READY = "() => window.app?.extensionManager && window.app.rootGraph && window.app.canvas"

# The default graph is there, with all that the frontend looks up for it: undo counts from here.
LOADED = """() => {
    const tracker = window.app.extensionManager.workflow.activeWorkflow?.changeTracker;
    return tracker?.activeState?.nodes.length && !tracker.constructor.isLoadingGraph;
}"""

# The empty graph is a step of undo: the frontend does not take one while it loads.
EMPTY = """() => {
    const tracker = window.app.extensionManager.workflow.activeWorkflow.changeTracker;
    tracker.captureCanvasState();
    return tracker.activeState.nodes.length === 0;
}"""

SET = """async ([name, value]) => {
    const settings = window.app.extensionManager.setting;
    const before = settings.get(name);
    await settings.set(name, value);
    return before;
}"""


class Canvas:
    """A page of the frontend.

    ``page`` is Playwright's; coordinates are of the page.
    """

    def __init__(self, page: Any, server: Any) -> None:
        self.page = page
        self.server = server
        self._settings: dict[str, Any] = {}

    def open(self) -> None:
        """Load the frontend with an empty graph."""
        self.server.post("/settings", {"Comfy.TutorialCompleted": True})  # no template browser
        self.page.goto(f"http://127.0.0.1:{self.server.port}/")
        self.page.wait_for_function(READY, timeout=60000)
        self.page.wait_for_function(LOADED, timeout=60000)
        self.page.wait_for_timeout(500)
        self.page.keyboard.press("Escape")
        self.page.evaluate("() => window.app.rootGraph.clear()")
        self.page.wait_for_function(EMPTY, timeout=60000)

    def reload(self) -> None:
        """Reload the page and wait for the graph."""
        self.page.reload()
        self.page.wait_for_function(READY, timeout=60000)

    def load(self, workflow: Path | dict[str, Any]) -> None:
        """Open a workflow, as the template browser does."""
        graph = json.loads(workflow.read_text("utf-8")) if isinstance(workflow, Path) else workflow
        self.page.evaluate("graph => window.app.loadGraphData(graph)", graph)
        self.page.wait_for_timeout(300)

    def add(self, kind: str, x: float = 100, y: float = 100) -> int:
        """Add a node at a place of the graph; its id."""
        return int(
            self.page.evaluate(
                """([kind, x, y]) => {
                    const node = window.LiteGraph.createNode(kind);
                    node.pos = [x, y];
                    window.app.rootGraph.add(node);
                    return node.id;
                }""",
                [kind, x, y],
            )
        )

    def node(self, kind: str) -> int:
        """The id of the one node of a class."""
        found = self.page.evaluate(
            "kind => window.app.rootGraph.nodes.filter(n => n.type === kind).map(n => n.id)", kind
        )
        assert len(found) == 1, f"{len(found)} nodes of {kind}"
        return int(found[0])

    def value(self, node: int, widget: str) -> Any:
        """A widget's value."""
        return self.page.evaluate(
            """([id, name]) => window.app.rootGraph.getNodeById(id)
                .widgets.find(w => w.name === name)?.value""",
            [node, widget],
        )

    def set(self, node: int, widget: str, value: Any) -> None:
        """Set a widget, as its own menu does."""
        self.page.evaluate(
            """([id, name, value]) => {
                const node = window.app.rootGraph.getNodeById(id);
                const widget = node.widgets.find(w => w.name === name);
                widget.value = value;
                widget.callback?.(value, window.app.canvas, node);
            }""",
            [node, widget, value],
        )

    def title(self, node: int) -> tuple[float, float]:
        """Where a node's title is on the page."""
        x, y = self.page.evaluate(
            """id => {
                const { canvas } = window.app, { pos } = window.app.rootGraph.getNodeById(id);
                const box = canvas.canvas.getBoundingClientRect();
                const [x, y] = canvas.ds.convertOffsetToCanvas([pos[0] + 40, pos[1] - 15]);
                return [box.left + x, box.top + y];
            }""",
            node,
        )
        return float(x), float(y)

    def center(self, node: int) -> None:
        """Bring a node into view."""
        self.page.evaluate(
            """id => {
                const node = window.app.rootGraph.getNodeById(id);
                window.app.canvas.ds.scale = 1;
                window.app.canvas.centerOnNode(node);
                window.app.canvas.draw(true, true);
            }""",
            node,
        )
        self.page.wait_for_timeout(200)

    def setting(self, name: str, value: Any) -> None:
        """Change a setting; it is back as it was when the test ends."""
        before = self.page.evaluate(SET, [name, value])
        self._settings.setdefault(name, before)
        self.page.wait_for_timeout(300)

    def restore(self) -> None:
        """Put changed settings back: the server keeps them."""
        for name, value in self._settings.items():
            self.page.evaluate(SET, [name, value])

    def open_search(self, x: float, y: float) -> Any:
        """Double-click on the empty canvas; the field of the search of nodes that it opens."""
        field = self.page.locator("input[role=combobox]").last
        for _ in range(5):  # two clicks within 0.3 s: a busy machine misses some
            self.page.mouse.dblclick(x, y)
            self.page.wait_for_timeout(1500)
            if field.count() and field.is_visible():
                break
        return field

    def shot(self, name: str) -> None:
        """Leave a picture of the page where pictures are wanted."""
        pictures = os.environ.get("PICTURES")
        if pictures:
            self.page.wait_for_timeout(300)
            self.page.screenshot(path=str(Path(pictures) / f"{name}.png"))

    def run(self, timeout: float = 120) -> None:
        """Press Run and wait until the queue is empty."""
        before = len(self.server.get("/history"))
        self.page.get_by_test_id("queue-button").click()
        deadline = timeout * 10
        while deadline > 0:
            queue = self.server.get("/queue")
            waiting = queue["queue_running"] or queue["queue_pending"]
            if len(self.server.get("/history")) > before and not waiting:
                return
            self.page.wait_for_timeout(100)
            deadline -= 1
        raise TimeoutError("the queue did not become empty")


def wire(canvas: Canvas, source: str, kind: str = "RoundsmithQuantizationRecipe") -> int:
    """A recipe connected to Plan Quantization of a file; the node of ``kind``."""
    canvas.page.evaluate("() => window.app.rootGraph.clear()")
    recipe, plan = (
        canvas.add("RoundsmithQuantizationRecipe"),
        canvas.add("RoundsmithPlanQuantization", 700, 100),
    )
    canvas.set(plan, "source", source)
    canvas.set(recipe, "format", "nvfp4")
    connect = """([from, output, to, input]) => {
        const graph = window.app.rootGraph, target = graph.getNodeById(to);
        graph.getNodeById(from).connect(output, target, target.findInputSlot(input));
    }"""
    canvas.page.evaluate(connect, [recipe, 0, plan, "recipe"])
    node = recipe
    if kind != "RoundsmithQuantizationRecipe":
        node = canvas.add(kind, -300, 100)
        canvas.page.evaluate(connect, [node, 0, recipe, "rules"])
    canvas.center(node)
    return node
