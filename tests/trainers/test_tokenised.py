"""Tokenised rows: the ids and trained positions of the processor, and what is refused or left out."""

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import ByT5Tokenizer

from modeling_sharegpt4v import ShareGPT4VConfig, build_processor, chat_template_path
from modeling_sharegpt4v.composition import add_image_and_pad_tokens
from tests.modeling_sharegpt4v import test_processing
from tests.tiny import noise_image, tiny_model, tiny_siglip
from tests.trainers.rows import (
    PROCESSORS,
    ROWS,
    TEMPLATES,
    by_processor,
    dataset_of,
    in_full,
    picture,
    processor_of,
    row,
    shortened,
)
from trainers.tokenised import image_length, tokenise_batch, tokenise_rows


sentencepiece_model = test_processing.sentencepiece_model
llama_processor = test_processing.llama_processor

TURNS = st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), min_size=1, max_size=5)
LONG = row("long", ("What is it?", "A cat."), ("And?", "Two dogs."), ("More?", "A boat."), images=2, source="sam")
SHORT = row("short", ("a", "b"), images=0)


@pytest.fixture(params=TEMPLATES)
def processor(request):
    return PROCESSORS[request.param]


@pytest.fixture(params=TEMPLATES)
def llama(request, llama_processor):
    llama_processor.chat_template = chat_template_path(request.param).read_text(encoding="utf-8")
    return llama_processor


def tokens_of(processor, *rows: dict) -> list[dict]:
    return list(tokenise_rows(dataset_of(*rows), processor, None)[0])


# The same as the processor


@pytest.mark.parametrize("sample", ROWS, ids=lambda sample: sample["id"])
def test_ids_and_mask_are_the_processors(processor, sample):
    assert in_full(processor, *tokens_of(processor, sample)) == by_processor(processor, sample)


@pytest.mark.parametrize("sample", ROWS, ids=lambda sample: sample["id"])
def test_ids_and_mask_are_the_processors_with_sentencepiece(llama, sample):
    assert in_full(llama, *tokens_of(llama, sample)) == by_processor(llama, sample)


@given(template=st.sampled_from(TEMPLATES), turns=TURNS, images=st.integers(0, 2))
@settings(deadline=None, max_examples=60)
def test_ids_and_mask_of_any_text_are_the_processors(template, turns, images):
    processor, sample = PROCESSORS[template], row("any", *turns, images=images)
    assert in_full(processor, *tokenise_batch([sample], processor)) == by_processor(processor, sample)


def test_rows_tokenised_together_are_those_tokenised_alone(processor):
    together = tokens_of(processor, *ROWS)
    assert [in_full(processor, tokens) for tokens in together] == [by_processor(processor, sample) for sample in ROWS]


BARE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}|"
    "{% elif message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{{ part.text or '<image>' }}{% endfor %}"
    "{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("drops_spaces", [False, True])
def test_ids_and_mask_are_the_processors_where_answers_end_in_no_special_token(drops_spaces):
    processor = processor_of()
    processor.chat_template = BARE
    if drops_spaces:
        processor.tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    sample = row("bare", ("What is it?", " cat 🦆"), ("So?", "  "), ("Sure?", " 🦆🦆 dogs "))
    (tokens,) = tokens_of(processor, sample)
    assert in_full(processor, tokens) == by_processor(processor, sample)
    assert tokens["label_spans"][0] > 0


def test_images_stand_before_the_text_of_the_question():
    processor = processor_of()
    processor.chat_template = BARE
    (tokens,) = tokens_of(processor, row("order", ("What?", "A cat."), images=2))
    assert processor.tokenizer.decode(tokens["input_ids"]) == "<s><image><image>What?A cat.|"


@pytest.mark.parametrize("bos", ["<s>", None], ids=["by the template", "by the tokenizer"])
def test_the_beginning_token_is_written_once(bos):
    processor = processor_of()
    processor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    processor.tokenizer.bos_token = bos
    (tokens,) = tokens_of(processor, ROWS[0])
    assert in_full(processor, tokens) == by_processor(processor, ROWS[0])
    assert [place for place, token in enumerate(tokens["input_ids"]) if token == 1] == [0]


def test_images_stand_before_the_first_question_behind_a_system_message():
    processor, sample = processor_of(), row("system", ("What is it?", "A cat."))
    sample["messages"].insert(0, {"role": "system", "content": "Be brief."})
    text = processor.tokenizer.decode(tokens_of(processor, sample)[0]["input_ids"])
    assert text == "<s> Be brief. USER: <image> \nWhat is it? ASSISTANT: A cat.</s>"


def test_a_row_has_one_token_an_image_and_the_length_of_all(processor):
    for sample, tokens in zip(ROWS, tokens_of(processor, *ROWS), strict=True):
        assert tokens["input_ids"].count(processor.image_token_id) == len(sample["images"])
        assert tokens["length"] == len(by_processor(processor, sample)[0])


