"""The key: where it is read, and that it is nowhere else, whatever the endpoint sends back and whatever fails."""

import asyncio
import json
import logging
import traceback
from dataclasses import asdict, replace

import pytest

from captioning.answers import JobStopped
from captioning.batches import BatchJob
from captioning.endpoint import EndpointAnnotator
from captioning.endpoint_config import EndpointConfig, read_key
from captioning.redact import Redactor
from tests.captioning.asking import PRICES, Clock, config_for, requests
from tests.captioning.batch_endpoint import BatchEndpoint, answered
from tests.captioning.fault_server import FaultServer, Reply, completion, error, ok, stream
from tests.image_files import encoded


CANARY = "sk-canary-7f3a9c51d2e84b60"
ECHO = f"Incorrect API key provided: {CANARY}, sent as Bearer {CANARY} to https://user:pa55word@proxy.example/v1"


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("TEST_ENDPOINT_KEY", CANARY)
    return "TEST_ENDPOINT_KEY"


@pytest.fixture
def everything(caplog, capfd):
    """All that was logged at the most talkative level, and written to the terminal."""
    caplog.set_level(logging.DEBUG)
    for name in ("openai", "httpx2", "httpcore2", "asyncio", "captioning"):
        caplog.set_level(logging.DEBUG, logger=name)

    def collect() -> str:
        records = [f"{record.getMessage()} {record.args!r} {record.exc_text or ''}" for record in caplog.records]
        return "\n".join([*records, *capfd.readouterr()])

    return collect


def leaks(text: str) -> list[str]:
    """What of the key, and of the address of a proxy that an endpoint might repeat, is in a text."""
    return [secret for secret in (CANARY, CANARY[:12], "pa55word") if secret in text]


def kept_of(answer) -> str:
    """An answer in every form it is stored in. A caption may hold the password of another, an error may not."""
    raw = answer.raw if answer.raw is not None and "choices" not in answer.raw else None
    assert CANARY not in json.dumps(asdict(answer))
    return f"{answer!r} {json.dumps(asdict(replace(answer, raw=raw, text='')))}"


ENDINGS = [
    [ok(), ok()],
    [error(401, ECHO)],
    [error(403, ECHO)],
    [error(400, ECHO), error(404, ECHO)],
    [error(429, ECHO, retry_after="0.01"), error(500, ECHO), error(503, ECHO)],
    [Reply(f"<html>{ECHO}</html>".encode(), kind="text/html")],
    [Reply(json.dumps(completion(ECHO, id=CANARY, echo={CANARY: [CANARY]})).encode())],
    [Reply(json.dumps({"error": ECHO, "choices": CANARY}).encode())],
    [Reply(json.dumps(completion("A cat.", finish_reason=CANARY)).encode())],
    [Reply(ok().body, cut=True)],
    [Reply(status=500, headers={"x-echo": "a"}, body=ECHO.encode(), kind="text/plain")],
]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("script", ENDINGS, ids=range(len(ENDINGS)))
def test_the_key_is_in_nothing_that_is_logged_kept_or_raised(key, everything, script, streamed):
    async def run(config):
        kept = [repr(config), json.dumps(asdict(config))]
        async with EndpointAnnotator(config) as annotator:
            kept += [repr(annotator)]
            try:
                async for answer in annotator.annotate_many(requests(3)):
                    kept.append(kept_of(answer))
            except JobStopped as stop:
                kept += [repr(stop), "".join(traceback.format_exception(stop)), repr(stop.__context__)]
        return kept

    with FaultServer(*script) as server:
        config = config_for(server, api_key_env=key, stream=streamed, max_attempts=4)
        kept = "\n".join(asyncio.run(run(config)))
    assert server.seen[0].headers["authorization"] == f"Bearer {CANARY}"
    assert leaks(kept) == []
    logged = everything()
    assert leaks(logged) == [] and "base64,/9j" not in logged


def test_images_are_not_in_errors_that_repeat_the_request():
    def route(seen):
        return error(400, json.dumps(seen.body))

    async def run(server):
        async with EndpointAnnotator(config_for(server)) as annotator:
            return [answer async for answer in annotator.annotate_many(requests(1))]

    with FaultServer(route=route) as server:
        (answer,) = asyncio.run(run(server))
    assert "/9j/" not in answer.error and len(answer.error) <= 400


@pytest.mark.parametrize("status", [200, 400, 500])
@pytest.mark.parametrize("blanks", [1980, 1985, 1990])
def test_a_key_at_the_place_where_texts_are_cut_is_removed_whole(monkeypatch, everything, status, blanks):
    secret = "canary/7f3a9c51d2e84b60"  # not of a shape that is known
    monkeypatch.setenv("TEST_ENDPOINT_KEY", secret)

    async def run(server):
        async with EndpointAnnotator(config_for(server, api_key_env="TEST_ENDPOINT_KEY", max_attempts=1)) as annotator:
            return await annotator.annotate(encoded(), requests(1)[0].prompt, "k")

    with FaultServer(then=Reply(b" " * blanks + secret.encode() + b"<", status, kind="text/html")) as server:
        answer = asyncio.run(run(server))
    assert answer.error and "canary" not in f"{answer!r} {answer.raw!r}" and "canary" not in everything()


