"""Requests and answers over real HTTP, and faults of the connection itself."""

import io
import json
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.hub_stand_in.store import PIECE, Readable


class Reset(Exception):
    """The connection is to be reset now."""


class Body:
    """The body of a request: no more bytes than were announced; once `cut` is set, half of them and a reset."""

    def __init__(self, stream: Readable, length: int) -> None:
        self._stream, self.left, self.length, self.cut = stream, length, length, False

    def read(self, size: int = -1) -> bytes:
        """The next bytes, fewer than asked for only at the end."""
        wanted = self.left if size < 0 else min(size, self.left)
        if self.cut:
            wanted = min(wanted, self.left - self.length // 2)
        data = self._stream.read(wanted)
        self.left -= len(data)
        if self.cut and self.left <= self.length // 2:
            raise Reset
        if len(data) < wanted:
            raise ConnectionResetError("The client went away in the middle of a body.")
        return data


@dataclass
class Request:
    """
    A request: `path` as it was sent, without the query; `query` and `headers` with names in lower case.

    Once it is answered, it has the `stage` and `repository` that it was about, and the `status` it got, which is 0 if
    the connection was reset before an answer.
    """

    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    stream: Body
    time: float = field(default_factory=time.monotonic)
    stage: str = ""
    repository: str | None = None
    status: int = 0
    _data: bytes | None = None

    def flag(self, name: str) -> bool:
        """Whether the query says yes to something."""
        return self.query.get(name, [""])[0].lower() in ("true", "1")

    @property
    def data(self) -> bytes:
        """All of the body."""
        if self._data is None:
            self._data = self.stream.read()
        return self._data

    @property
    def body(self) -> Any:
        """What the body says, as JSON or as a form (a name that is there once stands for itself)."""
        if "form-urlencoded" in self.headers.get("content-type", ""):
            return parse_qs(self.data.decode())
        return json.loads(self.data or b"{}")


@dataclass
class Answer:
    """Status, headers, and a body of bytes or in a file."""

    body: bytes | Path = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    kind: str = "application/json"


def json_answer(value: Any, status: int = 200, **headers: str) -> Answer:
    """Answer in JSON; of the names of headers, `_` stands for `-`."""
    return Answer(json.dumps(value).encode(), status, {name.replace("_", "-"): text for name, text in headers.items()})


def part_of(size: int, header: str | None) -> tuple[int, int] | None:
    """
    First byte and byte behind the last that a `Range` header means.

    Args:
        size (`int`): Bytes that there are.
        header (`str`, *optional*): The header; one range is understood.

    Returns:
        `tuple[int, int]`: The bytes, or `None` if the header asks for nothing special or cannot be met.
    """
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", header or "")
    if not found or found.group() == "bytes=-":
        return None
    first, last = found.groups()
    if not first:
        return max(size - int(last), 0), size
    end = min(int(last) + 1, size) if last else size
    return (int(first), end) if int(first) < end else None


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # clients that connect at once; more are reset
    answer: Callable[[Request], tuple[Answer, str]]


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = Body(self.rfile, int(headers.get("content-length", 0)))
        request = Request(self.command, parts.path, parse_qs(parts.query), headers, body)
        try:
            answer, fate = self.server.answer(request)
            while body.left:  # an answer that did not need the body
                body.read(PIECE)
            if fate == "lost":
                raise Reset
            self.give(answer, request, cut=fate == "cut")
        except Reset:
            self.reset()
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # the client has given up

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def give(self, answer: Answer, request: Request, cut: bool) -> None:
        size = len(answer.body) if isinstance(answer.body, bytes) else answer.body.stat().st_size
        wanted, first, end = request.headers.get("range"), 0, size
        if answer.status == 200 and request.method in ("GET", "HEAD") and (part := part_of(size, wanted)):
            answer.status, (first, end) = 206, part
            answer.headers["Content-Range"] = f"bytes {first}-{end - 1}/{size}"
        elif answer.status == 200 and request.method == "GET" and (wanted or "").startswith("bytes="):
            answer = Answer(b"", 416, {"Content-Range": f"bytes */{size}"})
            end = 0
        request.status = answer.status
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(end - first))
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if request.method != "HEAD":
            self.send(answer.body, first, first + (end - first) // 2 if cut else end)
        if cut:
            self.reset()

    def send(self, body: bytes | Path, first: int, end: int) -> None:
        stream = io.BytesIO(body) if isinstance(body, bytes) else body.open("rb")
        with stream:
            stream.seek(first)
            while first < end and (piece := stream.read(min(PIECE, end - first))):
                self.wfile.write(piece)
                first += len(piece)

    def reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.connection.detach())  # at once; the base class would say goodbye first

    def log_message(self, *args: object) -> None:
        """Keep quiet."""


class Listener:
    """
    A server on a free loopback port.

    Args:
        answer (`Callable`): Called with each request; gives the answer, and `cut` or `lost` if it shall not arrive.
    """

    def __init__(self, answer: Callable[[Request], tuple[Answer, str]]) -> None:
        self._http = _Server(("127.0.0.1", 0), _Handler)
        self._http.answer = answer
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def start(self) -> None:
        """Answer from now on."""
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """Answer no more."""
        self._http.shutdown()
        self._http.server_close()
