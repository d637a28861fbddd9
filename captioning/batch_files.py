"""Files of the batch API: requests split at its limits; outputs in any order, partial, errors in their own file."""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dataset_scripts.check_image import describe

from .answers import Answer, Reading, is_filter_error, parse_body, read_answer
from .endpoint_config import EndpointConfig
from .payload import Request, chat_body, encode_image, image_tokens, text_tokens
from .redact import Redactor


logger = logging.getLogger(__name__)

URL: Literal["/v1/chat/completions"] = "/v1/chat/completions"
LATER = (408, 409, 425, 429)


@dataclass
class BatchConfig:
    """Limits of the batch API, and how its jobs are followed."""

    max_requests: int = field(default=50_000, metadata={"help": "Requests in one file."})
    max_bytes: int = field(default=200_000_000, metadata={"help": "Size of one file in bytes."})
    active: int = field(default=20, metadata={"help": "Batches under way at a time."})
    poll_seconds: float = field(default=60.0, metadata={"help": "Seconds between looks at the batches."})
    retries: int = field(default=4, metadata={"help": "Of uploads, looks and downloads that fail."})
    max_rounds: int = field(default=3, metadata={"help": "How often a request is submitted that gets no answer."})

    def __post_init__(self) -> None:
        if self.retries < 0:
            raise ValueError(f"`retries` must be at least 0, got {self.retries}.")
        for name in ("max_requests", "max_bytes", "active", "poll_seconds", "max_rounds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be above 0, got {getattr(self, name)}.")


@dataclass
class Part:
    """
    One request file and its batch.

    Args:
        name (`str`): Of the file.
        sha256 (`str`): Of its bytes; the batch carries it, so that one whose id was lost is found again.
        requests (`int`): Lines.
        cost (`float`, *optional*): The most it can cost; `None` without prices.
        round (`int`): How often its requests have been submitted, this time included.
        input_file (`str`): Id of the uploaded file.
        submitting (`bool`): Whether a batch may exist whose id is not known here.
        batch (`str`): Its id.
        status (`str`): What the endpoint last said.
        outputs (`list[str]`): Names of the files fetched.
        problems (`dict[str, str]`): Reasons by number of the line for which the endpoint refused it, counted from 1.
        fetched (`bool`): Whether nothing more is to come.
        source (`str`): Round and name of the part whose unanswered requests these are.
    """

    name: str
    sha256: str
    requests: int
    cost: float | None
    round: int = 1
    input_file: str = ""
    submitting: bool = False
    batch: str = ""
    status: str = ""
    outputs: list[str] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)
    fetched: bool = False
    source: str = ""


class PartWriter:
    """
    Writes lines into files that stay within the limits; a file has its name only once it is complete.

    Args:
        folder (`Path`): Where to.
        config (`BatchConfig`): The limits.
        first (`int`): Number of the first file.
        round (`int`): Of the parts made.
    """

    def __init__(self, folder: Path, config: BatchConfig, first: int = 0, round: int = 1) -> None:
        self._folder, self._config, self._number, self._round = folder, config, first, round
        self._lines: list[bytes] = []
        self._size = 0
        self._cost: float | None = None
        self.parts: list[Part] = []

    def add(self, line: bytes, cost: float | None) -> None:
        """
        Write one request.

        Args:
            line (`bytes`): JSON with a line break at its end.
            cost (`float`, *optional*): The most it can cost.

        Raises:
            `ValueError`: It is larger than a file may be.
        """
        if len(line) > self._config.max_bytes:
            raise ValueError(f"The request has {len(line)} bytes, a file at most {self._config.max_bytes}.")
        full = len(self._lines) >= self._config.max_requests or self._size + len(line) > self._config.max_bytes
        if self._lines and full:
            self.close()
        self._lines.append(line)
        self._size += len(line)
        if cost is not None:
            self._cost = (self._cost or 0.0) + cost

    def close(self) -> None:
        """Complete the file that is being written, if any."""
        if not self._lines:
            return
        path = self._folder / f"requests-{self._number:05d}.jsonl"
        partial = path.with_suffix(".partial")
        digest = hashlib.sha256()
        with open(partial, "wb") as stream:
            for line in self._lines:
                digest.update(line)
                stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(partial, path)
        self.parts.append(Part(path.name, digest.hexdigest(), len(self._lines), self._cost, self._round))
        self._number += 1
        self._lines, self._size, self._cost = [], 0, None


