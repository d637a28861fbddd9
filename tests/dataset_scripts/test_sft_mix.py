"""Captions in the place of others: equal counts, no image twice, nothing else moved, a manifest that says it all."""

import json
import random
import tracemalloc
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_scripts.rows import DETAIL_QUESTIONS, RowSource
from dataset_scripts.schema import validate_conversation
from dataset_scripts.sft_mix import GROUPS, RELEASED_QUOTA, is_detailed_description, listed_records, swap
from tests.fresh_process import run_fresh
from tests.released_files import COUNTS, write_released


ROOT = Path(__file__).resolve().parents[2]
QUESTION = "What's happening in the scene?"
DIVERSE = GROUPS["diverse"]
RELAXED = settings(deadline=None, max_examples=150)


def row(name: object, source: str, *images: str, question: str = QUESTION, answer: str = "A cat.") -> dict:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"id": str(name), "source": source, "images": list(images), "messages": turns}


def stream(rows: list[dict]):
    return lambda: iter(rows)


def swapped(base: list[dict], captions: list[dict], quota: dict[str, int], seed: int = 0, **options):
    return swap(stream(base), stream(captions), quota, seed, **options)


def detail(number: int) -> dict:
    return row(f"d{number}", "coco", f"coco/{number}.jpg", answer=f"Description {number}.")


def question(number: int) -> dict:
    return row(f"q{number}", "gqa", f"gqa/{number}.jpg", question="How many?")


def caption(number: int, source: str = "sam") -> dict:
    return row(f"c{number}", source, f"{source}/{number}.jpg", answer=f"Caption {number}.")


def mix(details: int, others: int, seed: int = 0) -> list[dict]:
    rows = [*map(detail, range(details)), *map(question, range(others))]
    return random.Random(seed).sample(rows, len(rows))


# Few images, so that captions repeat them and share them with the mix; coco images are in both.
IMAGES = st.integers(0, 12).map("coco/{}.jpg".format)
BASES = st.lists(
    st.one_of(
        st.builds(lambda image: row(f"d{image}", "coco", image, answer="Old."), IMAGES),
        st.builds(lambda image: row(f"v{image}", "coco", image, question="How many?"), IMAGES),
        st.builds(lambda number: row(number, "text", question="Hello?"), st.integers(0, 3)),
    ),
    min_size=1,
    max_size=25,
)
CAPTIONS = st.lists(
    st.one_of(
        st.builds(lambda image: row(f"c{image}", "coco", image, answer="New."), IMAGES),
        st.builds(caption, st.integers(0, 12), st.sampled_from(["sam", "wikiart", "textcaps"])),
    ),
    min_size=1,
    max_size=40,
).map(lambda rows: [{**row, "id": f"c{number}"} for number, row in enumerate(rows)])
QUOTAS = st.fixed_dictionaries({"coco": st.integers(0, 6), "sam": st.integers(0, 6), "diverse": st.integers(0, 4)})


@RELAXED
@given(BASES, CAPTIONS, QUOTAS, st.integers(0, 3), st.booleans())
def test_counts_places_and_images_are_right_for_every_mix(base, captions, quota, seed, keep_total):
    matched = [number for number, old in enumerate(base) if is_detailed_description(old)]
    wanted = min(len(matched), sum(quota.values())) if keep_total else sum(quota.values())
    try:
        rows, manifest = swapped(base, captions, quota, seed, keep_total=keep_total)
    except ValueError as error:
        fitting = {new["images"][0] for new in captions if quota.get(new["source"], quota["diverse"])}
        reasons = {"is to be replaced": not matched, "asks for no captions": not any(quota.values())}
        reasons["too few"] = wanted > len(fitting - {base[number]["images"][0] for number in matched})
        assert any(true and reason in str(error) for reason, true in reasons.items())
        return
    result, counts = list(rows()), manifest["rows"]
    removed = {entry["number"]: entry for entry in manifest["removed"]}
    inserted = [entry["id"] for entry in manifest["inserted"]]

    assert counts["matched"] == len(matched) and set(removed) <= set(matched)
    assert (counts["base"], counts["removed"]) == (len(base), len(removed)) and len(result) == counts["result"]
    assert wanted == counts["inserted"] == len(inserted) == sum(manifest["quota"]["taken"].values())
    assert set(removed) == set(matched) if not keep_total else len(removed) == wanted and len(result) == len(base)

    by_id = {new["id"]: new for new in captions}
    assert all(by_id[entry["id"]]["source"] == entry["source"] for entry in manifest["inserted"])
    images = [by_id[name]["images"][0] for name in inserted]
    assert images == [entry["image"] for entry in manifest["inserted"]]
    assert len(set(images)) == len(images)
    assert not set(images) & {entry["image"] for entry in removed.values()}
    for number, entry in removed.items():
        assert base[number]["id"] == entry["id"] and base[number]["images"] == [entry["image"]]

    assert [new for new in result if new["id"] not in by_id] == [
        old for number, old in enumerate(base) if number not in removed
    ]
    assert sorted(new["id"] for new in result if new["id"] in by_id) == sorted(inserted)
    assert all(by_id[new["id"]] == new for new in result if new["id"] in by_id)
    if keep_total:
        assert [number for number, new in enumerate(result) if new["id"] in by_id] == sorted(removed)
    assert manifest["by_source"]["result"] == Counter(new["source"] for new in result)
    assert manifest["by_source"]["inserted"] == Counter(by_id[name]["source"] for name in inserted)