@pytest.mark.parametrize("vision", [None, tiny_siglip()], ids=["clip", "siglip"])
def test_image_length_is_what_the_processor_inserts(vision):
    _, processor = tiny_model(vision)
    ids = processor(images=noise_image(), text="<image>")["input_ids"][0]
    assert image_length(processor) == ids.count(processor.image_token_id) == 4


def test_image_length_of_the_published_configuration():
    assert image_length(build_processor(ShareGPT4VConfig(), processor_of().tokenizer)) == 576


def test_the_other_columns_are_untouched(processor):
    rows = tokens_of(processor, *ROWS)
    assert set(rows[0]) == {"id", "source", "images", "input_ids", "label_spans", "length"}
    for sample, tokens in zip(ROWS, rows, strict=True):
        assert (tokens["id"], tokens["source"], tokens["images"]) == (sample["id"], "coco", sample["images"])


# Too long


def size_of(processor, sample: dict, turns: int) -> int:
    return len(tokenise_batch([shortened(sample, turns)], processor)[0]["input_ids"])


def test_too_long_samples_are_named_with_their_lengths(processor):
    size = size_of(processor, LONG, 3)
    rows = [SHORT, *({**LONG, "id": f"long {number}"} for number in range(7))]
    message = rf"7 of 8 samples have more than `max_length`={size - 1} tokens.*, first: long 0 \({size}\), long 1 "
    message += rf".*long 4 \({size}\)\. Raise `max_length`, or .* `on_too_long='drop_turns'`"
    with pytest.raises(ValueError, match=message):
        tokenise_rows(dataset_of(*rows), processor, size - 1)
    with pytest.raises(ValueError, match=message):
        tokenise_batch(rows, processor, size - 1)


def test_max_length_counts_an_image_as_one(processor):
    size = size_of(processor, LONG, 3)
    rows, report = tokenise_rows(dataset_of(LONG), processor, size)
    assert rows[0]["length"] == size + 2 * 3
    assert report.samples == 1 and not report.turns_dropped and not report.samples_dropped
    assert len(tokenise_batch([LONG], processor, size)) == 1


@pytest.mark.parametrize("kept", [1, 2])
def test_turns_that_do_not_fit_are_dropped_and_counted(processor, kept):
    rows = [SHORT, LONG, {**LONG, "source": "lcs"}, LONG]
    max_length = size_of(processor, LONG, kept)
    tokens, report = tokenise_rows(dataset_of(*rows), processor, max_length, on_too_long="drop_turns")
    shorter = by_processor(processor, shortened(LONG, kept))
    assert [in_full(processor, sample) for sample in tokens] == [by_processor(processor, SHORT), *[shorter] * 3]
    assert report.turns_dropped == {"sam": 2 * (3 - kept), "lcs": 3 - kept}
    assert report.samples == 4 and not report.samples_dropped


def test_a_sample_whose_first_turn_does_not_fit_is_dropped_and_counted(processor):
    rows = [LONG, SHORT, LONG, {**LONG, "source": "lcs"}]
    max_length = size_of(processor, LONG, 1) - 1
    tokens, report = tokenise_rows(dataset_of(*rows), processor, max_length, on_too_long="drop_turns")
    assert [sample["id"] for sample in tokens] == ["short"]
    assert in_full(processor, tokens[0]) == by_processor(processor, SHORT)
    assert report.samples_dropped == {"sam": 2, "lcs": 1}
    assert report.samples == 1 and not report.turns_dropped


@given(template=st.sampled_from(TEMPLATES), turns=TURNS, images=st.integers(0, 2), max_length=st.integers(1, 120))
@settings(deadline=None, max_examples=80)
def test_dropping_keeps_the_longest_prefix_of_turns_that_fits(template, turns, images, max_length):
    processor, sample = PROCESSORS[template], row("any", *turns, images=images)
    fitting = sum(size_of(processor, sample, kept) <= max_length for kept in range(1, len(turns) + 1))
    if fitting:
        (tokens,) = tokenise_batch([sample], processor, max_length, "drop_turns")
        assert len(tokens["input_ids"]) <= max_length
        assert in_full(processor, tokens) == by_processor(processor, shortened(sample, fitting))
    else:
        with pytest.raises(ValueError, match=f"No sample of the batch fits into `max_length`={max_length}"):
            tokenise_batch([sample], processor, max_length, "drop_turns")


def test_dropping_holds_the_limit_where_a_shorter_conversation_is_no_prefix():
    processor = processor_of()
    processor.chat_template = (
        "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}{% generation %}"
        "{{ message.content + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
        "{% if messages | length == 4 %}{{ 'and some more text at its end' }}{% endif %}"
    )
    sample = {**LONG, "images": []}
    sizes = [size_of(processor, sample, kept) for kept in (1, 2, 3)]
    assert sizes[0] < sizes[2] < sizes[1]
    (tokens,) = tokenise_batch([sample], processor, sizes[2] - 1, "drop_turns")
    assert len(tokens["input_ids"]) == sizes[0]


