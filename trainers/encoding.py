"""
Conversations as tokens: what the chat template and the tokenizer make of them, by shorter ways to the same result.

- Our own templates write questions and answers as they are. What stands around these is rendered once for all
  conversations with the same roles and number of images. Other templates render every conversation.
- Where the tokens of a text, spelled out, give the text again, their lengths say where each of them stands, and the
  tokenizer need not keep track of it, which costs it much of its time. Otherwise it does.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

from tokenizers import Encoding, Tokenizer
from tokenizers.pre_tokenizers import Metaspace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from dataset_scripts.schema import ROLES
from modeling_sharegpt4v import ShareGPT4VProcessor, chat_template_path


# They may look at nothing of a question or an answer, not even whether it is empty.
VERBATIM = frozenset(chat_template_path(name).read_text(encoding="utf-8") for name in ("vicuna_v1", "plain"))
FORMS = 1024  # combinations of roles and number of images that are remembered

Span = tuple[int, int]  # start and end


class Tokens(NamedTuple):
    """One conversation; nothing at all where its first turn does not fit."""

    ids: list[int]  # one token an image
    spans: list[int]  # start, end, start, end, ... of the answers, which may touch
    turns_dropped: int = 0


class _Form(NamedTuple):
    """What a template writes around the texts of messages."""

    pieces: list[str]
    gaps: list[tuple[int, int]]  # which piece is the text of which message
    answers: list[Span]  # in pieces


class _Spellings(dict[int, bytes]):
    """What tokens of a sentencepiece vocabulary stand for in UTF-8, looked up when first asked for."""

    def __init__(self, backend: Tokenizer):
        super().__init__()
        self._backend = backend

    def __missing__(self, token: int) -> bytes:
        name = self._backend.id_to_token(token) or ""
        byte = re.fullmatch("<0x([0-9A-F]{2})>", name)
        self[token] = bytes.fromhex(byte[1]) if byte else name.replace("▁", " ").encode()
        return self[token]


def encode_conversations(
    conversations: Sequence[list[dict[str, Any]]], counts: Sequence[int], processor: ShareGPT4VProcessor
) -> list[Tokens]:
    """
    Render and tokenise conversations.

    Args:
        conversations (`Sequence[list[dict]]`): Messages with `role` and `content`.
        counts (`Sequence[int]`): Images in front of the first question of each.
        processor (`ShareGPT4VProcessor`): Processor with a fast tokenizer and a chat template that marks answers.

    Returns:
        `list[Tokens]`: Ids and trained positions of `processor.apply_chat_template(...,
            return_assistant_tokens_mask=True)`, but for one token an image.
    """
    tokenizer = processor.tokenizer
    texts, answers = _render(conversations, counts, processor)
    bos = tokenizer.bos_token
    begun = bool(bos) and texts[0].startswith(bos)
    tokens = _encode_by_spelling(texts, answers, tokenizer) if begun else {}
    others = [place for place in range(len(texts)) if place not in tokens]
    if others:
        batch = tokenizer(
            [texts[place] for place in others],
            add_special_tokens=not begun,
            padding=False,
            truncation=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # no warning beyond `model_max_length`: what is too long is the caller's to decide
        )
        for place, ids, encoding in zip(others, batch["input_ids"], batch.encodings, strict=True):
            tokens[place] = Tokens(ids, _spans_by_offsets(encoding, answers[place]))
    return [tokens[place] for place in range(len(texts))]


def _render(
    conversations: Sequence[list[dict[str, Any]]], counts: Sequence[int], processor: ShareGPT4VProcessor
) -> tuple[list[str], list[list[Span]]]:
    # Texts, and where in them the answers stand.
    template, special = processor.chat_template, processor.tokenizer.special_tokens_map
    if template not in VERBATIM:
        return _render_by_template(map(_put_images, conversations, counts), template, special)
    texts, answers = [], []
    tokens = tuple(special.items())
    for messages, count in zip(conversations, counts, strict=True):
        contents = [message["content"] for message in messages]
        form = _form(template, tokens, tuple([message["role"] for message in messages]), count)
        if form is None or not all([type(content) is str for content in contents]):
            (text,), (spans,) = _render_by_template([_put_images(messages, count)], template, special)
        else:
            pieces = form.pieces.copy()
            for piece, message in form.gaps:
                pieces[piece] = contents[message]
            text = "".join(pieces)
            ends = [0, *accumulate(map(len, pieces))]
            spans = [(ends[start], ends[end]) for start, end in form.answers]
        texts.append(text)
        answers.append(spans)
    return texts, answers


@lru_cache(maxsize=FORMS)
def _form(template: str, special: tuple[tuple[str, str], ...], roles: tuple[str, ...], count: int) -> _Form | None:
    if not set(roles) <= set(ROLES):  # whether a system message is empty matters, and others are refused
        return None
    messages = [{"role": role, "content": f"\0{place}\0"} for place, role in enumerate(roles)]
    (text,), (answers,) = _render_by_template([_put_images(messages, count)], template, dict(special))
    edges = {edge for match in re.finditer("\0[0-9]+\0", text) for edge in match.span()}
    cuts = sorted({0, len(text), *edges, *(edge for answer in answers for edge in answer)})
    pieces = [text[start:end] for start, end in pairwise(cuts)]
    gaps = [(place, int(piece.strip("\0"))) for place, piece in enumerate(pieces) if piece[0] == "\0"]
    return _Form(pieces, gaps, [(cuts.index(start), cuts.index(end)) for start, end in answers])


def _render_by_template(
    chats: Iterable[list[dict[str, Any]]], template: str, special: dict[str, str]
) -> tuple[list[str], list[list[Span]]]:
    return render_jinja_template(
        conversations=chats, chat_template=template, return_assistant_tokens_mask=True, **special
    )


def _put_images(messages: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    first = next((place for place, message in enumerate(messages) if message["role"] == "user"), None)
    if not count or first is None:
        return messages
    content = [*[{"type": "image"}] * count, {"type": "text", "text": messages[first]["content"]}]
    return [*messages[:first], {"role": "user", "content": content}, *messages[first + 1 :]]


def _encode_by_spelling(
    texts: list[str], answers: list[list[Span]], tokenizer: PreTrainedTokenizerBase
) -> dict[int, Tokens]:
    # By place, those texts that their tokens spell: then nothing was padded or truncated either, which the tokenizer
    # may remember from the call before. A normaliser changes texts, `always` puts spaces in, and other post-processors
    # let a token stand for less than it spells.
    backend = tokenizer.backend_tokenizer
    spaces = backend.pre_tokenizer
    if backend.normalizer is not None or not isinstance(spaces, Metaspace) or spaces.prepend_scheme == "always":
        return {}
    if not isinstance(backend.post_processor, TemplateProcessing | None):
        return {}
    if backend.encode_special_tokens != tokenizer.split_special_tokens:  # a call of `tokenizer` passes it on
        return {}
    spellings, tokens = _spellings_of(tokenizer), {}
    for place, encoding in enumerate(backend.encode_batch_fast(texts, add_special_tokens=False)):
        ids = encoding.ids
        spans = _spans_by_spelling(list(map(spellings.__getitem__, ids)), texts[place], answers[place])
        if spans is not None:
            tokens[place] = Tokens(ids, spans)
    return tokens


@lru_cache(maxsize=4)  # tokenizers
def _spellings_of(tokenizer: PreTrainedTokenizerBase) -> _Spellings:
    return _Spellings(tokenizer.backend_tokenizer)


def _spans_by_spelling(spelled: list[bytes], text: str, answers: list[Span]) -> list[int] | None:
    # Trained is every token that shares a byte with an answer.
    written = text.encode()
    if b"".join(spelled) != written:
        return None
    if len(written) > len(text):
        answers = [(len(text[:start].encode()), len(text[:end].encode())) for start, end in answers]
    ends = list(accumulate(map(len, spelled)))
    spans = []
    for start, end in answers:
        if start < end:
            spans += [bisect_right(ends, start), bisect_left(ends, end) + 1]
    return spans


def _spans_by_offsets(encoding: Encoding, answers: list[Span]) -> list[int]:
    # Trained is every token that shares a character with an answer; one character may be spread over several tokens.
    spans = []
    for start, end in answers:
        first, last = _token_of(encoding, range(start, end)), _token_of(encoding, range(end - 1, start - 1, -1))
        if first is None or last is None:
            continue
        while (chars := encoding.token_to_chars(last + 1)) and chars[0] < end:
            last += 1
        spans += [first, last + 1]
    return spans


def _token_of(encoding: Encoding, chars: range) -> int | None:
    # Of the first of these characters that is part of any token.
    for char in chars:
        if (place := encoding.char_to_token(char)) is not None:
            return place
    return None
