"""ComfyUI with the demo's files, and its frontend in headless Chromium."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from roundsmith import dev
from roundsmith.converters.demo_server import start_server
from roundsmith.tests.models.install import install

SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasInfo": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.NodeBadge.NodeSourceBadgeMode": "None",
    "Comfy.Notification.ShowVersionUpdates": False,
}
SHOWN = (
    "models/checkpoints/my-checkpoint.safetensors",
    "output/calibrations/roundsmith_00001_.safetensors",
)
FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
BARE = """
  .z-999, .z-999 *, .p-toast, .p-toast *, .selection-toolbox { visibility: hidden !important }
"""
"""Only the canvas and what nodes lay over it."""


PAINTED = """(number) => {
  const node = window.app.graph.getNodeById(number)
  const wanted = window.app.nodeOutputs?.[number]?.images?.length ?? 0
  window.app.canvas.setDirty(true, true)
  return !wanted || (node.imgs?.length && node.imgs.every((image) => image.complete))
}"""
"""Whether a node shows its pictures: the frontend fetches them once the node is in view."""


@dataclass
class Frontend:
    """An open page, and where its ComfyUI lives.

    Attributes:
        console: warnings and errors of the page so far.
    """

    page: Page
    base: Path
    url: str
    console: list[str]

    def open(self, locale: str = "en", nodes2: bool = False) -> None:
        """Load the page in a language, with or without ComfyUI's newer drawing of nodes."""
        settings = {**SETTINGS, "Comfy.Locale": locale, "Comfy.VueNodes.Enabled": nodes2}
        folder = self.base / "user" / "default"
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(settings)
        (folder / "comfy.settings.json").write_text(text, encoding="utf-8")
        self.page.goto(self.url)
        self.page.wait_for_function("window.app?.vueAppReady && window.app?.graph", timeout=120_000)
        self.page.add_style_tag(content=BARE)
        self.page.wait_for_function("!!window.LiteGraph?.registered_node_types.RoundsmithQuantizeModel")

    def show(self, workflow: dict[str, Any]) -> None:
        """Open a saved workflow."""
        self.page.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)
        self.page.wait_for_timeout(300)

    def run(self, seconds: float = 300) -> None:
        """Press Run and wait. Raises :class:`RuntimeError` where a node fails."""
        self.page.evaluate("""() => {
            window.finished = null
            for (const name of ['execution_success', 'execution_error', 'execution_interrupted'])
              window.app.api.addEventListener(name, (event) => {
                window.finished ??= { name, detail: event.detail }
              })
        }""")
        self.page.evaluate("() => window.app.queuePrompt(0)")
        self.page.wait_for_function("window.finished", timeout=seconds * 1000)
        finished = self.page.evaluate("window.finished")
        if finished["name"] != "execution_success":
            raise RuntimeError(finished["detail"].get("exception_message") or finished["name"])
        self.page.wait_for_timeout(1200)  # pictures arrive

    def hurry(self) -> None:
        """Round text encoders to nearest: calibrating them takes minutes without a GPU."""
        self.page.evaluate("""() => window.app.graph.nodes
          .filter((n) => n.type === 'RoundsmithQuantizeCLIP')
          .forEach((n) => { n.widgets.find((w) => w.name === 'rounding').value = 'nearest' })""")

    def overlaps(self) -> list[str]:
        """Pairs of nodes that lie on each other."""
        return list(
            self.page.evaluate("""() => {
            const boxes = window.app.graph.nodes.map((n) => {
              const [left, top, width, height] = n.getBounding()
              return { name: n.title, left, top, right: left + width, bottom: top + height }
            })
            const pairs = boxes.flatMap((a, i) => boxes.slice(i + 1).map((b) => [a, b]))
            return pairs.filter(([a, b]) => a.left < b.right && b.left < a.right &&
              a.top < b.bottom && b.top < a.bottom).map(([a, b]) => `${a.name} / ${b.name}`)
          }""")
        )

    def ours(self) -> dict[str, int]:
        """The nodes of the pack in the graph: type -> number, the first of each."""
        return dict(
            self.page.evaluate("""() => Object.fromEntries(window.app.graph.nodes.toReversed()
            .filter((n) => n.type.startsWith('Roundsmith')).map((n) => [n.type, n.id]))""")
        )

    def kinds(self) -> list[str]:
        """All types of nodes of the pack."""
        return list(
            self.page.evaluate("""() => Object.keys(window.LiteGraph.registered_node_types)
            .filter((name) => name.startsWith('Roundsmith')).sort()""")
        )

    def alone(self, kind: str) -> int:
        """A graph of this node and no other; its number."""
        return int(
            self.page.evaluate(
                """(kind) => {
            window.app.graph.clear()
            window.app.graph.id = crypto.randomUUID()
            const node = window.LiteGraph.createNode(kind)
            window.app.graph.add(node)
            node.pos = [0, 0]
            node.setSize([Math.max(300, node.size[0]), node.size[1]])
            return node.id
          }""",
                kind,
            )
        )

    def picture(self, number: int, scale: float = 1.0, margin: int = 16) -> Image.Image:
        """A node as the canvas shows it, with this much of what is around it."""
        self._center(number, scale, margin)
        self.page.wait_for_function(PAINTED, arg=number, timeout=60_000)
        self.page.wait_for_timeout(600)
        box = self._center(number, scale, margin)  # what is drawn on it may have made it grow
        self.page.wait_for_timeout(300)
        return Image.open(io.BytesIO(self.page.screenshot(clip=box))).convert("RGB")

    def _center(self, number: int, scale: float, margin: int) -> Any:
        """Look at a node; returns its place in the page, in pixels."""
        return self.page.evaluate(
            """([number, scale, margin]) => {
            const node = window.app.graph.getNodeById(number)
            const title = window.LiteGraph.NODE_TITLE_HEIGHT
            const left = node.pos[0], top = node.pos[1] - title
            const width = node.size[0], height = node.size[1] + title
            const { ds, canvas } = window.app.canvas
            const place = canvas.getBoundingClientRect()
            ds.scale = Math.min(scale, 1700 / Math.max(width, height))
            ds.offset = [margin - left + 100 / ds.scale, margin - top + 60 / ds.scale]
            window.app.canvas.deselectAll()
            window.app.canvas.setDirty(true, true)
            return { x: place.x + 100, y: place.y + 60, width: (width + 2 * margin) * ds.scale,
              height: (height + 2 * margin) * ds.scale }
          }""",
            [number, scale, margin],
        )


@contextmanager
def frontend() -> Iterator[Frontend]:
    """ComfyUI's frontend with the pack and the demo's files. Needs ComfyUI and Chromium."""
    comfyui = dev.find_comfyui()
    if comfyui is None:
        raise SystemExit("no ComfyUI found: set COMFYUI_DIR to its folder")
    ours = dev.interpreter(dev.OVERLAY)  # ComfyUI's packages, and ours
    if ours.is_file():
        os.environ.setdefault("COMFYUI_PYTHON", str(ours))
    # Barriers between threads take longer than products this small where cores are shared.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chrome")
    with start_server(comfyui) as (server, base), sync_playwright() as playwright:
        install(base)
        for name in SHOWN:  # lists are pictured with something in them
            (base / name).parent.mkdir(parents=True, exist_ok=True)
            (base / name).touch()
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 2000, "height": 1800})
        console: list[str] = []
        page.on("console", lambda m: console.append(m.text) if m.type != "log" else None)
        page.on("pageerror", lambda error: console.append(str(error)))
        try:
            yield Frontend(page, base, server.url, console)
        finally:
            browser.close()
