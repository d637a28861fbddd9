"""`sharegpt4v serve` with the real model server and OpenAI's client: what passes, what is refused (rows 52, 53)."""

import json

import httpx2
import openai
import pytest
from PIL import Image

from modeling_sharegpt4v.images_sharegpt4v import open_image
from sharegpt4v.chat import Conversation, LocalOptions, LocalTalker
from tests.commands import run_command
from tests.sharegpt4v.serving import KEY, KEY_NAME, ask, data_url, image_bytes, save_tiny, serving


PRIVATE = [
    "http://127.0.0.1:{port}/health", "http://localhost/a.png", "http://[::1]/a.png", "http://2130706433/a.png",
    "http://0x7f.0.0.1/a.png", "http://10.0.0.1/a.png", "http://192.168.1.1/a.png", "http://172.16.0.1/a.png",
    "http://169.254.169.254/latest/meta-data/", "http://100.64.0.1/", "http://0.0.0.0/", "http://[::ffff:127.0.0.1]/",
    "http://[64:ff9b::7f00:1]/", "http://[fe80::1]/", "http://[fd00::1]/", "https://127.0.0.1/", "HTTP://127.0.0.1/",
]  # fmt: skip
LOCAL = [
    "file:///etc/passwd", "/etc/passwd", "../../../etc/passwd", "{folder}/photo.png", "file://{folder}/photo.png",
    "FILE:///etc/passwd", "C:\\photo.png", "ftp://example.org/a.png", "gopher://127.0.0.1/", "javascript:alert(1)",
    "http://", "http://user:word@example.org/a.png", "http://example.org:99999/a.png", "//127.0.0.1/a.png", "",
]  # fmt: skip
NO_IMAGES = [
    data_url(b"<svg></svg>", "image/svg+xml"), data_url(b"text", "image/png"), data_url(b"", "image/png"),
    data_url(image_bytes()[:900]), data_url(image_bytes(), "text/html"), "data:image/png;base64,@@@@",
    "data:image/png,plain", "data:,", "data:image/png;base64",
]  # fmt: skip
ROUTES = [
    ("GET", "/"), ("GET", "/health"), ("GET", "/v1/models"), ("POST", "/v1/chat/completions"),
    ("GET", "/openapi.json"),
    ("GET", "/docs"), ("GET", "/config"), ("POST", "/upload"), ("POST", "/load_model"), ("POST", "/reset"),
    ("POST", "/v1/responses"), ("POST", "/v1/completions"), ("GET", "/file=/etc/passwd"), ("OPTIONS", "/v1/models"),
]  # fmt: skip
OPEN = {("GET", "/health"), ("GET", "/v1/models"), ("POST", "/v1/chat/completions")}
TOLD = ("Traceback", "/etc", "site-packages", "python", "tmp")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("served") / "tiny")
    (folder / "photo.png").write_bytes(image_bytes())
    with serving(folder, "--max-image-mb", "1", "--max-request-mb", "3") as running:
        yield running
        assert running.end() == 0 and running.child_is_gone()


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=served.url, api_key=KEY, max_retries=0, timeout=60) as one:
        yield one


@pytest.fixture(scope="module")
def complete(client, served):
    def call(messages, **options):
        options = {"model": served.model, "max_tokens": 8, "temperature": 0, **options}
        return client.chat.completions.create(messages=messages, **options)

    return call


@pytest.fixture(scope="module")
def post(served):
    def call(body: bytes, kind: str = "application/json"):
        headers = {"authorization": f"Bearer {KEY}", "content-type": kind}
        return httpx2.post(f"{served.url}/chat/completions", content=body, headers=headers, timeout=60)

    return call


def refused(complete, messages, status: int = 400, **options) -> str:
    with pytest.raises(openai.APIStatusError) as caught:
        complete(messages, **options)
    assert caught.value.status_code == status, caught.value.message
    assert not any(word in caught.value.message for word in TOLD)
    return caught.value.body["message"]


def whole(text: str) -> str:
    """Without the bytes of a character that the last token leaves unfinished; streams hold them back."""
    return text.rstrip("\ufffd").strip()


def test_the_client_gets_what_the_model_says_here(complete, client, served):
    answer = complete(ask(data_url(image_bytes())))
    assert [one.id for one in client.models.list()] == [served.model] == [answer.model] == ["tiny"]
    talker = LocalTalker(LocalOptions(str(served.folder), device="cpu", max_new_tokens=8))
    said = "".join(Conversation(talker, open_image(image_bytes())).ask("What is this?"))
    assert whole(answer.choices[0].message.content) == whole(said) != ""
    assert answer.choices[0].finish_reason == "length" and answer.usage.completion_tokens == 8


