"""
The photographs of the demo and what was written about them.

`examples/photos.jsonl` names pictures inside installed pip packages; a folder of your own holds the pictures and one
jsonl file beside them. One object a line:

```json
{"id": "cat", "image": "cat.jpg", "caption": "A tabby cat ...", "source": "my camera", "license": "CC0-1.0",
 "split": "train", "conversation": [{"question": "What colour is it?", "answer": "It is brown."}]}
```

`image` and `caption` are required. `id` defaults to the file's stem, `split` to `train` (the other is `heldout`).
"""

import hashlib
import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataset_scripts.build import write_repo
from dataset_scripts.rows import caption_to_conversation
from dataset_scripts.schema import IMAGE_TOKEN
from modeling_sharegpt4v import open_image


CAPTION_PROMPT = "Describe this photograph in detail."
PROMPT_ID = "demo-detail-1"
MIN_TRAINED = 2


@dataclass
class Photo:
    """A photograph with its caption and question-answer turns."""

    id: str
    path: Path
    caption: str
    split: str = "train"
    source: str = ""
    license: str = ""
    attribution: str = ""
    conversation: list[dict[str, str]] = field(default_factory=list)


def read_photos(jsonl: Path, root: Path | None = None) -> list[Photo]:
    """
    Read photographs and check that each picture decodes.

    Args:
        jsonl (`Path`): File of one object a line.
        root (`Path`, *optional*): Folder of the pictures. By default `image` is a path in an installed package,
            for example `skimage/data/cat.png`.

    Returns:
        `list[Photo]`: In the order of the file.

    Raises:
        `ValueError`: A line is no object, lacks a field, or names a picture outside the folder, missing or broken, or
            fewer than two photographs are left to train on. The message names file and line.
    """
    photos: list[Photo] = []
    for number, line in enumerate(jsonl.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            photos.append(_read_line(line, root))
        except (ValueError, OSError) as error:
            raise ValueError(f"{jsonl.name}, line {number}: {error}") from error
    repeated = sorted({photo.id for photo in photos if sum(other.id == photo.id for other in photos) > 1})
    if repeated:
        raise ValueError(f"{jsonl.name}: the ids {repeated} occur more than once. Give each photograph its own `id`.")
    if sum(photo.split == "train" for photo in photos) < MIN_TRAINED:
        raise ValueError(f"{jsonl.name} holds fewer than {MIN_TRAINED} photographs of split 'train'. Add some.")
    return photos


def find_photos(folder: Path) -> list[Photo]:
    """
    Read a user's own folder.

    Args:
        folder (`Path`): Pictures and exactly one `.jsonl` file.

    Returns:
        `list[Photo]`: See [`read_photos`].
    """
    files = sorted(folder.glob("*.jsonl"))
    if len(files) != 1:
        raise ValueError(f"{folder} must hold exactly one .jsonl file, found {len(files)}. See `{__name__}`.")
    return read_photos(files[0], folder)


def build_dataset(photos: list[Photo], folder: Path) -> Path:
    """
    Write the Hub-layout repository of the demo: `captions`, `pretrain` and `finetune`, each with its splits.

    Args:
        photos (`list[Photo]`): Photographs.
        folder (`Path`): Where the repository appears.

    Returns:
        `Path`: The folder.
    """
    captions: dict[str, list[dict[str, Any]]] = {}
    pretrain: dict[str, list[dict[str, Any]]] = {}
    finetune: dict[str, list[dict[str, Any]]] = {}
    for photo in photos:
        row = _caption_row(photo)
        conversation = caption_to_conversation(row, CAPTION_PROMPT)
        captions.setdefault(photo.split, []).append(row)
        pretrain.setdefault(photo.split, []).append(conversation)
        turns = [
            {"role": role, "content": turn[key]}
            for turn in photo.conversation
            for role, key in (("user", "question"), ("assistant", "answer"))
        ]
        finetune.setdefault(photo.split, []).append({**conversation, "messages": [*conversation["messages"], *turns]})
    return write_repo(folder, captions, {"pretrain": pretrain, "finetune": finetune})


def _read_line(line: str, root: Path | None) -> Photo:
    entry = json.loads(line)
    if not isinstance(entry, dict):
        raise ValueError(f"a line must be a JSON object, got {type(entry).__name__}.")
    turns = entry.get("conversation") or []
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("`conversation` must be a list of objects with `question` and `answer`.")
    _check_text(entry, "image", "caption")
    for turn in turns:
        _check_text(turn, "question", "answer")
    path = _resolve(entry["image"], root)
    open_image(path)
    photo = Photo(
        id=str(entry.get("id") or path.stem),
        path=path,
        caption=entry["caption"].strip(),
        split=entry.get("split", "train"),
        **{name: str(entry.get(name) or "") for name in ("source", "license", "attribution")},
        conversation=turns,
    )
    if photo.split not in ("train", "heldout"):
        raise ValueError(f"`split` must be 'train' or 'heldout', got {photo.split!r}.")
    return photo


def _check_text(entry: dict[str, Any], *names: str) -> None:
    for name in names:
        text = entry.get(name)
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"`{name}` must be a text that is not empty, got {text!r}.")
        if IMAGE_TOKEN in text:
            raise ValueError(f"`{name}` must not contain {IMAGE_TOKEN!r}: {text[:60]!r}.")


def _resolve(image: str, root: Path | None) -> Path:
    if root is None:
        package, _, rest = image.partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(f"the package {package!r} is not installed. Run `make setup`.")
        root, image = Path(spec.submodule_search_locations[0]), rest
    path = (root / image).resolve()
    if not path.is_relative_to(root.resolve()):
        raise ValueError(f"`image` must lie inside {root}, got {image!r}.")
    if not path.is_file():
        raise ValueError(f"there is no picture {image!r} in {root}.")
    return path


def _caption_row(photo: Photo) -> dict[str, Any]:
    encoded = photo.path.read_bytes()
    return {
        "id": photo.id,
        "image": {"bytes": encoded, "path": photo.path.name},
        "source": photo.source,
        "caption": photo.caption,
        "captioner": "human",
        "prompt_id": PROMPT_ID,
        "license": photo.license,
        "sha256": hashlib.sha256(encoded).hexdigest(),
    }
