"""Tables that are generated from reports."""

import json

import pytest

from sharegpt4v.results import ROOT, render_scale, replace_between


def test_the_page_of_scale_has_the_figures_of_the_committed_report():
    page = (ROOT / "recipes" / "scale.md").read_text()
    report = json.loads((ROOT / "benchmarks" / "results" / "scale.json").read_text())
    assert replace_between(page, render_scale(report), "recipes/scale.md") == page


def test_a_page_without_markers_is_refused_by_name():
    with pytest.raises(ValueError, match="some.md lacks the markers"):
        replace_between("# nothing", "body", "some.md")
