"""What the browser asks the server: names ComfyUI lists, never a path.

ComfyUI's own middleware stands before these routes, so requests of other origins are refused as
they are for its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from aiohttp import web

from ..errors import RoundsmithError
from . import estimating, model_files, results

WEB = Path(__file__).resolve().parents[1] / "web"

Answer = Callable[[Mapping[str, str], Mapping[str, Any]], Any]
"""``(parts of the path, JSON of the request)`` → plain data, or JSON text."""


def report(parts: Mapping[str, str], _: Mapping[str, Any]) -> str:
    """Details a node's result speaks of."""
    return results.kept(parts["name"])


def file(_: Mapping[str, str], body: Mapping[str, Any]) -> Any:
    """What one of ComfyUI's model files holds, and who reads it."""
    return model_files.facts(_text(body, "source"))


def match(_: Mapping[str, str], body: Mapping[str, Any]) -> Any:
    """Where a dropped file is among ComfyUI's, or belongs."""
    size, tensors = body.get("size"), body.get("tensors", [])
    if not isinstance(size, int) or not isinstance(tensors, list):
        raise RoundsmithError("size: a number is wanted; tensors: a list of names")
    if not all(isinstance(name, str) for name in tensors):
        raise RoundsmithError("tensors: a list of names is wanted")
    return model_files.match(_text(body, "name"), size, tensors)


def estimate(_: Mapping[str, str], body: Mapping[str, Any]) -> Any:
    """How long a prompt's slow nodes should take."""
    prompt, outputs = body.get("prompt"), body.get("outputs", [])
    if not isinstance(prompt, dict) or not isinstance(outputs, list):
        raise RoundsmithError("prompt: an object of nodes is wanted; outputs: a list of their ids")
    return estimating.estimate(prompt, [str(name) for name in outputs])


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str):
        raise RoundsmithError(f"{name}: a text is wanted")
    return value


ROUTES: tuple[tuple[str, str, Answer], ...] = (
    ("GET", "/roundsmith/reports/{name}", report),
    ("POST", "/roundsmith/file", file),
    ("POST", "/roundsmith/match", match),
    ("POST", "/roundsmith/estimate", estimate),
)


async def revalidate(request: web.Request, response: web.StreamResponse) -> None:
    """Let browsers ask whether the pack's scripts are still as they have them.

    ComfyUI forbids keeping ``.js`` files and says nothing of ``.mjs``; a browser would go on with
    those of before the pack's last update for days.
    """
    resource = request.match_info.route.resource
    folder = resource.get_info().get("directory") if resource is not None else None
    if folder is not None and folder.resolve() == WEB:
        response.headers.setdefault("Cache-Control", "no-cache")


def add_routes(routes: web.RouteTableDef, *others: tuple[str, str, Answer]) -> None:
    """Add the routes, and others, to ComfyUI's, unless another copy of the pack has."""
    known = {(route.method, route.path) for route in routes if isinstance(route, web.RouteDef)}
    for method, path, answer in (*ROUTES, *others):
        if (method, path) not in known:
            routes.route(method, path)(_handler(answer))


def _handler(answer: Answer) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        try:
            body = await request.json() if request.can_read_body else {}
            if not isinstance(body, dict):
                raise RoundsmithError("the request's JSON is not an object")
            found = await asyncio.to_thread(answer, request.match_info, body)
        except (RoundsmithError, ValueError) as error:
            return web.json_response({"error": str(error)}, status=400)
        if isinstance(found, str):
            return web.Response(text=found, content_type="application/json")
        return web.json_response(found)

    return handle
