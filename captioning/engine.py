"""
Captions of many images by one model in this process, with slots that are refilled while the others decode.

A plain loop waits for the longest caption of each batch, copies all keys and values at every token, and decodes images
in between. Here a finished caption leaves its slot to the next image at once, keys and values stay where they are, and
threads read ahead. Greedy captions are those of `generate`, one image at a time.

```python
engine = load_engine("llava-hf/llava-1.5-7b-hf", device="cuda", dtype="bfloat16", slots=64, max_length=1536)
requests = (CaptionRequest(path.name, path, "Describe the image in detail.") for path in Path("photos").iterdir())
for result in engine.caption(requests):
    ...
```
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedModel,
    ProcessorMixin,
)

from .engine_inputs import Prepared, Reader, group
from .engine_model import SlotModel
from .engine_requests import CaptionRequest, CaptionResult, LoopGuard, Sampling, State
from .engine_sampling import TokenChooser
from .engine_support import check_config, check_model, try_out


MAX_NEW_TOKENS = 512
REFILL = 2  # free slots are filled two at a time: a prefill of two costs little more than one of one
LOOP_GUARD = LoopGuard()


@dataclass
class EngineStats:
    """Work of an engine since it was made."""

    prefills: int = 0  # forward passes over images and prompts
    steps: int = 0  # forward passes over one token of each row
    tokens: int = 0  # tokens of captions
    refills: int = 0  # prefills while other rows were in use


@dataclass
class _Row:
    prepared: Prepared
    limit: int  # most new tokens
    generator: torch.Generator | None
    tokens: list[int] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)


class CaptionEngine:
    """
    Continuous captioning by one model.

    Args:
        model (`PreTrainedModel`): Image-text-to-text model, on its device and in its dtype.
        processor (`ProcessorMixin`): Its processor, with a chat template.
        slots (`int`, defaults to `16`): Captions that are written at the same time.
        max_length (`int`, defaults to `2048`): Most tokens of prompt and caption together; memory for keys and values
            of `slots` times that many is taken at once.
        max_new_tokens (`int`, defaults to `512`): Most tokens of a caption whose request does not say.
        sampling (`Sampling`, *optional*): How tokens are drawn; greedy without it.
        loop_guard (`LoopGuard`, *optional*): When a caption ends as a loop; `None` lets it go on.
        threads (`int`, defaults to `2`): Threads that read images.

    Raises:
        `ValueError`: The model cannot be captioned in slots; the message names its class and the reason.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        slots: int = 16,
        max_length: int = 2048,
        max_new_tokens: int = MAX_NEW_TOKENS,
        sampling: Sampling | None = None,
        loop_guard: LoopGuard | None = LOOP_GUARD,
        threads: int = 2,
    ):
        for name, value in (("slots", slots), ("max_new_tokens", max_new_tokens), ("threads", threads)):
            if value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        check_model(model, processor)
        pad = processor.tokenizer.pad_token_id
        self.slots = SlotModel(model, slots, max_length, 0 if pad is None else pad)
        self.processor, self.loop_guard, self.threads = processor, loop_guard, threads
        self.max_new_tokens, self.max_length = max_new_tokens, max_length
        self.chooser = TokenChooser(model, sampling)
        self.stats = EngineStats()
        self._rows: list[_Row] = []
        self._busy = False
        try_out(self.slots, processor)

    def caption(self, requests: Iterable[CaptionRequest]) -> Iterator[CaptionResult]:
        """
        Caption images as they come.

        Args:
            requests (`Iterable[CaptionRequest]`): Requests; not more of them are read than can soon be used, in
                threads of the engine.

        Yields:
            `CaptionResult`: One for every request, as they finish.

        Raises:
            `RuntimeError`: The engine is captioning already, or the machine fails (no memory, a broken GPU).
            `Exception`: What the iterable raises, after the results of the requests before it.
        """
        if self._busy:
            raise RuntimeError("The engine is captioning already. Finish or close that iterator first.")
        count, pin = self.slots.cache.slots, self.slots.device.type == "cuda"
        least = max(1, min(REFILL, count // 4))  # of few slots none waits for another to be free
        reader = Reader(self.processor, requests, self.threads, max(count, 2 * self.threads), pin)
        self._busy = True
        try:
            while True:
                ready = reader.take(count - len(self._rows), least, block=not self._rows)
                if not ready and not self._rows:
                    break
                yield from self._admit(ready)
                if self._rows:
                    yield from self._step()
        finally:
            reader.close()
            self._rows.clear()
            while self.slots.rows:
                self.slots.remove(self.slots.rows - 1)
            self._busy = False
        if reader.error is not None:  # of the requests; those before it have their results
            raise reader.error

    def _admit(self, ready: list[Prepared]) -> list[CaptionResult]:
        results = [_unusable(one, one.error) for one in ready if one.error is not None]
        fitting = []
        for one in ready:
            if one.error is not None:
                continue
            if one.tokens < self.max_length:
                fitting.append(one)
            else:
                room = f"a slot holds {self.max_length}. Raise `max_length`."
                results.append(_unusable(one, f"Image and prompt make {one.tokens} tokens, and {room}"))
        for chosen in group(fitting):
            results += self._prefill(chosen)
        return results

    def _prefill(self, chosen: list[Prepared]) -> list[CaptionResult]:
        first = len(self._rows)
        try:
            logits = self.slots.prefill(chosen)
        except (ValueError, IndexError, RuntimeError) as error:  # a prompt with the image's own token in it
            if _is_of_the_machine(error):
                raise
            if len(chosen) == 1:
                return [_unusable(chosen[0], f"{type(error).__name__}: {error}")]
            return [result for one in chosen for result in self._prefill([one])]
        self.stats.prefills += 1
        self.stats.refills += first > 0
        for one in chosen:
            limit = min(one.request.max_new_tokens or self.max_new_tokens, self.max_length - one.tokens)
            row = _Row(one, limit, self.chooser.generator(one.request.key))
            row.prompt = one.prompt_ids if self.chooser.needs_history else []
            self._rows.append(row)
        return self._extend(logits, first)

    def _step(self) -> list[CaptionResult]:
        logits = self.slots.step([row.tokens[-1] for row in self._rows])
        self.stats.steps += 1
        return self._extend(logits, 0)

    def _extend(self, logits: torch.Tensor, first: int) -> list[CaptionResult]:
        """Add a token to every row from `first` on, and free those that end; `logits` are (rows, V)."""
        rows = self._rows[first:]
        histories = [row.prompt + row.tokens for row in rows] if self.chooser.needs_history else []
        tokens = self.chooser.choose(logits, histories, [row.generator for row in rows])
        self.stats.tokens += len(tokens)
        results = []
        for row, token in zip(rows, tokens, strict=True):
            row.tokens.append(token)
        for index in range(len(self._rows) - 1, first - 1, -1):  # backwards: a freed row takes in the last one
            if state := self._state(self._rows[index]):
                results.append(self._result(self._rows[index], state))
                self._free(index)
        return results

    def _state(self, row: _Row) -> State | None:
        if row.tokens[-1] in self.chooser.ends:
            return "ok"
        if self.loop_guard is not None and self.loop_guard.stops(row.tokens):
            return "looped"
        return "truncated" if len(row.tokens) >= row.limit else None

    def _result(self, row: _Row, state: State) -> CaptionResult:
        text = self.processor.tokenizer.decode(row.tokens, skip_special_tokens=True).strip()
        return CaptionResult(row.prepared.request.key, text, state, row.prepared.tokens, len(row.tokens))

    def _free(self, index: int) -> None:
        self.slots.remove(index)
        self._rows[index] = self._rows[-1]
        self._rows.pop()


def _is_of_the_machine(error: Exception) -> bool:
    # Else every image that follows would be called a bad one.
    broken = isinstance(error, (torch.OutOfMemoryError, torch.AcceleratorError))
    return broken or any(word in str(error).lower() for word in ("alloc", "cuda", "cublas", "cudnn"))


def _unusable(prepared: Prepared, error: str) -> CaptionResult:
    return CaptionResult(prepared.request.key, "", "bad_image", error=error)


def load_engine(
    model_id: str,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype = "auto",
    slots: int = 16,
    max_length: int = 2048,
    trust_remote_code: bool = False,
    max_new_tokens: int = MAX_NEW_TOKENS,
    sampling: Sampling | None = None,
    loop_guard: LoopGuard | None = LOOP_GUARD,
    threads: int = 2,
) -> CaptionEngine:
    """
    Load any image-text-to-text model that transformers' Auto classes know.

    Args:
        model_id (`str`): Name on the Hub or a folder.
        device (`str` or `torch.device`, defaults to `"cpu"`): Where the model runs.
        dtype (`str` or `torch.dtype`, defaults to `"auto"`): Type of its weights, that of the files by default.
        slots (`int`, defaults to `16`): See [`CaptionEngine`], like all that follow but the next.
        trust_remote_code (`bool`, defaults to `False`): Whether code of the repository may run.

    Returns:
        `CaptionEngine`: An engine that passed its trial.

    Raises:
        `ValueError`: The model is none of that kind, or cannot be captioned in slots; the message says why.
    """
    config = AutoConfig.from_pretrained(model_id, trust_remote_code=trust_remote_code)
    name = (config.architectures or [type(config).__name__])[0]
    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING and not trust_remote_code:
        raise ValueError(f"{name} of {model_id} is no image-text-to-text model of transformers' Auto classes.")
    check_config(config, name)  # before gigabytes are read
    processor = AutoProcessor.from_pretrained(model_id, trust_remote_code=trust_remote_code)
    model = AutoModelForImageTextToText.from_pretrained(model_id, dtype=dtype, trust_remote_code=trust_remote_code)
    return CaptionEngine(model.to(device), processor, slots, max_length, max_new_tokens, sampling, loop_guard, threads)
