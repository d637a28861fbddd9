"""Cards of what was really made: their metadata, their text, and values that try to be more than values."""

import ast
import json
from collections import Counter

import jinja2
import pytest
import yaml
from huggingface_hub import DatasetCard, ModelCard, SpaceCard
from markdown_it import MarkdownIt

from evaluation.results import collect as collect_results
from evaluation.results import write_results
from model_cards.facts import collect
from model_cards.front_matter import split_card
from model_cards.render import code_blocks, render_card, write_card
from sharegpt4v.card_facts import evaluation_facts
from tests.evaluation.evaluations import judged, mme_rows, qbench_rows, results_of, whole
from tests.model_cards.given import FOLDER, GIVEN, repo_of


EVIL = (
    'A"\n---\nlicense: mit\n# Title\n```\n[a](https://evil.example) <script>alert(1)</script> | `x` \u202e{{ 7 * 7 }}'
)


def card(made, kind, **given):
    return render_card(collect(kind, made / FOLDER.get(kind, kind), repo_of(kind), {**GIVEN[kind], **given}))


def structure(body):
    """How often each element stands in a text, read as CommonMark with tables; `evil` counts links."""
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    inner = [child for token in tokens for child in token.children or []]
    kinds = Counter(token.type for token in [*tokens, *inner])
    kinds["evil"] = sum("evil" in str(token.attrs) for token in inner if token.type == "link_open")
    return kinds


def test_metadata_of_a_model(made):
    metadata, _ = split_card(card(made, "model"))
    assert metadata == {
        "language": "en",
        "license": "llama2",
        "library_name": "transformers",
        "pipeline_tag": "image-text-to-text",
        "base_model": ["owner/base"],
        "base_model_relation": "finetune",
        "datasets": ["owner/talk"],
        "tags": ["sharegpt4v", "multimodal", "vision-language", "llava", "custom_code", "arxiv:2311.12793"],
    }


def test_metadata_of_adapters(made):
    metadata, _ = split_card(card(made, "adapter"))
    assert (metadata["library_name"], metadata["base_model_relation"]) == ("peft", "adapter")
    assert metadata["base_model"] == ["owner/base"] and "lora" in metadata["tags"]


def test_metadata_of_a_dataset_keeps_what_its_build_wrote(made):
    built, _ = split_card((made / "dataset" / "README.md").read_text())
    metadata, _ = split_card(card(made, "dataset"))
    for name in ("configs", "dataset_info", "size_categories", "task_categories"):
        assert metadata[name] == built[name]
    assert metadata["license"] == "cc-by-nc-4.0" and metadata["pretty_name"] == "tiny-dataset"
    assert metadata["annotations_creators"] == ["machine-generated"]


def test_metadata_of_a_metric_is_that_of_a_space(made):
    metadata, _ = split_card(card(made, "metric"))
    assert (metadata["title"], metadata["sdk"], metadata["license"]) == ("MME", "static", "apache-2.0")
    assert metadata["tags"] == ["evaluate", "metric"]


@pytest.mark.parametrize(("kind", "reads"), [("model", ModelCard), ("dataset", DatasetCard), ("metric", SpaceCard)])
def test_the_hubs_library_reads_the_card(made, kind, reads):
    text = card(made, kind)
    assert reads(text).data.to_dict() == split_card(text)[0]


def test_the_card_of_a_model_tells_the_facts_of_its_run(made):
    text = card(made, "model", energy_kwh=0.25, settings={"optim": "adamw"})
    for told in (
        "N = 4 samples",
        "2 of 2 samples",
        "0.25 kWh",
        "| `optim` | `adamw` |",
        "| projector |",
        "torch 2.13.0",
    ):
        assert told in text
    assert "not measured" in card(made, "model")
    for told in ("CC BY-NC 4.0", "Llama 2 Community License", "not rehosted here", "four pictures of noise"):
        assert told in text


def test_both_ways_of_loading_are_shown_where_there_are_two(made):
    two, one = card(made, "model"), card(made, "model", remote_code=False)
    assert "trust_remote_code" in two and "trust_remote_code" not in one
    assert len(code_blocks(two)) == 3 and len(code_blocks(one)) == 2


def test_a_captioner_says_its_one_instruction(made):
    text = card(made, "captioner")
    assert 'question = "Describe this image in detail."' in text and "--model owner/tiny-captioner" in text


def test_adapters_pin_their_base_and_themselves(made):
    (block,) = code_blocks(card(made, "adapter"))
    assert f'"owner/base", revision="{"a" * 40}"' in block.code
    assert '"owner/tiny-adapter", revision="v1.0"' in block.code


def test_code_in_a_table_keeps_its_bars(made):
    body = split_card(card(made, "adapter"))[1]
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    codes = [child.content for token in tokens for child in token.children or [] if child.type == "code_inline"]
    assert json.loads((made / "adapter" / "adapter_config.json").read_text())["target_modules"] in codes


def test_a_benchmark_cannot_be_written_elsewhere(made, tmp_path):
    evaluation = {"results": {"benchmarks": {}, "model": {}}, "eval_results": {"../../x": "[]"}, "left_out": {}}
    with pytest.raises(ValueError, match="letters, digits"):
        write_card("model", made / "model", tmp_path, "owner/tiny", {**GIVEN["model"], "evaluation": evaluation})


def test_a_dataset_says_its_coverage(copy_of):
    folder = copy_of("dataset")
    build = json.loads((folder / "captions" / "build.json").read_text())
    counts = {"expected": 10, "found": 5, "missing": 5}
    build |= {"coverage": {"total": counts, "sources": {"sam": counts}}, "rows_left_out": 5, "images": "paths"}
    (folder / "captions" / "build.json").write_text(json.dumps(build))
    text = (write_card("dataset", folder, folder, "owner/tiny", GIVEN["dataset"])).read_text()
    assert "5 of 10 images were there; 5 rows are left out" in text and "| sam | 10 | 5 |" in text
    assert "they are not in this repository" in text or "are not in this repository" in text


