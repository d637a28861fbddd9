"""What the captioner takes and gives, and the two ways to end or vary a caption: loops and sampling."""

import os
from dataclasses import dataclass
from typing import Literal

from PIL import Image


State = Literal["ok", "truncated", "looped", "bad_image"]


@dataclass(frozen=True)
class CaptionRequest:
    """
    One image to caption.

    Args:
        key (`str`): Name of the request; results come in another order and carry it.
        image (`str`, `os.PathLike`, `bytes` or `PIL.Image.Image`): File, encoded bytes or an open image.
        prompt (`str`): What the model is asked, after the image.
        max_new_tokens (`int`, *optional*): Most tokens of the caption; the engine's number by default.
    """

    key: str
    image: "str | os.PathLike | bytes | Image.Image"
    prompt: str
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ValueError(f"`max_new_tokens` must be at least 1, got {self.max_new_tokens} for {self.key!r}.")


@dataclass(frozen=True)
class CaptionResult:
    """
    What came of one request.

    Args:
        key (`str`): Key of the request.
        text (`str`): Caption without special tokens and outer spaces; empty for `bad_image`.
        state (`str`): `ok` at an end token, `truncated` at the most tokens or at the end of the slot, `looped` where
            the loop guard stopped it, `bad_image` if no inputs could be made of the request (see `error`).
        prompt_tokens (`int`): Tokens of the prompt, those of the image included.
        new_tokens (`int`): Tokens of the caption, its end token included.
        error (`str`, *optional*): What was wrong with the image.
    """

    key: str
    text: str
    state: State
    prompt_tokens: int = 0
    new_tokens: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Sampling:
    """
    How tokens are drawn; without it the likeliest one is taken.

    Args:
        temperature (`float`, defaults to `1.0`): Divisor of the logits, above 0.
        top_p (`float`, defaults to `1.0`): Least probability of the likeliest tokens that are kept.
        top_k (`int`, defaults to `0`): Number of likeliest tokens that are kept; 0 keeps all.
        seed (`int`, defaults to `0`): With the key of a request it decides the draws of that request.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"`temperature` must be above 0, got {self.temperature}. Leave sampling out for greedy.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p` must be above 0 and at most 1, got {self.top_p}.")
        if self.top_k < 0:
            raise ValueError(f"`top_k` must not be negative, got {self.top_k}.")


@dataclass(frozen=True)
class LoopGuard:
    """
    When a caption counts as caught in a loop: its last tokens are one phrase again and again.

    Args:
        longest (`int`, defaults to `48`): Longest phrase that is looked for, in tokens.
        repeats (`int`, defaults to `4`): How often the phrase must stand there.
        least (`int`, defaults to `32`): Fewest tokens of all repeats together, so that a row of dots is no loop.
        every (`int`, defaults to `8`): The check runs whenever the caption has a multiple of this many tokens.
    """

    longest: int = 48
    repeats: int = 4
    least: int = 32
    every: int = 8

    def __post_init__(self) -> None:
        if min(self.longest, self.least, self.every) < 1 or self.repeats < 2:
            raise ValueError(f"A loop is two or more repeats of one or more tokens, got {self}.")

    def period(self, tokens: list[int]) -> int | None:
        """
        Length of the phrase that the end of `tokens` repeats.

        Args:
            tokens (`list[int]`): Caption so far.

        Returns:
            `int` or `None`: Tokens of the shortest such phrase, `None` if there is none.
        """
        for period in range(1, min(self.longest, len(tokens) // self.repeats) + 1):
            span = max(self.repeats * period, self.least)
            if span <= len(tokens) and tokens[-span:-period] == tokens[len(tokens) - span + period :]:
                return period
        return None

    def stops(self, tokens: list[int]) -> bool:
        """
        Whether a caption must end here.

        Args:
            tokens (`list[int]`): Caption so far.

        Returns:
            `bool`: True if the check is due and finds a loop.
        """
        return len(tokens) % self.every == 0 and self.period(tokens) is not None