@RELAXED
@given(BASES, CAPTIONS, QUOTAS, st.integers(0, 3), st.randoms(use_true_random=False))
def test_a_seed_decides_the_mix_whatever_the_order_of_the_captions(base, captions, quota, seed, shuffle):
    captions = list({new["images"][0]: new for new in captions}.values())
    shuffled = shuffle.sample(captions, len(captions))
    reordered = dict(reversed(quota.items()))
    try:
        rows, manifest = swapped(base, captions, quota, seed)
    except ValueError:
        with pytest.raises(ValueError):
            swapped(base, shuffled, quota, seed)
        return
    again, same = swapped(base, captions, quota, seed)
    assert list(rows()) == list(rows()) == list(again()) and manifest == same
    assert json.loads(json.dumps(manifest)) == manifest
    assert list(swapped(base, shuffled, reordered, seed)[0]()) == list(rows())


@RELAXED
@given(QUOTAS.filter(lambda quota: any(quota.values())), st.integers(1, 20))
def test_a_quota_above_the_matches_keeps_its_proportions(quota, matches):
    captions = [caption(number, source) for source in ("coco", "sam", *DIVERSE) for number in range(100, 110)]
    _, manifest = swapped([detail(number) for number in range(matches)], captions, quota, 0)
    whole = sum(quota.values())
    total = min(matches, whole)
    assert sum(manifest["quota"]["taken"].values()) == total
    assert manifest["quota"]["taken"] == manifest["quota"]["target"] and manifest["quota"]["asked"] == quota
    for name, number in manifest["quota"]["target"].items():
        assert abs(number - quota[name] * total / whole) < 1 and number <= quota[name]


def test_largest_remainders_decide_the_rounding():
    captions = [caption(number, source) for source in ("lcs", "coco", "sam", "wikiart") for number in range(100, 110)]
    _, manifest = swapped(mix(11, 0), captions, {"coco": 10, "lcs": 4, "sam": 10, "diverse": 1})
    assert manifest["quota"]["target"] == {"coco": 4, "lcs": 2, "sam": 4, "diverse": 1}  # 4.4, 1.76, 4.4, 0.44


def test_every_seed_takes_out_and_puts_in_others_at_other_places():
    base, captions = mix(100, 100), [caption(number) for number in range(100)]
    first, second = (swapped(base, captions, {"sam": 50}, seed)[1] for seed in (1, 2))
    for name, key in (("removed", "number"), ("inserted", "id")):
        one, other = ({entry[key] for entry in manifest[name]} for manifest in (first, second))
        assert len(one) == len(other) == 50 and 10 < len(one & other) < 40


def test_captions_come_in_mixed_and_not_in_the_order_of_their_file():
    captions = [caption(number, source) for source in ("lcs", "sam") for number in range(200)]
    rows, _ = swapped(mix(200, 50), captions, {"lcs": 100, "sam": 100})
    sources = [new["source"] for new in rows() if new["source"] in ("lcs", "sam")]
    assert 30 < sources[:100].count("lcs") < 70