def test_a_card_written_over_itself_stays_the_same(copy_of):
    for kind in ("dataset", "metric"):
        folder = copy_of(FOLDER.get(kind, kind))
        first = write_card(kind, folder, folder, repo_of(kind), GIVEN[kind]).read_text()
        assert write_card(kind, folder, folder, repo_of(kind), GIVEN[kind]).read_text() == first


@pytest.mark.parametrize(
    "field", ["summary", "limits", "hardware", "license_name", "licences", "settings", "versions"]
)
def test_no_value_breaks_out_of_its_place(made, field):
    mapping = {"licences": {"mine": EVIL}, "settings": {EVIL: EVIL}, "versions": {EVIL: EVIL}}
    sources = {"sources": ["mine"]} if field == "licences" else {}
    clean = card(made, "model", license="other", license_name="own", license_link="https://a.example")
    given = {"license": "other", "license_name": "own", "license_link": "https://a.example", **sources}
    text = card(made, "model", **{**given, field: mapping.get(field, [EVIL] if field == "limits" else EVIL)})
    metadata, body = split_card(text)
    expected, _ = split_card(clean)
    assert metadata == ({**expected, "license_name": EVIL} if field == "license_name" else expected)
    assert len(code_blocks(text)) == len(code_blocks(clean)) and "\u202e" not in body
    seen, wanted = (structure(split_card(one)[1]) for one in (text, clean))
    assert {kind: seen[kind] for kind in ("heading_open", "fence", "table_open")} == {
        kind: wanted[kind] for kind in ("heading_open", "fence", "table_open")
    }
    assert seen["html_inline"] == 0 and seen["evil"] == 0


@pytest.mark.parametrize("field", ["tags", "instruction"])
def test_metadata_and_code_hold_any_text_as_a_text(made, field):
    text = card(made, "captioner", **{field: EVIL})
    metadata, _ = split_card(text)
    if field == "tags":
        assert metadata["tags"][-1] == EVIL and metadata["license"] == "llama2"
        return
    values = [node.value for node in ast.walk(ast.parse(code_blocks(text)[0].code)) if isinstance(node, ast.Constant)]
    assert EVIL in values and "license: mit" not in yaml.safe_dump(metadata)


def test_a_name_without_a_fact_is_an_error(made):
    facts = collect("model", made / "model", "owner/tiny", GIVEN["model"])
    del facts["hardware"]
    with pytest.raises(jinja2.UndefinedError, match="hardware"):
        render_card(facts)


def test_blocks_for_larger_machines_are_marked(made):
    facts = collect("model", made / "model", "owner/tiny", GIVEN["model"])
    assert {block.needs for block in code_blocks(render_card(facts))} == {None}
    assert {block.needs for block in code_blocks(render_card({**facts, "parameters": 7 * 10**9}))} == {"gpu"}
    rows = collect("dataset", made / "dataset", "owner/tiny", GIVEN["dataset"])
    assert [one.needs for one in code_blocks(render_card({**rows, "bytes": 10**12}))] == ["download", None]


def test_toy_runs_are_shown_with_their_n_and_stay_out_of_metadata(made, tmp_path):
    write_results(tmp_path, results_of(tmp_path, ("mme", mme_rows(2), ["yes", "no"] * 2)))
    given = {**GIVEN["model"], **evaluation_facts(tmp_path, "owner/tiny")}
    text = write_card("model", made / "model", tmp_path / "card", "owner/tiny", given).read_text()
    assert "| MME | `perception_total` | 200 | 4 of 2,374 questions" in text
    assert "a limited run: 4 of 2374 questions" in text and "model-index" not in split_card(text)[0]
    assert not (tmp_path / "card" / ".eval_results").exists()


def test_whole_runs_are_in_metadata_and_files_with_their_n(made, tmp_path):
    write_results(tmp_path, whole(results_of(tmp_path, ("qbench", qbench_rows(8), ["A"] * 6 + ["B"] * 2))))
    given = {**GIVEN["model"], **evaluation_facts(tmp_path / "results.json", "owner/tiny")}
    text = write_card("model", made / "model", tmp_path / "card", "owner/tiny", given).read_text()
    (entry,) = split_card(text)[0]["model-index"]
    assert entry["name"] == "tiny" and entry["results"][0]["metrics"][0]["args"]["n"] == 8
    assert yaml.safe_load((tmp_path / "card" / ".eval_results" / "qbench.yaml").read_text())[0]["value"] == 0.75


def test_a_judge_for_show_stays_out_of_metadata(made, tmp_path):
    write_results(tmp_path, whole(collect_results(tmp_path, [judged(tmp_path, [(8, 6)] * 3, judge="demo-judge")])))
    text = card(made, "model", **evaluation_facts(tmp_path, "owner/tiny"))
    assert "model-index" not in split_card(text)[0] and "graded by a demo judge" in text


def test_files_of_an_earlier_evaluation_are_removed(made, tmp_path):
    (tmp_path / ".eval_results").mkdir()
    (tmp_path / ".eval_results" / "old.yaml").write_text("[]")
    write_results(tmp_path, results_of(tmp_path, ("mme", mme_rows(2), ["yes", "no"] * 2)))
    given = {**GIVEN["model"], **evaluation_facts(tmp_path, "owner/tiny")}
    write_card("model", made / "model", tmp_path, "owner/tiny", given)
    assert list((tmp_path / ".eval_results").iterdir()) == []