def test_a_batch_says_which_sample_it_leaves_out(processor, caplog):
    max_length = size_of(processor, LONG, 1) - 1
    with caplog.at_level(logging.WARNING, "trainers.tokenised"):
        tokens = tokenise_batch([LONG, SHORT], processor, max_length, "drop_turns")
    assert [sample["id"] for sample in tokens] == ["short"]
    assert f"Sample 'long' is left out: its first turn exceeds {max_length} tokens." in caplog.text


# What is refused


def test_a_sample_that_trains_nothing_is_named_with_its_text():
    sample = {**ROWS[0], "messages": ROWS[0]["messages"][:1]}  # a question
    message = r"No token of sample 'one' is trained.*USER: <image> \\nWhat is it\?"
    with pytest.raises(ValueError, match=message):
        tokenise_rows(dataset_of(ROWS[1], sample), PROCESSORS["vicuna_v1"], None)


@pytest.mark.parametrize(
    "template",
    [
        "{{ bos_token }}{{ messages[0].content }}{{ messages[1].content }}{{ eos_token }}",
        "{{ bos_token }}{% generation %}{% endgeneration %}",
        "{% generation %}{{ bos_token }}{% endgeneration %}Hello",
    ],
    ids=["no mark", "nothing is marked", "only the first token, which nothing predicts"],
)
def test_a_template_that_marks_no_answer_is_named(template):
    processor = processor_of()
    processor.chat_template = template
    with pytest.raises(ValueError, match="No token of sample 'text' is trained.*marks none by {% generation %}"):
        tokenise_rows(dataset_of(ROWS[2]), processor, None)


@pytest.mark.parametrize(
    ("sample", "found"),
    [
        ({**ROWS[0], "messages": ROWS[0]["messages"][1:]}, 0),
        ({**ROWS[0], "messages": [ROWS[0]["messages"][0], {"role": "assistant", "content": "An <image> tag."}]}, 2),
    ],
    ids=["no question", "placeholder in the text"],
)
def test_a_wrong_number_of_image_tokens_is_named(processor, sample, found):
    with pytest.raises(ValueError, match=f"Sample 'one' has 1 images and {found} '<image>' tokens"):
        tokenise_rows(dataset_of(sample), processor, None)


def test_a_tokenizer_without_offsets_is_refused():
    tokenizer = ByT5Tokenizer()
    add_image_and_pad_tokens(tokenizer)
    processor = processor_of(tokenizer=tokenizer)
    message = "ByT5Tokenizer is a tokenizer written in Python.*`AutoTokenizer`"
    with pytest.raises(ValueError, match=message):
        tokenise_rows(dataset_of(ROWS[0]), processor, None)
    with pytest.raises(ValueError, match=message):
        tokenise_batch([ROWS[0]], processor)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (dataset_of(ROWS[0]).remove_columns(["id", "messages"]), r"lacks the columns \['id', 'messages'\]"),
        (dataset_of(ROWS[0]).select([]), "The dataset has no rows"),
    ],
    ids=["columns", "rows"],
)
def test_a_dataset_without_conversation_rows_is_refused(dataset, message):
    with pytest.raises(ValueError, match=message):
        tokenise_rows(dataset, PROCESSORS["plain"], None)


def test_an_unknown_way_with_long_samples_is_refused():
    message = "`on_too_long` must be 'error' or 'drop_turns', got 'cut'"
    with pytest.raises(ValueError, match=message):
        tokenise_rows(dataset_of(ROWS[0]), PROCESSORS["plain"], 10, on_too_long="cut")
    with pytest.raises(ValueError, match=message):
        tokenise_batch([ROWS[0]], PROCESSORS["plain"], 10, on_too_long="cut")


# How a dataset is read


def test_rows_without_images_may_have_no_list(processor):
    sample = {**ROWS[2], "images": None}
    expected = by_processor(processor, ROWS[2])
    tokens = tokens_of(processor, sample, ROWS[0])
    assert in_full(processor, tokens[0]) == expected
    assert tokens[0]["length"] == len(expected[0])
    assert in_full(processor, *tokenise_batch([sample], processor)) == expected


def test_selected_rows_keep_their_images(processor):
    rows = [ROWS[0], {**ROWS[1], "images": [picture(1)]}, ROWS[2]]
    tokens = list(tokenise_rows(dataset_of(*rows).select([2, 1]), processor, None)[0])
    assert [(sample["id"], sample["images"]) for sample in tokens] == [("text", []), ("turns", [picture(1)])]
    assert in_full(processor, tokens[1]) == by_processor(processor, rows[1])


def test_several_processes_give_the_same_rows(processor):
    rows, _ = tokenise_rows(dataset_of(*ROWS), processor, None, num_proc=2)
    assert [in_full(processor, tokens) for tokens in rows] == [by_processor(processor, sample) for sample in ROWS]


def test_progress_is_shown(capsys):
    tokens_of(PROCESSORS["plain"], *ROWS)
    assert "Tokenising: 100%" in capsys.readouterr().err