def test_as_released_all_matches_go_and_the_quota_comes_whatever_their_numbers():
    base, captions = mix(30, 20), [caption(number) for number in range(60)]
    rows, manifest = swapped(base, captions, {"sam": 10}, keep_total=False)
    assert manifest["rows"] == {"base": 50, "matched": 30, "removed": 30, "inserted": 10, "result": 30}
    rows, manifest = swapped(base, captions, {"sam": 40}, keep_total=False)
    assert manifest["rows"] == {"base": 50, "matched": 30, "removed": 30, "inserted": 40, "result": 60}
    result = list(rows())
    assert [new["source"] for new in result[50:]] == ["sam"] * 10
    assert [new["source"] == "sam" for new in result[:50]] == [old["source"] == "coco" for old in base]


def test_models_with_other_mixes_get_the_same_captions():
    captions = [caption(number) for number in range(100)]
    chosen = [
        {entry["id"] for entry in swapped(base, captions, {"sam": 20}, 7)[1]["inserted"]}
        for base in (mix(20, 5), mix(60, 90, seed=3))
    ]
    assert chosen[0] == chosen[1]


def test_a_shortage_is_filled_from_the_largest_other_parts_and_told():
    captions = [caption(n, "wikiart") for n in range(3)] + [caption(n, "sam") for n in range(7)]
    captions += [caption(n, "lcs") for n in range(100, 120)]
    _, manifest = swapped(mix(20, 0), captions, {"diverse": 6, "sam": 5, "lcs": 4, "coco": 0})
    assert manifest["quota"]["taken"] == {"diverse": 3, "sam": 7, "lcs": 5, "coco": 0}
    assert manifest["filled"] == {"sam": 2, "lcs": 1}
    _, manifest = swapped(mix(20, 0), captions, {"sam": 5, "diverse": 3})
    assert manifest["filled"] == {}
    _, manifest = swapped(mix(2, 0), captions[:3], {"coco": 9, "diverse": 1}, 0)
    assert manifest["quota"]["target"] == {"coco": 2, "diverse": 0} and manifest["filled"] == {"diverse": 2}


def test_a_part_that_is_not_wanted_fills_no_shortage():
    captions = [caption(1, "wikiart"), *(caption(number, "sam") for number in range(9))]
    with pytest.raises(ValueError, match="That is 1 too few"):
        swapped(mix(5, 0), captions, {"diverse": 2, "sam": 0})


def test_a_shortage_can_be_an_error_with_the_numbers():
    captions = [caption(1, "wikiart"), *(caption(number, "sam") for number in range(9))]
    reason = r"quota is {'diverse': 2, 'sam': 3}, captions .* exist for {'diverse': 1, 'sam': 9}.*on_short='fill'"
    with pytest.raises(ValueError, match=reason):
        swapped(mix(5, 0), captions, {"diverse": 2, "sam": 3}, on_short="error")
    _, manifest = swapped(mix(5, 0), captions, {"diverse": 1, "sam": 4}, on_short="error")
    assert manifest["quota"]["taken"] == {"diverse": 1, "sam": 4}


def test_a_caption_of_an_image_that_is_taken_out_never_comes_in():
    captions = [caption(number, "coco") for number in range(30)]
    for seed in range(20):
        _, manifest = swapped(mix(20, 0), captions[:20], {"coco": 10}, seed)
        gone = {entry["image"] for entry in manifest["removed"]}
        assert {f"coco/{number}.jpg" for number in range(20)} - gone == {
            entry["image"] for entry in manifest["inserted"]
        }
    _, manifest = swapped(mix(20, 0), captions, {"coco": 10}, keep_total=False)
    assert {entry["image"] for entry in manifest["inserted"]} == {f"coco/{number}.jpg" for number in range(20, 30)}


def test_of_several_captions_of_an_image_the_first_may_come_in():
    captions = [row(f"{number}{part}", "sam", f"sam/{number}.jpg") for number in range(5) for part in "ab"]
    rows, _ = swapped(mix(5, 0), captions, {"sam": 5})
    assert sorted(new["id"] for new in rows()) == ["0a", "1a", "2a", "3a", "4a"]


def test_captions_with_several_questions_come_in_whole():
    talk = caption(1)
    talk["messages"] = talk["messages"] * 2
    rows, _ = swapped([detail(1)], [talk], {"sam": 1})
    assert list(rows()) == [talk]