def test_a_stream_arrives_in_pieces_with_the_served_name(complete):
    messages = ask(data_url(image_bytes("JPEG"), "image/jpeg"))
    chunks = list(complete(messages, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert whole("".join(pieces)) == whole(complete(messages).choices[0].message.content) and len(pieces) > 2
    assert {chunk.model for chunk in chunks} == {"tiny"} and chunks[-1].choices[0].finish_reason == "length"


def test_several_turns_and_texts_alone_pass(complete):
    first = ask(data_url(image_bytes()))
    turns = [*first, {"role": "assistant", "content": "A cat."}, {"role": "user", "content": "Where?"}]
    assert complete(turns).choices[0].message.content
    assert complete([{"role": "user", "content": "Hello"}], max_tokens=4).usage.completion_tokens <= 4


@pytest.mark.parametrize("url", PRIVATE)
def test_private_addresses_are_not_asked(complete, served, url):
    port = served.child.net_connections(kind="tcp4")[0].laddr.port  # the unguarded server itself
    message = refused(complete, ask(url.replace("{port}", str(port))))
    assert "messages[0].content[0].image_url.url" in message and ("not public" in message or "not known" in message)


@pytest.mark.parametrize("url", LOCAL)
def test_local_files_and_odd_addresses_are_refused(complete, served, url):
    refused(complete, ask(url.replace("{folder}", str(served.folder))))


@pytest.mark.parametrize("url", NO_IMAGES, ids=range(len(NO_IMAGES)))
def test_what_is_no_image_is_a_bad_request(complete, url):
    refused(complete, ask(url))


def test_sizes_have_limits(complete, post, tmp_path):
    assert "1 MiB" in refused(complete, ask(data_url(image_bytes("BMP", (700, 700)))), 413)
    Image.new("1", (9000, 9000)).save(tmp_path / "bomb.png")
    assert "pixels" in refused(complete, ask(data_url((tmp_path / "bomb.png").read_bytes())), 413)
    answer = post(b" " * (3 * 2**20 + 1))
    assert answer.status_code == 413 and "3 MiB" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("part", "options"),
    [
        ({"type": "text", "text": "<image>"}, {}),
        ({"type": "video_url", "video_url": {"url": "file:///etc/passwd"}}, {}),
        ({"type": "input_image", "image_url": "/etc/passwd"}, {}),
        ({"type": "image_url"}, {}),
        ({"type": "text", "text": "a"}, {"n": 2}),
        ({"type": "text", "text": "a"}, {"max_tokens": 10**9}),
        ({"type": "text", "text": "a"}, {"temperature": -1}),
        ({"type": "text", "text": "a"}, {"stop": [""]}),
        ({"type": "text", "text": "a"}, {"extra_body": {"generation_config": "{}"}}),
        ({"type": "text", "text": "a"}, {"extra_body": {"chat_template_kwargs": {"chat_template": "x"}}}),
    ],
)
def test_what_the_server_would_stumble_over_is_a_bad_request(complete, part, options):
    refused(complete, [{"role": "user", "content": [part]}], **options)


def test_bodies_that_are_no_request(complete, post):
    assert "tiny" in refused(complete, ask(data_url(image_bytes())), 404, model="/etc/passwd")
    for body in (b"{", b"[]", b"{}", b"[" * 100_000, b'{"model": "tiny", "messages": [1]}', b"\xff"):
        assert post(body).status_code in (400, 404)
    assert post(json.dumps({"model": "tiny"}).encode(), "text/plain").status_code == 415


@pytest.mark.parametrize(("method", "route"), ROUTES)
def test_without_the_key_every_route_is_401_and_with_it_three_are_open(served, method, route):
    url = served.url.removesuffix("/v1") + route
    for header in ({}, {"authorization": f"Bearer {KEY}x"}, {"authorization": KEY}, {"authorization": "Basic x"}):
        answer = httpx2.request(method, url, headers=header, timeout=30)
        assert answer.status_code == 401 and answer.json()["error"]["type"] == "authentication_error"
    answer = httpx2.request(method, url, headers={"authorization": f"Bearer {KEY}"}, timeout=30)
    assert (answer.status_code not in (401, 404)) == ((method, route) in OPEN)
    assert not any(word in answer.text for word in TOLD)


def test_a_wrong_key_is_told_to_the_client(served):
    with openai.OpenAI(base_url=served.url, api_key="wrong", max_retries=0) as other:
        with pytest.raises(openai.AuthenticationError, match="API key"):
            other.models.list()


def test_chat_talks_to_it(served, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv(KEY_NAME, KEY)
    (tmp_path / "photo.png").write_bytes(image_bytes())
    words = ("chat", tmp_path / "photo.png", "--endpoint", served.url, "--api-key-env", KEY_NAME)
    outcome = run_command(capsys, *words, "--question", "What is this?", "--max-new-tokens", 8, "--json")
    facts = json.loads(outcome.output)
    assert outcome.code == 0 and facts["model"] == "tiny" and facts["turns"][0]["finish_reason"] == "length"
    monkeypatch.setenv(KEY_NAME, "wrong")
    assert run_command(capsys, *words, "--question", "What?").code == 7
