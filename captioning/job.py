"""
A captioning job: who captions, on which prompts, and what tells its captions from those of another job.

A caption belongs to an image, a prompt, a model and the settings that decide its text. Change one of them and every
image has a new key, so old captions stay and are never taken for new ones; change anything else (an address, a rate
limit, the number of slots) and what is done stays done.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from .endpoint_config import EndpointConfig
from .job_config import EngineConfig, PromptOptions
from .prompts import UNIFIED, Prompt, PromptSet, load_prompts


Kind = Literal["endpoint", "engine"]
# Of an endpoint's options, those that decide what is answered; the rest is how it is reached.
DECISIVE = ("max_tokens", "temperature", "detail", "image_side", "image_quality", "image_bytes")
WEIGHTS = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.py", "*.txt")


@dataclass(frozen=True)
class CaptionJob:
    """
    Who captions, and on which prompts.

    Args:
        endpoint (`EndpointConfig`, *optional*): A chat endpoint, or
        engine (`EngineConfig`, *optional*): our own captioner.
        prompts (`PromptOptions`): Which prompt an image gets.
        concurrency (`int`, defaults to 8): Requests at a time, all workers together; of an endpoint.
        revision (`str`, *optional*): What identifies the weights behind the model's name; see [`weights_of`].
        texts (`dict`, *optional*): The prompts themselves, kept with the job: its file may change or go.

    Raises:
        `ValueError`: Not exactly one captioner is given.
    """

    endpoint: EndpointConfig | None = None
    engine: EngineConfig | None = None
    prompts: PromptOptions = field(default_factory=PromptOptions)
    concurrency: int = 8
    revision: str | None = None
    texts: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if (self.endpoint is None) == (self.engine is None):
            raise ValueError("A job has an endpoint or a model of its own: give one of them.")
        if self.concurrency < 1:
            raise ValueError(f"`concurrency` must be at least 1, got {self.concurrency}.")

    @property
    def kind(self) -> Kind:
        """Which of the two captions (`str`)."""
        return "endpoint" if self.endpoint is not None else "engine"

    @property
    def captioner(self) -> EndpointConfig | EngineConfig:
        """Its options."""
        captioner = self.endpoint or self.engine
        if captioner is None:  # excluded when the job is made
            raise ValueError("The job has no captioner.")
        return captioner

    @property
    def model(self) -> str:
        """Name of the model as rows keep it (`str`); of a folder only the last part, and what its weights are."""
        model = self.captioner.model
        if self.kind == "engine" and Path(model).is_dir():
            model = Path(model).resolve().name
        return f"{model}@{self.revision}" if self.revision else model

    @property
    def sampling(self) -> dict[str, Any]:
        """Settings that decide a caption (`dict`)."""
        if self.endpoint is not None:
            options = asdict(self.endpoint)
            return {name: options[name] for name in DECISIVE}
        return self.captioner.sampling()  # type: ignore[union-attr]

    @cached_property
    def sampling_hash(self) -> str:
        """Twelve hexadecimal digits (`str`) that tell settings apart."""
        return hashlib.sha256(json.dumps(self.sampling, sort_keys=True).encode()).hexdigest()[:12]

    @cached_property
    def prompt_set(self) -> PromptSet:
        """The prompts of the job."""
        return load_prompts(self.prompts.file) if self.texts is None else PromptSet(**self.texts)

    def prompt_for(self, source: str, image_sha256: str) -> Prompt:
        """
        The prompt of an image.

        Args:
            source (`str`): Of the image.
            image_sha256 (`str`): Of its bytes.

        Returns:
            `Prompt`: Always the same for the same image.
        """
        if self.prompts.unified:
            return UNIFIED
        options = self.prompts
        return self.prompt_set.for_image(source, image_sha256, options.aesthetic_share, options.seed)

    def prompts_for(self, source: str) -> list[Prompt]:
        """
        Every prompt that images of a source may get.

        Args:
            source (`str`): The source.

        Returns:
            `list[Prompt]`: One or two.
        """
        if self.prompts.unified:
            return [UNIFIED]
        return [self.prompt_set.for_image(source, "", share) for share in (0.0, 1.0)]

    @cached_property
    def variant(self) -> str:
        """Twelve hexadecimal digits (`str`) for model, settings and all prompts, for which a shard is finished."""
        texts = UNIFIED.text if self.prompts.unified else asdict(self.prompt_set)
        drawn = [self.prompts.aesthetic_share, self.prompts.seed]
        what = {"model": self.model, "sampling": self.sampling, "prompts": texts, "drawn": drawn}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]

    def to_json(self) -> dict[str, Any]:
        """
        The job for its folder; it holds no key, only the name of the variable that does.

        Returns:
            `dict`: Ready for JSON.
        """
        return {**asdict(self), "variant": self.variant, "model": self.model, "sampling": self.sampling}

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> "CaptionJob":
        """
        A job as [`CaptionJob.to_json`] wrote it.

        Args:
            facts (`dict`): What was read.

        Returns:
            `CaptionJob`: The same job.

        Raises:
            `ValueError`: It is none.
        """
        try:
            return cls(
                endpoint=EndpointConfig(**facts["endpoint"]) if facts["endpoint"] else None,
                engine=EngineConfig(**facts["engine"]) if facts["engine"] else None,
                prompts=PromptOptions(**facts["prompts"]),
                concurrency=facts["concurrency"],
                revision=facts["revision"],
                texts=facts["texts"],
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"These are no facts of a captioning job: {error}.") from error


def weights_of(model: str, trust_remote_code: bool = False) -> str:
    """
    What identifies the weights of a model: a folder trained anew has the same name and other captions.

    Args:
        model (`str`): Folder or name on the Hub.
        trust_remote_code (`bool`, defaults to `False`): Whether its code may be read.

    Returns:
        `str`: Twelve hexadecimal digits: of the files of a folder, or of the commit on the Hub.

    Raises:
        `OSError`: There is no such model.
    """
    folder = Path(model)
    if not folder.is_dir():
        from transformers import AutoConfig  # seconds, and only a model on the Hub needs it

        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
        return str(config._commit_hash or "unknown")[:12]
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} is no model: it has no config.json.")
    digest = hashlib.sha256()
    for file in sorted({file for pattern in WEIGHTS for file in folder.glob(pattern)}):
        with file.open("rb") as stream:
            digest.update(os.fsencode(file.name) + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:12]
