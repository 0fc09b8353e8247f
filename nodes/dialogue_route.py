"""The one route that the dialogue editor asks: the same rules in Python answer nodes and browser."""

from __future__ import annotations

import asyncio
import json

from aiohttp import web

from ..conditioning.dialogue.review import review
from ..conditioning.dialogue.scene_json import from_json
from ..errors import HappyHorseError
from ..shapes import TIME_STRIDE

PATH = "/happyhorse/dialogue"
MAX_BODY = 1_000_000  # bytes


def answer(body: bytes) -> tuple[int, dict]:
    """HTTP status and JSON for a request's body: ``{"scene": …, "frames": 0}``."""
    try:
        request = json.loads(body)
    except (ValueError, RecursionError) as error:
        return 400, {"error": f"The request is not JSON: {error}."}
    if not isinstance(request, dict):
        return 400, {"error": f"The request must be an object with a scene, not {type(request).__name__}."}
    frames = request.get("frames", 0)
    if type(frames) is not int or frames < 0 or (frames and frames % TIME_STRIDE != 1):
        return 400, {"error": f"frames: {frames!r} is not 0 (automatic) or a length of 4k+1."}
    try:
        return 200, review(from_json(request.get("scene")), frames=frames).as_json()
    except HappyHorseError as error:
        return 400, {"error": str(error)}


async def respond(request: web.Request) -> web.Response:
    """Answer the editor; a body over the cap is refused before it is read whole."""
    body = bytearray()
    async for chunk in request.content.iter_any():
        body += chunk
        if len(body) > MAX_BODY:
            text = f"The scene has over {MAX_BODY:,} bytes; make several clips."
            return web.json_response({"error": text}, status=413)
    # Not on the server's own thread: a long scene takes tens of milliseconds, and previews pass there.
    status, content = await asyncio.to_thread(answer, bytes(body))
    return web.json_response(content, status=status)


def add_route() -> None:
    """Register the route with the running server."""
    from server import PromptServer

    PromptServer.instance.routes.post(PATH)(respond)
