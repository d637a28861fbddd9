"""What a repository says about itself is true: README header, sizes, Croissant records."""

import json
from pathlib import Path

import mlcroissant
import pytest
from datasets import load_dataset, load_dataset_builder
from datasets.utils.info_utils import VerificationMode
from huggingface_hub import DatasetCard

from dataset_scripts.build import BuildOptions, build_config, write_repo
from dataset_scripts.images import ImageRoots
from dataset_scripts.join import Resize
from dataset_scripts.repo import describe_repo, features_of, read_builds
from dataset_scripts.rows import RowSet, sha256_of
from dataset_scripts.schema import CAPTION_FEATURES, CONVERSATION_FEATURES, with_paths
from tests.dataset_scripts.test_build import (
    SMALL,
    caption_row,
    conversation_row,
    path_set,
    png,
    released_set,
)
from tests.fresh_process import run_fresh


@pytest.fixture(scope="module")
def repo(tmp_path_factory) -> Path:
    """Paths: the pretraining captions in several shards with several row groups, and the mix."""
    folder = tmp_path_factory.mktemp("repo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dataset_scripts.shards.ROW_GROUP_BYTES", 40_000)
        build_config(folder / "repo", "ShareGPT4V-PT", released_set(folder, "pt", 300), options=SMALL)
        options = BuildOptions(shard_bytes=150_000)
        build_config(folder / "repo", "ShareGPT4V-Mix665K", released_set(folder, "mix", 300), options=options)
    return folder / "repo"


@pytest.fixture(scope="module")
def joined(tmp_path_factory) -> Path:
    """Images inside, of captions and of conversations with none to two of them."""
    talks = [conversation_row(0), conversation_row(1, images=[]), conversation_row(2, images=[png(1), png(2)])]
    captions = {"train": [caption_row(0), caption_row(1, sha256=None)], "heldout": [caption_row(2)]}
    return write_repo(tmp_path_factory.mktemp("joined") / "repo", captions, {"talk": {"train": talks}})


def header(repo: Path) -> dict:
    return DatasetCard.load(repo / "README.md").data.to_dict()


@pytest.mark.parametrize("config", ["ShareGPT4V-PT", "ShareGPT4V-Mix665K"])
def test_sizes_are_those_that_load_dataset_finds_and_verifies(repo, tmp_path, config):
    stated = load_dataset_builder(str(repo), config, cache_dir=str(tmp_path / "stated")).info
    data = load_dataset(
        str(repo),
        config,
        split="train",
        cache_dir=str(tmp_path / "cache"),
        verification_mode=VerificationMode.ALL_CHECKS,
    )
    assert len(data) == 300 and data.features == stated.features
    found, written = data.info.splits["train"], stated.splits["train"]
    assert (found.num_examples, found.num_bytes) == (written.num_examples, written.num_bytes)
    assert (data.info.download_size, data.info.dataset_size) == (stated.download_size, stated.dataset_size)


def test_images_and_splits_are_loaded_with_all_checks(joined, tmp_path):
    data = load_dataset(str(joined), "captions", cache_dir=str(tmp_path), verification_mode="all_checks")
    assert {name: len(split) for name, split in data.items()} == {"train": 2, "heldout": 1}
    stated = header(joined)["dataset_info"][0]["splits"]
    assert [(split["name"], split["num_bytes"]) for split in stated] == [
        (name, data[name].info.splits[name].num_bytes) for name in ("train", "heldout")
    ]


def test_a_process_without_this_package_loads_and_streams_it(repo, tmp_path):
    # Streams are read to their end: a process that leaves one half read may abort in Arrow's threads when it ends.
    code = """
import json
from datasets import load_dataset
plain = load_dataset(sys.argv[1], "ShareGPT4V-PT", split="train")
stream = load_dataset(sys.argv[1], "ShareGPT4V-PT", split="train", streaming=True)
default = load_dataset(sys.argv[1], split="train", streaming=True)
print(json.dumps([plain[:2]["id"], [row["id"] for row in stream] == plain["id"][:], list(default)[0]]))
"""
    ids, same, first = run_fresh(code, repo, cwd=tmp_path)
    assert len(ids) == 2 and same
    assert set(first) == set(CONVERSATION_FEATURES)  # the first configuration by name is the default


def test_the_header_lists_every_configuration_once_and_one_default(repo):
    stated = header(repo)
    assert [(entry["config_name"], entry.get("default")) for entry in stated["configs"]] == [
        ("ShareGPT4V-Mix665K", True),
        ("ShareGPT4V-PT", None),
    ]
    assert stated["configs"][1]["data_files"] == [{"split": "train", "path": "ShareGPT4V-PT/train-*.parquet"}]
    assert [info["config_name"] for info in stated["dataset_info"]] == ["ShareGPT4V-Mix665K", "ShareGPT4V-PT"]
    assert (stated["license"], stated["size_categories"]) == ("cc-by-nc-4.0", ["n<1K"])