def test_a_key_as_json_writes_it_is_removed():
    redactor = Redactor('can/ary"7f3a')
    assert redactor.line(r'{"a": "can\/ary\"7f3a", "b": "can/ary\"7f3a"}') == '{"a": "[removed]", "b": "[removed]"}'
    assert redactor.line(" " * 19_995 + 'can/ary"7f3a') == "[removed]"


def test_the_key_is_in_no_file_of_a_batch_job(key, everything, tmp_path):
    def ending(lines):
        return {
            "status": "completed",
            "output": [answered(lines[0], ECHO)],
            "problems": [{"code": "x", "message": ECHO}],
        }

    async def run(job):
        job.prepare(requests(2))
        return [answer async for answer in job.run()]

    with BatchEndpoint(ending) as server:
        job = BatchJob(config_for(server, api_key_env=key, **PRICES), tmp_path, sleep=Clock().sleep)
        answers = asyncio.run(run(job))
    kept = [repr(job), *(kept_of(answer) for answer in answers)]
    for path in tmp_path.iterdir():
        if not path.name.startswith("output"):  # as the endpoint wrote it
            kept.append(path.read_text())
    assert leaks("\n".join(kept)) == [] and leaks(everything()) == []


def test_the_key_of_the_environment_comes_before_the_one_of_a_file(tmp_path, monkeypatch):
    path = tmp_path / ".env"
    path.write_text("# OPENAI_API_KEY=commented\nOTHER=x\nexport OPENAI_API_KEY='of-the-file'\n", encoding="utf-8")
    config = EndpointConfig("m", env_file=str(path))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert read_key(config) == "of-the-file"
    monkeypatch.setenv("OPENAI_API_KEY", " of-the-environment\n")
    assert read_key(config) == "of-the-environment"
    assert read_key(EndpointConfig("m", api_key_env="")) == ""


def test_a_missing_key_is_said_with_the_name_of_its_variable(monkeypatch, tmp_path):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ValueError, match="no key in the environment variable MY_KEY. Set it"):
        EndpointAnnotator(EndpointConfig("m", api_key_env="MY_KEY"))
    with pytest.raises(FileNotFoundError, match="no file .* to read the key from"):
        read_key(EndpointConfig("m", api_key_env="MY_KEY", env_file=str(tmp_path / ".env")))


@pytest.mark.parametrize("bad", [f"{CANARY} x", f"{CANARY}\nx", f"{CANARY}\u00e9"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(monkeypatch, bad):
    monkeypatch.setenv("OPENAI_API_KEY", bad)
    with pytest.raises(ValueError, match="The key in OPENAI_API_KEY has blanks") as refused:
        read_key(EndpointConfig("m"))
    assert leaks("".join(traceback.format_exception(refused.value))) == []


@pytest.mark.parametrize(
    "url", [f"https://user:{CANARY}@host/v1", f"https://{CANARY}@host/v1", f"https://host/v1?key={CANARY}",
            f"https://host:{CANARY}/v1", f"https://[{CANARY}/v1"]
)  # fmt: skip
def test_a_secret_in_the_address_is_refused_without_being_shown(url):
    with pytest.raises(ValueError, match="`base_url`") as refused:
        EndpointConfig("m", base_url=url)
    assert leaks("".join(traceback.format_exception(refused.value))) == []


def test_a_redirect_takes_neither_key_nor_image_elsewhere(key):
    with FaultServer() as other, FaultServer() as server:
        server.then = Reply(status=307, headers={"location": other.url + "/chat/completions"})

        async def run():
            async with EndpointAnnotator(config_for(server, api_key_env=key)) as annotator:
                return await annotator.annotate(encoded(), requests(1)[0].prompt, "k")

        assert asyncio.run(run()).state == "failed"
    assert other.seen == []


def test_a_placeholder_key_does_not_mangle_captions():
    assert Redactor("none").text("There is none.") == "There is none."


def test_a_caption_that_holds_the_key_is_no_caption(key):
    async def run(config):
        async with EndpointAnnotator(config) as annotator:
            return await annotator.annotate(encoded(), requests(1)[0].prompt, "k")

    with FaultServer(then=stream()) as server:
        server.then = Reply(json.dumps(completion(f"A sign reads {CANARY}.")).encode())
        answer = asyncio.run(run(config_for(server, api_key_env=key)))
    assert answer.state == "failed" and answer.text == ""
