"""
Prompts as versioned data: a request for every image, what its source adds, and an aesthetic one for a part of them.

The paper asks GPT4-Vision with a base prompt, a specialised prompt for each source and, for some images, an aesthetic
one (arXiv:2311.12793, section 3.2); its captioner learns to do without (section 3.3). Every caption stores the id and
the hash of its prompt, so that captions on other prompts are never taken for the same.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dataset_scripts.constants import CAPTION_INSTRUCTION, IMAGE_TOKEN


BUILT_IN = Path(__file__).with_name("data") / "prompts_v1.yaml"
FIELDS = ("name", "base", "sources", "aesthetic")
PAPER_SOURCES = ("coco", "sam", "lcs", "textcaps", "wikiart", "web-landmark", "web-celebrity")


@dataclass(frozen=True)
class Prompt:
    """
    What is asked about one image.

    Args:
        id (`str`): Version and parts, for example `v1/coco+aesthetic`.
        text (`str`): The request.
    """

    id: str
    text: str

    @property
    def sha256(self) -> str:
        """Hash of the text (`str`), what tells captions on other prompts apart."""
        return hashlib.sha256(self.text.encode()).hexdigest()


# What a captioner is asked, whatever the image is of.
UNIFIED = Prompt("share-captioner", CAPTION_INSTRUCTION)


@dataclass(frozen=True)
class PromptSet:
    """
    A version of the prompts.

    Args:
        name (`str`): Its name, the first part of the ids.
        base (`str`): Asked about every image.
        sources (`dict[str, str]`): What is added for the images of a source.
        aesthetic (`str`): What is added for a part of the images.
    """

    name: str
    base: str
    sources: dict[str, str]
    aesthetic: str

    def __post_init__(self) -> None:
        texts = {"base": self.base, "aesthetic": self.aesthetic, **self.sources}
        for name, text in texts.items():
            if not isinstance(text, str) or not text.strip() or IMAGE_TOKEN in text:
                raise ValueError(f"The prompt {name!r} of {self.name!r} must be a text without {IMAGE_TOKEN}.")
        if not self.name or not set(self.name).isdisjoint("/+ \n"):
            raise ValueError(f"`name` must be a word without / and +, got {self.name!r}: ids are made with them.")

    def for_image(self, source: str, image_key: str, aesthetic_share: float = 0.0, seed: int = 0) -> Prompt:
        """
        The prompt of one image; the same whatever other images there are, and in whatever order.

        Args:
            source (`str`): Its source; one that has no prompt of its own gets the base alone.
            image_key (`str`): What identifies the image: the SHA-256 of its bytes.
            aesthetic_share (`float`, defaults to 0): Share of images, 0 to 1, for which the aesthetic prompt is added.
            seed (`int`, defaults to 0): Of that choice.

        Returns:
            `Prompt`: Text and id.

        Raises:
            `ValueError`: The share is no share.
        """
        if not 0 <= aesthetic_share <= 1:
            raise ValueError(f"`aesthetic_share` must be from 0 to 1, got {aesthetic_share}.")
        parts = [self.base]
        kind = source if source in self.sources else "base"
        if source in self.sources:
            parts.append(self.sources[source])
        drawn = hashlib.sha256(f"{seed}/{image_key}".encode()).digest()[:8]
        if int.from_bytes(drawn, "big") < aesthetic_share * 2**64:
            parts.append(self.aesthetic)
            kind += "+aesthetic"
        return Prompt(f"{self.name}/{kind}", " ".join(part.strip() for part in parts))


def load_prompts(path: str | os.PathLike | None = None) -> PromptSet:
    """
    Read a version of the prompts: the built-in one, or a file of one's own on top of it.

    ```yaml
    name: ours                 # a name of its own, since captions keep it
    sources:
      chart: Read every axis, legend and value of this chart.
    ```

    Args:
        path (`str` or `os.PathLike`, *optional*): YAML file; `base`, `aesthetic` and sources that it does not have are
            those of the built-in version, and a source of `null` asks the base alone.

    Returns:
        `PromptSet`: The prompts.

    Raises:
        `FileNotFoundError`: The file is missing.
        `ValueError`: It is no mapping, has unknown fields, or the name of the built-in version.
    """
    built_in = _read(BUILT_IN)
    if path is None:
        return PromptSet(**built_in)
    own = _read(Path(path))
    if own.get("name") in (None, built_in["name"]):
        raise ValueError(f"{path} needs a `name` of its own: captions keep it, and {built_in['name']!r} is taken.")
    sources = own.get("sources") or {}
    if not isinstance(sources, dict):
        raise ValueError(f"`sources` of {path} must be a mapping of source and prompt.")
    sources = {**built_in["sources"], **sources}
    merged = {**built_in, **own, "sources": {name: text for name, text in sources.items() if text is not None}}
    return PromptSet(**merged)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"There is no prompt file {path}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML file: {error}") from error
    if not isinstance(content, dict) or not set(content) <= set(FIELDS):
        raise ValueError(f"{path} must be a mapping with the fields {', '.join(FIELDS)}, got {content!r:.80}.")
    return content
