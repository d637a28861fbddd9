"""
The batch API: request files go up, batches are followed, outputs are joined by id. Killed at any point, it continues.

```python
job = BatchJob(EndpointConfig(model="gpt-4o"), Path("runs/batch"))
for answer in job.prepare(requests):  # those that cannot be sent
    store(answer)
async for answer in job.run():
    store(answer)
```
"""

import asyncio
import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import openai
from filelock import FileLock, Timeout
from openai.types import Batch

from dataset_scripts.writing import BusyError

from .answers import Answer, BudgetReached, EndpointDown, JobStopped, Reading
from .batch_files import URL, BatchConfig, Part, PartWriter, copy_lines, read_keys, read_outputs, write_requests
from .endpoint_config import EndpointConfig, read_key
from .limits import Sleep
from .payload import Request
from .redact import Redactor
from .transport import Fault, make_client, read_status


logger = logging.getLogger(__name__)

T = TypeVar("T")
STATE = "batches.json"
ENDED = ("completed", "failed", "expired", "cancelled")
MARK = "requests_sha256"
FULL = "token_limit_exceeded"  # too much is queued at the endpoint; it passes as other batches end


class BatchJob:
    """
    A job in a folder of its own, which holds the request files, the outputs and how far everything is.

    Args:
        config (`EndpointConfig`): Endpoint, model, prices.
        folder (`Path`): Of the job.
        batch (`BatchConfig`, *optional*): Limits of the batch API.
        sleep (`Callable[[float], Awaitable]`, *optional*): Waits that many seconds; for tests.

    Raises:
        `ValueError`: There is no usable key.
    """

    def __init__(
        self, config: EndpointConfig, folder: Path, batch: BatchConfig | None = None, sleep: Sleep = asyncio.sleep
    ) -> None:
        self.config, self.folder, self.batch = config, Path(folder), batch or BatchConfig()
        key = read_key(config)
        self._redactor, self._sleep = Redactor(key), sleep
        self._client = make_client(config, key, self.batch.retries)
        self._state = self.folder / STATE
        self.parts = self._load()

    def __repr__(self) -> str:
        return f"BatchJob(model={self.config.model!r}, folder={str(self.folder)!r}, parts={len(self.parts)})"

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()

    def prepare(self, requests: Iterable[Request]) -> list[Answer]:
        """
        Write the request files; nothing is sent, and the budget is left to [`BatchJob.run`].

        Args:
            requests (`Iterable[Request]`): Images with prompts.

        Returns:
            `list[Answer]`: Of those that cannot be sent.

        Raises:
            `FileExistsError`: The folder has a job already, which [`BatchJob.run`] continues.
            `BusyError`: Another process works on the job.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            if self.parts:
                raise FileExistsError(f"{self.folder} has a batch job already. Continue it, or take another folder.")
            self.parts, refused = write_requests(requests, self.folder, self.config, self.batch)
            self._save()
        return refused

    def check_budget(self) -> None:
        """
        Compare the most that the job can cost with the budget.

        Raises:
            `BudgetReached`: It is more.
        """
        most = sum(part.cost or 0.0 for part in self.parts if part.round == 1)
        if self.config.max_cost is not None and most > self.config.max_cost:
            raise BudgetReached(
                f"The batches can cost {most:.2f}, and `max_cost` is {self.config.max_cost}. Nothing more is sent. "
                "Raise it, lower `max_tokens`, or take fewer images."
            )

    async def run(self) -> AsyncIterator[Answer]:
        """
        Send what was not sent, follow it, and read what comes back.

        Yields:
            `Answer`: One of each request, also of those that an earlier run has fetched.

        Raises:
            `JobStopped`: A subclass says why; run it again to continue.
        """
        with self._locked():
            async for answer in self._run():
                yield answer

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = FileLock(self.folder / "batches.lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise BusyError(
                f"Another process works on the batches of {self.folder}. Wait for it, or stop it."
            ) from None
        try:
            self.parts = self._load()  # another process may have gone on since
            yield
        finally:
            lock.release()

    async def _run(self) -> AsyncIterator[Answer]:
        self.check_budget()
        told: set[str] = set()
        while len(told) < len(self.parts):
            waiting = [part for part in self.parts if part.name not in told][: self.batch.active]
            for part in waiting:
                if not part.fetched and not part.batch:
                    await self._submit(part)
                if not part.fetched:
                    await self._look(part)
                if part.fetched:
                    for answer in self._finish(part):
                        yield answer
                    told.add(part.name)
            if all(not part.fetched for part in waiting):
                await self._sleep(self.batch.poll_seconds)

    async def _submit(self, part: Part) -> None:
        if part.submitting and await self._adopt(part):
            return
        if not part.input_file:
            with open(self.folder / part.name, "rb") as stream:
                uploaded = await self._call(self._client.files.create(file=stream, purpose="batch"))
            part.input_file = uploaded.id
        part.submitting = True
        self._save()
        once = self._client.with_options(max_retries=0)  # another attempt could pay twice; `_adopt` finds the first
        created = await self._call(
            once.batches.create(
                input_file_id=part.input_file, endpoint=URL, completion_window="24h", metadata={MARK: part.sha256}
            )
        )
        part.batch, part.status, part.submitting = created.id, created.status, False
        self._save()
        logger.info("Batch %s: %d requests of %s.", part.batch, part.requests, part.name)

    async def _adopt(self, part: Part) -> bool:
        found = await self._call(self._search(part))
        if found is None:
            return False
        logger.warning("Batch %s was created before the last run ended; it is taken up.", found.id)
        part.batch, part.status, part.submitting = found.id, found.status, False
        self._save()
        return True

    async def _search(self, part: Part) -> Batch | None:
        known = {other.batch for other in self.parts}
        async for found in self._client.batches.list(limit=100):
            ours = (found.metadata or {}).get(MARK) == part.sha256 and found.id not in known
            if ours and not _was_full(found):
                return found
        return None

    async def _look(self, part: Part) -> None:
        batch = await self._call(self._client.batches.retrieve(part.batch))
        if batch.status != part.status:
            logger.info("Batch %s of %s is %s.", part.batch, part.name, batch.status)
            part.status = batch.status
            self._save()
        if batch.status not in ENDED:
            return
        if _was_full(batch):  # nothing was worked on or charged, so it counts as no round
            logger.warning(
                "Too many tokens are queued for batch %s; %s is sent again in %g s. If none of its batches is ever "
                "taken, make a job with a smaller `max_requests`.", part.batch, part.name, self.batch.poll_seconds,
            )  # fmt: skip
            part.batch = part.status = ""
            self._save()
            return
        for data in (batch.errors.data or []) if batch.errors is not None else []:
            reason = self._redactor.line(f"{data.code}: {data.message}")
            part.problems[str(data.line or 0)] = reason
            logger.warning("Batch %s, line %s: %s", part.batch, data.line, reason)
        files = {"output": batch.output_file_id, "errors": batch.error_file_id}
        part.outputs = [await self._fetch(part, kind, name) for kind, name in files.items() if name]
        part.fetched = True

    async def _fetch(self, part: Part, kind: str, identifier: str) -> str:
        path = self.folder / part.name.replace("requests", kind)
        partial = path.with_suffix(".partial")
        response = await self._call(self._client.files.content(identifier))
        partial.write_bytes(response.content)
        os.replace(partial, path)
        return path.name

    def _finish(self, part: Part) -> list[Answer]:
        path = self.folder / part.name
        keys = read_keys(path)
        readings = read_outputs([self.folder / name for name in part.outputs], set(keys), self._redactor)
        for number, reason in part.problems.items():
            if 0 < int(number) <= len(keys):
                readings.setdefault(keys[int(number) - 1], Reading("failed", error=reason))
        reason = part.problems.get("0", f"the batch is {part.status} and says nothing about this request")
        for key in keys:
            readings.setdefault(key, Reading("pending", error=reason))
        again = {key for key in keys if readings[key].state == "pending"}
        if again and part.round < self.batch.max_rounds and part.status != "cancelled":
            self._requeue(part, again)
            readings = {key: reading for key, reading in readings.items() if key not in again}
        self._save()
        return [self._answer(key, reading, part.round) for key, reading in readings.items()]

    def _requeue(self, part: Part, keys: set[str]) -> None:
        name = f"{part.round + 1}:{part.name}"
        if any(other.source == name for other in self.parts):
            return  # an earlier run did
        writer = PartWriter(self.folder, self.batch, len(self.parts), part.round + 1)
        copy_lines(self.folder / part.name, keys, writer, None if part.cost is None else part.cost / part.requests)
        writer.close()
        for new in writer.parts:
            new.source = name
        self.parts += writer.parts
        logger.warning("%d requests of batch %s got no answer and go into another one.", len(keys), part.batch)

    def _answer(self, key: str, reading: Reading, attempts: int) -> Answer:
        cost = None
        if reading.prompt_tokens is not None and reading.completion_tokens is not None:
            cost = self.config.cost(reading.prompt_tokens, reading.completion_tokens)
        return Answer(key, cost=cost, attempts=attempts, **vars(reading))

    async def _call(self, call: Awaitable[T]) -> T:
        try:
            return await call
        except openai.APIStatusError as error:
            problem = read_status(error, self._redactor)
            if isinstance(problem, Fault):
                problem = EndpointDown(f"{problem.reason}. Run again to continue.")
            elif not isinstance(problem, JobStopped):
                problem = JobStopped(f"The endpoint refuses the batch. {problem}.")
        except openai.APIError as error:
            cause = error.__cause__ or error
            reason = self._redactor.line(f"{type(cause).__name__}: {cause}")
            problem = EndpointDown(f"The endpoint cannot be reached: {reason}. Run again to continue.")
        raise problem

    def _load(self) -> list[Part]:
        if not self._state.is_file():
            return []
        return [Part(**part) for part in json.loads(self._state.read_text(encoding="utf-8"))]

    def _save(self) -> None:
        content: list[dict[str, Any]] = [asdict(part) for part in self.parts]
        partial = self._state.with_suffix(".partial")
        with open(partial, "w", encoding="utf-8") as stream:
            json.dump(content, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, self._state)


def _was_full(batch: Batch) -> bool:
    problems = (batch.errors.data or []) if batch.errors is not None else []
    return batch.status == "failed" and any(problem.code == FULL for problem in problems)