def test_a_source_of_ones_own_can_be_named():
    rows, _ = swapped([detail(1)], [caption(1, "street"), caption(2, "sam")], {"street": 1})
    assert [new["source"] for new in rows()] == ["street"]


def test_a_user_who_changes_a_row_does_not_change_the_next_pass():
    rows, _ = swapped([detail(1)], [caption(1)], {"sam": 1})
    next(rows())["messages"][0]["content"] = "changed"
    assert list(rows()) == [caption(1)]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"captions": []}, "set of captions has no rows"),
        ({"captions": [row(1, "sam")]}, r"Caption row 0 \(id '1'\) must have one image, got 0"),
        ({"captions": [caption(1), row(2, "sam", "a", "b")]}, r"Caption row 1 \(id '2'\) must have one image, got 2"),
        ({"captions": [row(1, "sam", "a", answer=" \n")]}, r"Caption row 0 \(id '1'\) has an empty message"),
        ({"base": []}, "None of the 0 rows of the mix is to be replaced"),
        ({"base": mix(0, 4)}, "None of the 4 rows of the mix is to be replaced"),
        ({"quota": {"sam": -1}}, "quota of 'sam' must be a whole number from 0, got -1"),
        ({"quota": {"sam": 1.5}}, "quota of 'sam' must be a whole number from 0, got 1.5"),
        ({"quota": {}}, "quota asks for no captions"),
        ({"quota": {"sam": 0}}, "quota asks for no captions, got {'sam': 0}"),
        ({"quota": {"sam": 1, "imagenet": 2}}, r"quota names \['imagenet'\]; there are \['coco', 'diverse',"),
        ({"quota": {"wikiart": 1, "diverse": 1}}, "names the source 'wikiart' twice, by 'wikiart' and by 'diverse'"),
        ({"quota": {"sam": 4}, "base": mix(4, 0)}, "exist for {'sam': 3}. That is 1 too few"),
        ({"on_short": "skip"}, "`on_short` must be 'fill' or 'error', got 'skip'"),
    ],
)
def test_what_cannot_be_swapped_is_named(changes, reason):
    arguments = {"base": mix(2, 2), "captions": [caption(1), caption(2), caption(3)], "quota": {"sam": 1}, **changes}
    with pytest.raises(ValueError, match=reason):
        swapped(arguments.pop("base"), arguments.pop("captions"), arguments.pop("quota"), 0, **arguments)


@pytest.mark.parametrize("once", ["mix", "captions"])
def test_what_can_be_read_only_once_is_refused(once):
    rows = {"mix": mix(5, 4), "captions": [caption(number) for number in range(9)]}
    iterators = {name: iter(values) for name, values in rows.items()}
    base, captions = (lambda name=name: iterators[name] if name == once else iter(rows[name]) for name in rows)
    with pytest.raises(ValueError, match="gave 9 rows at first and 0 other rows later"):
        list(swap(base, captions, {"sam": 2}, 0)[0]())


@pytest.mark.parametrize("known", DETAIL_QUESTIONS)
@pytest.mark.parametrize("change", ["{}", " {}\n", "{}'", "{}?"])
def test_detailed_descriptions_are_known_by_their_question(known, change):
    assert is_detailed_description(row(1, "coco", "coco/1.jpg", question=change.format(known)))
    assert is_detailed_description(row(1, "coco", "coco/1.jpg", question=change.format(known.rstrip("?'."))))


@pytest.mark.parametrize(
    "other",
    [
        row(1, "gqa", "gqa/1.jpg"),
        row(1, "coco"),
        row(1, "coco", "coco/1.jpg", "coco/2.jpg"),
        row(1, "coco", "coco/1.jpg", question="What is this photo about, in one word?"),
        row(1, "coco", "coco/1.jpg", question="Why? " + QUESTION),
        {**row(1, "coco", "coco/1.jpg"), "messages": row(1, "coco")["messages"] * 2},
    ],
)
def test_other_rows_are_no_detailed_descriptions(other):
    assert not is_detailed_description(other)


