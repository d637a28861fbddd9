"""Answers of a model behind any OpenAI-compatible endpoint: a served model of one's own, or anyone's."""

import asyncio
import base64
import io
import os
from dataclasses import dataclass
from typing import Any

import openai
from PIL import Image

from .base import Benchmark
from .images import ImageMode, Question, bring_to_square


NO_KEY = "none"  # the client insists on one


@dataclass(frozen=True)
class EndpointOptions:
    """
    Where a model is served.

    Args:
        model (`str`): Name that the endpoint knows.
        base_url (`str`): Address up to `/v1`.
        api_key_env (`str`, defaults to `""`): Environment variable that holds the key; empty if it wants none.
        attempts (`int`, defaults to 6): For one answer while the endpoint fails.
        timeout (`float`, defaults to 300): Seconds for an answer.
    """

    model: str
    base_url: str
    api_key_env: str = ""
    attempts: int = 6
    timeout: float = 300.0

    def key(self) -> str:
        """
        The endpoint's key.

        Returns:
            `str`: From the environment.

        Raises:
            `ValueError`: The variable is not set.
        """
        if not self.api_key_env:
            return NO_KEY
        key = os.environ.get(self.api_key_env, "").strip()
        if not key:
            raise ValueError(f"There is no key in the environment variable {self.api_key_env}. Set it.")
        return key


class EndpointModel:
    """
    A served model; greedy by temperature 0, as far as the server keeps to it.

    Args:
        options (`EndpointOptions`): Where.

    Raises:
        `ValueError`: There is no key.
    """

    def __init__(self, options: EndpointOptions):
        self.options = options
        self._key = options.key()

    def __repr__(self) -> str:
        return f"EndpointModel({self.options!r})"

    def image_mode(self, benchmark: Benchmark, mode: ImageMode) -> str:
        """
        How images are brought to a square.

        Args:
            benchmark (`Benchmark`): Which one.
            mode (`str`): `pad` pads them here; all else is left to the server, whose image size is not known.

        Returns:
            `str`: `pad` or `native`.
        """
        return "pad" if mode == "pad" else "native"

    def facts(self) -> dict[str, Any]:
        """
        What decides the answers, as far as it is known.

        Returns:
            `dict`: Name and address.
        """
        return {"model": self.options.model, "weights": "unknown", "endpoint": self.options.base_url}

    def answer(self, questions: list[Question]) -> list[str]:
        """
        Ask all questions at once.

        Args:
            questions (`list[Question]`): A batch.

        Returns:
            `list[str]`: Without outer spaces; empty where the server gave no text.

        Raises:
            `openai.OpenAIError`: The endpoint fails; answers so far are stored, and the same command continues.
        """
        return asyncio.run(self._answer(questions))

    async def _answer(self, questions: list[Question]) -> list[str]:
        options = self.options
        client = openai.AsyncOpenAI(
            api_key=self._key, base_url=options.base_url, max_retries=options.attempts - 1, timeout=options.timeout
        )
        async with client:
            return list(await asyncio.gather(*(self._ask(client, question) for question in questions)))

    async def _ask(self, client: openai.AsyncOpenAI, question: Question) -> str:
        content: list[Any] = []
        if question.image is not None:
            content.append({"type": "image_url", "image_url": {"url": _data_url(question.image, question.mode)}})
        content.append({"type": "text", "text": question.text})
        completion = await client.chat.completions.create(
            model=self.options.model,
            messages=[{"role": "user", "content": content}],
            temperature=0.0,
            max_tokens=question.max_new_tokens,
        )
        return (completion.choices[0].message.content or "").strip()


def _data_url(image: Image.Image, mode: str) -> str:
    square = bring_to_square(image, "pad", max(image.size)) if mode == "pad" else image.convert("RGB")
    stream = io.BytesIO()
    square.save(stream, "PNG")  # nothing of a benchmark's image may be lost on the way
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
