"""`sharegpt4v card`: matrix row 49 by its exit code, and rendering from the command line."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from evaluation.results import write_results
from model_cards.front_matter import join_card, split_card
from model_cards.render import write_card
from sharegpt4v.card_commands import app, parse_facts
from sharegpt4v.exit_codes import ExitCode
from tests.evaluation.evaluations import mme_rows, results_of
from tests.model_cards.given import GIVEN


def card(*words):
    return CliRunner().invoke(app, list(map(str, words)))


@pytest.fixture
def model(copy_of):
    folder = copy_of("model")
    write_card("model", folder, folder, "owner/tiny", GIVEN["model"])
    return folder


def broken(folder, what):
    """Break a card in one way."""
    metadata, body = split_card((folder / "README.md").read_text())
    if what in metadata:
        del metadata[what]
    body = {"N": body.replace("N = ", "N is "), "placeholder": body + "\n{{ summary }}\n"}.get(what, body)
    text = join_card(metadata, body)
    if what == "injection":
        text = text.replace("license: llama2\n", "license: llama2\nlicense: mit\n", 1)
    (folder / "README.md").write_text(text)


def test_a_card_that_can_be_published_passes(model):
    done = card("check", model, "--repo", "owner/tiny", "--json")
    assert done.exit_code == 0 and json.loads(done.output) == {"path": str(model), "errors": 0, "findings": []}


@pytest.mark.parametrize(
    ("what", "rule"),
    [
        ("license", "license"),
        ("base_model", "base_model"),
        ("N", "N"),
        ("placeholder", "placeholder"),
        ("injection", "metadata"),
    ],
)
def test_row_49_a_card_that_lacks_something_fails_and_says_what(model, what, rule):
    broken(model, what)
    done = card("check", model, "--json")
    assert done.exit_code == ExitCode.NOT_ENOUGH
    findings = json.loads(done.output)["findings"]
    assert {one["rule"] for one in findings} == {rule} and {one["file"] for one in findings} == {"README.md"}
    shown = card("check", model)
    assert shown.exit_code == ExitCode.NOT_ENOUGH and f"error: README.md: {rule}: " in shown.output


def test_row_49_the_card_is_right_again_after_it_is_rendered_again(model):
    broken(model, "license")
    (model / "card.yaml").write_text(yaml.safe_dump(GIVEN["model"]))
    assert card("render", "model", model, "--repo", "owner/tiny", "--output", model).exit_code == 0
    assert card("check", model).exit_code == 0


def test_rendering_shows_the_card_or_writes_it(copy_of, tmp_path):
    folder = copy_of("mme")
    shown = card("render", "metric", folder, "--repo", "owner/mme", "--fact", "revision=1e3")
    assert 'evaluate.load("owner/mme", revision="1e3")' in shown.output
    written = card(
        *("render", "metric", folder, "--repo", "owner/mme", "--fact", "revision=v1", "--output", tmp_path / "new"),
        "--json",
    )
    assert json.loads(written.output) == {"card": str(tmp_path / "new" / "README.md"), "code_blocks": 4}


def test_missing_facts_are_all_named(made):
    done = card("render", "model", made / "model", "--repo", "owner/tiny", "--fact", "language=en")
    assert done.exit_code != 0
    for name in ("license", "base_model", "datasets", "limits", "sources", "revision"):
        assert f"- {name}: " in str(done.exception)


def test_figures_of_an_evaluation_elsewhere_are_taken(made, tmp_path):
    write_results(tmp_path, results_of(tmp_path, ("mme", mme_rows(2), ["yes", "no"] * 2)))
    facts = [word for name, value in GIVEN["model"].items() for word in ("--fact", f"{name}={yaml_of(value)}")]
    done = card("render", "model", made / "model", "--repo", "owner/tiny", *facts, "--results", tmp_path)
    assert "4 of 2,374 questions" in done.output


def yaml_of(value):
    """A value as it is typed on a command line."""
    return value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()


def test_facts_are_texts_lists_and_mappings():
    words = [
        "revision=1e3",
        "sources=[vicuna, clip]",
        "limits=one",
        "limits=two",
        "versions={torch: '2.13'}",
        "summary=a=b",
    ]
    assert parse_facts(words) == {
        **{"revision": "1e3", "sources": ["vicuna", "clip"], "limits": ["one", "two"]},
        **{"versions": {"torch": "2.13"}, "summary": "a=b"},
    }
    for word in ("revision", "=v1", "sources=[a"):
        with pytest.raises(ValueError, match="fact"):
            parse_facts([word])