def test_a_listing_is_compared_by_id_and_first_answer():
    listed = listed_records(stream([row("1", "other", "1.jpg", answer="Old."), row("2", "other", answer="B.")]))
    assert listed(row("1", "coco", "coco/1.jpg", question="Hm?", answer="Old."))
    assert not listed(row("1", "coco", "coco/1.jpg", answer="Other."))
    assert not listed(row("3", "coco", "coco/1.jpg", answer="Old."))
    assert not listed(row("2", "coco", "coco/1.jpg", answer="Old."))
    base = [row("1", "coco", "coco/1.jpg", answer="Old."), detail(1), row("2", "text", answer="B.")]
    rows, manifest = swapped(base, [caption(1), caption(2)], {"sam": 2}, is_replaced=listed)
    assert [new["source"] for new in rows()] == ["sam", "coco", "sam"]
    assert [entry["image"] for entry in manifest["removed"]] == ["coco/1.jpg", None]
    with pytest.raises(ValueError, match="lists the records to replace has no rows"):
        listed_records(stream([]))


def test_released_files_can_be_swapped_and_the_result_is_valid(tmp_path):
    write_released(tmp_path / "mix.json", "mix", 1500)
    write_released(tmp_path / "captions.json", "cap100k", 1000)
    quota = {name: number // 500 for name, number in RELEASED_QUOTA.items()}
    base, captions = (RowSource(tmp_path / name).conversations for name in ("mix.json", "captions.json"))
    rows, manifest = swap(base, captions, quota, 42)
    assert manifest["quota"]["taken"] == quota == {"coco": 18, "lcs": 6, "sam": 18, "diverse": 4}
    result = list(rows())
    assert len(result) == 1500
    for new in result:
        validate_conversation(new)


def numbered_mix(details: int, others: int):
    step = (details + others) // details
    for number in range(details + others):
        detailed = number % step == 0 and number // step < details
        yield row(number, "coco", f"coco/{number // step}.jpg", question=QUESTION if detailed else "How many?")


def numbered_captions(counts: dict[str, int]):
    for source, count in counts.items():
        for number in range(10_000, 10_000 + count):
            yield row(number, source, f"{source}/{number}.jpg")


@pytest.mark.parametrize(("keep_total", "rows_left"), [(False, 665_058), (True, 665_298)])
def test_at_the_released_numbers_the_quota_is_met(keep_total, rows_left):
    captions = partial(numbered_captions, COUNTS["cap100k"])
    rows, manifest = swap(partial(numbered_mix, 23_240, 642_058), captions, RELEASED_QUOTA, 42, keep_total)
    assert manifest["rows"]["base"] == 665_298 and manifest["rows"]["matched"] == 23_240
    assert manifest["quota"]["taken"] == {"coco": 9_002, "lcs": 3_000, "sam": 9_000, "diverse": 1_998}
    assert manifest["filled"] == {"coco": 2}
    assert manifest["rows"]["result"] == rows_left == sum(1 for _ in rows())


def test_memory_grows_with_the_exchanged_rows_only():
    def long(source, count):
        text = "word " * 400
        for number in range(count):
            asked = QUESTION if number % 50 == 0 else text
            yield row(number, source, f"{source}/{number}.jpg", question=asked, answer=f"{number} {text}")

    tracemalloc.start()
    rows, manifest = swap(partial(long, "coco", 10_000), partial(long, "sam", 5000), {"sam": 200}, 0)
    assert sum(1 for _ in rows()) == 10_000 and manifest["rows"]["inserted"] == 200
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6  # the mix has 40 MB of text


FRESH = """
import json
sys.path.insert(0, sys.argv[1])
from dataset_scripts.sft_mix import swap

def rows(source, count):
    turns = [{"role": "user", "content": "Describe the following image."}, {"role": "assistant", "content": "A."}]
    for n in range(count):
        yield {"id": str(n), "source": source, "images": [f"{source}/{n}"], "messages": turns}

mixed, manifest = swap(lambda: rows("coco", 90), lambda: rows("sam", 90), {"sam": 40, "coco": 0}, 5)
print(json.dumps({"hash": hash("sam"), "images": [row["images"][0] for row in mixed()], "manifest": manifest}))
"""


def test_the_choice_is_the_same_in_processes_that_hash_text_differently(tmp_path):
    first, second = (run_fresh(FRESH, ROOT, cwd=tmp_path) for _ in range(2))
    assert first.pop("hash") != second.pop("hash")
    assert first == second and len(first["images"]) == 90
