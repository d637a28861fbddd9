"""Our runner beside the real lmms-eval: equal prompts, equal texts. Skipped where lmms-eval is not installed."""

import json

import pytest


pytest.importorskip(
    "lmms_eval", reason="lmms-eval is optional and wants an environment of its own: CONTRIBUTING.md says how"
)

from lmms_eval.api.instance import Instance
from lmms_eval.models import MODEL_REGISTRY_V2
from lmms_eval.tasks.mme.utils import mme_aggregate_results, mme_process_results

from evaluation.catalogue import benchmark, module
from evaluation.exchange import from_lmms
from evaluation.files import read_json_lines
from evaluation.lmms_plugin import ShareGPT4V
from evaluation.model import LocalModel
from evaluation.predictions import read_predictions
from evaluation.rows import load_rows
from evaluation.runner import RUN, EvaluationOptions, Process, run_benchmark
from sharegpt4v.demo.miniatures import write_miniatures
from tests.evaluation.evaluations import mme_rows
from tests.evaluation.lmms_world import TASKS, run_lmms, samples_of, write_tasks
from tests.families import family
from tests.tiny import noise_image


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny model, the miniatures, and both runners' answers to them."""
    folder = tmp_path_factory.mktemp("lmms")
    for part in family("llava", scale=10.0):
        part.save_pretrained(folder / "model")
    write_miniatures(folder / "data")
    write_tasks(folder / "tasks", folder / "data")
    model = LocalModel(str(folder / "model"))
    for name in TASKS:
        own, rows = benchmark(name), load_rows(benchmark(name), folder / "data")
        options = EvaluationOptions(batch_size=8)
        run_benchmark(model, module(name), own, rows, folder / "ours", options, Process())
    run_lmms(folder / "model", folder / "tasks", folder / "theirs")
    return folder


@pytest.fixture(scope="module")
def plugin(world):
    model = ShareGPT4V(str(world / "model"), batch_size="3", device="cpu")
    docs = [{"question": f"{'long ' * place}?", "images": [noise_image(place)] * (place % 2)} for place in range(7)]
    docs.append({"question": "two", "images": [noise_image(1)] * 2})
    model.task_dict = {"local": {"test": docs}}
    return model


def request(plugin, place, context=None, **settings):
    """What lmms-eval asks about a document."""
    doc = plugin.task_dict["local"]["test"][place]
    arguments = (context or doc["question"], settings, lambda doc: doc["images"], place, "local", "test")
    return Instance("generate_until", arguments, 0, metadata={"task": "local", "doc_id": place, "repeats": 1})


@pytest.mark.parametrize("name", TASKS)
def test_prompts_and_texts_are_those_of_our_runner(world, name):
    ours = [(row["index"], row["prompt"], row["raw"]) for row in read_predictions(world / "ours" / name)]
    samples = list(read_json_lines(samples_of(world / "theirs", name)))
    assert [(one["doc_id"], one["input"], one["filtered_resps"]) for one in samples] == ours
    assert len({text for _, _, text in ours}) > len(ours) // 2  # a model that says one thing would prove nothing


@pytest.mark.parametrize("name", TASKS)
def test_its_samples_become_our_predictions(world, tmp_path, name):
    rows = load_rows(benchmark(name), world / "data")
    from_lmms(world / "theirs", name, rows, tmp_path)
    keys = ("index", "id", "prompt", "raw")
    taken, ours = read_predictions(tmp_path / name), read_predictions(world / "ours" / name)
    assert [[row[key] for key in keys] for row in taken] == [[row[key] for key in keys] for row in ours]
    facts = json.loads((tmp_path / name / RUN).read_text())
    assert (facts["options"]["other_prompts"], facts["max_new_tokens"]) == (0, benchmark(name).max_new_tokens)


@pytest.mark.slow
def test_two_processes_answer_as_one(world):
    run_lmms(world / "model", world / "tasks", world / "two", processes=2)
    for name in TASKS:
        one, two = (list(read_json_lines(samples_of(world / folder, name))) for folder in ("theirs", "two"))
        assert sorted((row["doc_id"], row["filtered_resps"]) for row in two) == [
            (row["doc_id"], row["filtered_resps"]) for row in one
        ]


def test_lmms_eval_finds_the_model_by_its_entry_point():
    assert MODEL_REGISTRY_V2.get_model_class("sharegpt4v") is ShareGPT4V


def test_answers_come_in_the_order_of_the_requests(plugin):
    requests = [request(plugin, place, max_new_tokens=4 + place % 3) for place in range(7)]
    together = plugin.generate_until(requests)
    assert together == [plugin.generate_until([one])[0] for one in requests]
    assert len(set(together)) > 1


def test_a_blank_line_does_not_end_an_answer(plugin):
    plain = request(plugin, 1, max_new_tokens=24)
    stopped = request(plugin, 1, max_new_tokens=24, until=["\n\n", "a", "e", " "])
    assert plugin.generate_until([plain]) == plugin.generate_until([stopped])


@pytest.mark.parametrize("settings", [{"do_sample": True}, {"temperature": 0.2}, {"num_beams": 2}])
def test_a_task_that_is_not_greedy_is_refused(plugin, settings):
    with pytest.raises(ValueError, match="Task local, question 1 asks for sampling or beams"):
        plugin.generate_until([request(plugin, 1, **settings)])


def test_two_images_and_a_mark_in_the_text_are_refused(plugin):
    with pytest.raises(ValueError, match="question 7 has Image, Image"):
        plugin.generate_until([request(plugin, 7)])
    with pytest.raises(ValueError, match="question 1 has the mark <image>"):
        plugin.generate_until([request(plugin, 1, context="<image>\nWhat?")])


@pytest.mark.parametrize("options", [{"batch_size": "auto"}, {"batch_size": 0}, {"images": "squash"}])
def test_options_that_cannot_be_are_refused(world, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        ShareGPT4V(str(world / "model"), **options)


@pytest.mark.parametrize("request_type", ["loglikelihood", "generate_until_multi_round"])
def test_what_it_does_not_do_is_said(plugin, request_type):
    with pytest.raises(NotImplementedError, match="output_type: generate_until"):
        getattr(plugin, request_type)([])


@pytest.mark.parametrize(
    ("responses", "differ"),
    [(["Yes", "no", "yes.", "No, it is not"], False), (["y", "no", "yes", "no"], True), ([" yes"] * 4, False)],
)
def test_its_mme_figures_differ_where_its_parser_does(responses, differ):
    rows = mme_rows(2)
    scored = [
        mme_process_results(row, [text])["mme_perception_score"] for row, text in zip(rows, responses, strict=True)
    ]
    items = [{**row, "response": text} for row, text in zip(rows, responses, strict=True)]
    ours = module("mme").score(items).headline["perception_total"]
    assert (mme_aggregate_results(scored) != ours) == differ