def write_requests(
    requests: Iterable[Request], folder: Path, config: EndpointConfig, batch: BatchConfig
) -> tuple[list[Part], list[Answer]]:
    """
    Write request files.

    Args:
        requests (`Iterable[Request]`): Images with prompts; their keys become the `custom_id`.
        folder (`Path`): Where to.
        config (`EndpointConfig`): Model, sizes and prices.
        batch (`BatchConfig`): Limits of a file.

    Returns:
        `tuple[list[Part], list[Answer]]`: The files, and the answers to what cannot be sent: `bad_image`, `failed`.

    Raises:
        `ValueError`: Two requests have one key.
    """
    writer, keys, refused, redactor = PartWriter(folder, batch), set[str](), list[Answer](), Redactor("")
    for image, prompt, key in requests:
        if key in keys:
            raise ValueError(f"Two requests have the key {key!r}: their answers could not be told apart.")
        keys.add(key)
        try:
            picture = encode_image(image, config)
        except (ValueError, OSError, MemoryError) as error:
            refused.append(Answer(key, "bad_image", error=redactor.line(describe(error))))
            continue
        request = {"custom_id": key, "method": "POST", "url": URL, "body": chat_body(picture, prompt, config)}
        sent = text_tokens(prompt.text) + image_tokens(picture.width, picture.height, config)
        try:
            writer.add(json.dumps(request).encode() + b"\n", config.cost(sent, config.max_tokens))
        except ValueError as error:
            refused.append(Answer(key, "failed", error=str(error)))
    writer.close()
    return writer.parts, refused


def read_keys(path: Path) -> list[str]:
    """
    Keys of a request file.

    Args:
        path (`Path`): Written by [`write_requests`].

    Returns:
        `list[str]`: In the order of the lines.
    """
    with open(path, "rb") as stream:
        return [json.loads(line)["custom_id"] for line in stream]


def copy_lines(path: Path, keys: set[str], writer: PartWriter, cost: float | None) -> None:
    """
    Write some of the requests of a file again.

    Args:
        path (`Path`): The file.
        keys (`set[str]`): Of those to write.
        writer (`PartWriter`): Where to.
        cost (`float`, *optional*): The most that one can cost.
    """
    with open(path, "rb") as stream:
        for line in stream:
            if json.loads(line)["custom_id"] in keys:
                writer.add(line, cost)


def read_outputs(paths: Iterable[Path], keys: set[str], redactor: Redactor) -> dict[str, Reading]:
    """
    Join outputs by id, whatever their order.

    Args:
        paths (`Iterable[Path]`): Output and error files of one batch.
        keys (`set[str]`): Of its requests.
        redactor (`Redactor`): Makes what was answered fit to keep.

    Returns:
        `dict[str, Reading]`: By key; `pending` for what is worth submitting again. Lines that cannot be read, that
            name no request of the batch or one a second time are counted in a warning.
    """
    readings: dict[str, Reading] = {}
    odd = 0
    for line in _lines(paths):
        try:
            row = parse_body(line)
        except ValueError:
            odd += 1
            continue
        key = row.get("custom_id") if isinstance(row, dict) else None
        if not isinstance(key, str) or key not in keys or (key in readings and readings[key].state != "pending"):
            odd += 1
            continue
        readings[key] = _read_row(row, redactor)
    if odd:
        logger.warning("%d lines of batch outputs are unreadable, repeated or of no request; they were left out.", odd)
    return readings


def _lines(paths: Iterable[Path]) -> Iterator[bytes]:
    for path in paths:
        with open(path, "rb") as stream:
            yield from (line for line in stream if line.strip())


def _read_row(row: dict[str, Any], redactor: Redactor) -> Reading:
    response, error = row.get("response"), row.get("error")
    status = response.get("status_code") if isinstance(response, dict) else None
    if not isinstance(response, dict) or not isinstance(status, int):
        reason = redactor.line(json.dumps(error))
        if error is None:
            return Reading("failed", raw=redactor.json(row), error="the line has neither a response nor an error")
        return Reading(
            "pending", raw=redactor.json(row, fault=True), error=reason
        )  # `batch_expired`, `batch_cancelled`
    body = response.get("body")
    if status == 200:
        return read_answer(body, redactor)
    raw = redactor.json(body, fault=True) if isinstance(body, dict) else None
    reason = redactor.line(f"HTTP {status}: {json.dumps(body)}")
    if status in LATER or status >= 500:
        return Reading("pending", raw=raw, error=reason)
    return Reading("filtered" if is_filter_error(body) else "failed", raw=raw, error=reason)
