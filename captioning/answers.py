"""What an endpoint answered about one image, and whether it can be used: every outcome is a state, none is dropped."""

import json
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from .redact import Redactor


State = Literal["ok", "truncated", "refused", "empty", "filtered", "failed", "bad_image", "pending"]
STATES: tuple[State, ...] = (
    "ok", "truncated", "refused", "empty", "filtered", "failed", "bad_image", "pending",
)  # fmt: skip
REFUSALS = Path(__file__).with_name("data") / "refusals_v1.yaml"
# What servers call the natural end of an answer; OpenAI's is `stop`.
FINISHED = ("stop", "eos", "eos_token", "end_turn", "stop_sequence")
FILTER_CODES = ("content_filter", "content_policy_violation", "responsibleaipolicyviolation")
MOST_TOKENS = 10_000_000  # a count above is no count


class JobStopped(RuntimeError):
    """The job cannot go on now. Answers so far are kept, and the same command continues."""


class BudgetReached(JobStopped):
    """Another request could cost more than `max_cost` leaves."""


class KeyRejected(JobStopped):
    """The endpoint refuses the key (401) or what it is used for (403)."""


class EndpointDown(JobStopped):
    """The endpoint has failed too often in a row, or asks for a longer pause than is allowed."""


@dataclass(frozen=True)
class Answer:
    """
    Outcome of one image.

    Args:
        key (`str`): What the caller calls the request.
        state (`str`): `ok`; `truncated` (the token bound was hit), `refused`, `empty`, `filtered` (by the endpoint's
            content filter): answered, not usable as it is; `failed`: no usable answer, the same request may not get
            one either; `bad_image`: not sent; `pending`: not answered because of an outage, a limit or the budget.
        text (`str`): The answer; empty unless one was received completely.
        raw (`dict`, *optional*): What the endpoint sent, as JSON; keys are removed, and characters that no database
            takes are U+FFFD.
        finish_reason (`str`, *optional*): As the endpoint said.
        prompt_tokens (`int`, *optional*): As the endpoint counted.
        completion_tokens (`int`, *optional*): As the endpoint counted.
        cost (`float`, *optional*): Of all attempts, by the prices given; estimated upwards where the endpoint did
            not say. `None` without prices.
        attempts (`int`): Requests sent.
        seconds (`float`): From the first request to the answer.
        error (`str`): What went wrong, in one line.
    """

    key: str
    state: State
    text: str = ""
    raw: dict[str, Any] | None = field(default=None, repr=False)
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cost: float | None = None
    attempts: int = 0
    seconds: float = 0.0
    error: str = ""


@dataclass(frozen=True)
class Reading:
    """What one body says; the fields are those of [`Answer`]."""

    state: State
    text: str = ""
    raw: dict[str, Any] | None = None
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    error: str = ""


def parse_body(data: bytes | str) -> Any:
    """
    Parse JSON of an endpoint that may send anything.

    Args:
        data (`bytes` or `str`): The body.

    Returns:
        The value.

    Raises:
        `ValueError`: It is no JSON, or has numbers that JSON has not.
    """
    try:
        return json.loads(data, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None


def read_answer(body: Any, redactor: Redactor) -> Reading:
    """
    Decide what a chat completion is worth.

    Args:
        body: Parsed JSON, of any shape.
        redactor (`Redactor`): Makes it fit to keep.

    Returns:
        `Reading`: State and contents; `failed` with the reason where it is no complete answer.
    """
    raw = redactor.json(body) if isinstance(body, dict) else {"body": redactor.json(body)}
    try:
        choice, message, said = _shape(body)
    except ValueError as problem:
        return Reading("failed", raw=raw, error=f"the answer has another shape than a chat completion: {problem}")
    reason = choice.get("finish_reason")
    prompt_tokens, completion_tokens = count_tokens(body)
    refusal = message.get("refusal")
    refusal = refusal.strip() if isinstance(refusal, str) else ""
    text = said or refusal
    state, error = _judge(reason, said, bool(refusal))
    damaged = redactor.text(text) != text
    if damaged and state in ("ok", "truncated"):
        state, error = "failed", "the answer has NUL characters, lone surrogates or the key in its text"
    return Reading(
        state,
        text="" if state == "failed" else redactor.text(text),
        raw=raw,
        finish_reason=redactor.line(reason) if isinstance(reason, str) else None,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        error=redactor.line(error),
    )


def _judge(reason: Any, said: str, declined: bool) -> tuple[State, str]:
    if reason is None:
        return "failed", "the answer ended without a finish reason: it is cut off"
    if reason == "content_filter":
        return "filtered", "the content filter of the endpoint stopped the answer"
    if declined:
        return "refused", "the model refused"
    if reason == "length":
        return "truncated", "the answer reached the token bound"
    if not isinstance(reason, str) or reason.lower() not in FINISHED:
        return "failed", f"unknown finish reason {reason!r}"
    if not said.strip():
        return "empty", "the answer is empty"
    if is_refusal(said):
        return "refused", "the text reads as a refusal"
    return "ok", ""


def is_filter_error(body: Any) -> bool:
    """
    Whether the body of an error says that a content filter refused the request.

    Args:
        body: Parsed JSON of an HTTP error.

    Returns:
        `bool`: `True` for the codes of OpenAI and Azure.
    """
    error = body.get("error", body) if isinstance(body, dict) else None
    return isinstance(error, dict) and str(error.get("code")).lower() in FILTER_CODES


def is_refusal(text: str) -> bool:
    """
    Whether an answer reads as a refusal.

    Args:
        text (`str`): The answer.

    Returns:
        `bool`: `True` if its beginning matches one of the patterns of `data/refusals_v1.yaml`.
    """
    beginning = text.lstrip(" \t\r\n\"'*").replace("\u2019", "'")[:200]
    return any(pattern.match(beginning) for pattern in _refusals())


def count_tokens(body: Any) -> tuple[int | None, int | None]:
    """
    Token counts of a chat completion.

    Args:
        body: Parsed JSON, of any shape.

    Returns:
        `tuple[int | None, int | None]`: Sent and answered; `None` for what is no count.
    """
    usage = body.get("usage") if isinstance(body, dict) else None
    usage = usage if isinstance(usage, dict) else {}
    counts = [usage.get(name) for name in ("prompt_tokens", "completion_tokens")]
    sound = [
        count if isinstance(count, int) and not isinstance(count, bool) and 0 <= count <= MOST_TOKENS else None
        for count in counts
    ]
    return sound[0], sound[1]


def _shape(body: Any) -> tuple[dict[str, Any], dict[str, Any], str]:
    if not isinstance(body, dict):
        raise ValueError(f"it is a {type(body).__name__}")
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise ValueError("`choices` is no list of objects")
    message = choices[0].get("message")
    if not isinstance(message, dict):
        raise ValueError("`message` is no object")
    content = message.get("content")
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        content = "".join(str(part.get("text", "")) for part in content)  # some servers answer in parts
    if content is not None and not isinstance(content, str):
        raise ValueError(f"`content` is a {type(content).__name__}")
    return choices[0], message, content or ""


@cache
def _refusals() -> tuple[re.Pattern, ...]:
    texts = yaml.safe_load(REFUSALS.read_text(encoding="utf-8"))
    return tuple(re.compile(text, re.IGNORECASE) for text in texts)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")
