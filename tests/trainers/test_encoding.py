"""The short ways of encoding: the ids and trained positions of the processor also where they must not be taken."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2 import TemplateError
from tokenizers import AddedToken, normalizers, pre_tokenizers, processors

from modeling_sharegpt4v import ShareGPT4VConfig, build_processor, chat_template_path
from modeling_sharegpt4v.composition import add_image_and_pad_tokens
from tests.modeling_sharegpt4v import test_processing
from tests.trainers.rows import PROCESSORS, ROWS, TEMPLATES, by_processor, in_full, processor_of, row
from trainers.encoding import encode_conversations
from trainers.tokenised import tokenise_batch


sentencepiece_model = test_processing.sentencepiece_model
llama_processor = test_processing.llama_processor

# What tokens are written with, what templates are made of, and characters of several tokens or several characters.
PIECES = ["▁", "<0x0A>", "<0x3C>", "<", "</s>", "<s>", "<unk>", "\0", "\x000\x00", "{{ x }}", "{% if %}", "USER: "]
PIECES += ["🦆", "é", "e\u0301", "日本", "ﬁ", "👨‍👩‍👧", "\u200b", "\n", "\t", " ", "  ", "a", "cat", " two dogs."]
TEXT = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=8).map("".join)
SAMPLES = st.lists(
    st.tuples(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), st.integers(0, 2)), min_size=1, max_size=4
)
QUESTION, ANSWER = ROWS[2]["messages"][:2]
ODD = [
    row("blocks", ("▁a ▁ b", "▁▁ two▁dogs"), ("▁", "▁")),
    row("bytes", ("<0x0A>", "\n<0x3C>\t<0x0A>"), ("\n", "<")),
    row("joined", ("e\u0301ﬁ", "e\u0301ﬁ👨‍👩‍👧\u200b"), ("\u0301", "\u0301")),
    row("ends", ("a</s>b", "</s> cat </s>"), ("<s>", "<unk>")),
    row("marks", ("\x000\x00", "\x001\x00{{ x }}"), ("\0", "{% if %}")),
    row("nothing", ("", ""), ("", "  ")),
    row("as long", ("▁▁", "A cat."), ("\x01", "No.")),  # as its tokens, spelled out, where one is `<unk>`
]
TOUCHING = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}{% generation %}"
    "{{ message.content or '' }}{% endgeneration %}{% elif message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}"
)


@pytest.fixture
def own_llama(llama_processor, tmp_path):
    """A processor that a test may change."""
    llama_processor.tokenizer.save_pretrained(tmp_path)
    tokenizer = type(llama_processor.tokenizer).from_pretrained(tmp_path)
    add_image_and_pad_tokens(tokenizer)
    return build_processor(ShareGPT4VConfig(), tokenizer)


def check(processor, samples: list[dict]) -> None:
    tokens = tokenise_batch(samples, processor)
    assert [in_full(processor, sample) for sample in tokens] == [by_processor(processor, sample) for sample in samples]


@pytest.mark.parametrize("template", TEMPLATES)
@given(samples=SAMPLES)
@settings(deadline=None, max_examples=60)
def test_any_batch_is_the_processors_with_sentencepiece(llama_processor, template, samples):
    llama_processor.chat_template = chat_template_path(template).read_text(encoding="utf-8")
    check(llama_processor, [row(str(place), *turns, images=images) for place, (turns, images) in enumerate(samples)])


@pytest.mark.parametrize("template", TEMPLATES)
@given(samples=SAMPLES)
@settings(deadline=None, max_examples=40)
def test_any_batch_is_the_processors_with_bytes(template, samples):
    rows = [row(str(place), *turns, images=images) for place, (turns, images) in enumerate(samples)]
    check(PROCESSORS[template], rows)


@pytest.mark.parametrize("template", TEMPLATES)
def test_texts_that_look_like_tokens_or_templates_are_only_text(own_llama, template):
    own_llama.chat_template = chat_template_path(template).read_text(encoding="utf-8")
    check(own_llama, [*ROWS, *ODD])


# Tokenizers whose tokens stand for something else than what they spell


def with_a_normaliser(tokenizer):
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()


def with_a_replacement(tokenizer):  # by the same, but then each of its tokens stands for all of it
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(": ", ": ")


def with_a_space_everywhere(tokenizer):
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)


def with_words(tokenizer):
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=True)


def without_spaces(tokenizer):
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()


def with_trimmed_tokens(tokenizer):
    tokenizer.add_tokens(["? "])
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)


def with_tokens_that_take_spaces(tokenizer):
    tokenizer.add_tokens([AddedToken("cat", lstrip=True, rstrip=True), "▁", "dogs ▁"])


def with_unknown_characters(tokenizer):
    model = tokenizer.backend_tokenizer.model
    model.byte_fallback, model.unk_token = False, "<unk>"
    tokenizer.backend_tokenizer.model = model


CHANGES = [
    with_a_normaliser,
    with_a_replacement,
    with_a_space_everywhere,
    with_words,
    without_spaces,
    with_trimmed_tokens,
    with_tokens_that_take_spaces,
    with_unknown_characters,
]


@pytest.mark.parametrize("change", CHANGES)
def test_ids_and_mask_are_the_processors_with_another_tokenizer(own_llama, change):
    change(own_llama.tokenizer)
    check(own_llama, [*ROWS, *ODD])


@pytest.mark.parametrize("change", [lambda tokenizer: None, *CHANGES])
def test_ids_and_mask_are_the_processors_where_texts_touch(own_llama, change):
    change(own_llama.tokenizer)
    own_llama.chat_template = TOUCHING
    touching = row("touching", ("What?", " cat 🦆"), ("🦆 So", ""), ("?", " 🦆🦆 dogs "), (" ", " "), images=0)
    samples = [touching, *ROWS, *(sample for sample in ODD if sample["id"] != "nothing")]
    check(own_llama, [{**sample, "images": []} for sample in samples])


@pytest.mark.parametrize("change", [lambda tokenizer: None, with_a_normaliser])
def test_an_empty_answer_within_a_token_trains_nothing(own_llama, change):
    change(own_llama.tokenizer)
    own_llama.chat_template = TOUCHING
    (tokens,) = encode_conversations([row("empty", ("An assis", ""), ("tant?", " cat"))["messages"]], [0], own_llama)
    pieces = own_llama.tokenizer.convert_ids_to_tokens(tokens.ids)
    assert "▁assistant" in pieces and tokens.spans == [pieces.index("?") + 1, len(pieces)]


def test_the_beginning_token_is_the_tokenizers_where_no_template_writes_it(own_llama):
    with_words(own_llama.tokenizer)
    own_llama.tokenizer.bos_token = None
    check(own_llama, ROWS)


def test_a_token_added_later_is_found(own_llama):
    check(own_llama, ROWS)
    own_llama.tokenizer.add_tokens(["two dogs"])
    check(own_llama, ROWS)


@pytest.mark.parametrize("options", [{"padding": "max_length"}, {"truncation": True}], ids=["padding", "truncation"])
@pytest.mark.parametrize("length", [5, 150, 500])
def test_padding_and_truncation_of_the_call_before_do_not_matter(own_llama, options, length):
    expected = [by_processor(own_llama, sample) for sample in ROWS]
    own_llama.tokenizer(["a", "a b c"], max_length=length, **options)
    tokens = tokenise_batch(ROWS, own_llama)
    assert [in_full(own_llama, sample) for sample in tokens] == expected


def test_special_tokens_are_split_where_the_tokenizer_says_so(own_llama):
    with_words(own_llama.tokenizer)
    own_llama.tokenizer("a")  # what the tokenizer did before does not matter
    own_llama.tokenizer.split_special_tokens = True
    check(own_llama, [{**sample, "images": []} for sample in ODD])
    own_llama.tokenizer.split_special_tokens = False
    check(own_llama, ODD)


# Conversations that are no plain turns of texts


@pytest.mark.parametrize(
    "messages",
    [
        [{"role": "system", "content": "Be brief."}, QUESTION, ANSWER],
        [{"role": "system", "content": ""}, QUESTION, ANSWER],
        [ANSWER],
        [QUESTION, QUESTION, ANSWER, ANSWER],
        [
            QUESTION,
            {"role": "assistant", "content": [{"type": "text", "text": "7"}, {"type": "text", "text": " cats"}]},
        ],
    ],
    ids=["system", "empty system", "answer alone", "no turns", "parts"],
)
def test_unusual_conversations_are_the_processors(own_llama, messages):
    (tokens,) = encode_conversations([messages], [0], own_llama)
    out = own_llama.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    found = {"input_ids": tokens.ids, "label_spans": tokens.spans}
    assert in_full(own_llama, found) == (out["input_ids"][0], list(out["assistant_masks"][0]))


def test_an_unknown_role_is_refused_as_by_the_processor():
    sample = {**ROWS[0], "messages": [*ROWS[0]["messages"], {"role": "tool", "content": "7"}]}
    with pytest.raises(TemplateError, match="Unknown role 'tool'"):
        tokenise_batch([ROWS[1], sample], PROCESSORS["vicuna_v1"])


def test_a_template_that_looks_at_texts_is_rendered_for_every_conversation():
    processor = processor_of()
    processor.chat_template = (
        "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}{% generation %}"
        "{{ message.content | trim or 'nothing' }}{% endgeneration %}{{ eos_token }}{% endif %}{% endfor %}"
    )
    rows = [row("a", ("?", "  cat ")), row("b", ("?", "")), row("c", ("?", "\n"))]
    tokens = tokenise_batch([{**sample, "images": []} for sample in rows], processor)
    texts = [processor.tokenizer.decode(sample["input_ids"]) for sample in tokens]
    assert texts == ["<s>cat</s>", "<s>nothing</s>", "<s>nothing</s>"]
