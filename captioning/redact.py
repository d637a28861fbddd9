"""What an endpoint sends back, made fit to keep: without the key, and as text that every store takes."""

import json
import math
import re
from typing import Any


MASK = "[removed]"
LONGEST_LINE = 400
DEEPEST = 40
LEAST_KEY = 6  # a shorter "key" is a placeholder such as `none`, and removing it would mangle captions
SECRETS = (
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=*-]{6,}"), rf"\1 {MASK}"),
    (re.compile(r"\bsk-[\w*.-]{4,}"), MASK),  # endpoints repeat keys in part: sk-ab***yz
    (re.compile(r"(?<=://)[^\s/@\"']+@"), f"{MASK}@"),
    (re.compile(r"data:[\w/+.-]+;base64,[A-Za-z0-9+/=_-]*"), MASK),
    (re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{200,}={0,2}"), MASK),  # base64 without its prefix
)
SURROGATES = re.compile("[\ud800-\udfff]")


class Redactor:
    """
    Removes a key from whatever is kept.

    Args:
        key (`str`): The key; may be empty.
    """

    def __init__(self, key: str) -> None:
        escaped = json.dumps(key)[1:-1]
        forms = {key, escaped, escaped.replace("/", "\\/")} if len(key) >= LEAST_KEY else set()
        self._forms = sorted(forms, key=len, reverse=True)  # as it is, and as JSON texts may write it

    def __repr__(self) -> str:
        return "Redactor()"

    def text(self, value: str) -> str:
        """
        A text as it may be stored.

        Args:
            value (`str`): Any text.

        Returns:
            `str`: Without the key; NUL characters and lone surrogates, which databases and UTF-8 refuse, are U+FFFD.
        """
        for form in self._forms:
            value = value.replace(form, MASK)
        return SURROGATES.sub("\ufffd", value).replace("\0", "\ufffd")

    def fault(self, value: str) -> str:
        """
        A text about a fault as it may be stored.

        Args:
            value (`str`): Of any length.

        Returns:
            `str`: As [`Redactor.text`], also without parts of keys, user names in addresses, and image data.
        """
        text = self.text(value)
        for pattern, instead in SECRETS:
            text = pattern.sub(instead, text)
        return text

    def json(self, value: Any, fault: bool = False, depth: int = 0) -> Any:
        """
        A JSON value as it may be stored.

        Args:
            value: What was parsed.
            fault (`bool`, defaults to `False`): Whether it is the body of an error instead of an answer.
            depth (`int`, defaults to 0): How deep in another value it is.

        Returns:
            The same with [`Redactor.fault`] or [`Redactor.text`] applied to every text in it; infinite numbers are
                texts, and what is nested more than 40 deep is left out.
        """
        if depth > DEEPEST:
            return "[nested too deeply]"
        clean = self.fault if fault else self.text
        if isinstance(value, str):
            return clean(value)
        if isinstance(value, dict):
            return {clean(str(name)): self.json(item, fault, depth + 1) for name, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.json(item, fault, depth + 1) for item in value]
        return str(value) if isinstance(value, float) and not math.isfinite(value) else value

    def line(self, value: object) -> str:
        """
        A message about a fault as one line for logs and reports.

        Args:
            value: An error or a text.

        Returns:
            `str`: At most 400 characters without keys, user names in addresses and image data.
        """
        text = self.fault(str(value))  # whole: of a key that is cut, a part would stay
        text = "".join(character if character.isprintable() else " " for character in text)
        text = " ".join(text.split())
        return text if len(text) <= LONGEST_LINE else text[: LONGEST_LINE - 3] + "..."
