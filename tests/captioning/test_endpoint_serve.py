"""Against `transformers serve` with a tiny model: the protocol as a real server speaks it."""

import asyncio
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from captioning.endpoint import EndpointAnnotator
from captioning.endpoint_config import EndpointConfig
from tests.captioning.asking import requests
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Folder of the model and address of a server of it."""
    folder = tmp_path_factory.mktemp("served") / "tiny"
    for part in tiny_model():
        part.save_pretrained(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("transformers"), "serve", folder, "--device", "cpu", "--port", str(port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder.parent), "OMP_NUM_THREADS": "1"}
    log = folder.parent / "log"
    with open(log, "wb") as stream:
        server = subprocess.Popen(command, env=environment, stdout=stream, stderr=stream)
    try:
        for _ in range(900):
            if server.poll() is not None:
                raise RuntimeError(log.read_text()[-2000:])
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield str(folder), f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.slow
@pytest.mark.parametrize("streamed", [False, True])
def test_a_real_server_answers_with_text_and_counts(served, streamed):
    async def run():
        config = EndpointConfig(served[0], served[1], api_key_env="", max_tokens=8, stream=streamed, temperature=0)
        async with EndpointAnnotator(config) as annotator:
            return [answer async for answer in annotator.annotate_many(requests(3), concurrency=2)]

    answers = asyncio.run(run())
    assert sorted(answer.key for answer in answers) == ["0", "1", "2"]
    for answer in answers:
        assert answer.state in ("truncated", "ok") and answer.text != "", answer
        assert 1 <= answer.completion_tokens <= 8 and answer.prompt_tokens > 4
