"""Row 49 of the fault matrix, and all else that a card must not say or leave out."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from model_cards.check import check_folder
from model_cards.front_matter import join_card, split_card
from model_cards.render import write_card
from tests.model_cards.given import FOLDER, GIVEN, repo_of


@pytest.fixture
def ready(copy_of):
    """Makes a folder as it is published, with its card."""

    def prepare(kind):
        folder = copy_of(FOLDER.get(kind, kind))
        if kind == "adapter":
            own = folder / "adapter_config.json"
            base = {"base_model_name_or_path": "owner/base", "revision": "a" * 40}
            own.write_text(json.dumps({**json.loads(own.read_text()), **base}))
        write_card(kind, folder, folder, repo_of(kind), GIVEN[kind])
        return folder

    return prepare


def change(folder: Path, body=lambda text: text, **fields) -> None:
    """Change a card: fields of its metadata (None deletes one) and its text."""
    metadata, text = split_card((folder / "README.md").read_text())
    metadata = {name: value for name, value in {**metadata, **fields}.items() if value is not None}
    (folder / "README.md").write_text(join_card(metadata, body(text)))


def errors(folder: Path, repo_id: str | None = None) -> list[tuple[str, str]]:
    return [(one.rule, one.message) for one in check_folder(folder, repo_id) if one.level == "error"]


def rules(folder: Path, repo_id: str | None = None) -> set[str]:
    return {rule for rule, _ in errors(folder, repo_id)}


@pytest.mark.parametrize("kind", GIVEN)
def test_a_rendered_card_has_no_errors(ready, kind):
    assert errors(ready(kind), repo_of(kind)) == []


def test_the_description_for_croissant_is_complete(ready):
    found = [one.message for one in check_folder(ready("dataset")) if one.rule == "croissant"]
    assert [one for one in found if "license" in one or "url" in one] == []


@pytest.mark.parametrize(
    ("kind", "fields", "rule"),
    [
        ("model", {"license": None}, "license"),
        ("model", {"license": "llama-two"}, "license"),
        ("model", {"license": "other"}, "license"),
        ("model", {"base_model": None}, "base_model"),
        ("model", {"base_model": ["runs/base"]}, "base_model"),
        ("model", {"base_model_relation": "child"}, "base_model"),
        ("model", {"datasets": None}, "datasets"),
        ("model", {"datasets": "talk"}, "datasets"),
        ("model", {"pipeline_tag": None}, "pipeline_tag"),
        ("model", {"library_name": None}, "library_name"),
        ("model", {"tags": ""}, "metadata"),
        ("model", {"model-index": [{"name": "tiny"}]}, "metadata"),
        ("adapter", {"base_model": ["owner/other"]}, "base_model"),
        ("adapter", {"library_name": "transformers"}, "library_name"),
        ("dataset", {"license": None}, "license"),
        ("dataset", {"configs": None}, "configs"),
        ("dataset", {"dataset_info": None}, "N"),
        ("dataset", {"size_categories": ["n>10M"]}, "size_categories"),
        ("dataset", {"task_categories": None}, "task_categories"),
        ("metric", {"license": None}, "license"),
    ],
)
def test_wrong_metadata_is_found(ready, kind, fields, rule):
    folder = ready(kind)
    change(folder, **fields)
    assert rules(folder) == {rule}


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("{{ base_model }}", "placeholder"),
        ("{% if x %}", "placeholder"),
        ("[More Information Needed]", "placeholder"),
        ("More information needed", "placeholder"),
        ("TODO: numbers", "placeholder"),
        ("See <owner>/model.", "placeholder"),
        ("From /home/me/runs/base.", "path"),
        ("From `C:\\Users\\me`.", "path"),
        ("From file:///etc/passwd.", "path"),
        ("[curve](loss.png)", "link"),
        ("[out](../secret.txt)", "link"),
        ("[run](javascript:alert)", "link"),
        ("```python\nif:\n```", "code"),
        ('```python\nfrom datasets import load_dataset\nload_dataset("dataset")\n```', "code"),
        ('```python\nAutoModel.from_pretrained("a/b", trust_remote_code=True)\n```', "revision"),
        (
            '```python\noptions = {"trust_remote_code": True}\nAutoModel.from_pretrained("a/b", **options)\n```',
            "revision",
        ),
    ],
)
def test_wrong_text_is_found(ready, text, rule):
    folder = ready("model")
    change(folder, lambda body: f"{body}\n\n{text}\n")
    assert rules(folder) == {rule}


@pytest.mark.parametrize(
    "text",
    [
        "```python\nname = 'a/b'\nAutoModel.from_pretrained(name, revision='v1')\njson.load(file)\n```",
        "```python\nask = pipeline('image-text-to-text')\nload_dataset('parquet', data_files='x')\n```",
        "[paper](https://arxiv.org)",
        "[it](config.json)",
        "[up](#training)",
        "see a/b/c, and/or",
    ],
)
def test_right_text_is_left_alone(ready, text):
    folder = ready("model")
    change(folder, lambda body: f"{body}\n\n{text}\n")
    assert errors(folder) == []


ODD = [
    1,
    -1.5,
    True,
    "",
    {},
    "../x",
    [None],
    {"a": 1},
    [{"a": 1}],
    [[1]],
    float("nan"),
    [{"name": "x", "results": [1]}],
]


@pytest.mark.parametrize("kind", GIVEN)
def test_no_metadata_is_odd_enough_to_break_the_check(ready, kind):
    folder = ready(kind)
    (folder / "croissant.json").unlink(missing_ok=True)  # takes its time, and has a test of its own
    text = (folder / "README.md").read_text()
    for name in [*split_card(text)[0], "model-index", "license_name"]:
        for value in ODD:
            change(folder, **{name: value})
            check_folder(folder, repo_of(kind))
            (folder / "README.md").write_text(text)


@pytest.mark.parametrize(
    ("kind", "file"), [("model", "config.json"), ("adapter", "adapter_config.json"), ("dataset", "croissant.json")]
)
def test_no_description_is_odd_enough_to_break_the_check(ready, kind, file):
    path = ready(kind) / file
    text = path.read_text()
    for name in ("architectures", "auto_map", "base_model_name_or_path", "distribution", "recordSet", "name"):
        for value in ODD[:-2]:
            path.write_text(json.dumps({**json.loads(text), name: value}))
            check_folder(path.parent)
    path.write_text("[")
    assert rules(path.parent) == {"json"}


def test_a_card_without_n_is_found(ready):
    for kind in ("model", "dataset"):
        folder = ready(kind)
        change(folder, lambda body: body.replace("N = ", "so many, "))
        assert rules(folder) == {"N"}


@pytest.mark.parametrize(
    "top",
    [
        "license: mit\nlicense: other",
        "license: [mit",
        "- mit",
        "? [a]\n: b\n? [a]\n: c",
        "!!python/object/apply:os.system [ls]",
    ],
)
def test_metadata_that_yaml_reads_otherwise_is_refused(ready, top):
    folder = ready("model")
    body = split_card((folder / "README.md").read_text())[1]
    (folder / "README.md").write_text(f"---\n{top}\n---\n{body}")
    assert rules(folder) == {"metadata"}


def test_a_folder_without_card_or_metadata_is_found(ready, made):
    assert [one.rule for one in check_folder(made / "model")] == ["card"]
    folder = ready("model")
    (folder / "README.md").write_text(split_card((folder / "README.md").read_text())[1])
    assert {"metadata", "license", "base_model"} <= rules(folder)


def test_the_code_must_load_the_repository_itself(ready):
    assert errors(ready("model"), "owner/other") == [("code", "No code loads owner/other.")]


def test_a_build_that_was_not_made_a_card_of_is_not_ready(made):
    assert {"license", "code", "N"} <= rules(made / "dataset")


def index(**metric):
    dataset = {"name": "MME", "type": "lmms-lab/MME"}
    result = {"task": {"type": "image-text-to-text"}, "dataset": dataset, "metrics": [{"type": "score", **metric}]}
    return {"model-index": [{"name": "tiny", "results": [result]}]}


@pytest.mark.parametrize(
    ("metric", "found"),
    [
        ({"name": "score", "value": 1.0}, {"N"}),
        ({"name": "score (n=60 questions)", "value": 1.0}, set()),
        ({"name": "score", "value": 1.0, "args": {"n": 60}}, set()),
        ({"name": "score", "value": 1.0, "args": {"n": 60, "judge": "demo-judge"}}, {"judge"}),
        ({"name": "score (n=60)", "value": "good"}, {"figures"}),
    ],
)
def test_figures_of_model_index_need_their_n_and_a_judge(ready, metric, found):
    folder = ready("model")
    change(folder, **index(**metric))
    assert rules(folder) == found


@pytest.mark.parametrize(
    ("entry", "found"),
    [
        ({"dataset": {"id": "a/b", "task_id": "t"}, "value": 1.0, "notes": "figure score; n 60"}, set()),
        ({"dataset": {"id": "a/b", "task_id": "t"}, "value": 1.0}, {"N"}),
        ({"dataset": {"id": "a/b", "task_id": "t"}, "value": 1.0, "notes": "n 60; judge demo-judge"}, {"judge"}),
        ({"value": 1.0}, {"figures"}),
    ],
)
def test_files_of_figures_are_checked_too(ready, entry, found):
    folder = ready("model")
    (folder / ".eval_results").mkdir()
    (folder / ".eval_results" / "mme.yaml").write_text(yaml.safe_dump([entry]))
    assert rules(folder) == found


def test_classes_must_be_loadable_both_ways(ready):
    folder = ready("model")
    config = json.loads((folder / "config.json").read_text())
    own = config["auto_map"]["AutoModel"].split(".")[1]
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [own]}))
    assert rules(folder) == {"architectures"}
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "other/repo--code.Class"}}))
    assert rules(folder) == {"auto_map"}
    (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "modeling_sharegpt4v.None"}}))
    assert rules(folder) == {"auto_map"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "images_sharegpt4v.py").unlink()
    assert rules(folder) == {"auto_map"}


def test_rows_and_files_of_a_dataset_must_be_there(ready):
    folder = ready("dataset")
    metadata, _ = split_card((folder / "README.md").read_text())
    wrong = json.loads(json.dumps(metadata["dataset_info"]))
    wrong[0]["splits"][0]["num_examples"] += 1
    change(folder, dataset_info=wrong)
    assert rules(folder) == {"N"}
    change(folder, dataset_info=metadata["dataset_info"])
    (folder / "talk" / "train-00000-of-00001.parquet").unlink()
    assert rules(folder) == {"configs", "croissant"}


def test_data_files_stay_in_the_repository(ready):
    folder = ready("dataset")
    configs = [{"config_name": "captions", "data_files": [{"split": "train", "path": "../captions/*.parquet"}]}]
    change(folder, configs=configs, size_categories=["n<1K"])
    assert rules(folder) == {"configs"}


def test_a_description_that_is_no_croissant_is_found(ready):
    folder = ready("dataset")
    described = json.loads((folder / "croissant.json").read_text())
    del described["@context"]
    (folder / "croissant.json").write_text(json.dumps({**described, "distribution": [{"@type": "cr:FileSet"}]}))
    assert rules(folder) == {"croissant"}


def test_a_metric_has_the_script_of_its_name(ready, tmp_path):
    folder = ready("metric")
    assert "script" in rules(folder, "owner/other")
    (folder / "mme.py").write_text("def broken(:")
    assert rules(folder, "owner/mme") == {"code"}


def test_a_path_that_is_no_folder_is_said(tmp_path):
    with pytest.raises(NotADirectoryError):
        check_folder(tmp_path / "absent")


def test_a_folder_of_anything_else_is_checked_as_far_as_it_goes(tmp_path, ready):
    folder = ready("model")
    other = tmp_path / "other"
    other.mkdir()
    shutil.copyfile(folder / "README.md", other / "README.md")
    assert errors(other) == []
