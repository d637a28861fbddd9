"""
Judgement of answers by a language model behind any OpenAI-compatible endpoint.

```python
config = JudgeConfig(model="gpt-4-0613")
verdicts = judge("mmvet", items, config, Path("judge.jsonl"))
result = verdicts.score(mmvet, items)
```

What a judge is asked and how its replies are read is in [`evaluation.judge_prompts`]; each reply is stored in a
[`evaluation.judge_transcript`] before the next request, so a run that is killed goes on where it was, and one that is
repeated asks only what is missing. Replies count for the model that was asked for, or that answered; another judge is
asked anew. When figures are withheld is in [`evaluation.judge_verdicts`].
"""

import asyncio
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential
from tqdm import tqdm

from .base import OFFICIAL, Item
from .judge_prompts import FIELDS, Ask, Case, Ruling, cases, next_step, sha256
from .judge_transcript import Reply, Transcript
from .judge_verdicts import Verdicts


logger = logging.getLogger(__name__)

LONGEST_WAIT = 60.0
DOWN = 3  # answers in a row that got no reply, after all attempts
STOPS = (401, 403, 404)  # key, permission, address or model: no other request would do better
PASSES = (408, 409, 425, 429)
NO_KEY = "none"  # the client insists on one
LEAST_KEY = 6  # a shorter one is a placeholder, and taking it out would mangle replies


@dataclass(frozen=True)
class JudgeConfig:
    """
    Who judges, and how it is asked.

    Args:
        model (`str`): Name of the judge that the endpoint knows; a dated one cannot change between runs.
        base_url (`str`): Address up to `/v1`, without user name and password.
        api_key_env (`str`): Environment variable that holds the key; empty if the endpoint wants none.
        runs (`int`, defaults to 1): How often MM-Vet's answers are graded.
        concurrency (`int`, defaults to 8): Requests at a time.
        attempts (`int`, defaults to 6): For one reply while the endpoint fails.
        backoff (`float`, defaults to 1): Seconds before the second attempt, at most; they double up to 60.
        timeout (`float`, defaults to 120): Seconds for a reply.
    """

    model: str
    base_url: str = "https://api.openai.com/v1"
    api_key_env: str = "OPENAI_API_KEY"
    runs: int = 1
    concurrency: int = 8
    attempts: int = 6
    backoff: float = 1.0
    timeout: float = 120.0

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("`model` must name the judge.")
        for name in ("runs", "concurrency", "attempts", "backoff", "timeout"):
            if getattr(self, name) <= 0:
                raise ValueError(f"`{name}` must be more than 0, got {getattr(self, name)}.")
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
            raise ValueError(
                "`base_url` must begin with http:// or https:// and have no user name, password or query (it is not "
                "shown here). Put the key into an environment variable and name it in `api_key_env`."
            )

    def key(self) -> str:
        """
        The endpoint's key.

        Returns:
            `str`: From the environment; empty if the endpoint wants none.

        Raises:
            `ValueError`: The variable is not set.
        """
        key = os.environ.get(self.api_key_env, "").strip() if self.api_key_env else ""
        if self.api_key_env and not key:
            raise ValueError(
                f"There is no key in the environment variable {self.api_key_env}. Set it, or set `api_key_env` to an "
                "empty text if the endpoint wants no key."
            )
        return key


def judge(
    benchmark: str,
    items: Sequence[Item],
    config: JudgeConfig,
    transcript: Path,
    rule: str = OFFICIAL,
    ask: bool = True,
) -> Verdicts:
    """
    Have answers judged, as far as they are not yet.

    Args:
        benchmark (`str`): `mmvet`, `llava_bench`, `mmbench` or `mmbench_cn`.
        items (`Sequence[dict]`): Questions with their responses.
        config (`JudgeConfig`): Who judges.
        transcript (`Path`): File of all replies, which is read first and appended to.
        rule (`str`, defaults to `"official"`): How MMBench's choices are read.
        ask (`bool`, defaults to `True`): Whether to ask the endpoint; else only stored replies count.

    Returns:
        `Verdicts`: All that are there; a judge that fails is told in them.

    Raises:
        `ValueError`: The benchmark has no judge, an item lacks what it must see, or there is no key.
        `RuntimeError`: Another process is judging into the same file.
    """
    found = cases(benchmark, items, config.runs, rule)
    with Transcript(transcript) as log:
        waiting = {case.key: case for case in found if isinstance(_state(case, log, config)[0], Ask)}
        asker = _Asker(config, log)
        if ask and waiting:
            asyncio.run(asker.ask_all(list(waiting.values())))
        verdicts = _collected(benchmark, found, log, config, asker)
    for flag in verdicts.flags:
        logger.warning("Judge of %s: %s.", benchmark, flag)
    return verdicts


class _NoReply(Exception):
    """What came is no chat completion."""


