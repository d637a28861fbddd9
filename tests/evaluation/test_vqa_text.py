"""The three normalisers of short answers: the official table, and each quirk by itself."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.vqa_contractions import CONTRACTIONS, VIZWIZ_CONTRACTIONS
from evaluation.vqa_text import normalise_m4c, normalise_vizwiz, normalise_vqa_v2, strip_punctuation
from tests.evaluation.samples import needs_samples, read_sample


NORMALISERS = {
    "vqa_v2_official": normalise_vqa_v2,
    "m4c_evalai": normalise_m4c,
    "vizwiz_official": normalise_vizwiz,
}


@needs_samples
@pytest.mark.parametrize("column", NORMALISERS)
def test_every_text_of_the_official_table_is_normalised_exactly(column):
    """All 300 texts come out as the official code brought them."""
    rows = read_sample("vqa_normalisation/table.json")["rows"]
    assert len(rows) == 300
    assert [NORMALISERS[column](row["input"]) for row in rows] == [row[column] for row in rows]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a-b", "a b"),  # a mark between letters is a space
        ("a -b", "a b"),
        ("a- b-c", "a bc"),  # one place beside a space deletes the mark everywhere
        ("1,000-2", "10002"),  # a comma between digits deletes all marks
        ("red/blue, x", "red blue x"),  # each mark is judged on its own
        ("it's: 5% & $3 #1", "it's: 5% & $3 #1"),  # other marks stay
    ],
)
def test_marks_are_judged_on_the_text_as_it_came(text, expected):
    """What becomes of a mark depends on the original text, not on what is left of it."""
    assert strip_punctuation(text) == expected


def test_full_stops_go_unless_a_digit_follows():
    """The misspelt look-behind holds nothing back."""
    assert strip_punctuation("u.s.a. 3.5 5.") == "usa 3.5 5"


def test_no_more_than_thirty_two_full_stops_are_taken_out():
    """A flag stands where the official code means a count."""
    assert strip_punctuation("." * 40) == "." * 8
    assert strip_punctuation("." * 32) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Dog", "dog"),
        ("none", "0"),
        ("Ten a one", "10 1"),
        ("eleven", "eleven"),
        (" two\nthe\tcats ", "2 cats"),
        ("dont", "don't"),
        ("somebody'd", "somebodyd"),
        ("Im", "im"),  # a key with a capital is never found
        ("a", ""),
    ],
)
def test_words_are_replaced_after_small_letters(text, expected):
    """Numbers, articles and contractions by the rule of VQA v2."""
    assert normalise_vqa_v2(text) == expected


def test_m4c_makes_a_word_of_the_genitive():
    """What VQA v2 leaves together, uploads have apart."""
    assert normalise_m4c("The dog's") == "dog 's"
    assert normalise_vqa_v2("The dog's") == "dog's"


def test_m4c_deletes_commas_and_question_marks_before_all_else():
    """A comma between digits is gone before it can delete other marks."""
    assert normalise_m4c("1,000-2?") == "1000 2"


def test_vizwiz_repairs_with_typographic_apostrophes_in_most_places():
    """Its copy of the table was left half converted."""
    assert normalise_vizwiz("dont") == "don\u2019t"
    assert normalise_vizwiz("cant") == "can't"
    assert normalise_vizwiz("couldn'tve") == "couldn\u2019t\u2019ve"
    assert normalise_vizwiz("shed've") == "shed've"


def test_both_tables_have_the_120_official_pairs():
    """Keys and targets differ in nothing but apostrophes."""
    assert len(CONTRACTIONS) == len(VIZWIZ_CONTRACTIONS) == 120
    for table in (CONTRACTIONS, VIZWIZ_CONTRACTIONS):
        for key, value in table.items():
            assert key.replace("'", "").replace("\u2019", "") == value.replace("'", "").replace("\u2019", "")


@settings(deadline=None)
@given(st.text())
def test_any_text_has_a_normal_form(text):
    """No text is refused, and the same text always comes out alike."""
    for normalise in NORMALISERS.values():
        found = normalise(text)
        assert found == found.strip() == normalise(text)
