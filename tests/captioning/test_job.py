"""What tells the captions of one job from those of another, and what does not."""

import json
from dataclasses import fields, replace

import pytest

from captioning.endpoint_config import EndpointConfig
from captioning.job import CaptionJob, EngineConfig, PromptOptions, weights_of
from captioning.pipeline import identified, key_of
from captioning.store import RowKey


SHA = "ab" * 32
SOURCES = ("coco", "sam", "other")
ENDPOINT = EndpointConfig(model="m", base_url="http://127.0.0.1:9/v1", input_price=1.0, output_price=1.0)
ENGINE = EngineConfig(model="m", temperature=0.5)
# One other value for every option there is: a new option has to be put on one side or the other.
ENDPOINT_DECIDES = {
    "model": "n", "max_tokens": 7, "temperature": 0.5, "detail": "low", "image_side": 64, "image_quality": 50,
    "image_bytes": 9000,
}  # fmt: skip
ENDPOINT_DOES_NOT = {
    "base_url": "http://127.0.0.1:8/v1", "api_key_env": "OTHER", "env_file": "keys", "stream": True,
    "max_tokens_name": "max_completion_tokens", "tokens_per_image": 3, "rpm": 3, "tpm": 3, "connect_timeout": 3.0,
    "read_timeout": 3.0, "deadline": 3.0, "max_attempts": 3, "backoff": 3.0, "max_pause": 3.0, "circuit_failures": 3,
    "circuit_seconds": 3.0, "circuit_trips": 3, "input_price": 3.0, "output_price": 3.0, "max_cost": 3.0,
}  # fmt: skip
ENGINE_DECIDES = {
    "model": "n", "dtype": "float32", "max_new_tokens": 7, "temperature": 0.7, "top_p": 0.9, "seed": 1,
    "loop_guard": False,
}  # fmt: skip
ENGINE_DOES_NOT = {"device": "cpu", "slots": 3, "max_length": 3000, "threads": 3, "trust_remote_code": True}
PROMPTS_DECIDE = {"unified": True, "aesthetic_share": 1.0}


def keys(job: CaptionJob) -> list[RowKey]:
    """What captions of one image are stored under, whatever its source."""
    return [key_of(job, source, SHA) for source in SOURCES]


def with_endpoint(**options: object) -> CaptionJob:
    """The job with other options of the endpoint."""
    return CaptionJob(endpoint=replace(ENDPOINT, **options))


def with_engine(**options: object) -> CaptionJob:
    """The job with other options of the engine."""
    return CaptionJob(engine=replace(ENGINE, **options))


def test_every_option_is_known_to_decide_a_caption_or_not():
    assert {one.name for one in fields(EndpointConfig)} == {*ENDPOINT_DECIDES, *ENDPOINT_DOES_NOT}
    assert {one.name for one in fields(EngineConfig)} == {*ENGINE_DECIDES, *ENGINE_DOES_NOT}
    assert {one.name for one in fields(PromptOptions)} == {*PROMPTS_DECIDE, "file", "seed"}


@pytest.mark.parametrize("name", ENDPOINT_DECIDES)
def test_an_option_of_the_endpoint_that_decides_makes_every_key_new(name):
    before, after = with_endpoint(), with_endpoint(**{name: ENDPOINT_DECIDES[name]})
    assert not set(keys(before)) & set(keys(after)) and before.variant != after.variant


@pytest.mark.parametrize("name", ENGINE_DECIDES)
def test_an_option_of_the_engine_that_decides_makes_every_key_new(name):
    before, after = with_engine(), with_engine(**{name: ENGINE_DECIDES[name]})
    assert not set(keys(before)) & set(keys(after)) and before.variant != after.variant


@pytest.mark.parametrize("name", ENDPOINT_DOES_NOT)
def test_how_an_endpoint_is_reached_changes_no_key(name):
    before, after = with_endpoint(), with_endpoint(**{name: ENDPOINT_DOES_NOT[name]})
    assert keys(before) == keys(after) and before.variant == after.variant


@pytest.mark.parametrize("name", ENGINE_DOES_NOT)
def test_how_an_engine_runs_changes_no_key(name):
    before, after = with_engine(), with_engine(**{name: ENGINE_DOES_NOT[name]})
    assert keys(before) == keys(after) and before.variant == after.variant


