"""An answer that comes in pieces, put together in the shape of a whole one."""

from dataclasses import replace
from typing import Any

from .answers import Reading, read_answer
from .redact import Redactor


class StreamedAnswer:
    """Collects the chunks of a stream; whatever their shape, none of them raises."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._refusal: list[str] = []
        self._finish_reason: Any = None
        self._top: dict[str, Any] = {}
        self._odd: list[Any] = []
        self.begun = False

    def add(self, chunk: Any) -> None:
        """
        Take one chunk.

        Args:
            chunk: Parsed JSON.
        """
        self.begun = True
        if not isinstance(chunk, dict):
            self._keep_odd(chunk)
            return
        self._top |= {name: chunk[name] for name in ("id", "model", "usage") if chunk.get(name) is not None}
        choices = chunk.get("choices") or []  # the chunk with the counts has none
        choice = choices[0] if isinstance(choices, list) and choices else None
        if choice is None and not choices:
            return
        if not isinstance(choice, dict):
            self._keep_odd(chunk)
            return
        if choice.get("finish_reason") is not None:
            self._finish_reason = choice["finish_reason"]
        delta = choice.get("delta") or {}
        for name, parts in (("content", self._content), ("refusal", self._refusal)):
            value = delta.get(name) if isinstance(delta, dict) else delta
            if isinstance(value, str) and isinstance(delta, dict):
                parts.append(value)
            elif value is not None:
                self._keep_odd(chunk)

    def read(self, redactor: Redactor, broken: str = "") -> Reading:
        """
        What the stream says.

        Args:
            redactor (`Redactor`): Makes it fit to keep.
            broken (`str`, *optional*): Why it ended early, if it did.

        Returns:
            `Reading`: As of a whole answer; without text if it was cut off, with the pieces in `raw`.
        """
        message = {"role": "assistant", "content": "".join(self._content)}
        if self._refusal:
            message["refusal"] = "".join(self._refusal)
        reason = None if broken else self._finish_reason
        body = {**self._top, "choices": [{"index": 0, "message": message, "finish_reason": reason}]}
        reading = read_answer(body, redactor)
        if not self._odd:
            return reading
        raw = {**(reading.raw or {}), "odd_chunks": redactor.json(self._odd)}
        error = "the stream has chunks of another shape than a chat completion"
        return replace(reading, state="failed", text="", raw=raw, error=error)

    def _keep_odd(self, chunk: Any) -> None:
        if len(self._odd) < 5:
            self._odd.append(chunk)