class _Asker:
    """Asks a judge about many answers, some at a time, until all are judged or the judge is down."""

    def __init__(self, config: JudgeConfig, log: Transcript) -> None:
        self.config, self._log = config, log
        self.failure: str | None = None
        self.requests = 0
        self._down = False
        self._in_a_row = 0
        self._key = ""

    async def ask_all(self, waiting: Sequence[Case]) -> None:
        self._key = self.config.key()
        self._client = openai.AsyncOpenAI(
            api_key=self._key or NO_KEY,
            base_url=self.config.base_url,
            max_retries=0,
            timeout=self.config.timeout,
            http_client=openai.DefaultAsyncHttpxClient(timeout=self.config.timeout, follow_redirects=False),
        )
        source = iter(waiting)
        with tqdm(total=len(waiting), desc="Judging", unit="answer", disable=None) as bar:
            async with self._client:
                workers = min(self.config.concurrency, len(waiting))
                await asyncio.gather(*(self._work(source, bar) for _ in range(workers)))

    async def _work(self, source: Iterator[Case], bar: Any) -> None:
        for case in source:
            if self._down:
                return
            try:
                await self._ask(case)
                self._in_a_row = 0
            except (openai.APIError, _NoReply) as error:
                self._failed(error)
            bar.update()

    async def _ask(self, case: Case) -> None:
        attempts = AsyncRetrying(
            stop=stop_after_attempt(self.config.attempts),
            wait=self._wait,
            retry=retry_if_exception(_may_pass),
            reraise=True,
        )
        while True:
            step, replies = _state(case, self._log, self.config)
            if isinstance(step, Ruling):
                return
            reply: tuple[str, str] = await attempts(self._request, step)
            model, content = reply
            after = next_step(case, [*(one["content"] for one in replies), content])
            self._log.add(
                {
                    "benchmark": case.benchmark,
                    "id": case.id,
                    "run": case.run,
                    "attempt": len(replies),
                    "judge": model,
                    "date": datetime.now(UTC).isoformat(timespec="seconds"),
                    "prompt_sha256": case.key[4],
                    "response_sha256": case.key[3],
                    "request": _sent(step, self.config),
                    "content": content,
                    "parsed": after.value if isinstance(after, Ruling) and after.parsed else None,
                }
            )
            self.requests += 1

    async def _request(self, ask: Ask) -> tuple[str, str]:
        create: Any = self._client.chat.completions.create
        sampling = {"temperature": ask.temperature, "max_tokens": ask.max_tokens}
        try:
            completion = await create(model=self.config.model, messages=ask.messages, **sampling)
            content, model = completion.choices[0].message.content, completion.model
        except (AttributeError, IndexError, TypeError, ValueError, RecursionError):  # of what the client made of it
            raise _NoReply("the endpoint sends no chat completions") from None
        content = content if isinstance(content, str) else ""  # refused or filtered: a reply that is no verdict
        model = model if isinstance(model, str) and model else self.config.model
        return model, content.replace(self._key, "[removed]") if len(self._key) >= LEAST_KEY else content

    def _wait(self, state: RetryCallState) -> float:
        error = None if state.outcome is None else state.outcome.exception()
        asked = error.response.headers.get("retry-after", "") if isinstance(error, openai.APIStatusError) else ""
        if asked.isascii() and asked.isdigit():
            return min(float(asked), LONGEST_WAIT)
        return wait_random_exponential(multiplier=self.config.backoff, max=LONGEST_WAIT)(state)

    def _failed(self, error: Exception) -> None:
        self.failure = _described(error)
        self._in_a_row += 1
        hopeless = isinstance(error, openai.APIStatusError) and (error.status_code in STOPS or _is_quota(error))
        self._down = self._down or hopeless or self._in_a_row >= DOWN


def _state(case: Case, log: Transcript, config: JudgeConfig) -> tuple[Ask | Ruling, list[Reply]]:
    replies = log.replies(case, config.model)
    return next_step(case, [reply["content"] for reply in replies]), replies


def _sent(ask: Ask, config: JudgeConfig) -> dict[str, Any]:
    text = "\n".join(message["content"] for message in ask.messages)
    sampling = {"temperature": ask.temperature, "max_tokens": ask.max_tokens}
    return {"model": config.model, **sampling, "sent_sha256": sha256(text)}


def _collected(benchmark: str, found: list[Case], log: Transcript, config: JudgeConfig, asker: _Asker) -> Verdicts:
    models: Counter[str] = Counter()
    rulings: dict[int, list[tuple[Ruling, list[Reply]]]] = defaultdict(list)
    for case in found:
        step, replies = _state(case, log, config)
        if isinstance(step, Ruling):
            models.update(reply["judge"] for reply in replies)
            rulings[case.place].append((step, replies))
    fields: dict[int, dict[str, Any]] = {}
    for place, decided in rulings.items():
        values = [ruling.value for ruling, _ in decided]
        if benchmark == "mmvet" and len(values) < config.runs:
            continue
        last = decided[-1][1][-1]
        fields[place] = {
            FIELDS[benchmark]: values if benchmark == "mmvet" else values[0],
            "judge_unparsed": not all(ruling.parsed for ruling, _ in decided),
            "judge": {"model": last["judge"], "content": [replies[-1]["content"] for _, replies in decided]},
        }
    every = [ruling for decided in rulings.values() for ruling, _ in decided]
    return Verdicts(
        benchmark=benchmark,
        total=len(found),
        judged=len(every),
        unparsed=sum(not ruling.parsed for ruling in every),
        models=dict(sorted(models.items())),
        others={name: count for name, count in sorted(log.judges(benchmark).items()) if name not in models},
        failure=asker.failure,
        fields=fields,
        requests=asker.requests,
    )


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, openai.APIStatusError):
        return (error.status_code in PASSES or error.status_code >= 500) and not _is_quota(error)
    return isinstance(error, (openai.APIError, _NoReply))


def _is_quota(error: openai.APIError) -> bool:
    return error.code == "insufficient_quota"


def _described(error: Exception) -> str:
    """What went wrong, without the endpoint's words, which may repeat a key."""
    if isinstance(error, openai.APIStatusError):
        return f"the endpoint answers with HTTP {error.status_code}"
    if isinstance(error, openai.APITimeoutError):
        return "the endpoint does not answer in time"
    if isinstance(error, openai.APIConnectionError):
        return "the endpoint cannot be reached"
    return "the endpoint sends no chat completions"
