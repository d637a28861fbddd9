"""Greedy answers of a model in this process: any image-text-to-text model of transformers' Auto classes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from .base import Benchmark
from .images import DEFAULT_MEAN, ImageMode, Question, bring_to_square, square_side


class LocalModel:
    """
    A model and its processor.

    Args:
        model_id (`str`): Folder or name on the Hub.
        device (`str` or `torch.device`, defaults to `"cpu"`): Where it runs.
        dtype (`str`, defaults to `"auto"`): Type of its weights, that of the files by default.
        trust_remote_code (`bool`, defaults to `False`): Whether code of its repository may run.
        revision (`str`, *optional*): Commit, tag or branch on the Hub.

    Raises:
        `ValueError`: Its processor has no chat template.
    """

    def __init__(
        self,
        model_id: str,
        device: str | torch.device = "cpu",
        dtype: str = "auto",
        trust_remote_code: bool = False,
        revision: str | None = None,
    ):
        options: dict[str, Any] = {"trust_remote_code": trust_remote_code, "revision": revision}
        self.processor = AutoProcessor.from_pretrained(model_id, **options)
        if not getattr(self.processor, "chat_template", None):
            raise ValueError(f"The processor of {model_id} has no chat template, so no prompt can be made with it.")
        model = AutoModelForImageTextToText.from_pretrained(model_id, dtype=dtype, **options)
        self.model = model.to(device).eval()
        generation = self.model.generation_config
        generation.do_sample, generation.temperature, generation.top_p, generation.top_k = False, None, None, None
        self.name = Path(model_id).resolve().name if Path(model_id).is_dir() else model_id
        self.identity = _identity(model_id, self.model)
        tokenizer = self.processor.tokenizer
        tokenizer.padding_side = "left"  # answers begin at one place
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._side = square_side(self.processor)

    def image_mode(self, benchmark: Benchmark, mode: ImageMode) -> str:
        """
        How images of a benchmark are brought to a square.

        Args:
            benchmark (`Benchmark`): Which one.
            mode (`str`): `official` takes the script's own way.

        Returns:
            `str`: `pad`, `crop` or `native`; always the last for a processor that takes images of any shape.
        """
        if self._side is None:
            return "native"
        return benchmark.images if mode == "official" else mode

    def facts(self) -> dict[str, Any]:
        """
        What decides the answers.

        Returns:
            `dict`: Name, identity of the weights, and their type.
        """
        return {"model": self.name, "weights": self.identity, "dtype": str(self.model.dtype).removeprefix("torch.")}

    @torch.inference_mode()
    def answer(self, questions: list[Question]) -> list[str]:
        """
        Answer questions that all have an image, or none.

        Args:
            questions (`list[Question]`): A batch, with one bound for the answers.

        Returns:
            `list[str]`: Without special tokens and outer spaces.
        """
        inputs = self.processor.apply_chat_template(
            [self._conversation(question) for question in questions],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self.model.device)
        for name, value in inputs.items():
            if torch.is_tensor(value) and value.is_floating_point():
                inputs[name] = value.to(self.model.dtype)
        bound = questions[0].max_new_tokens
        tokens = self.model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=bound)
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(answers, skip_special_tokens=True)]

    def _conversation(self, question: Question) -> list[dict[str, Any]]:
        content: list[dict[str, Any]] = []
        if question.image is not None:
            content.append({"type": "image", "image": self._image(question.image, question.mode)})
        content.append({"type": "text", "text": question.text})
        return [{"role": "user", "content": content}]

    def _image(self, image: Image.Image, mode: str) -> Image.Image:
        if self._side is None or mode == "native":
            return image.convert("RGB")
        mean = getattr(self.processor.image_processor, "image_mean", None) or DEFAULT_MEAN
        return bring_to_square(image, mode, self._side, tuple(mean))


def _identity(model_id: str, model: Any) -> str:
    """Commit of a model on the Hub, or hash of a folder's weights: a folder trained anew has the same name."""
    folder = Path(model_id)
    if not folder.is_dir():
        return str(model.config._commit_hash or "unknown")
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True, default=str).encode())
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:12]
