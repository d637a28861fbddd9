"""
Captions by any OpenAI-compatible vision endpoint: limits, retries, a circuit breaker and a budget around each request.

```python
config = EndpointConfig(model="gpt-4o", rpm=500, max_cost=20, input_price=2.5, output_price=10)
async with EndpointAnnotator(config) as annotator:
    async for answer in annotator.annotate_many(requests, concurrency=16):
        store(answer)
```
"""

import asyncio
import logging
import math
import os
import random
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from dataset_scripts.check_image import describe

from .answers import Answer, BudgetReached, EndpointDown, JobStopped, KeyRejected, Reading
from .endpoint_config import EndpointConfig, read_key
from .estimate import Measured
from .limits import Budget, Clock, Gate, RateLimits, Sleep
from .payload import Request, Source, chat_body, encode_image, image_tokens, text_tokens
from .prompts import Prompt
from .redact import Redactor
from .transport import Fault, Rejected, ask, make_client


logger = logging.getLogger(__name__)

LONGEST_BACKOFF = 60.0
DECODERS = 8  # images decoded at a time, at most: a large one takes half a gigabyte


@dataclass
class _Row:
    """A request under way."""

    key: str
    body: dict[str, Any]
    tokens: int
    worst: float | None  # the most that one attempt can cost
    probe: bool = False
    successes_before: int = 0
    started: float | None = None
    attempts: int = 0
    cost: float = 0.0


