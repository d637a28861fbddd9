"""A conversation about one image: with a model in this process, or with one behind an endpoint."""

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image


@dataclass
class Turn:
    """
    A question and its answer.

    Args:
        question (`str`): As asked.
        answer (`str`): As far as it came.
        finish_reason (`str`): `stop`, or `length` where the bound on an answer ended it.
        seconds (`float`): From the question to the last token.
    """

    question: str
    answer: str = ""
    finish_reason: str = ""
    seconds: float = field(default=0.0, compare=False)


class Talker(Protocol):
    """Someone who answers questions about an image."""

    def stream(self, image: Image.Image, turns: list[Turn]) -> Iterator[str]:
        """Answer the last turn, whose `finish_reason` is set at the end."""


class Conversation:
    """
    Questions about one image, each with all that was said before.

    Args:
        talker (`Talker`): Who answers.
        image (`PIL.Image.Image`): Upright RGB image.
    """

    def __init__(self, talker: Talker, image: Image.Image) -> None:
        self.talker, self.image = talker, image
        self.turns: list[Turn] = []

    def ask(self, question: str) -> Iterator[str]:
        """
        Ask, and get the answer in pieces.

        Args:
            question (`str`): Not empty.

        Returns:
            `Iterator[str]`: Pieces of the answer; the turn is in `turns` when they end.
        """
        turn, start = Turn(question), time.monotonic()
        pieces = []
        for piece in self.talker.stream(self.image, [*self.turns, turn]):
            pieces.append(piece)
            yield piece
        turn.answer, turn.seconds = "".join(pieces).strip(), round(time.monotonic() - start, 2)
        self.turns.append(turn)


@dataclass(frozen=True)
class LocalOptions:
    """
    A model in this process.

    Args:
        model (`str`): Folder or name on the Hub.
        device (`str`, defaults to `"auto"`): `auto` takes a GPU if there is one.
        dtype (`str`, defaults to `"auto"`): Type of the weights, that of the files by default.
        max_new_tokens (`int`, defaults to 512): Upper bound on an answer.
        temperature (`float`, defaults to 0): Of sampling; 0 takes the likeliest token.
        trust_remote_code (`bool`, defaults to `False`): Whether code of its repository may run.
        revision (`str`, *optional*): Commit, tag or branch on the Hub.
    """

    model: str
    device: str = "auto"
    dtype: str = "auto"
    max_new_tokens: int = 512
    temperature: float = 0.0
    trust_remote_code: bool = False
    revision: str | None = None


