"""README and Croissant description of a repository, written from the `build.json` of its configurations."""

import json
from pathlib import Path
from typing import Any

from datasets import DatasetInfo, Features, Image, List
from datasets.info import DatasetInfosDict
from datasets.splits import SplitDict, SplitInfo
from huggingface_hub import DatasetCardData

from .schema import CAPTION_FEATURES, CONVERSATION_FEATURES, with_paths


SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
PAPER = "Chen et al., ShareGPT4V: Improving Large Multi-Modal Models with Better Captions, ECCV 2024, arXiv:2311.12793"


def read_builds(repo: Path) -> dict[str, dict[str, Any]]:
    """
    Facts of every configuration of a repository.

    Args:
        repo (`Path`): The repository.

    Returns:
        `dict[str, dict]`: `build.json` by configuration, sorted by name.
    """
    files = sorted(repo.glob("*/build.json"))
    return {file.parent.name: json.loads(file.read_text(encoding="utf-8")) for file in files}


def features_of(build: dict[str, Any]) -> Features:
    """
    Columns of a configuration.

    Args:
        build (`dict`): Its `build.json`.

    Returns:
        `Features`: With images, or with their paths.
    """
    features = CAPTION_FEATURES if build["rows"] == "captions" else CONVERSATION_FEATURES
    return with_paths(features) if build["images"] == "paths" else features


def describe_repo(repo: Path) -> dict[str, str]:
    """
    Describe a repository by what its configurations say.

    Args:
        repo (`Path`): The repository.

    Returns:
        `dict[str, str]`: Texts of `croissant.json` and `README.md`, by name.
    """
    name, builds = repo.name, read_builds(repo)
    infos = DatasetInfosDict({config: _info(config, build) for config, build in builds.items()})
    rows = sum(split.num_examples for info in infos.values() for split in info.splits.values())
    licenses = sorted({build["license"] for build in builds.values() if "license" in build})
    metadata = DatasetCardData(
        pretty_name=name,
        language="en",
        license=licenses[0] if len(licenses) == 1 and licenses[0] == "cc-by-nc-4.0" else "other",
        task_categories=["image-to-text", "visual-question-answering"],
        size_categories=[next((label for limit, label in SIZES if rows < limit), "n>10M")],
        configs=[
            {
                "config_name": config,
                "data_files": [{"split": split, "path": f"{config}/{split}-*.parquet"} for split in build["splits"]],
                **({"default": True} if config == next(iter(builds)) else {}),
            }
            for config, build in builds.items()
        ],
    )
    infos.to_dataset_card_data(metadata)
    text = f"---\n{metadata}\n---\n\n# {name}\n\n" + "\n".join(_describe(name, *item) for item in builds.items())
    croissant = json.dumps(_croissant(name, builds), indent=2, default=str) + "\n"
    return {"croissant.json": croissant, "README.md": text}


def _info(config: str, build: dict[str, Any]) -> DatasetInfo:
    splits = SplitDict()
    for split, shards in build["splits"].items():
        size = sum(shard["in_memory"] for shard in shards)
        splits.add(SplitInfo(split, num_bytes=size, num_examples=sum(shard["rows"] for shard in shards)))
    stored = sum(shard["bytes"] for shards in build["splits"].values() for shard in shards)
    return DatasetInfo(
        features=features_of(build),
        splits=splits,
        config_name=config,
        download_size=stored,
        dataset_size=sum(split.num_bytes for split in splits.values()),
    )


def _describe(name: str, config: str, build: dict[str, Any]) -> str:
    counts = {split: sum(shard["rows"] for shard in shards) for split, shards in build["splits"].items()}
    call = f'load_dataset("{name}", "{config}", split="{next(iter(counts))}")'
    lines = [f"## {config}", "", "```python", call, "```", ""]
    lines += [f"- {count:,} {build['rows']} in `{split}`" for split, count in counts.items()]
    if build["images"] == "paths":
        lines.append("- images are named by path, relative to the root of all images; they are not in this repository")
    elif isinstance(build["images"], dict):
        lines.append(f"- images re-encoded once, {build['images']['side']} pixels, for `{build['images']['mode']}`")
    for file, facts in build.get("files", {}).items():
        lines.append(f"- built from `{file}` (SHA-256 `{facts['sha256']}`)")
    if "coverage" in build:
        total = build["coverage"]["total"]
        lines.append(f"- {total['found']:,} of {total['expected']:,} images; {build['rows_left_out']:,} rows left out")
    return "\n".join([*lines, ""])


def _croissant(name: str, builds: dict[str, dict[str, Any]]) -> dict[str, Any]:
    import mlcroissant as mlc  # half a second, needed once a build

    files, records = [], []
    for config, build in builds.items():
        for split, shards in build["splits"].items():
            for shard in shards:
                path = f"{config}/{shard['file']}"
                files.append(
                    mlc.FileObject(
                        id=path,
                        name=path,
                        content_url=path,
                        content_size=f"{shard['bytes']} B",
                        encoding_formats=["application/x-parquet"],
                        sha256=shard["sha256"],
                    )
                )
            name_of_set = f"{config}/{split}"
            files.append(
                mlc.FileSet(
                    id=f"{name_of_set}-files",
                    name=f"{name_of_set}-files",
                    includes=[f"{config}/{split}-*.parquet"],
                    encoding_formats=["application/x-parquet"],
                )
            )
            records.append(_record_set(name_of_set, features_of(build)))
    licenses = sorted({build["license"] for build in builds.values() if "license" in build})
    return mlc.Metadata(
        name=name,
        description="Image captions and conversations; one record set for every configuration and split.",
        license=licenses or None,
        cite_as=PAPER,
        version="1.0.0",
        distribution=files,
        record_sets=records,
    ).to_json()


def _record_set(name: str, features: Features) -> Any:
    import mlcroissant as mlc

    fields = []
    for column, feature in features.items():
        inner = feature.feature if isinstance(feature, List) else feature
        several: dict[str, Any] = {"is_array": True, "array_shape": "-1"} if isinstance(feature, List) else {}
        if isinstance(inner, dict):
            parts = [_field(name, f"{column}/{part}", column, part) for part in inner]
            several["sub_fields"] = parts
            fields.append(mlc.Field(id=f"{name}/{column}", name=f"{name}/{column}", **several))
        else:
            # `repeated` is the older word for `is_array`; mlcroissant 1.1 reads lists of images only by it.
            several |= {"repeated": True} if several else {}
            part = "bytes" if isinstance(inner, Image) else None
            fields.append(_field(name, column, column, part, **several))
    return mlc.RecordSet(id=name, name=name, fields=fields)


def _field(record_set: str, path: str, column: str, part: str | None, **options: Any) -> Any:
    import mlcroissant as mlc

    transforms = [mlc.Transform(json_path=part)] if part else []
    source = mlc.Source(file_set=f"{record_set}-files", extract=mlc.Extract(column=column), transforms=transforms)
    kind = mlc.DataType.IMAGE_OBJECT if part == "bytes" else mlc.DataType.TEXT
    name = f"{record_set}/{path}"
    return mlc.Field(id=name, name=name, data_types=[kind], source=source, **options)
