"""
From requests to inputs of a model: images are opened and processed in threads, ahead of the model, never all at once.

Inputs of one request come from the model's own processor and chat template. Requests share a prefill when everything
but their text has the same shape from its second axis on; text is padded on the right, where a causal model does not
look, so that positions stay those of a request alone.
"""

# B requests, S tokens

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch
from transformers import ProcessorMixin

from dataset_scripts.check_image import describe
from modeling_sharegpt4v.images_sharegpt4v import open_image

from .engine_requests import CaptionRequest


PREFILL_TOKENS = 16_384  # of one forward, padding included: bounds what a prefill holds beside the slots
STALL = 0.1  # seconds without another request, after which those that are ready do
PREFILL_REQUESTS = 32  # of one forward: it gives logits at the end of every length, for every request


@dataclass
class Prepared:
    """Inputs of one request, (1, S) where they follow the tokens, or what was wrong with its image."""

    request: CaptionRequest
    inputs: dict[str, torch.Tensor]
    error: str | None = None

    @property
    def tokens(self) -> int:
        """Tokens of the prompt, those of the image included."""
        return self.inputs["input_ids"].shape[1]

    @property
    def prompt_ids(self) -> list[int]:
        """The tokens themselves."""
        return self.inputs["input_ids"][0].tolist()


def prepare(processor: ProcessorMixin, request: CaptionRequest) -> Prepared:
    """
    Open an image and make the inputs of its request.

    Args:
        processor (`ProcessorMixin`): Processor of the model, with a chat template.
        request (`CaptionRequest`): The request.

    Returns:
        `Prepared`: Inputs, or the error in words: nothing that an image does may stop the others.
    """
    try:
        content = [{"type": "image", "image": open_image(request.image)}, {"type": "text", "text": request.prompt}]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
    except Exception as error:  # image processors raise as they like on sizes that they were not made for
        return Prepared(request, {}, describe(error))
    return Prepared(request, {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)})


def group(prepared: list[Prepared]) -> Iterator[list[Prepared]]:
    """
    Part requests into those that share a prefill.

    Args:
        prepared (`list[Prepared]`): Requests with inputs.

    Returns:
        `Iterator[list[Prepared]]`: Groups of one shape beside the text, none padded to more than twice its shortest
            or beyond `PREFILL_TOKENS` and `PREFILL_REQUESTS`.
    """
    shapes: dict[tuple, list[Prepared]] = {}
    for one in prepared:
        text = one.inputs["input_ids"].shape
        shape = sorted((name, value.shape[1:]) for name, value in one.inputs.items() if value.shape != text)
        shapes.setdefault(tuple(shape), []).append(one)
    for alike in shapes.values():
        chosen: list[Prepared] = []
        for one in sorted(alike, key=lambda one: one.tokens):
            full = len(chosen) == PREFILL_REQUESTS or one.tokens * (len(chosen) + 1) > PREFILL_TOKENS
            if chosen and (full or one.tokens > 2 * chosen[0].tokens):
                yield chosen
                chosen = []
            chosen.append(one)
        yield chosen


def collate(
    prepared: list[Prepared], pad_token_id: int, device: torch.device, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """
    Join the inputs of a group.

    Args:
        prepared (`list[Prepared]`): Requests of one of [`group`]'s groups.
        pad_token_id (`int`): What stands behind shorter prompts; masked.
        device (`torch.device`): Where the model is.
        dtype (`torch.dtype`): Type of the model, and of its pixels.

    Returns:
        `dict[str, torch.Tensor]`: Token inputs of (B, S), and the others joined along their first axis.
    """
    longest = max(one.tokens for one in prepared)
    joined = {}
    for name in prepared[0].inputs:
        parts = [one.inputs[name] for one in prepared]
        if all(part.shape == (1, one.tokens) for part, one in zip(parts, prepared, strict=True)):
            text = torch.full((len(parts), longest), pad_token_id if name == "input_ids" else 0, dtype=parts[0].dtype)
            for row, part in zip(text, parts, strict=True):
                row[: part.shape[1]] = part[0]
            joined[name] = text.to(device, non_blocking=True)  # (B, S)
        else:
            joined[name] = torch.cat([part.to(device, non_blocking=True) for part in parts])
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in joined.items()}


class Reader:
    """
    Prepares requests in threads, in any order, at most `ahead` of them before they are taken.

    Args:
        processor (`ProcessorMixin`): Processor of the model.
        requests (`Iterable[CaptionRequest]`): Requests; read one at a time, in the threads, as they are needed.
        threads (`int`): Threads.
        ahead (`int`): Most requests that are prepared or waiting.
        pin (`bool`): Whether inputs are put where a GPU can fetch them while it works.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        requests: Iterable[CaptionRequest],
        threads: int,
        ahead: int,
        pin: bool = False,
    ):
        self.processor, self.requests, self.ahead, self.pin = processor, iter(requests), ahead, pin
        self.lock = threading.Lock()
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="caption-reader")
        self.waiting: list[Future[Prepared | None]] = []
        self.exhausted = False
        self.error: BaseException | None = None  # of the iterable
        self._fill()

    def _next(self) -> Prepared | None:
        with self.lock:
            if self.exhausted:
                return None
            try:
                request = next(self.requests)
            except BaseException as error:  # whatever it is, nothing more can be read
                self.exhausted = True
                self.error = None if isinstance(error, StopIteration) else error
                return None
        prepared = prepare(self.processor, request)
        if self.pin:
            prepared.inputs = {name: value.pin_memory() for name, value in prepared.inputs.items()}
        return prepared

    def _fill(self) -> None:
        while not self.exhausted and len(self.waiting) < self.ahead:
            self.waiting.append(self.pool.submit(self._next))

    def take(self, most: int, least: int, block: bool) -> list[Prepared]:
        """
        Requests that are ready.

        Args:
            most (`int`): Most of them.
            least (`int`): Fewest of them, as long as that many are left.
            block (`bool`): Whether to wait for these if they are not ready.

        Returns:
            `list[Prepared]`: In the order in which they were read; empty if there are none, or fewer than `least`.
        """
        while most >= least:
            ready = [future for future in self.waiting if future.done()]
            missing = min(least, len(self.waiting)) - len(ready)
            if missing <= 0 and ready:
                self.waiting = [future for future in self.waiting if future not in ready[:most]]
                taken = [prepared for future in ready[:most] if (prepared := future.result()) is not None]
                self._fill()
                if taken or not block:
                    return taken
            elif block and self.waiting:
                unready = [future for future in self.waiting if future not in ready]
                if not wait(unready, STALL if ready else None, FIRST_COMPLETED).done:
                    least = 1  # whoever gives the requests may wait for an answer before the next
            else:
                break
        return []

    def close(self) -> None:
        """End the threads; what they read and nobody took is dropped."""
        self.exhausted = True
        self.pool.shutdown(wait=False, cancel_futures=True)  # one of them may wait for the iterable