def test_a_licence_that_is_not_the_same_for_all_is_other(tmp_path):
    rows = path_set(3)
    for name, licence in (("a", "cc-by-nc-4.0"), ("b", "CC0-1.0")):
        rows.facts = lambda licence=licence: {"license": licence}
        build_config(tmp_path / "repo", name, rows)
    assert header(tmp_path / "repo")["license"] == "other"
    assert json.loads((tmp_path / "repo/croissant.json").read_text())["license"] == ["CC0-1.0", "cc-by-nc-4.0"]


def test_the_text_says_what_was_built_from_what(repo, joined, tmp_path):
    text = (repo / "README.md").read_text()
    assert 'load_dataset("repo", "ShareGPT4V-PT", split="train")' in text and "- 300 captions in `train`" in text
    assert "- images are named by path" in text and "- built from `pt.json` (SHA-256 `" in text
    assert "named by path" not in (joined / "README.md").read_text()
    (tmp_path / "0.jpg").write_bytes(png(0)["bytes"])
    options = BuildOptions(resize=Resize(14, "crop"), on_missing="skip", workers=0)
    build_config(tmp_path / "repo", "set", path_set(2), ImageRoots([tmp_path]), options)
    text = (tmp_path / "repo/README.md").read_text()
    assert "- images re-encoded once, 14 pixels, for `crop`" in text and "- 1 of 2 images; 1 rows left out" in text


def test_columns_follow_from_the_build(repo, joined):
    built = read_builds(repo)
    assert list(built) == ["ShareGPT4V-Mix665K", "ShareGPT4V-PT"]
    assert features_of(built["ShareGPT4V-PT"]) == with_paths(CAPTION_FEATURES)
    assert features_of(built["ShareGPT4V-Mix665K"]) == with_paths(CONVERSATION_FEATURES)
    assert features_of(read_builds(joined)["captions"]) == CAPTION_FEATURES


def croissant_records(repo: Path, record_set: str) -> list[dict]:
    """Records as the rows they came from: names without the record set, texts decoded."""

    def plain(value):
        if isinstance(value, dict):
            return {name.rsplit("/", 1)[1]: plain(part) for name, part in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(part) for part in value]
        return value.decode() if isinstance(value, bytes) else value

    return [plain(row) for row in mlcroissant.Dataset(str(repo / "croissant.json")).records(record_set)]


def test_croissant_is_valid_for_paths_and_images(repo, joined):
    for folder in (repo, joined):
        dataset = mlcroissant.Dataset(str(folder / "croissant.json"))
        assert not dataset.metadata.ctx.issues.errors
        for file in dataset.metadata.distribution:
            if isinstance(file, mlcroissant.FileObject):
                assert (folder / file.content_url).is_file()
    assert [rows.id for rows in dataset.metadata.record_sets] == ["captions/train", "captions/heldout", "talk/train"]


@pytest.mark.parametrize("config", ["ShareGPT4V-PT", "ShareGPT4V-Mix665K"])
def test_croissant_gives_the_rows_with_paths(repo, config):
    rows = list(load_dataset(str(repo), config, split="train", streaming=True))
    assert croissant_records(repo, f"{config}/train") == rows


@pytest.mark.parametrize(("config", "split"), [("captions", "train"), ("captions", "heldout"), ("talk", "train")])
def test_croissant_gives_the_rows_with_images(joined, config, split):
    rows = list(load_dataset(str(joined), config, split=split, streaming=True))
    records = croissant_records(joined, f"{config}/{split}")
    for row in (*rows, *records):
        images = row.pop("images", None) or [image for image in [row.pop("image", None)] if image]
        row["pixels"] = [image.convert("RGB").tobytes() for image in images]
    assert records == rows and len(rows) > 0


def test_checksums_are_those_of_the_files(repo):
    stated = json.loads((repo / "croissant.json").read_text())
    files = [entry for entry in stated["distribution"] if entry["@type"] == "cr:FileObject"]
    assert len(files) == len(list(repo.glob("*/*.parquet"))) > 4
    for file in files:
        assert file["sha256"] == sha256_of(repo / file["contentUrl"])
        assert file["contentSize"] == f"{(repo / file['contentUrl']).stat().st_size} B"


def test_a_description_does_not_depend_on_when_it_is_made(repo):
    texts = describe_repo(repo)
    assert {name: (repo / name).read_text() for name in texts} == texts


def test_names_that_mean_something_to_markdown_or_yaml_stay_names(tmp_path):
    repo = tmp_path / "no: - `z` # {y}"
    build_config(repo, "true", path_set(2))
    build_config(repo, "1_2", RowSet(path_set(2).read, "captions", {}), options=BuildOptions(split="null"))
    stated = header(repo)
    assert stated["pretty_name"] == repo.name
    assert [entry["config_name"] for entry in stated["configs"]] == ["1_2", "true"]
    data = load_dataset(str(repo), "1_2", cache_dir=str(tmp_path / "cache"))
    assert list(data) == ["null"] and data["null"].num_rows == 2
