"""A card is complete or refused: what is missing, unknown or cannot be true is named, all at once."""

import json

import pytest
import yaml

from dataset_scripts.build import write_repo
from model_cards.facts import NEEDED, CardError, collect
from tests.model_cards.conftest import caption
from tests.model_cards.given import FOLDER, GIVEN, repo_of


def collected(folder, kind, **given):
    return collect(kind, folder / FOLDER.get(kind, kind), repo_of(kind), {**GIVEN[kind], **given})


@pytest.mark.parametrize("kind", NEEDED)
def test_real_folders_and_a_few_given_facts_are_enough(made, kind):
    facts = collected(made, kind)
    assert not [name for name in NEEDED[kind] if facts[name] in (None, "", [], {})]


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind in NEEDED for name in NEEDED[kind]])
def test_each_missing_fact_is_named_alone(made, kind, name):
    with pytest.raises(CardError) as caught:
        collected(made, kind, **{name: None})
    assert list(caught.value.missing) == [name]
    assert f"- {name}: " in str(caught.value) and "card.yaml" in str(caught.value)


@pytest.mark.parametrize("kind", NEEDED)
def test_an_empty_folder_lists_all_that_is_missing(tmp_path, kind):
    with pytest.raises(CardError) as caught:
        collect(kind, tmp_path, repo_of(kind), {})
    assert set(caught.value.missing) == set(NEEDED[kind])


def test_facts_of_training_are_those_of_its_files(made):
    facts = collected(made, "model")
    run = json.loads((made / "model" / "run.json").read_text())
    state = json.loads((made / "model" / "trainer_state.json").read_text())
    assert (
        (facts["samples"], facts["stage"], facts["bf16"])
        == (run["samples"], "finetune", False)
        == (4, "finetune", False)
    )
    assert (facts["steps"], facts["first_loss"]) == (2, state["log_history"][0]["loss"])
    assert facts["parameters"] == sum(row["parameters"] for row in facts["trainable"]) > facts["trained_parameters"]


def test_rows_sources_and_captioners_are_counted_in_the_shards(made):
    facts = collected(made, "dataset")
    assert facts["rows"] == 9 and facts["made_by"] == ["Share-Captioner"]
    captions = next(config for config in facts["configs"] if config["name"] == "captions")
    assert [(group["source"], group["rows"]) for group in captions["groups"]] == [("coco", 3), ("textcaps", 2)]
    assert facts["sources"] == ["coco", "textcaps", "sharegpt4v-captions"]


def test_card_yaml_comes_before_files_and_given_facts_before_it(copy_of):
    folder = copy_of("model")
    (folder / "card.yaml").write_text(yaml.safe_dump({"samples": 7, "hardware": "one H100", "language": "de"}))
    facts = collect("model", folder, "owner/tiny", GIVEN["model"])
    assert (facts["samples"], facts["hardware"]) == (7, GIVEN["model"]["hardware"])


def test_a_base_model_that_is_a_folder_is_no_base_model(made):
    with pytest.raises(CardError) as caught:
        collected(made, "adapter", base_model=None)
    assert list(caught.value.missing) == ["base_model"]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("licence", "mit", "`licence` is no fact of a model's card"),
        ("license", "llama-two", "none that the Hub knows"),
        ("base_model", "runs/demo/base", "must be a name on the Hub"),
        ("base_model", "/srv/base", "must be a name on the Hub"),
        ("datasets", ["talk"], "must be a name on the Hub"),
        ("revision", "v1\nlicense: mit", "must be a tag, branch or commit"),
        ("language", "English language", "must be a code such as en"),
        ("base_model_relation", "child", "must be one of"),
        ("license_link", "javascript:alert(1)", "must begin with https://"),
        ("revision", 1.0, "must be a text (put it in quotes)"),
        ("license", ["mit", "llama2"], "must be a text"),
        ("samples", "many", "must be a number"),
        ("limits", {"a": 1}, "must be a text or a list of texts"),
        ("versions", "torch", "must be a mapping"),
    ],
)
def test_what_cannot_be_true_is_refused(made, name, value, says):
    with pytest.raises(CardError) as caught:
        collected(made, "model", **{name: value})
    assert any(says in problem for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("kind", "says"),
    [("model", "because of the source vicuna"), ("dataset", "because of the source sharegpt4v-captions")],
)
def test_a_licence_that_a_source_forbids_is_refused(made, kind, says):
    with pytest.raises(CardError, match=says):
        collected(made, kind, license="mit")


def test_images_that_may_not_be_handed_on_are_refused(copy_of):
    folder = copy_of("dataset")
    captions = {"train": [{**caption(0), "source": "sam"}]}
    write_repo(folder, captions, {})
    with pytest.raises(CardError, match="holds images of sam, which may not be handed on"):
        collect("dataset", folder, "owner/tiny", GIVEN["dataset"])
    build = json.loads((folder / "captions" / "build.json").read_text())
    (folder / "captions" / "build.json").write_text(json.dumps({**build, "images": "paths"}))
    assert "sam" in collect("dataset", folder, "owner/tiny", GIVEN["dataset"])["terms"]


def test_what_a_run_says_of_its_origin_counts_if_others_can_load_it(copy_of):
    folder = copy_of("model")
    run = json.loads((folder / "run.json").read_text())
    told = {"base_model": "owner/start", "datasets": ["/srv/data"], "hardware": "one H100"}
    (folder / "run.json").write_text(json.dumps({**run, **told}))
    given = {
        name: GIVEN["model"][name] for name in ("revision", "license", "language", "sources", "limits", "versions")
    }
    with pytest.raises(CardError) as caught:
        collect("model", folder, "owner/tiny", given)
    assert list(caught.value.missing) == ["datasets"]
    assert collect("model", folder, "owner/tiny", {**given, "datasets": "owner/talk"})["base_model"] == ["owner/start"]


def test_a_licence_of_ones_own_needs_its_name_and_link(made):
    with pytest.raises(CardError) as caught:
        collected(made, "model", license="other")
    assert list(caught.value.missing) == ["license_name", "license_link"]


def test_a_source_without_terms_needs_them(made):
    with pytest.raises(CardError) as caught:
        collected(made, "model", sources=["mine"])
    assert list(caught.value.missing) == ["licences.mine"]
    facts = collected(made, "model", sources=["mine"], licences={"mine": "All mine."})
    assert [(one["title"], one["terms"]) for one in facts["terms"].values()] == [("mine", "All mine.")]


@pytest.mark.parametrize("file", ["results.json", ".eval_results/mme.yaml"])
def test_an_evaluation_that_lies_there_is_not_passed_over(copy_of, file):
    folder = copy_of("model")
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text("{}")
    with pytest.raises(CardError) as caught:
        collect("model", folder, "owner/tiny", GIVEN["model"])
    assert list(caught.value.missing) == ["evaluation"]


def test_a_metric_is_called_as_its_script(made):
    with pytest.raises(CardError) as caught:
        collect("metric", made / "mme", "owner/other", GIVEN["metric"])
    assert "script" in caught.value.missing


def test_a_file_that_is_no_yaml_is_named(copy_of):
    folder = copy_of("model")
    (folder / "card.yaml").write_text("a: [")
    with pytest.raises(ValueError, match=r"card\.yaml is no YAML file"):
        collect("model", folder, "owner/tiny", {})
