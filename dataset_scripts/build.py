"""
From caption rows to conversation rows to a repository that `load_dataset` reads without code.

```
repo/README.md                         YAML `configs` that name the files of every configuration and split
repo/<config>/<split>-00000-of-00001.parquet
```
"""

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset, Features
from huggingface_hub import DatasetCardData

from .schema import CAPTION_FEATURES, CONVERSATION_FEATURES, validate_caption, validate_conversation


Rows = Iterable[dict[str, Any]]


def caption_to_conversation(row: dict[str, Any], prompt: str) -> dict[str, Any]:
    """
    Turn a caption row into a conversation row of one turn.

    Args:
        row (`dict`): Caption row.
        prompt (`str`): What the user asks for.

    Returns:
        `dict`: Conversation row; the caption is the answer.
    """
    return {
        "id": row["id"],
        "source": row["source"],
        "images": [row["image"]],
        "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": row["caption"]}],
    }


def write_repo(
    folder: str | os.PathLike, captions: Mapping[str, Rows], conversations: Mapping[str, Mapping[str, Rows]]
) -> Path:
    """
    Write a repository with a configuration `captions` and one for each set of conversations.

    Args:
        folder (`str` or `os.PathLike`): Where the repository appears, whole or not at all; an older one is replaced.
        captions (`dict[str, Iterable[dict]]`): Caption rows by split; may be empty.
        conversations (`dict[str, dict[str, Iterable[dict]]]`): Conversation rows by configuration and split.

    Returns:
        `Path`: The folder, ready for `load_dataset(folder, config)`.

    Raises:
        `ValueError`: A row breaks the schema; the message names configuration, split, row number and reason.
    """
    folder = Path(folder)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    configs = []
    if captions:
        configs.append(_write_config(partial, "captions", captions, CAPTION_FEATURES, validate_caption))
    for name, splits in conversations.items():
        configs.append(_write_config(partial, name, splits, CONVERSATION_FEATURES, validate_conversation))
    metadata = DatasetCardData(
        configs=configs,
        task_categories=["image-to-text", "visual-question-answering"],
        language="en",
        annotations_creators=["expert-generated"],
        pretty_name=folder.name,
    )
    (partial / "README.md").write_text(f"---\n{metadata}\n---\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def _write_config(
    folder: Path, name: str, splits: Mapping[str, Rows], features: Features, validate: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    (folder / name).mkdir(parents=True)
    data_files = []
    for split, rows in splits.items():
        rows = list(rows)
        for number, row in enumerate(rows):
            try:
                validate(row)
            except ValueError as error:
                raise ValueError(f"Row {number} of {name}/{split} (id {row.get('id')!r}): {error}") from error
        path = f"{name}/{split}-00000-of-00001.parquet"
        Dataset.from_list(rows, features=features).to_parquet(folder / path)
        data_files.append({"split": split, "path": path})
    return {"config_name": name, "data_files": data_files}
