"""Captions in slots: equal to one-at-a-time generation, whatever else is captioned."""

import functools
import itertools
import threading

import pytest
import torch

from captioning.engine import CaptionEngine, load_engine
from captioning.engine_requests import CaptionRequest, LoopGuard, Sampling
from tests.families import FAMILIES, family
from tests.tiny import chat, noise_image, tiny_model


PROMPTS = ("What?", "Describe the image in detail, and every animal that is in it.", "A cat?")


@functools.cache
def loaded(name):
    if name == "looping":
        return family("qwen2_5_vl")[0].eval(), family("qwen2_5_vl")[1]
    model, processor = family(name, scale=1.0 if name == "llava" else 10.0)
    return model.eval(), processor


def engine_of(name="llava", **options):
    return CaptionEngine(*loaded(name), **{"slots": 4, "max_length": 192, "loop_guard": None, **options})


def requests(count, lengths=(6, 17, 11, 28)):
    sizes = [(40 + 9 * index % 70, 30 + 17 * index % 60) for index in range(count)]
    return [
        CaptionRequest(f"r{index}", noise_image(index, size), PROMPTS[index % 3], lengths[index % len(lengths)])
        for index, size in enumerate(sizes)
    ]


def inputs_of(name, request):
    return loaded(name)[1].apply_chat_template(
        chat(request.prompt, request.image),
        **{"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "pt"},
    )


def alone(name, request):
    """Caption of `generate`, and its number of tokens."""
    model, processor = loaded(name)
    inputs = inputs_of(name, request)
    out = model.generate(**inputs, max_new_tokens=request.max_new_tokens, do_sample=False)
    new = out[0, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(new, skip_special_tokens=True).strip(), len(new)


def texts(results):
    return {result.key: result.text for result in results}


@pytest.fixture
def settings():
    """Generation settings of the LLaVA, put back afterwards."""
    model, _ = loaded("llava")
    kept = model.generation_config.to_dict()
    yield model.generation_config
    model.generation_config.update(**kept)


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_captions_are_those_of_generate_one_at_a_time(name):
    asked = requests(9)
    expected = {one.key: alone(name, one) for one in asked}
    found = {one.key: (one.text, one.new_tokens) for one in engine_of(name).caption(asked)}
    assert found == expected
    assert len({text[:4] for text, _ in expected.values()}) >= 6  # the image decides what is said


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prefill_of_prompts_of_several_lengths_changes_nothing(name):
    asked = requests(3, lengths=(8,))
    first, *others = (engine_of(name, slots=count) for count in (3, 1))
    assert texts(first.caption(asked)) == texts(others[0].caption(asked)) == {r.key: alone(name, r)[0] for r in asked}


def test_a_slot_is_refilled_while_others_decode():
    engine = engine_of()
    lengths = [90 if index % 4 == 0 else 4 for index in range(24)]
    asked = [CaptionRequest(str(index), noise_image(index), "What?", length) for index, length in enumerate(lengths)]
    results = list(engine.caption(asked))
    assert len(results) == 24
    in_fixed_batches = 6 * (90 - 1)
    assert engine.stats.refills >= 4
    assert engine.stats.steps < 0.8 * in_fixed_batches
    assert engine.stats.tokens == sum(one.new_tokens for one in results)


def test_a_caption_ends_at_any_end_token_of_the_model(settings):
    model, _ = loaded("llava")
    request = CaptionRequest("r", noise_image(3), "What?", 30)
    inputs = inputs_of("llava", request)
    new = model.generate(**inputs, max_new_tokens=30, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    settings.eos_token_id = [2, int(new[6])]
    (result,) = engine_of().caption([request])
    assert result.state == "ok" and result.new_tokens < 30
    assert (result.text, result.new_tokens) == alone("llava", request)


def test_penalties_of_the_model_apply_as_in_generate(settings):
    asked = requests(5, lengths=(20,))
    plain = {one.key: alone("llava", one)[0] for one in asked}
    settings.repetition_penalty = 1.5
    penalised = {one.key: alone("llava", one)[0] for one in asked}
    assert texts(engine_of().caption(asked)) == penalised != plain


def test_a_caption_is_truncated_at_its_own_most_tokens():
    few, many = CaptionRequest("few", noise_image(), "What?", 3), CaptionRequest("many", noise_image(), "What?")
    found = {one.key: one for one in engine_of(max_new_tokens=7).caption([few, many])}
    assert [(found[key].state, found[key].new_tokens) for key in ("few", "many")] == [
        ("truncated", 3),
        ("truncated", 7),
    ]


def test_a_caption_is_truncated_where_its_slot_ends():
    (result,) = engine_of(max_length=32).caption([CaptionRequest("r", noise_image(), "What?", 99)])
    assert result.state == "truncated"
    assert result.prompt_tokens + result.new_tokens == 32


def test_a_prompt_longer_than_its_slot_is_a_result_with_the_reason():
    asked = [
        CaptionRequest("long", noise_image(), "What? " * 60, 4),
        CaptionRequest("short", noise_image(), "What?", 4),
    ]
    found = {one.key: one for one in engine_of(max_length=48).caption(asked)}
    assert found["short"].state == "truncated"
    assert found["long"].state == "bad_image" and "a slot holds 48" in found["long"].error


def test_a_loop_ends_its_caption_alone():
    guard = LoopGuard(longest=8, repeats=3, least=9, every=1)
    asked = requests(4, lengths=(60, 60, 60, 8))
    found = {one.key: one for one in engine_of("looping", loop_guard=guard).caption(asked)}
    assert {one.state for one in found.values()} == {"looped", "truncated"}
    for request in asked:
        one, (text, _) = found[request.key], alone("looping", request)
        assert text.startswith(one.text.rstrip("\ufffd"))
        assert (one.new_tokens < request.max_new_tokens) == (one.state == "looped")


def test_bad_images_are_results_and_their_neighbours_are_as_ever(tmp_path):
    asked = requests(4)
    cut = tmp_path / "cut.jpg"
    noise_image(size=(200, 200)).save(cut)
    cut.write_bytes(cut.read_bytes()[:900])
    bad = [
        CaptionRequest("bytes", b"no image", "What?", 5),
        CaptionRequest("absent", tmp_path / "absent.png", "What?", 5),
        CaptionRequest("cut", cut, "What?", 5),
        CaptionRequest("placeholder", noise_image(), "Where is <image> here?", 5),
    ]
    mixed = [one for pair in zip(bad, asked, strict=True) for one in pair]
    found = {one.key: one for one in engine_of().caption(mixed)}
    assert {key for key, one in found.items() if one.state == "bad_image"} == {one.key for one in bad}
    assert all(found[one.key].error and not found[one.key].text for one in bad)
    assert {one.key: found[one.key].text for one in asked} == {one.key: alone("llava", one)[0] for one in asked}


def test_a_sampled_caption_depends_on_its_key_and_seed_alone():
    asked = requests(7, lengths=(15, 9))
    drawn = Sampling(temperature=1.3, top_p=0.95, top_k=50, seed=1)
    together = texts(engine_of(sampling=drawn).caption(asked))
    single = engine_of(sampling=drawn, slots=1)
    apart = {}
    for one in reversed(asked):
        apart |= texts(single.caption([one]))
    other = texts(engine_of(sampling=Sampling(temperature=1.3, top_p=0.95, top_k=50, seed=2)).caption(asked))
    assert together == apart
    assert all(together[key] != other[key] for key in together)


def test_sampling_among_one_token_is_greedy():
    asked = requests(4)
    assert texts(engine_of(sampling=Sampling(top_k=1)).caption(asked)) == texts(engine_of().caption(asked))


def test_requests_are_read_as_they_are_needed():
    read = []

    def endless():
        for index in itertools.count():
            read.append(index)
            yield CaptionRequest(str(index), noise_image(index % 5), "What?", 4)

    results = engine_of().caption(endless())
    assert len(list(itertools.islice(results, 20))) == 20
    results.close()
    assert len(read) <= 20 + 2 * 4 + 4


def test_requests_that_wait_for_the_answer_before_them_are_not_waited_for():
    engine, answered = engine_of("llava", slots=8), threading.Semaphore(1)

    def one_by_one():
        for index in range(3):
            assert answered.acquire(timeout=20), "the engine waits for a request that waits for an answer"
            yield CaptionRequest(str(index), noise_image(index), "hello", max_new_tokens=2)

    keys = []
    for result in engine.caption(one_by_one()):
        keys.append(result.key)
        answered.release()
    assert keys == ["0", "1", "2"]


def test_an_error_of_the_requests_is_raised_and_the_engine_stays_usable():
    def broken():
        yield CaptionRequest("r", noise_image(), "What?", 4)
        raise OSError("the disk is gone")

    engine = engine_of()
    with pytest.raises(OSError, match="the disk is gone"):
        list(engine.caption(broken()))
    assert len(list(engine.caption(requests(2)))) == 2


def test_one_engine_captions_one_iterable_at_a_time():
    engine = engine_of()
    results = engine.caption(requests(3))
    next(results)
    with pytest.raises(RuntimeError, match="captioning already"):
        next(engine.caption(requests(1)))
    results.close()
    assert len(list(engine.caption(requests(1)))) == 1


def test_no_request_gives_no_result():
    assert list(engine_of().caption([])) == []


def test_a_model_of_ours_is_loaded_from_its_folder_without_its_code(tmp_path):
    model, processor = tiny_model()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    asked = requests(3)
    engine = load_engine(str(tmp_path), dtype=torch.float32, slots=2, max_length=256, loop_guard=None)
    assert type(engine.slots.model).__module__.startswith("transformers.")
    for request, result in zip(asked, sorted(engine.caption(asked), key=lambda one: one.key), strict=True):
        inputs = processor.apply_chat_template(
            chat(request.prompt, request.image),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        out = model.generate(**inputs, max_new_tokens=request.max_new_tokens, do_sample=False)
        text = processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert result.text == text.strip()


def test_two_slots_are_refilled_one_by_one():
    engine = engine_of(slots=2)
    asked = requests(5, lengths=(4, 24))
    found = texts(engine.caption(asked))
    assert found == {one.key: alone("llava", one)[0] for one in asked}
    assert engine.stats.refills >= 3


def test_results_before_an_error_of_the_requests_are_given():
    engine, asked = engine_of(), requests(3)

    def source():
        yield from asked
        raise OSError("The list of images ends here.")

    results = []
    with pytest.raises(OSError, match="The list of images ends here"):
        for result in engine.caption(source()):
            results.append(result)
    assert texts(results) == {one.key: alone("llava", one)[0] for one in asked}


def test_what_is_no_iterable_is_refused_and_the_engine_stays_usable():
    engine, asked = engine_of(), requests(1)
    with pytest.raises(TypeError):
        next(engine.caption(5))
    assert texts(engine.caption(asked)) == {"r0": alone("llava", asked[0])[0]}


def test_names_of_files_in_any_encoding_can_be_keys_of_sampling():
    engine = engine_of(sampling=Sampling(seed=1))
    key = b"caf\xe9.jpg".decode(errors="surrogateescape")
    (result,) = engine.caption([CaptionRequest(key, noise_image(), "What?", 5)])
    assert result.key == key and result.state in ("ok", "truncated")


def test_a_failing_machine_is_no_bad_image(monkeypatch):
    engine, asked = engine_of(), requests(2)

    def fail(chosen):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(engine.slots, "prefill", fail)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        list(engine.caption(asked))
    monkeypatch.undo()
    assert texts(engine.caption(asked)) == {one.key: alone("llava", one)[0] for one in asked}
