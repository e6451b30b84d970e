"""What the browser asks the server: names ComfyUI lists, never a path.

ComfyUI's own middleware stands before these routes, so requests of other origins are refused as
they are for its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from ..errors import RoundsmithError
from . import results

Answer = Callable[[Mapping[str, str], Mapping[str, Any]], Any]
"""``(parts of the path, JSON of the request)`` → plain data, or JSON text."""


def report(parts: Mapping[str, str], _: Mapping[str, Any]) -> str:
    """Details a node's result speaks of."""
    return results.kept(parts["name"])


ROUTES: tuple[tuple[str, str, Answer], ...] = (("GET", "/roundsmith/reports/{name}", report),)


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
