"""`sharegpt4v serve`: a model behind OpenAI's protocol, with a guard in front of the server that runs it."""

import ipaddress
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Annotated, Any

import typer

from .installed import require_extra
from .model_server import Engine, ModelServer, image_token
from .options import AsJson, show


MIB = 2**20
CONNECTIONS = 128
GRACE_SECONDS = 10

Model = Annotated[str, typer.Argument(help="Folder or name on the Hub of a model of transformers' own class.")]
Host = Annotated[str, typer.Option(help="Address to listen on; beyond loopback only with a key.")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 takes a free one.")]
KeyName = Annotated[str, typer.Option("--api-key-env", help="Variable with the key that clients send; empty: none.")]
EngineOption = Annotated[Engine, typer.Option(help="`auto`: vLLM where it is installed.")]
Name = Annotated[str | None, typer.Option(help="What clients call the model; its last path part by default.")]
Device = Annotated[str, typer.Option(help="For transformers: `auto`, `cpu`, `cuda:0`.")]
ImageSize = Annotated[float, typer.Option("--max-image-mb", min=0.01, help="Largest image, in MiB.")]
RequestSize = Annotated[float, typer.Option("--max-request-mb", min=0.01, help="Largest request, in MiB.")]


def serve(
    model: Model,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key_env: KeyName = "",
    engine: EngineOption = "auto",
    name: Name = None,
    device: Device = "auto",
    max_image_mb: ImageSize = 10,
    max_request_mb: RequestSize = 32,
    as_json: AsJson = False,
) -> None:
    """Serve a model to OpenAI's clients, behind a guard."""
    key = _key(api_key_env)
    listener = _listen(host, port, key)
    require_extra("serve", "`sharegpt4v serve`", "starlette", "uvicorn")
    name = name or Path(model).resolve().name
    before = {number: signal.signal(number, _stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with listener, ModelServer(model, name, engine, device) as server:
            from .guard import GuardOptions, build_guard
            from .guard_images import ImageReader
            from .guard_requests import ServedModel

            served = ServedModel(name, server.name, image_token(server.model))
            options = GuardOptions(served, server.url, key, server.key, int(max_request_mb * MIB))
            app = build_guard(options, ImageReader(int(max_image_mb * MIB)))
            listener.listen(CONNECTIONS)  # whoever reads the address may connect at once
            _announce(listener, host, name, server, key, as_json)
            _run(app, listener, server)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(app: Any, listener: socket.socket, server: ModelServer) -> None:
    import uvicorn

    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
        ws="none",
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    guard = uvicorn.Server(config)

    def watch() -> None:
        if server.process is not None:
            server.process.wait()
            guard.should_exit = True

    threading.Thread(target=watch, daemon=True).start()
    guard.run(sockets=[listener])  # a signal that ended it is raised again, for `_stop`
    raise server.failure()


def _stop(number: int, frame: Any) -> None:
    raise typer.Exit(0)  # being told to stop is how a server ends well


def _listen(host: str, port: int, key: str) -> socket.socket:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ValueError(f"The address {host} is not known: {error}.") from error
    family, _, _, _, address = found[0]
    if not ipaddress.ip_address(address[0]).is_loopback and not key:
        raise ValueError(
            f"Without a key nothing is served beyond this machine, and {host} reaches further. Put a key into a "
            "variable and name it: --api-key-env NAME."
        )
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ValueError(f"Cannot listen on {host}, port {port}: {error.strerror}. Choose another --port.") from error
    return listener


def _key(name: str) -> str:
    if not name:
        return ""
    key = os.environ.get(name, "").strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"There is no usable key in the environment variable {name}. Set it.")
    return key


def _announce(listener: socket.socket, host: str, name: str, server: ModelServer, key: str, as_json: bool) -> None:
    port = listener.getsockname()[1]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/v1"
    facts = {"url": url, "model": name, "engine": server.engine, "key": bool(key), "log": server.log}
    lines = [
        f"{name} is served at {url} by {server.engine}{', with a key' if key else ''}. Ctrl-C stops it.",
        f'openai.OpenAI(base_url="{url}", api_key={"KEY" if key else repr("none")})',
    ]
    show(facts, lines, as_json)
