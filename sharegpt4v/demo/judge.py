"""
A judge for the demo: a scripted server that grades by counting words, not a language model.

It speaks OpenAI's chat completions on a free loopback port and names itself `demo-judge (word overlap rule)`, so that
the name stands beside every figure made of its grades. Such figures say that the machinery runs; they compare to no
published figure. The rule, on distinct words in small letters (every Chinese character is a word):

- MM-Vet: the grade of an answer is the share of a reference's words that are in it; parts joined by `<AND>` are
  averaged, and of alternatives joined by `<OR>` the best one counts. One decimal.
- LLaVA-Bench: the reference answer gets a 10, the other one 1 plus 9 times the share of the reference's words in it.
- MMBench: the letter of the option whose words are in the answer to the largest share; `Z` (`E` where the prompt says
  so) if none of them is, or if two share that place.

Requests are told apart by the official prompts of [`evaluation.judge_prompts`]; anything else is an HTTP error.

```python
with DemoJudge() as server:
    config = JudgeConfig(model=MODEL, base_url=server.url, api_key_env="")
```
"""

import json
import logging
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from evaluation.judge_prompts import texts


MODEL = "demo-judge (word overlap rule)"
RULE = "share of the reference's words that the answer has"
WORD = re.compile("[\u4e00-\u9fff]|[^\\W_\u4e00-\u9fff]+")
OPTION = re.compile("^([A-D])\\. (.*)$", re.MULTILINE)
LOWEST, HIGHEST = 1.0, 10.0  # ratings of LLaVA-Bench
LONGEST_BODY = 1 << 24  # bytes

logger = logging.getLogger(__name__)


class DemoJudge:
    """
    The server, while its context is entered.

    Attributes:
        url (`str`): Address up to `/v1`.
    """

    def __init__(self) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> "DemoJudge":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def overlap(reference: str, answer: str) -> float:
    """
    Share of a reference's words that an answer has.

    Args:
        reference (`str`): What is right.
        answer (`str`): What is judged.

    Returns:
        `float`: 0 to 1; 0 for a reference without words.
    """
    wanted, found = _words(reference), _words(answer)
    return len(wanted & found) / len(wanted) if wanted else 0.0


def verdict(messages: list[dict[str, Any]]) -> str:
    """
    What the judge replies.

    Args:
        messages (`list[dict]`): An official prompt, as a chat.

    Returns:
        `str`: A grade, two ratings, or a letter.

    Raises:
        `ValueError`: It is none of the official prompts.
    """
    contents = [message.get("content") for message in messages]
    if not contents or not all(isinstance(content, str) for content in contents):
        raise ValueError("`messages` must have texts as `content`.")
    for read in (_mmvet, _llava_bench, _mmbench):
        reply = read([str(content) for content in contents])
        if reply is not None:
            return reply
    raise ValueError(f"{MODEL} only reads the judge prompts of MM-Vet, LLaVA-Bench and MMBench.")


def _words(text: str) -> set[str]:
    return set(WORD.findall(text.lower()))


def _mmvet(contents: list[str]) -> str | None:
    start, again = texts()["mmvet"]["prompt"] + "\n", texts()["mmvet"]["again"]
    if len(contents) != 1 or not contents[0].startswith(start):
        return None
    cells = contents[0].removeprefix(start).removesuffix(again).removesuffix(" | ").split(" | ", 2)
    if len(cells) != 3:
        raise ValueError("The last row of MM-Vet's table must have question, ground truth and prediction.")
    _, truth, answer = cells
    grades = []
    for alternative in truth.split("<OR>"):
        parts = [overlap(part, answer) for part in alternative.split("<AND>")]
        grades.append(sum(parts) / len(parts))
    return f"{max(grades):.1f}"


def _llava_bench(contents: list[str]) -> str | None:
    if len(contents) != 2 or contents[0] != texts()["llava_bench"]["system"]:
        return None
    between = "\n\n[End of Assistant {0}]\n\n"
    _, _, rest = contents[1].partition("[Assistant 1]\n")
    reference, _, rest = rest.partition(between.format(1) + "[Assistant 2]\n")
    answer, mark, _ = rest.rpartition(between.format(2))
    if not mark:
        raise ValueError("LLaVA-Bench's prompt must hold the answers of Assistant 1 and Assistant 2.")
    rating = LOWEST + (HIGHEST - LOWEST) * overlap(reference, answer)
    return f"{HIGHEST:.1f} {rating:.1f}\nBy {MODEL}: {RULE}."


def _mmbench(contents: list[str]) -> str | None:
    found = texts()["mmbench"]
    for language in ("en", "cn"):
        for none in ("Z", "E"):
            template = found[language].replace("Z", none)
            form = "(.*?)".join(map(re.escape, template.split("{}")))
            if len(contents) == 1 and (match := re.fullmatch(form, contents[0], re.DOTALL)) is not None:
                _, listed, answer = match.groups()
                return _choice(listed, answer, none)
    return None


def _choice(listed: str, answer: str, none: str) -> str:
    shares = {letter: overlap(text, answer) for letter, text in OPTION.findall(listed)}
    best = max(shares.values(), default=0.0)
    letters = [letter for letter, share in shares.items() if share == best]
    return letters[0] if best and len(letters) == 1 else none


def _completion(body: Any) -> tuple[int, dict[str, Any]]:
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
        return 400, _error("The body must be a JSON object with a list `messages`.")
    if body.get("model") != MODEL:
        return 404, _error(f"There is one model here, {MODEL!r}, got {body.get('model')!r}.")
    if not all(isinstance(message, dict) for message in body["messages"]):
        return 400, _error("`messages` must be objects with `role` and `content`.")
    try:
        reply = verdict(body["messages"])
    except ValueError as error:
        return 400, _error(str(error))
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": reply}}
    usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    facts = {"id": "demo-judge", "object": "chat.completion", "created": 0, "model": MODEL}
    return 200, {**facts, "choices": [choice], "usage": usage}


def _models() -> tuple[int, dict[str, Any]]:
    model = {"id": MODEL, "object": "model", "created": 0, "owned_by": "sharegpt4v.demo"}
    return 200, {"object": "list", "data": [model]}


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error", "code": None}}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        self._send(*(_models() if self.path == "/v1/models" else (404, _error("Not found."))))

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or int(length) > LONGEST_BODY:
            self.close_connection = True
            self._send(411 if not length else 413, _error("The length of the body must be given, up to 16 MiB."))
            return
        data = self.rfile.read(int(length))
        if self.path != "/v1/chat/completions":
            self._send(404, _error("Not found."))
            return
        try:
            body = json.loads(data)
        except ValueError:
            self._send(400, _error("The body is no JSON."))
            return
        self._send(*_completion(body))

    def _send(self, status: int, value: dict[str, Any]) -> None:
        data = json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)
