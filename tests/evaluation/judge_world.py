"""Items to judge, and a judge that is a server on loopback."""

import json

from evaluation.judge import JudgeConfig, judge
from tests.captioning.fault_server import FaultServer, Reply, completion


KEY_ENV = "JUDGE_TEST_KEY"
MODEL = "judge-1"


def mmvet_items(count):
    """Questions of MM-Vet with answers that say their number."""
    return [
        {
            "question_id": f"v1_{number}",
            "question": "What is it?",
            "answer": "That.",
            "capability": ["rec"] if number % 2 else ["ocr", "rec"],
            "response": f"answer {number}",
        }
        for number in range(count)
    ]


def llava_items(count):
    """Questions of LLaVA-Bench."""
    row = {"question": "What?", "gpt_answer": "That.", "caption": "A thing.", "category": "conv", "response": "This."}
    return [{**row, "question_id": number} for number in range(count)]


def reply(text, model=MODEL):
    """A chat completion of a model."""
    return Reply(json.dumps({**completion(text), "model": model}).encode())


def config_of(server, **more):
    """A config for a server that wants no key, and does not wait for long."""
    options = {"model": MODEL, "api_key_env": "", "backoff": 0.01, "attempts": 2, **more}
    return JudgeConfig(base_url=server if isinstance(server, str) else server.url, **options)


def judged(route, items, transcript, benchmark="mmvet", **more):
    """Verdicts of a server that answers as `route` says, and the requests that it saw."""
    with FaultServer(route=route) as server:
        verdicts = judge(benchmark, items, config_of(server, **more), transcript)
    return verdicts, server.seen


def lines(path):
    """The transcript's replies."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