class EndpointAnnotator:
    """
    Asks an endpoint about images, within limits that all its requests share.

    Args:
        config (`EndpointConfig`): Endpoint, model, limits and prices.
        spent (`float`, defaults to 0): What earlier runs of the job have cost, which counts against `max_cost`.
        sleep (`Callable[[float], Awaitable]`, *optional*): Waits that many seconds; for tests.
        clock (`Callable[[], float]`, *optional*): Seconds that only grow; for tests.

    Raises:
        `ValueError`: There is no usable key.
    """

    def __init__(
        self,
        config: EndpointConfig,
        spent: float = 0.0,
        sleep: Sleep = asyncio.sleep,
        clock: Clock = time.monotonic,
    ) -> None:
        self.config = config
        self.measured = Measured()
        self.stopped: JobStopped | None = None
        key = read_key(config)
        self._redactor = Redactor(key)
        self._client = make_client(config, key)
        self._sleep, self._clock = sleep, clock
        self._limits = RateLimits(config.rpm, config.tpm)
        self._gate = Gate(config, clock, sleep)
        self._budget = Budget(config.max_cost, spent)
        self._decoders = ThreadPoolExecutor(min(DECODERS, os.cpu_count() or 1), thread_name_prefix="decode")

    def __repr__(self) -> str:
        return f"EndpointAnnotator(model={self.config.model!r}, base_url={self.config.base_url!r})"

    async def __aenter__(self) -> "EndpointAnnotator":
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections and end the threads."""
        self._decoders.shutdown(wait=False, cancel_futures=True)
        await self._client.close()

    @property
    def spent(self) -> float:
        """Cost (`float`) of all attempts so far, those of earlier runs included; 0 without prices."""
        return self._budget.spent

    async def annotate(self, image: Source, prompt: Prompt, key: str) -> Answer:
        """
        Ask about one image.

        Waits for the rate limits, for pauses that the endpoint asked for and for a circuit to close, so callers need
        only bound how many they start. Once the budget is reached or the endpoint is down, the answer is `pending` at
        once, and [`EndpointAnnotator.stopped`] says why.

        Args:
            image (`str`, `os.PathLike`, `bytes` or `PIL.Image.Image`): File, encoded bytes or image.
            prompt (`Prompt`): What is asked.
            key (`str`): What the answer will be called.

        Returns:
            `Answer`: Its state says whether there is a caption.

        Raises:
            `KeyRejected`: The endpoint refuses the key, now or before.
        """
        if self.stopped is not None:
            return self._not_asked(key)
        loop = asyncio.get_running_loop()
        try:
            picture = await loop.run_in_executor(self._decoders, encode_image, image, self.config)
        except (ValueError, OSError, MemoryError) as error:
            return Answer(key, "bad_image", error=self._redactor.line(describe(error)))
        sent = text_tokens(prompt.text) + image_tokens(picture.width, picture.height, self.config)
        row = self._row(key, chat_body(picture, prompt, self.config), sent)
        await self._limits.acquire(row.tokens)
        try:
            row.probe = await self._gate.enter()
        except EndpointDown as error:
            self._stop(error)
            return self._not_asked(key)
        try:
            if self.stopped is not None:
                return self._not_asked(key)
            return await self._ask_until_answered(row)
        finally:
            if row.probe:
                self._gate.leave()

    async def annotate_many(
        self, requests: Iterable[Request] | AsyncIterable[Request], concurrency: int = 8
    ) -> AsyncIterator[Answer]:
        """
        Ask about many images, a bounded number at a time; answers come as they are ready.

        Args:
            requests (`Iterable` or `AsyncIterable` of `Request`): Read one by one as there is room; what is neither
                asynchronous nor a sequence is read in another thread.
            concurrency (`int`, defaults to 8): Requests at a time, and images in memory.

        Yields:
            `Answer`: Of the requests that were read, in any order, as soon as they are there. What is read or under
                way when the key is rejected may have none.

        Raises:
            `JobStopped`: A subclass says why no more requests were read; it comes after the answers to those under
                way.
        """
        if concurrency < 1:
            raise ValueError(f"`concurrency` must be at least 1, got {concurrency}.")
        source, tasks = _each(requests), set[asyncio.Task[Answer]]()
        reading: asyncio.Task[Request | None] | None = None
        error: BaseException | None = None
        more = True
        try:
            while True:
                goes_on = more and error is None and self.stopped is None
                if goes_on and reading is None and len(tasks) < concurrency:
                    reading = asyncio.create_task(_next(source))
                waiting: set[asyncio.Task[Any]] = {*tasks, reading} if goes_on and reading is not None else {*tasks}
                if not waiting:
                    break
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                done = {task for task in tasks if task.done()}
                tasks -= done
                if reading is not None and reading.done():
                    error = error or reading.exception()  # of the caller; what is under way is paid for and told first
                    request = None if reading.exception() is not None else reading.result()
                    more, reading = request is not None, None
                    if request is not None:
                        tasks.add(asyncio.create_task(self.annotate(*request)))
                for answered in done:
                    if answered.exception() is None:
                        yield answered.result()
                    else:
                        error = error or answered.exception()
            error = error or self.stopped
            if error is not None:
                raise error
        finally:
            left: list[asyncio.Task[Any]] = [*tasks] if reading is None else [*tasks, reading]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

    def _row(self, key: str, body: dict[str, Any], sent: int) -> _Row:
        answered = self.config.max_tokens
        if self.measured.answers:
            sent = max(sent, math.ceil(self.measured.prompt_tokens / self.measured.answers))
        worst = self.config.cost(sent, answered)
        if self.measured.enough:
            answered = min(answered, math.ceil(self.measured.completion_tokens / self.measured.answers))
        return _Row(key, body, sent + answered, worst)

    async def _ask_until_answered(self, row: _Row) -> Answer:
        attempts = AsyncRetrying(
            sleep=self._sleep,
            wait=self._wait,
            stop=partial(self._gives_up, row),
            retry=retry_if_exception_type(Fault),
            reraise=True,
        )
        try:
            reading: Reading = await attempts(self._attempt, row)
        except Fault as fault:
            reading = self._judge(row, fault)
        except BudgetReached as error:
            self._stop(error)
            reading = Reading("pending", error=str(error))
        except KeyRejected as error:
            self._stop(error)
            raise
        seconds = 0.0 if row.started is None else self._clock() - row.started
        if reading.prompt_tokens is not None and reading.completion_tokens is not None:
            self.measured.add(reading.prompt_tokens, reading.completion_tokens, seconds)
        return Answer(
            key=row.key,
            state=reading.state,
            text=reading.text,
            raw=reading.raw,
            finish_reason=reading.finish_reason,
            prompt_tokens=reading.prompt_tokens,
            completion_tokens=reading.completion_tokens,
            cost=None if row.worst is None else row.cost,
            attempts=row.attempts,
            seconds=seconds,
            error=reading.error,
        )

    async def _attempt(self, row: _Row) -> Reading:
        if row.started is not None:
            await self._limits.acquire(row.tokens)
            while wait := self._gate.paused_for:  # another request met a limit meanwhile
                self._check_deadline(row, wait)
                await self._sleep(wait)
            self._check_deadline(row, 0.0)
        if not await self._budget.reserve(row.worst or 0.0):
            limit = self.config.max_cost
            raise BudgetReached(
                f"The budget of {limit} is reached: {self.spent:.4f} is spent. Raise `max_cost` to go on."
            )
        if row.started is None:
            row.started, row.successes_before = self._clock(), self._gate.successes
        row.attempts += 1
        cost = row.worst or 0.0  # of what is cancelled or breaks off
        try:
            reading = await self._send(row)
            cost = self._price(reading, row)
        except (Rejected, JobStopped, Fault) as problem:
            if not (isinstance(problem, Fault) and problem.billed):
                cost = 0.0
            if not isinstance(problem, Rejected):
                raise
            reading = problem.reading
        finally:
            self._budget.settle(row.worst or 0.0, cost)
            row.cost += cost
        return reading

    async def _send(self, row: _Row) -> Reading:
        try:
            reading = await ask(self._client, row.body, self.config.stream, self._left(row), self._redactor)
        except Fault as fault:
            if fault.wait is not None:
                self._gate.pause(fault.wait)
            if not fault.limited:
                self._gate.failed(fault.reason, row.probe)
            self._check_gate()
            logger.info("Attempt %d for %s: %s", row.attempts, self._redactor.line(row.key), fault.reason)
            raise
        except Rejected as rejected:
            if not self._gate.successes and rejected.reading.state == "failed":
                self._gate.failed(
                    rejected.reading.error, row.probe
                )  # a model or an option that the endpoint does not have
                self._check_gate()
            raise
        if reading.state == "failed":
            self._gate.failed(reading.error, row.probe)
            self._check_gate()
        else:
            self._gate.succeeded()
        return reading

    def _price(self, reading: Reading, row: _Row) -> float:
        if reading.prompt_tokens is None or reading.completion_tokens is None:
            return row.worst or 0.0
        return self.config.cost(reading.prompt_tokens, reading.completion_tokens) or 0.0

    def _wait(self, state: RetryCallState) -> float:
        fault = state.outcome.exception() if state.outcome is not None else None
        asked = (fault.wait if isinstance(fault, Fault) else None) or 0.0
        backoff = min(LONGEST_BACKOFF, self.config.backoff * 2 ** (state.attempt_number - 1))
        return max(random.uniform(backoff, 2 * backoff), asked + random.uniform(0, min(1.0, 0.1 * asked)))

    def _gives_up(self, row: _Row, state: RetryCallState) -> bool:
        if state.attempt_number >= self.config.max_attempts or self._gate.is_open or self._gate.down:
            return True
        return self.stopped is not None or self._left(row) < max(state.upcoming_sleep, self._gate.paused_for)

    def _left(self, row: _Row) -> float:
        return self.config.deadline - (0.0 if row.started is None else self._clock() - row.started)

    def _check_deadline(self, row: _Row, wait: float) -> None:
        if self._left(row) <= wait:
            raise Fault(
                f"the deadline of {self.config.deadline:g} s passes before the request may be sent", limited=True
            )

    def _judge(self, row: _Row, fault: Fault) -> Reading:
        # An image that fails while others succeed has failed; one that fails with all others waits for better days.
        error = f"given up after {row.attempts} attempts, last: {fault.reason}"
        raw = None if fault.reading is None else fault.reading.raw
        if fault.limited and (row.attempts >= self.config.max_attempts or self._gate.is_open):
            self._gate.failed(fault.reason, row.probe)  # no single limit is a failure, but one that lasts is
            self._check_gate()
        if fault.limited or fault.wait is not None or self._left(row) <= 0:
            return Reading("pending", raw=raw, error=error)
        alone = self._gate.successes > row.successes_before and not self._gate.is_open and not self._gate.down
        return Reading("failed" if alone or fault.reading is not None else "pending", raw=raw, error=error)

    def _stop(self, error: JobStopped) -> None:
        if self.stopped is None:
            logger.error("%s", error)
            self.stopped = error

    def _check_gate(self) -> None:
        if self._gate.down:
            self._stop(EndpointDown(self._gate.down))

    def _not_asked(self, key: str) -> Answer:
        if isinstance(self.stopped, KeyRejected):
            raise KeyRejected(str(self.stopped))
        return Answer(key, "pending", error=str(self.stopped))


async def _each(requests: Iterable[Request] | AsyncIterable[Request]) -> AsyncIterator[Request]:
    if isinstance(requests, AsyncIterable):
        async for request in requests:
            yield request
    elif isinstance(requests, Sequence):  # already there, so reading blocks nothing
        for request in requests:
            yield request
    else:
        iterator = iter(requests)
        while (item := await asyncio.to_thread(next, iterator, None)) is not None:
            yield item


async def _next(source: AsyncIterator[Request]) -> Request | None:
    return await anext(source, None)