class LocalTalker:
    """
    Any image-text-to-text model of transformers' Auto classes.

    Args:
        options (`LocalOptions`): Which, and how it answers.

    Raises:
        `ValueError`: Its processor has no chat template.
    """

    def __init__(self, options: LocalOptions) -> None:
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.options, self.name = options, options.model
        device = options.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        given: dict[str, Any] = {"trust_remote_code": options.trust_remote_code, "revision": options.revision}
        self._processor = AutoProcessor.from_pretrained(options.model, **given)
        if not getattr(self._processor, "chat_template", None):
            raise ValueError(f"The processor of {options.model} has no chat template, so nothing can be asked.")
        model = AutoModelForImageTextToText.from_pretrained(options.model, dtype=options.dtype, **given)
        self._model = model.to(device).eval()
        self._longest = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)

    def stream(self, image: Image.Image, turns: list[Turn]) -> Iterator[str]:
        """
        Answer the last turn.

        Args:
            image (`PIL.Image.Image`): What it is about.
            turns (`list[Turn]`): What was said, and the question.

        Returns:
            `Iterator[str]`: Pieces of the answer.

        Raises:
            `ValueError`: The conversation is longer than what the model takes.
        """
        from transformers import StoppingCriteriaList, TextIteratorStreamer

        inputs = self._inputs(image, turns)
        room = self._room(inputs["input_ids"].shape[1])
        tokenizer = self._processor.tokenizer
        streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
        stop, outcome = threading.Event(), dict[str, Any]()
        options = self._generation(room)
        criteria = StoppingCriteriaList([lambda ids, scores, **_: stop.is_set()])

        def generate() -> None:
            try:
                ids = self._model.generate(**inputs, **options, streamer=streamer, stopping_criteria=criteria)
                outcome["tokens"] = ids.shape[1] - inputs["input_ids"].shape[1]
            except Exception as error:  # raised again by whoever reads the answer
                outcome["error"] = error
                streamer.end()

        thread = threading.Thread(target=generate, daemon=True)
        thread.start()
        try:
            yield from streamer
        finally:  # also when the reader leaves, by Ctrl-C for instance
            stop.set()
            thread.join()
        if "error" in outcome:
            raise outcome["error"]
        turns[-1].finish_reason = "length" if outcome["tokens"] >= options["max_new_tokens"] else "stop"

    def _inputs(self, image: Image.Image, turns: list[Turn]) -> Any:
        messages = _messages(turns, {"type": "image", "image": image})
        inputs = self._processor.apply_chat_template(
            messages,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            sanitize_control_tokens=True,  # `<image>` in a question is letters
        )
        inputs = inputs.to(self._model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        return inputs

    def _room(self, tokens: int) -> int:
        if self._longest is not None and tokens >= self._longest:
            raise ValueError(
                f"The conversation has {tokens} tokens and the model takes {self._longest}. Begin a new one."
            )
        return self.options.max_new_tokens if self._longest is None else self._longest - tokens

    def _generation(self, room: int) -> dict[str, Any]:
        tokenizer, warm = self._processor.tokenizer, self.options.temperature > 0
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        chosen: dict[str, Any] = {"temperature": self.options.temperature} if warm else {}
        if not warm:
            chosen = {"temperature": None, "top_p": None, "top_k": None}
        most = min(room, self.options.max_new_tokens)
        return {"max_new_tokens": most, "do_sample": warm, "pad_token_id": pad, **chosen}


class EndpointTalker:
    """
    A model behind any endpoint that speaks OpenAI's protocol.

    Args:
        url (`str`): Address up to `/v1`.
        key (`str`): Its key; `none` if it wants none.
        model (`str`, *optional*): Name that it knows; the first that it has by default.
        max_tokens (`int`, defaults to 512): Upper bound on an answer.
        temperature (`float`, defaults to 0): Of sampling.

    Raises:
        `ValueError`: It has no model.
    """

    def __init__(
        self, url: str, key: str, model: str | None = None, max_tokens: int = 512, temperature: float = 0.0
    ) -> None:
        import openai

        self._client = openai.OpenAI(base_url=url, api_key=key)
        if model is None:
            known = [one.id for one in self._client.models.list()]
            if not known:
                raise ValueError(f"{url} has no model. Name one: --model NAME.")
            model = known[0]
        self.name, self._most, self._temperature = model, max_tokens, temperature

    def stream(self, image: Image.Image, turns: list[Turn]) -> Iterator[str]:
        """
        Answer the last turn.

        Args:
            image (`PIL.Image.Image`): What it is about.
            turns (`list[Turn]`): What was said, and the question.

        Returns:
            `Iterator[str]`: Pieces of the answer.

        Raises:
            `openai.OpenAIError`: The endpoint fails, or the answer breaks off.
        """
        import openai

        from captioning.endpoint_config import EndpointConfig
        from captioning.payload import encode_image

        url = encode_image(image, EndpointConfig(self.name)).url
        messages: Any = _messages(turns, {"type": "image_url", "image_url": {"url": url}})
        stream: Any = self._client.chat.completions.create(
            model=self.name, messages=messages, max_tokens=self._most, temperature=self._temperature, stream=True
        )
        with stream:
            for chunk in stream:
                for choice in chunk.choices:
                    if choice.delta.content:
                        yield choice.delta.content
                    turns[-1].finish_reason = choice.finish_reason or turns[-1].finish_reason
        if not turns[-1].finish_reason:
            raise openai.APIError("The answer broke off. Ask again.", stream.response.request, body=None)


def _messages(turns: list[Turn], image: dict[str, Any]) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for number, turn in enumerate(turns):
        content = [{"type": "text", "text": turn.question}]
        messages.append({"role": "user", "content": [image, *content] if number == 0 else content})
        if number < len(turns) - 1:
            messages.append({"role": "assistant", "content": [{"type": "text", "text": turn.answer}]})
    return messages
