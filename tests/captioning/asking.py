"""Asks a fault server about small images, and a clock that only sleeping moves."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

from captioning.answers import Answer, JobStopped
from captioning.endpoint import EndpointAnnotator
from captioning.endpoint_config import EndpointConfig
from captioning.payload import Request
from captioning.prompts import Prompt
from tests.captioning.fault_server import FaultServer
from tests.image_files import encoded


PROMPT = Prompt("test/base", "Describe the image.")
PRICES = {"input_price": 10_000.0, "output_price": 50_000.0}  # 100 tokens sent and 20 answered cost 2


def config_for(server: FaultServer, **options: Any) -> EndpointConfig:
    """Options for a server of ours: no key, hardly any waiting."""
    return EndpointConfig(**{"model": "m", "base_url": server.url, "api_key_env": "", "backoff": 0.01, **options})


def requests(count: int) -> list[Request]:
    """Requests with the keys `0`, `1` and so on."""
    return [Request(encoded(number), PROMPT, str(number)) for number in range(count)]


@dataclass
class Outcome:
    """What came of a job, in the order of the keys."""

    answers: list[Answer]
    annotator: EndpointAnnotator
    stopped: JobStopped | None = None

    @property
    def states(self) -> list[str]:
        return [answer.state for answer in self.answers]


@dataclass
class Clock:
    """Time that passes only in `sleep`, which is quick; `slept` has every wait."""

    now: float = 0.0
    slept: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        until = self.now + seconds
        await asyncio.sleep(0.001)
        self.now = max(self.now, until)


def ask(
    server: FaultServer, count: int = 1, concurrency: int = 1, clock: Clock | None = None, **options: Any
) -> Outcome:
    """Ask about `count` images; an end of the job is kept beside the answers."""

    async def run() -> Outcome:
        timing = {} if clock is None else {"clock": clock, "sleep": clock.sleep}
        async with EndpointAnnotator(config_for(server, **options), **timing) as annotator:
            outcome = Outcome([], annotator)
            try:
                async for answer in annotator.annotate_many(requests(count), concurrency):
                    outcome.answers.append(answer)
            except JobStopped as stopped:
                outcome.stopped = stopped
            outcome.answers.sort(key=lambda answer: int(answer.key))
            return outcome

    return asyncio.run(run())


def ask_one(server: FaultServer, **options: Any) -> Answer:
    """Ask about one image."""
    outcome = ask(server, 1, **options)
    (answer,) = outcome.answers
    return answer
