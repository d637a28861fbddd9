"""The exact folder that is published."""

import json
import os

import pytest

from model_cards.staging import StageError, load_line, stage
from tests.model_cards.published import REPO, adapter_folder, model_folder, write_json


SHIPPED = {
    "configuration_sharegpt4v.py",
    "images_sharegpt4v.py",
    "modeling_sharegpt4v.py",
    "processing_sharegpt4v.py",
}


@pytest.fixture
def source(tmp_path):
    return model_folder(tmp_path / "run")


@pytest.fixture
def staged(source, tmp_path):
    return stage("model", source, REPO, tmp_path / "out", {"revision": "v1.0"})


def test_the_native_class_is_named_beside_auto_map(staged):
    config = json.loads((staged.folder / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert config["auto_map"]["AutoModel"] == "modeling_sharegpt4v.ShareGPT4VForConditionalGeneration"


def test_code_files_that_auto_map_needs_are_added_with_what_they_import(staged):
    assert set(staged.files) >= SHIPPED
    assert any("images_sharegpt4v.py" in change for change in staged.changes)


def test_a_code_file_that_lies_there_is_not_replaced(source, tmp_path):
    (source / "configuration_sharegpt4v.py").write_text("MINE = True\n")
    staged = stage("model", source, REPO, tmp_path / "out", {"revision": "v1.0"})
    assert (staged.folder / "configuration_sharegpt4v.py").read_text() == "MINE = True\n"


def test_auto_map_to_an_unknown_file_is_refused(source, tmp_path):
    write_json(source / "processor_config.json", {"auto_map": {"AutoProcessor": "elsewhere.Processor"}})
    with pytest.raises(StageError, match=r"needs elsewhere\.py"):
        stage("model", source, REPO, tmp_path / "out", {"revision": "v1.0"})


def test_paths_of_this_machine_leave_the_configuration(staged):
    assert "/data" not in (staged.folder / "config.json").read_text()
    assert any("_name_or_path" in change for change in staged.changes)


def test_state_of_the_run_stays_out_and_is_listed(staged):
    assert {"training_args.bin", "checkpoint-6/optimizer.pt", "card.yaml"} <= set(staged.left_out)
    assert not {"training_args.bin", "card.yaml"} & set(staged.files)


def test_the_source_is_not_changed(source, tmp_path):
    before = {path: path.read_bytes() for path in source.rglob("*") if path.is_file()}
    stage("model", source, REPO, tmp_path / "out", {"revision": "v1.0"})
    assert {path: path.read_bytes() for path in source.rglob("*") if path.is_file()} == before


def test_large_weights_are_linked_and_not_copied(source, tmp_path):
    with (source / "model.safetensors").open("ab") as file:
        file.truncate(3 << 20)
    staged = stage("model", source, REPO, tmp_path / "out", {"revision": "v1.0"})
    assert os.path.samefile(staged.folder / "model.safetensors", source / "model.safetensors")


def test_sizes_and_licence_are_told(staged):
    assert staged.licence == "llama2"
    assert staged.files["model.safetensors"] == (staged.folder / "model.safetensors").stat().st_size
    assert staged.bytes == sum(staged.files.values())


def test_a_folder_with_content_is_not_staged_into(source, tmp_path):
    with pytest.raises(StageError, match="not empty"):
        stage("model", source, REPO, source, {"revision": "v1.0"})


def test_weights_as_pickles_are_refused_with_the_way_out(source, tmp_path):
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(StageError, match="convert_weights import"):
        stage("model", source, REPO, tmp_path / "out", {"revision": "v1.0"})


def test_an_absent_shard_is_named(source, tmp_path):
    write_json(source / "model.safetensors.index.json", {"weight_map": {"a": "model-00002-of-00002.safetensors"}})
    with pytest.raises(StageError, match="model-00002-of-00002"):
        stage("model", source, REPO, tmp_path / "out", {"revision": "v1.0"})


def test_adapters_are_not_published_as_a_model(tmp_path):
    folder = adapter_folder(tmp_path / "lora")
    with pytest.raises(StageError, match="publish adapter"):
        stage("model", folder, REPO, tmp_path / "out", {"revision": "v1.0"})


def test_adapters_name_their_base_on_the_hub_and_its_commit(tmp_path):
    commit = "a" * 40
    folder = adapter_folder(tmp_path / "lora", base_model="tester/base", base_model_revision=commit)
    staged = stage("adapter", folder, REPO, tmp_path / "out", {"revision": "v1.0"})
    config = json.loads((staged.folder / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("tester/base", commit)
    line = load_line(staged, "b" * 40)
    compile(line, "line", "exec")
    assert line.endswith(
        'model = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained("tester/base", '
        f'revision="{commit}"), "{REPO}", revision="{"b" * 40}")'
    )


def test_adapters_on_a_folder_of_this_machine_are_refused_with_the_way_out(tmp_path):
    folder = adapter_folder(tmp_path / "lora", base_model=None)
    with pytest.raises(StageError, match="--fact base_model=owner/name"):
        stage("adapter", folder, REPO, tmp_path / "out", {"revision": "v1.0"})


def test_a_link_out_of_the_folder_stays_a_link_for_the_leak_check(source, tmp_path):
    outside = tmp_path / "notes.txt"
    outside.write_text("mine")
    (source / "notes.txt").symlink_to(outside)
    staged = stage("model", source, REPO, tmp_path / "out", {"revision": "v1.0"})
    assert (staged.folder / "notes.txt").is_symlink()


def test_a_link_within_the_folder_becomes_a_file(source, tmp_path):
    (source / "again.json").symlink_to(source / "run.json")
    staged = stage("model", source, REPO, tmp_path / "out", {"revision": "v1.0"})
    assert not (staged.folder / "again.json").is_symlink()
