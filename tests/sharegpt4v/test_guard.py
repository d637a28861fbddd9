"""The guard in this process: redirects, names, a server behind that fails; and how `serve` refuses to start."""

import asyncio
import http.server
import ipaddress
import json
import signal
import socket
import tempfile
import threading

import httpx2
import pytest

from sharegpt4v.guard import GuardOptions, build_guard
from sharegpt4v.guard_images import ImageReader, Refused, is_public
from sharegpt4v.guard_requests import ServedModel
from sharegpt4v.installed import NotInstalled, require_extra
from tests.commands import run_command
from tests.sharegpt4v.serving import ask, data_url, image_bytes, save_tiny, serving


REDIRECTS = {"/near": "/image", "/loop": "/loop", "/file": "file:///etc/passwd"}


class Images(http.server.BaseHTTPRequestHandler):
    """An image, what is none, and redirects to several places."""

    def do_GET(self):
        port = self.server.server_address[1]
        redirects = {**REDIRECTS, "/far": f"http://127.0.0.2:{port}/image"}
        if self.path in redirects:
            self.send_response(302)
            self.send_header("location", redirects[self.path])
            self.end_headers()
            return
        bodies = {"/image": image_bytes(), "/page": b"<html></html>", "/large": b"x" * 2_000_000}
        self.send_response(200 if self.path in bodies else 404)
        self.end_headers()
        self.wfile.write(bodies.get(self.path, b""))

    def log_message(self, *arguments):
        """Say nothing."""


@pytest.fixture(scope="module")
def images():
    server = http.server.ThreadingHTTPServer(("0.0.0.0", 0), Images)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def read(url: str, allow=lambda address: str(address) == "127.0.0.1") -> str:
    return asyncio.run(ImageReader(2**20, allow).read(url, "image"))


@pytest.mark.parametrize("path", ["/image", "/near"])
def test_an_image_at_an_allowed_address_is_fetched(images, path):
    assert read(images + path) == read(data_url(image_bytes()))


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/far", "not public"),
        ("/file", "http or https"),
        ("/loop", "redirects"),
        ("/page", "no image"),
        ("/large", "MiB"),
        ("/absent", "404"),
    ],
)
def test_a_redirect_is_checked_like_an_address_and_so_is_what_comes(images, path, reason):
    with pytest.raises(Refused, match=reason):
        read(images + path)


def test_by_default_this_machine_is_not_asked(images):
    with pytest.raises(Refused, match="not public"):
        read(images + "/image", is_public)


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("::ffff:8.8.8.8", True), ("127.0.0.1", False),
        ("::ffff:10.0.0.1", False), ("2002:7f00:1::", False), ("64:ff9b::a00:1", False), ("224.0.0.1", False),
        ("ff02::1", False), ("fc00::1", False), ("192.0.2.1", False), ("255.255.255.255", False),
    ],
)  # fmt: skip
def test_which_addresses_are_public(address, public):
    assert is_public(ipaddress.ip_address(address)) is public


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def through_guard(host: str, method: str = "GET", path: str = "/v1/models", **options) -> httpx2.Response:
    """One request to a guard without a key, whose server behind is gone."""
    guard = build_guard(
        GuardOptions(ServedModel("tiny", "/secret/tiny"), f"http://127.0.0.1:{free_port()}"), ImageReader(2**20)
    )

    async def run() -> httpx2.Response:
        transport = httpx2.ASGITransport(app=guard, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
            return await client.request(method, path, **options)

    return asyncio.run(run())


@pytest.mark.parametrize(("host", "status"), [("127.0.0.1:8000", 200), ("localhost", 200), ("evil.example", 403)])
def test_without_a_key_a_page_with_a_name_of_its_own_gets_nothing(host, status):
    assert through_guard(host).status_code == status


def test_a_server_that_is_gone_is_told_without_its_place():
    body = {"model": "tiny", "messages": ask(data_url(image_bytes()))}
    answer = through_guard("localhost", "POST", "/v1/chat/completions", json=body)
    assert answer.status_code == 502 and answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text and "Traceback" not in answer.text
    assert through_guard("localhost", path="/health").status_code == 503


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("guarded") / "tiny")


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_the_model_server_ends_with_the_guard(folder, number):
    with serving(folder) as running:
        assert running.end(number) == (0 if number == signal.SIGINT else -9) and running.child_is_gone()


@pytest.mark.slow
def test_a_model_server_that_dies_takes_the_guard_along(folder):
    with serving(folder) as running:
        running.child.kill()
        assert running.process.wait(30) == 9
    assert ".log" in (folder.parent / "errors").read_text()


def test_a_missing_extra_is_named_with_what_installs_it():
    with pytest.raises(NotInstalled, match=r'pip install "sharegpt4v\[serve\]"'):
        require_extra("serve", "`sharegpt4v serve`", "json", "no_such_module")


def test_beyond_this_machine_nothing_is_served_without_a_key(capsys, folder):
    outcome = run_command(capsys, "serve", folder, "--host", "0.0.0.0", "--port", 0)
    assert outcome.code == 1 and "--api-key-env" in outcome.errors


def test_a_port_in_use_and_an_unset_key_are_named(capsys, folder):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        outcome = run_command(capsys, "serve", folder, "--port", other.getsockname()[1])
    assert outcome.code == 1 and "--port" in outcome.errors
    outcome = run_command(capsys, "serve", folder, "--port", 0, "--api-key-env", "NO_SUCH_VARIABLE")
    assert outcome.code == 1 and "NO_SUCH_VARIABLE" in outcome.errors


def test_an_engine_that_is_not_installed_has_its_own_code(capsys, folder):
    outcome = run_command(capsys, "serve", folder, "--port", 0, "--engine", "vllm")
    assert outcome.code == 10 and "vLLM is not installed" in outcome.errors


def test_a_class_that_no_server_runs_is_named_with_the_way_out(capsys, tmp_path):
    config = {"model_type": "llava", "architectures": ["ShareGPT4VForConditionalGeneration"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    outcome = run_command(capsys, "serve", tmp_path, "--port", 0)
    assert outcome.code == 1 and "LlavaForConditionalGeneration" in outcome.errors


@pytest.mark.slow
def test_a_server_that_cannot_load_its_model_ends_with_its_log(capsys, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where the log goes
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    outcome = run_command(capsys, "serve", tmp_path, "--port", 0, "--device", "cpu")
    assert outcome.code == 9 and ".log" in outcome.errors
