"""An endpoint on a free loopback port that answers as scripted: over real HTTP, with every fault there is."""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Seen:
    """A request that arrived: when, how, where to, with which headers (names in lower case) and body."""

    time: float
    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Reply:
    """What to answer: status, headers and body; after `stall` seconds; cut off after `cut` bytes; in `pieces`."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    kind: str = "application/json"
    stall: float = 0.0
    cut: bool = False
    pieces: list[bytes] = field(default_factory=list)
    gap: float = 0.0


def completion(text: Any = "A red square.", finish_reason: Any = "stop", **more: Any) -> dict[str, Any]:
    """A chat completion as OpenAI sends it; 100 tokens sent, 20 answered."""
    message = {"role": "assistant", "content": text, **more.pop("message", {})}
    usage = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
    choices = [{"index": 0, "message": message, "finish_reason": finish_reason}]
    return {"id": "c1", "object": "chat.completion", "model": "m", "choices": choices, "usage": usage, **more}


def ok(*args: Any, **more: Any) -> Reply:
    """A chat completion."""
    return Reply(json.dumps(completion(*args, **more)).encode())


def error(status: int, message: str = "no", code: str | None = None, **headers: str) -> Reply:
    """An HTTP error as OpenAI sends it; `retry_after` becomes a header."""
    body = json.dumps({"error": {"message": message, "type": "t", "code": code}}).encode()
    return Reply(body, status, {name.replace("_", "-"): value for name, value in headers.items()})


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n\n"


def delta(text: str | None = None, finish_reason: str | None = None, **more: Any) -> bytes:
    """One chunk of a streamed completion."""
    choice = {"index": 0, "delta": {"content": text, **more}, "finish_reason": finish_reason}
    return event({"id": "c1", "object": "chat.completion.chunk", "model": "m", "choices": [choice]})


USAGE = event({"id": "c1", "choices": [], "usage": {"prompt_tokens": 100, "completion_tokens": 20}})
DONE = event(b"[DONE]")


def stream(*pieces: bytes, **more: Any) -> Reply:
    """A streamed completion."""
    return Reply(pieces=list(pieces), kind="text/event-stream", **more)


class FaultServer:
    """
    Answers requests with `script`, one reply each, then with `then`; `seen` has every request.

    `route` replaces both: it is called with each request. Used as a context, it stops by itself.
    """

    def __init__(self, *script: Reply, then: Reply | None = None, route: Callable[[Seen], Reply] | None = None):
        self.script, self.then, self.route = list(script), then or ok(), route
        self.seen: list[Seen] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> "FaultServer":
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping.set()
        self._http.shutdown()
        self._http.server_close()

    @property
    def gaps(self) -> list[float]:
        """Seconds between requests."""
        times = [seen.time for seen in self.seen]
        return [later - earlier for earlier, later in zip(times, times[1:], strict=False)]

    def next_reply(self, seen: Seen) -> Reply:
        with self._lock:
            self.seen.append(seen)
            if self.route is not None:
                return self.route(seen)
            return self.script.pop(0) if self.script else self.then

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                data = self.rfile.read(int(self.headers.get("content-length", 0)))
                try:
                    body = json.loads(data)
                except ValueError:
                    body = data
                headers = {name.lower(): value for name, value in self.headers.items()}
                seen = Seen(time.monotonic(), self.command, self.path, headers, body)
                try:
                    self.answer(server.next_reply(seen))
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True  # the client has given up

            do_GET = do_POST

            def answer(self, reply: Reply) -> None:
                server._stopping.wait(reply.stall)
                self.send_response(reply.status)
                self.send_header("content-type", reply.kind)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                if reply.pieces:
                    self.send_header("connection", "close")
                else:
                    self.send_header("content-length", str(len(reply.body)))
                self.end_headers()
                for piece in reply.pieces or [reply.body[: len(reply.body) // 2] if reply.cut else reply.body]:
                    self.wfile.write(piece)
                    self.wfile.flush()
                    server._stopping.wait(reply.gap)
                self.close_connection = self.close_connection or bool(reply.pieces) or reply.cut
                if reply.cut:  # a reset instead of an end
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

            def log_message(self, *args: object) -> None:
                """Keep quiet."""

        return Handler
