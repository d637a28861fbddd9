"""Checks of captions: what each one finds, what it lets pass, and that nothing is left out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captioning.checks import CaptionChecks, CheckConfig, check_caption
from captioning.prompts import load_prompts


GOOD = (
    "A brown dog with a red collar lies on a wooden jetty beside a small blue boat. The lake behind it is calm, and "
    "low hills stand in the haze of the evening. On the left, a coiled rope hangs over a post."
)
CONFIG = CheckConfig()


def checks_of(caption: str, **options) -> set[str]:
    return {finding.check for finding in check_caption(caption, CONFIG, **options)}


def row(number: int, caption: str = GOOD, **more) -> dict:
    return {"id": f"row-{number}", "source": "coco", "caption": caption, **more}


def test_a_good_caption_has_no_finding():
    assert check_caption(GOOD, CONFIG, load_prompts().base, "stop") == []


@pytest.mark.parametrize("text", ["", "  \n\t"])
def test_no_text_is_empty_and_nothing_else(text):
    assert checks_of(text) == {"empty"}


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with identifying the people in this photograph of a crowded street.",
        "I am really sorry, this photograph cannot be described by me in the way that you have asked for.",
        "Sorry, I cannot describe this one because it appears to show something that is not permitted here.",
        "I'm unable to identify the person in this image, but there is a man in a suit who stands at a desk.",
        "I’m not able to help with that request, since it asks about a real person who can be seen there.",
        "As an AI language model, I have no way to look at the picture that you have asked me to describe.",
        "No image was provided, so there is nothing that could be described here in any detail at the moment.",
    ],
)
def test_refusals_are_found(text):
    assert "refusal" in checks_of(text)


@pytest.mark.parametrize(
    "text",
    [
        "A hand-written sign on the door of the shop reads: 'Sorry, we are closed.' Beside it stands a bicycle.",
        'The shirt reads "I can\'t help it" in green letters, and a cap with the same words lies on the table.',
        "A woman looks sorry while a child in a yellow coat assists her with the heavy bags at the bus stop.",
    ],
)
def test_words_of_a_refusal_within_a_description_are_none(text):
    assert "refusal" not in checks_of(text)


def test_a_cut_off_text_is_found_by_its_reason_and_by_its_end():
    assert checks_of(GOOD, finish_reason="length") == {"truncated"}
    assert checks_of(GOOD[: GOOD.rindex(" ")]) == {"truncated"}
    for end in ('."', ".)", "!", "?", "…", '"', ".*"):
        assert checks_of(GOOD.removesuffix(".") + end) == set()


def test_a_loop_is_found_with_its_phrase():
    text = GOOD + " The boat lies on the calm lake." * 4
    (finding,) = check_caption(text, CONFIG)
    assert finding.check == "loop" and finding.reason == "4 times: 'the boat lies on the calm'"
    assert checks_of(GOOD + " The boat lies on the calm lake." * 3) == set()


@pytest.mark.parametrize(
    "mark", ["<image>", "<|im_end|>", "ASSISTANT:", "</s>", "[INST]", "<end_of_utterance>", "<start_of_turn>"]
)
def test_marks_of_chats_and_images_are_found(mark):
    assert checks_of(f"{mark} {GOOD}") == {"marker"}


def test_a_few_words_are_too_short():
    assert checks_of("A dog.") == {"too_short"}


@pytest.mark.parametrize(
    ("text", "language"),
    [
        (
            "Ein brauner Hund mit rotem Halsband liegt auf einem Steg neben einem kleinen blauen Boot am stillen See.",
            "de",
        ),
        (
            "一只戴着红色项圈的棕色狗躺在木码头上，旁边是一艘蓝色的小船，湖面平静，远处是低矮的山丘，天色已近傍晚。光线柔和。",
            "zh",
        ),
    ],
)
def test_another_language_is_found(text, language):
    (finding,) = check_caption(text, CONFIG)
    assert finding == ("language", f"{language}, not en.")
    assert check_caption(text, CheckConfig(language=language)) == check_caption(text, CheckConfig(language=None)) == []


def test_a_repeated_prompt_is_found():
    prompt = load_prompts().base
    words = " ".join(prompt.split()[:12])
    assert checks_of(f"{words}. {GOOD}", prompt=prompt) == {"prompt_leak"}


def test_one_text_on_many_images_is_found_from_the_third_on():
    checks = CaptionChecks()
    found = [[finding.check for finding in checks.check(row(n, text))] for n, text in enumerate([GOOD] * 4)]
    assert found == [[], [], ["repeated_caption"], ["repeated_caption"]]
    assert checks.check(row(9, GOOD.upper().replace(",", ";")))[0].check == "repeated_caption"
    assert checks.report()["repeated_texts"] == 1


def test_images_that_look_the_same_are_found():
    checks = CaptionChecks()
    assert checks.check(row(1, GOOD, phash="ffff000000000000")) == []
    (finding,) = checks.check(row(2, GOOD + " Night falls.", phash="ffff000000000003"))
    assert finding == ("similar_image", "Its image looks like that of row-1.")
    assert checks.check(row(3, GOOD + " Day breaks.", phash="0000ffff00000000")) == []


def test_the_report_counts_rows_checks_sources_and_lengths():
    checks = CaptionChecks(samples=2)
    rows = [row(1), row(2, "", source="sam"), row(3, "A dog."), row(4, GOOD + " It rains.")]
    assert [one for one, _ in checks.check_all(rows)] == rows
    report = checks.report()
    assert (report["rows"], report["clean"]) == (4, 2)
    assert report["by_check"] == {"empty": 1, "too_short": 1}
    assert report["by_source"]["coco"] == {"clean": 2, "rows": 3, "too_short": 1}
    assert report["by_source"]["sam"] == {"clean": 0, "empty": 1, "rows": 1}
    assert report["lengths"] == {"0": 2, str(len(GOOD) // 100 * 100): 2} and len(report["samples"]) == 2


def test_samples_are_drawn_evenly_and_by_seed():
    def drawn(seed: int) -> list[str]:
        checks = CaptionChecks(samples=50, seed=seed)
        for number in range(2000):
            checks.check(row(number, ""))
        return [sample["id"] for sample in checks.samples]

    places = [int(name.removeprefix("row-")) for name in drawn(0)]
    assert drawn(0) == drawn(0) != drawn(1) and len(set(places)) == 50
    assert 600 < sum(places) / 50 < 1400


@given(st.text(), st.text(), st.sampled_from([None, "stop", "length"]))
def test_any_text_can_be_checked(caption, prompt, reason):
    assert isinstance(check_caption(caption, CheckConfig(language=None), prompt, reason), list)


@pytest.mark.parametrize("name", ["min_characters", "ngram", "max_repeats", "max_images", "leak_words"])
def test_a_threshold_below_one_is_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        CheckConfig(**{name: 0})


def test_a_model_that_has_stopped_by_itself_is_not_cut_off():
    assert checks_of(f"{GOOD}\n- a rope\n- a post", finish_reason="stop") == set()
    assert checks_of("On the wall, green letters spell SYSTEM: READY. Below it stands an old desk.") == set()


def test_names_and_short_lines_have_no_language():
    assert checks_of("Lionel Messi celebrates a goal for Barcelona at Camp Nou.") == set()
