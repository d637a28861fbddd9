"""
Everything that judges replied, in a file that only grows: record of a judgement, and cache for the next.

One line of JSON is one reply: `benchmark`, `id`, `run`, `attempt`, `judge` (the model as the endpoint names it),
`date`, `prompt_sha256`, `response_sha256`, `request` (model, temperature, max_tokens, `sent_sha256` of the messages),
`content` as it came, and `parsed`: what it was read as, or `null`. Scores are computed again from it without a judge.
"""

import json
import os
from collections import Counter, defaultdict
from itertools import count, takewhile
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from .judge_prompts import Case


Reply = dict[str, Any]
FIELDS = ("benchmark", "id", "run", "attempt", "judge", "prompt_sha256", "response_sha256", "request", "content")


class Transcript:
    """
    The file of a judge's replies, open for one process.

    A last line without its end, from a process that was killed, is cut off.

    Args:
        path (`Path`): The file; it is made if there is none.

    Raises:
        `ValueError`: A line is damaged; the message names it.
        `RuntimeError`: Another process is writing to it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(f"{path}.lock")
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RuntimeError(f"Another process is judging into {path}. Wait for it, or name another file.") from None
        self._replies: dict[tuple[Any, ...], list[Reply]] = defaultdict(list)
        self._judges: dict[str, Counter[str]] = defaultdict(Counter)
        try:
            data = path.read_bytes() if path.is_file() else b""
            whole = data.rfind(b"\n") + 1
            for number, line in enumerate(data[:whole].split(b"\n")[:-1], start=1):
                self._remember(self._parsed(line, number))
            self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.ftruncate(self._descriptor, whole)
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> "Transcript":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)
        self._lock.release()

    def replies(self, case: Case, model: str) -> list[Reply]:
        """
        What a judge replied on an answer.

        Args:
            case (`Case`): The answer.
            model (`str`): The judge, as it was asked for or as the endpoint names it.

        Returns:
            `list[dict]`: Its replies in their order, up to the first that is lacking.
        """
        found: dict[int, Reply] = {}
        for reply in self._replies.get(case.key, ()):
            if model in (reply["judge"], reply["request"]["model"]):
                found.setdefault(reply["attempt"], reply)
        return [found[attempt] for attempt in takewhile(found.__contains__, count())]

    def judges(self, benchmark: str) -> Counter[str]:
        """
        All judges of a benchmark.

        Args:
            benchmark (`str`): Its name.

        Returns:
            `Counter[str]`: Replies by model.
        """
        return self._judges[benchmark]

    def add(self, reply: Reply) -> None:
        """
        Store a reply, for good.

        Args:
            reply (`dict`): The line.
        """
        line = (json.dumps(reply, ensure_ascii=True, sort_keys=True) + "\n").encode()
        while line:
            line = line[os.write(self._descriptor, line) :]
        os.fsync(self._descriptor)
        self._remember(reply)

    def _remember(self, reply: Reply) -> None:
        names = ("benchmark", "id", "run", "response_sha256", "prompt_sha256")
        self._replies[tuple(reply[name] for name in names)].append(reply)
        self._judges[reply["benchmark"]][reply["judge"]] += 1

    def _parsed(self, line: bytes, number: int) -> Reply:
        try:
            reply = json.loads(line)
        except ValueError as error:
            raise ValueError(
                f"{self.path}, line {number}, is damaged: {error}. Delete it; it is asked again."
            ) from None
        lacking = [name for name in FIELDS if name not in reply] if isinstance(reply, dict) else list(FIELDS)
        if lacking or not isinstance(reply["request"], dict) or "model" not in reply["request"]:
            raise ValueError(f"{self.path}, line {number}, is no judge's reply. Delete it, or name another file.")
        return reply
