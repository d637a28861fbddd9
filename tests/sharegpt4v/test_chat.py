"""`sharegpt4v chat`: a conversation about one image, shown as it comes and harmless to a terminal."""

import io
import json
import sys
import threading
import unicodedata

import pytest
import torch

from modeling_sharegpt4v.images_sharegpt4v import open_image
from sharegpt4v.chat import Conversation, LocalOptions, LocalTalker
from tests.commands import run_command
from tests.sharegpt4v.serving import image_bytes, save_tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("chat") / "tiny")


@pytest.fixture(scope="module")
def talker(folder):
    return LocalTalker(LocalOptions(str(folder), device="cpu", max_new_tokens=12))


@pytest.fixture
def photo(tmp_path):
    (tmp_path / "photo.png").write_bytes(image_bytes())
    return tmp_path / "photo.png"


@pytest.fixture
def chat(folder, photo, capsys, monkeypatch):
    def run(*words, typed: str = ""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        return run_command(capsys, "chat", photo, *words, "--model", folder, "--max-new-tokens", 24, "--device", "cpu")

    return run


def test_one_question_is_answered_as_the_model_does(talker, photo):
    conversation = Conversation(talker, open_image(photo))
    pieces = list(conversation.ask("What is this?"))
    assert len(pieces) > 1 and conversation.turns[0].answer == "".join(pieces).strip()
    assert conversation.turns[0].finish_reason == "length"


def test_a_later_question_comes_with_all_that_was_said(talker, photo):
    conversation = Conversation(talker, open_image(photo))
    for question in ("What is this?", "Where?"):
        list(conversation.ask(question))
    first, second = conversation.turns
    content = [{"type": "image", "image": open_image(photo)}, {"type": "text", "text": first.question}]
    messages = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": first.answer}]},
        {"role": "user", "content": [{"type": "text", "text": second.question}]},
    ]
    processor, model = talker._processor, talker._model
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=12, do_sample=False)
    said = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert second.answer == said.strip()


def test_leaving_in_the_middle_of_an_answer_ends_the_work(talker, photo):
    before = threading.active_count()
    answer = Conversation(talker, open_image(photo)).ask("What is this?")
    next(answer)
    answer.close()
    assert threading.active_count() == before


def test_a_conversation_that_is_too_long_says_so(talker, photo):
    with pytest.raises(ValueError, match="Begin a new one"):
        list(Conversation(talker, open_image(photo)).ask("What? " * 300))


def test_what_a_model_writes_does_nothing_to_the_terminal(chat):
    outcome = chat("--question", "What is it")
    assert outcome.code == 0 and outcome.output.strip()
    assert not [one for one in outcome.output if unicodedata.category(one) in ("Cc", "Cf") and one not in "\n\t"]


def test_questions_come_as_words_and_from_standard_input(chat):
    outcome = chat("What", "is", "this?", "--json", typed="And <image> here?\n\nWhere")
    facts = json.loads(outcome.output)
    assert [turn["question"] for turn in facts["turns"]] == ["What is this?", "And <image> here?", "Where"]
    assert all(turn["answer"] and turn["seconds"] >= 0 for turn in facts["turns"])


def test_faults_are_named_before_the_model_is_read(chat, photo, capsys):
    assert chat("What?", "--question", "What?").code == 2
    assert "no question" in chat(typed="").errors
    photo.write_bytes(image_bytes()[:700])
    outcome = chat("--question", "What?")
    assert outcome.code == 1 and "photo.png" in outcome.errors and "Traceback" not in outcome.errors
    absent = run_command(capsys, "chat", photo.with_name("absent.png"), "What?")
    assert absent.code == 1 and "absent.png" in absent.errors