def test_concurrency_changes_no_key():
    before, after = with_endpoint(), replace(with_endpoint(), concurrency=99)
    assert keys(before) == keys(after) and before.variant == after.variant


def test_options_of_sampling_change_nothing_where_nothing_is_drawn():
    greedy = with_engine(temperature=None)
    assert greedy.variant == with_engine(temperature=None, top_p=0.5, seed=3).variant


@pytest.mark.parametrize("name", PROMPTS_DECIDE)
def test_another_choice_of_prompts_makes_every_key_new(name):
    before = with_endpoint()
    after = replace(before, prompts=PromptOptions(**{name: PROMPTS_DECIDE[name]}))
    assert not set(keys(before)) & set(keys(after)) and before.variant != after.variant


def test_the_seed_of_the_aesthetic_share_is_part_of_the_variant():
    half = [replace(with_endpoint(), prompts=PromptOptions(aesthetic_share=0.5, seed=seed)) for seed in range(8)]
    assert len({job.variant for job in half}) == 8
    assert len({key_of(job, "coco", SHA) for job in half}) == 2


def test_a_prompt_file_changes_the_keys_of_its_sources_alone(tmp_path):
    path = tmp_path / "prompts.yaml"
    path.write_text("name: ours\nsources:\n  sam: Name every part.\n", encoding="utf-8")
    before, after = with_endpoint(), replace(with_endpoint(), prompts=PromptOptions(file=str(path)))
    same = [one == other for one, other in zip(keys(before), keys(after), strict=True)]
    assert same == [True, False, True] and before.variant != after.variant


def model_folder(folder, weights: bytes):
    """A folder that looks like a model's."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}", encoding="utf-8")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_a_model_trained_anew_in_the_same_folder_is_another_model(tmp_path):
    job = CaptionJob(engine=EngineConfig(model=str(model_folder(tmp_path / "mine", b"one"))))
    before = identified(job)
    model_folder(tmp_path / "mine", b"two")
    after = identified(job)
    assert before.model.startswith("mine@") and after.model.startswith("mine@")
    assert not set(keys(before)) & set(keys(after)) and before.variant != after.variant


def test_a_model_elsewhere_with_other_notes_beside_it_is_the_same(tmp_path):
    before, after = (model_folder(tmp_path / place / "mine", b"one") for place in ("here", "there"))
    (after / "README.md").write_text("notes", encoding="utf-8")
    models = [identified(CaptionJob(engine=EngineConfig(model=str(folder)))).model for folder in (before, after)]
    assert models[0] == models[1]


def test_a_renamed_file_of_a_model_is_another_model(tmp_path):
    folder = model_folder(tmp_path, b"one")
    before = weights_of(str(folder))
    (folder / "model.safetensors").rename(folder / "adapter.safetensors")
    assert weights_of(str(folder)) != before


def test_a_folder_without_a_model_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=rf"{tmp_path} is no model: it has no config\.json"):
        weights_of(str(tmp_path))


@pytest.mark.parametrize(
    "job",
    [
        replace(with_endpoint(**{**ENDPOINT_DECIDES, "max_cost": 2.0}), concurrency=3),
        replace(with_engine(), prompts=PromptOptions(unified=True), revision="0123456789ab"),
        replace(with_endpoint(), prompts=PromptOptions(aesthetic_share=0.25, seed=4)),
    ],
)
def test_a_job_comes_back_from_json_the_same(job):
    again = CaptionJob.from_json(json.loads(json.dumps(job.to_json())))
    assert again == job and again.variant == job.variant and keys(again) == keys(job)


def test_the_json_of_a_job_names_the_variable_and_not_the_key(monkeypatch):
    monkeypatch.setenv("CANARY_VARIABLE", "sk-canary-of-the-job")
    text = json.dumps(with_endpoint(api_key_env="CANARY_VARIABLE").to_json())
    assert "CANARY_VARIABLE" in text and "canary-of-the-job" not in text


@pytest.mark.parametrize("facts", [{}, {"endpoint": {"modle": "m"}}, {"endpoint": None}])
def test_facts_of_no_job_are_refused(facts):
    with pytest.raises(ValueError, match="no facts of a captioning job"):
        CaptionJob.from_json(facts)


def test_a_job_has_exactly_one_captioner():
    for captioners in ({}, {"endpoint": ENDPOINT, "engine": ENGINE}):
        with pytest.raises(ValueError, match="give one of them"):
            CaptionJob(**captioners)
