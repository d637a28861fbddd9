"""
Builders of `datasets` that read the released files and image roots directly, without a repository in between.

```python
from dataset_scripts.builders import ShareGPT4V

builder = ShareGPT4V(config_name="ShareGPT4V-PT", data_files={"train": "share-captioner.json"}, image_roots=["data"])
rows = builder.as_streaming_dataset("train")
```
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import BuilderConfig, DatasetInfo, DownloadManager, Features, GeneratorBasedBuilder, SplitGenerator

from .build import RELEASED
from .coverage import Lost
from .images import ImageRoots
from .join import Resize, join_images
from .rows import Origin, RowKind, RowSource
from .schema import CAPTION_FEATURES, CONVERSATION_FEATURES, with_paths


logger = logging.getLogger(__name__)


@dataclass
class ShareGPT4VConfig(BuilderConfig):
    """
    One of the released sets, or any file of their format.

    Args:
        image_roots (`list[str]`): Folders with the images; without one the rows have paths. Prepared data are found
            again by the data file and these options: after adding images, prepare with `force_redownload`.
        rows (`str`): `captions` or `conversations`.
        resize (`int`, *optional*): Longest side that images are re-encoded to.
        on_missing (`str`, defaults to `"error"`): `skip` leaves out rows whose image cannot be used.
        shards (`int`, defaults to 1): Parts that processes and data loader workers share; each part parses the file.
        records (`int`): Expected number of records, for cutting the parts.
    """

    image_roots: list[str] = field(default_factory=list)
    rows: RowKind = "captions"
    resize: int | None = None
    on_missing: str = "error"
    shards: int = 1
    records: int = 0
    captioner: str = "unknown"
    prompt_id: str = "unknown"
    license: str = "unknown"


class ShareGPT4V(GeneratorBasedBuilder):
    """Builder with the configurations `ShareGPT4V`, `ShareGPT4V-PT` and `ShareGPT4V-Mix665K`."""

    BUILDER_CONFIG_CLASS = ShareGPT4VConfig
    BUILDER_CONFIGS = [
        ShareGPT4VConfig(
            name=released.config,
            rows=released.rows,
            records=released.records,
            captioner=released.origin.captioner,
            prompt_id=released.origin.prompt_id,
            license=released.origin.license,
        )
        for released in RELEASED
    ]

    def _info(self) -> DatasetInfo:
        features: Features = CAPTION_FEATURES if self.config.rows == "captions" else CONVERSATION_FEATURES
        return DatasetInfo(features=features if self.config.image_roots else with_paths(features))

    def _split_generators(self, dl_manager: DownloadManager) -> list[SplitGenerator]:
        if not self.config.data_files:
            raise ValueError("Give the released file: `data_files={'train': 'file.json'}`.")
        if self.config.shards < 1:
            raise ValueError(f"`shards` must be positive, got {self.config.shards}.")
        size = max(1, self.config.records // self.config.shards)
        starts = [size * part for part in range(self.config.shards)]
        parts = [(start, start + size) for start in starts[:-1]] + [(starts[-1], None)]
        return [
            SplitGenerator(split, gen_kwargs={"parts": [(path, *part) for path in paths for part in parts]})
            for split, paths in self.config.data_files.items()
        ]

    def _generate_examples(self, parts: list[tuple[str, int, int | None]]) -> Iterator[tuple[Any, dict[str, Any]]]:
        config = self.config
        roots = ImageRoots(config.image_roots) if config.image_roots else None
        for path, start, stop in parts:
            source = RowSource(Path(path), origin=Origin(config.captioner, config.prompt_id, config.license))
            rows = source.captions() if config.rows == "captions" else source.conversations()
            items: Any = islice(enumerate(rows), start, stop)
            if roots is not None:
                resize = Resize(config.resize) if config.resize else None
                items = join_images(items, roots, resize, config.on_missing, workers=0)
            lost = 0
            for position, row in items:
                if isinstance(row, Lost):
                    lost += 1
                else:
                    yield f"{path}-{position}", row
            if lost:
                logger.warning("%d rows of %s were left out: their images cannot be used.", lost, path)
