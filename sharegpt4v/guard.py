"""
What stands in front of a model server: three routes, a key, limits, and answers that tell nothing of the machine.

The server behind listens on loopback only and trusts whoever reaches it; see [`~sharegpt4v.guard_images`] for what it
would do with addresses of images.
"""

import contextlib
import hmac
import ipaddress
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from .guard_images import ImageReader, Refused
from .guard_requests import ServedModel, check_request


logger = logging.getLogger(__name__)

TIMEOUT = httpx2.Timeout(10, read=900)  # a large model on a processor takes its time for a first token
KINDS = {401: "authentication_error", 413: "request_too_large", 404: "not_found_error"}
FAILED = "The model server failed. Its log on the serving machine says why."


@dataclass(frozen=True)
class GuardOptions:
    """
    What the guard lets through, and to where.

    Args:
        served (`ServedModel`): The model.
        inner_url (`str`): Address of the server behind, without `/v1`.
        key (`str`, defaults to `""`): What clients must send as bearer; without one no key is asked for, and only
            requests that name this machine as their host are answered.
        inner_key (`str`, defaults to `""`): Key of the server behind.
        max_request_bytes (`int`, defaults to 32 MiB): Largest body.
    """

    served: ServedModel
    inner_url: str
    key: str = field(default="", repr=False)
    inner_key: str = field(default="", repr=False)
    max_request_bytes: int = 32 * 2**20


def build_guard(options: GuardOptions, reader: ImageReader) -> ASGIApp:
    """
    The guard as an ASGI application.

    Args:
        options (`GuardOptions`): What it lets through.
        reader (`ImageReader`): Reads images of requests.

    Returns:
        `ASGIApp`: With `/v1/chat/completions`, `/v1/models` and `/health`; all else is 404, after the key.
    """
    guard = _Guard(options, reader)
    routes = [
        Route("/v1/chat/completions", _answered(guard.complete), methods=["POST"]),
        Route("/v1/models", _answered(guard.models), methods=["GET"]),
        Route("/health", _answered(guard.health), methods=["GET"]),
    ]
    handlers: dict[Any, Callable] = {404: _no_route, 405: _no_route, Exception: _crashed}
    return _Door(Starlette(routes=routes, exception_handlers=handlers), options.key)


class _Door:
    """Key and host, before anything of a request is looked at."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._expected = app, f"Bearer {key}".encode() if key else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # no route is a WebSocket; the server closes them
            return
        headers = dict(scope["headers"])
        refused = None
        if self._expected:
            if not hmac.compare_digest(headers.get(b"authorization", b""), self._expected):
                refused = Refused("The API key is missing or wrong: send it as `Authorization: Bearer KEY`.", 401)
        elif not _is_here(headers.get(b"host", b"").decode("latin-1")):
            # A page that points its own name at 127.0.0.1 is, to a browser, at home here.
            refused = Refused("Without a key only requests to this machine's loopback address are answered.", 403)
        if refused is None:
            await self._app(scope, receive, send)
        else:
            await _error(refused)(scope, receive, send)


class _Guard:
    def __init__(self, options: GuardOptions, reader: ImageReader) -> None:
        self._options, self._reader = options, reader
        headers = {"authorization": f"Bearer {options.inner_key}"} if options.inner_key else {}
        self._client = httpx2.AsyncClient(
            base_url=options.inner_url, headers=headers, timeout=TIMEOUT, trust_env=False
        )
        self._since = int(time.time())

    async def models(self, request: Request) -> Response:
        entry = {"id": self._options.served.name, "object": "model", "created": self._since, "owned_by": "sharegpt4v"}
        return JSONResponse({"object": "list", "data": [entry]})

    async def health(self, request: Request) -> Response:
        try:
            alive = (await self._client.get("/health", timeout=5)).status_code == 200
        except httpx2.HTTPError:
            alive = False
        return JSONResponse({"status": "ok" if alive else "unhealthy"}, 200 if alive else 503)

    async def complete(self, request: Request) -> Response:
        body = await self._body(request)
        checked = await check_request(body, self._options.served, self._reader)
        outgoing = self._client.build_request("POST", "/v1/chat/completions", json=checked)
        try:
            response = await self._client.send(outgoing, stream=True)
            if response.status_code != 200:
                await response.aclose()
                logger.warning("The model server answered with status %d.", response.status_code)
                raise Refused(FAILED, 502)
            if checked.get("stream"):
                return StreamingResponse(self._events(response), media_type="text/event-stream")
            answer = json.loads(await response.aread())
            await response.aclose()
        except (httpx2.HTTPError, ValueError) as error:
            raise Refused(FAILED, 502) from error
        return JSONResponse({**answer, "model": self._options.served.name})

    async def _body(self, request: Request) -> Any:
        # Browsers send this type to another site only after asking it, which it refuses.
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
            raise Refused("The content type must be application/json.", 415)
        most, data = self._options.max_request_bytes, bytearray()
        async for piece in request.stream():
            data += piece
            if len(data) > most:
                raise Refused(f"The request has more than {most / 2**20:g} MiB.", 413)
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            raise Refused("The body is no JSON.") from error

    async def _events(self, response: httpx2.Response) -> AsyncIterator[str]:
        try:
            async for line in response.aiter_lines():
                if line.startswith("data:"):
                    event, failed = self._event(line[5:].strip())
                    yield f"data: {event}\n\n"
                    if failed:
                        return
        except httpx2.HTTPError:
            yield f"data: {json.dumps(_described(FAILED, 502))}\n\n"
        finally:
            await response.aclose()

    def _event(self, data: str) -> tuple[str, bool]:
        if data == "[DONE]":
            return data, False
        with contextlib.suppress(ValueError):  # their error texts are not escaped, so no JSON
            event = json.loads(data)
            if "error" not in event:
                return json.dumps({**event, "model": self._options.served.name}, ensure_ascii=False), False
        logger.warning("The model server failed while it answered.")
        return json.dumps(_described(FAILED, 502)), True


def _answered(handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        try:
            return await handler(request)
        except Refused as refused:
            return _error(refused)

    return handle


async def _no_route(request: Request, error: Exception) -> Response:
    return _error(Refused("There is /v1/chat/completions (POST), /v1/models and /health.", 404))


async def _crashed(request: Request, error: Exception) -> Response:
    return _error(Refused("The request could not be handled. The log on the serving machine says why.", 500))


def _error(refused: Refused) -> Response:
    # After a body that was not read to its end the connection is of no more use.
    return JSONResponse(_described(refused.message, refused.status), refused.status, {"connection": "close"})


def _described(message: str, status: int) -> dict[str, Any]:
    kind = KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": status}}


def _is_here(host: str) -> bool:
    name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
