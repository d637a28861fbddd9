"""Options of a captioning job beside those of an endpoint; light enough for a command line to read their helps."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class EngineConfig:
    """How our own captioner runs: a model of transformers' Auto classes in this machine's memory."""

    model: str = field(metadata={"help": "Folder or name on the Hub of an image-text-to-text model."})
    device: str = field(
        default="auto", metadata={"help": "`auto`: every GPU, else the processor; or `cpu`, `cuda`, `cuda:1`."}
    )
    dtype: str = field(default="auto", metadata={"help": "Type of the weights; that of the files by default."})
    slots: int = field(default=16, metadata={"help": "Captions that are written at the same time, a device."})
    max_length: int = field(default=2048, metadata={"help": "Most tokens of image, prompt and caption together."})
    max_new_tokens: int = field(default=512, metadata={"help": "Most tokens of a caption."})
    temperature: float | None = field(default=None, metadata={"help": "Of sampling; the likeliest token without."})
    top_p: float = field(default=1.0, metadata={"help": "Least probability of the likeliest tokens that are kept."})
    seed: int = field(default=0, metadata={"help": "With an image it decides the draws of its caption."})
    loop_guard: bool = field(default=True, metadata={"help": "End a caption that repeats one phrase."})
    threads: int = field(default=2, metadata={"help": "Threads that read images, a device."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Let code of the model's repository run."})

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("`model` is empty. Give a folder or a name on the Hub.")
        for name in ("slots", "max_length", "max_new_tokens", "threads"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.temperature is not None and self.temperature <= 0:
            raise ValueError(
                f"`temperature` must be above 0, got {self.temperature}. Leave it out for greedy captions."
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"`top_p` must be above 0 and at most 1, got {self.top_p}.")

    def sampling(self) -> dict[str, Any]:
        """
        What decides a caption beside image, prompt and weights.

        Returns:
            `dict`: Ready for JSON.
        """
        drawn = {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}
        how = drawn if self.temperature is not None else {}
        return {"max_new_tokens": self.max_new_tokens, "dtype": self.dtype, "loop_guard": self.loop_guard, **how}


@dataclass(frozen=True)
class PromptOptions:
    """Which prompt an image gets."""

    unified: bool = field(default=False, metadata={"help": "Ask what captioners are trained on, of every image."})
    file: str | None = field(default=None, metadata={"help": "YAML file of prompts of one's own."})
    aesthetic_share: float = field(default=0.0, metadata={"help": "Share of images with the aesthetic prompt."})
    seed: int = field(default=0, metadata={"help": "Of that share."})

    def __post_init__(self) -> None:
        if not 0 <= self.aesthetic_share <= 1:
            raise ValueError(f"`aesthetic_share` must be from 0 to 1, got {self.aesthetic_share}.")
        if self.unified and (self.file or self.aesthetic_share):
            raise ValueError("One prompt for every image leaves no room for a prompt file or an aesthetic share.")


@dataclass(frozen=True)
class CheckConfig:
    """Thresholds of the checks."""

    min_characters: int = field(default=40, metadata={"help": "A shorter caption is `too_short`."})
    ngram: int = field(default=6, metadata={"help": "Words of a phrase whose repetition makes a `loop`."})
    max_repeats: int = field(default=3, metadata={"help": "A phrase may stand so often in a caption."})
    max_images: int = field(default=2, metadata={"help": "A text may be the caption of so many images."})
    language: str | None = field(default="en", metadata={"help": "Expected language (ISO 639-1); unset: any."})
    leak_words: int = field(default=8, metadata={"help": "So many words of the prompt in a row are `prompt_leak`."})
    distance: int = field(default=4, metadata={"help": "Bits in which images that look the same may differ."})

    def __post_init__(self) -> None:
        for name in ("min_characters", "ngram", "max_repeats", "max_images", "leak_words"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
