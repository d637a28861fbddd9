"""Table 2's columns from rows of either kind, equal to what is counted by hand."""

from dataset_scripts.rows import RowSource
from dataset_scripts.stats import measure, table
from tests.released_files import write_released


def caption(source: str, captioner: str | None, text: str) -> dict:
    return {"id": "1", "image": "a.jpg", "source": source, "captioner": captioner, "caption": text}


def talk(source: str, images: int, *answers: str) -> dict:
    turns = [turn for text in answers for turn in (("user", "What is it?"), ("assistant", text))]
    messages = [{"role": role, "content": text} for role, text in turns]
    return {"id": "1", "source": source, "images": ["a.jpg"] * images, "messages": messages}


ROWS = [
    caption("coco", "GPT4-Vision", "four"),
    caption("sam", "GPT4-Vision", "sixsix"),
    caption("coco", "Share-Captioner", "été😀"),
    caption("coco", "GPT4-Vision", "sevens."),
]


def test_captions_are_counted_by_source_and_captioner():
    assert measure(ROWS) == {
        "total": {"samples": 4, "images": 4, "answers": 4, "average": 5.25, "longest": 7},
        "groups": [
            {"source": "coco", "captioner": "GPT4-Vision"}
            | {"samples": 2, "images": 2, "answers": 2, "average": 5.5, "longest": 7},
            {"source": "coco", "captioner": "Share-Captioner"}
            | {"samples": 1, "images": 1, "answers": 1, "average": 4.0, "longest": 4},
            {"source": "sam", "captioner": "GPT4-Vision"}
            | {"samples": 1, "images": 1, "answers": 1, "average": 6.0, "longest": 6},
        ],
    }


def test_conversations_are_averaged_over_every_answer_and_no_question():
    measured = measure([talk("coco", 2, "one", "three"), talk("text", 0, "a"), talk("coco", 1, "12")])
    assert measured["total"] == {"samples": 3, "images": 3, "answers": 4, "average": 2.75, "longest": 5}
    assert [(group["source"], group["captioner"], group["average"]) for group in measured["groups"]] == [
        ("coco", "", 3.33),
        ("text", "", 1.0),
    ]


def test_no_rows_and_rows_without_answers_have_figures_too():
    nothing = {"samples": 0, "images": 0, "answers": 0, "average": 0.0, "longest": 0}
    assert measure([]) == {"total": nothing, "groups": []}
    assert measure([talk("coco", 1)])["total"] == {**nothing, "samples": 1, "images": 1}


def test_a_source_of_any_name_is_a_group_of_its_own():
    rows = [caption("all", "", "four"), caption(None, None, "ab"), caption("all", None, "sixsix")]
    measured = measure(rows)
    assert measured["total"]["samples"] == 3
    assert [(group["source"], group["samples"]) for group in measured["groups"]] == [("", 1), ("all", 2)]
    assert table("x", measured).count("\n") == 3


def test_the_table_has_the_columns_of_the_papers_second_one():
    lines = table("ShareGPT4V", measure(ROWS * 1000)).splitlines()
    assert lines[0].split() == ["name", "image", "source", "captioned", "by", "samples", "average"]
    assert lines[1].split() == ["ShareGPT4V", "coco", "GPT4-Vision", "2,000", "6"]
    assert lines[-1].split() == ["ShareGPT4V", "all", "4,000", "5"]
    assert len({len(line) for line in lines}) == 1


def test_a_released_file_is_measured_as_it_was_written(tmp_path):
    ledger = write_released(tmp_path / "mix.json", "mix", 400)
    measured = measure(RowSource(tmp_path / "mix.json").conversations())
    assert {group["source"]: group["samples"] for group in measured["groups"]} == dict(ledger.by_source)
    assert measured["total"]["images"] == 400 - ledger.by_source["text"]
