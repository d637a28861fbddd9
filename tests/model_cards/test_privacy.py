"""Nothing in this repository makes a public repository, Space or collection: row 50 of the fault matrix."""

import ast
from pathlib import Path

import pytest
import yaml

from trainers.configs import StageConfig


ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "captioning",
    "dataset_scripts",
    "evaluation",
    "model_cards",
    "modeling_sharegpt4v",
    "sharegpt4v",
    "trainers",
)
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
# Calls that make something on the Hub, with the argument that says who sees it.
MAKERS = {
    "create_repo",
    "create_collection",
    "duplicate_space",
    "duplicate_repo",
    "push_to_hub",
    "upload_large_folder",
}


def makers_without_private(tree):
    """Lines of calls that leave it to the Hub, or to chance, who sees what they make."""
    return [
        node.lineno
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute | ast.Name)
        and (node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id) in MAKERS
        and not any(
            word.arg == "private" and isinstance(word.value, ast.Constant) and word.value.value is True
            for word in node.keywords
        )
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_library_code_makes_only_private_repositories(package):
    for path in (ROOT / package).rglob("*.py"):
        assert makers_without_private(ast.parse(path.read_text(encoding="utf-8"))) == [], path


@pytest.mark.parametrize("call", ["api.create_repo('a')", "push_to_hub(private=False)", "x.create_collection('a')"])
def test_the_rule_itself_sees_a_call_that_is_not_private(call):
    assert makers_without_private(ast.parse(call)) == [1]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_recipe_that_pushes_or_tracks_on_the_hub_is_private(path):
    recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    reports = recipe.get("report_to", "none")
    trackers = reports if isinstance(reports, list) else [reports]
    if recipe.get("push_to_hub") or {"trackio", "all"} & set(trackers):
        assert recipe.get("hub_private_repo") is True, "trackio's Space and the repository would be public"


def test_what_a_run_sends_to_the_hub_is_private():
    assert StageConfig(output_dir="unused", use_cpu=True, bf16=False).hub_private_repo is True
