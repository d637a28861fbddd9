"""Subsets: a seed decides them, smaller lie in larger ones, and streams that change between passes are refused."""

import json
import random
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_scripts.rows import RowSource
from dataset_scripts.subsets import SteadyRows, add, fingerprint, image_keys, images_in, smallest, subset
from tests.fresh_process import run_fresh


ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("coco", "sam", "lcs", "text")


def row(name: object, source: str = "coco", *images: str, answer: str = "A cat.") -> dict:
    turns = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": answer}]
    return {"id": str(name), "source": source, "images": list(images), "messages": turns}


def many(count: int) -> list[dict]:
    return [row(number, SOURCES[number % 3], f"{SOURCES[number % 3]}/{number}.jpg") for number in range(count)]


def stream(rows: list[dict]):
    return lambda: iter(rows)


# Ids and images repeat, and rows with no or several images are among them.
ROWS = st.lists(
    st.builds(
        lambda name, source, images: row(name, source, *images),
        st.integers(0, 5),
        st.sampled_from(SOURCES),
        st.lists(st.sampled_from("abcdef"), max_size=2),
    ),
    min_size=1,
    max_size=40,
).map(lambda rows: [{**row, "number": number} for number, row in enumerate(rows)])
RELAXED = settings(deadline=None, max_examples=150)


def numbers(rows) -> list[int]:
    return [row["number"] for row in rows()]


@RELAXED
@given(ROWS, st.integers(0, 3), st.data())
def test_smaller_subsets_lie_in_larger_ones_and_keep_the_order_of_the_file(rows, seed, data):
    small, large = sorted(data.draw(st.lists(st.integers(1, len(rows)), min_size=2, max_size=2)))
    inner, outer = (numbers(subset(stream(rows), size, seed)[0]) for size in (small, large))
    assert (len(inner), len(outer)) == (small, large)
    assert set(inner) <= set(outer)
    assert inner == sorted(inner) and outer == sorted(outer)


@RELAXED
@given(ROWS, st.sets(st.sampled_from(SOURCES), min_size=1), st.sets(st.sampled_from("abcdef"), min_size=1))
def test_a_row_fits_by_its_source_and_if_all_of_its_images_are_listed(rows, sources, images):
    sources &= {row["source"] for row in rows}
    fitting = [row for row in rows if row["source"] in sources and row["images"] and set(row["images"]) <= images]
    if not fitting:
        with pytest.raises(ValueError, match=f"None of the {len(rows)} rows fits"):
            subset(stream(rows), sources=sources, images=images)
        return
    chosen, manifest = subset(stream(rows), sources=sources, images=images)
    assert list(chosen()) == list(chosen()) == fitting
    assert manifest["rows"] == {"base": len(rows), "fitting": len(fitting), "result": len(fitting)}
    assert manifest["by_source"] == Counter(row["source"] for row in fitting)
    assert manifest["images"]["found"] == len({image for row in fitting for image in row["images"]})
    assert manifest["images"]["listed"] == len(images)


def test_no_restriction_keeps_every_row():
    rows = many(10)
    chosen, manifest = subset(stream(rows))
    assert list(chosen()) == rows
    assert manifest == {
        "seed": 0,
        "size": None,
        "sources": None,
        "images": None,
        "rows": {"base": 10, "fitting": 10, "result": 10},
        "by_source": {"coco": 4, "sam": 3, "lcs": 3},
    }


def test_a_size_counts_only_rows_that_fit():
    chosen, manifest = subset(stream(many(30)), 4, sources={"sam"})
    assert [row["source"] for row in chosen()] == ["sam"] * 4
    assert manifest["rows"] == {"base": 30, "fitting": 10, "result": 4} and manifest["by_source"] == {"sam": 4}
    assert manifest["sources"] == ["sam"]


def test_the_choice_does_not_depend_on_where_a_row_stands_nor_on_the_other_rows():
    rows = many(300)
    among_all = {row["id"] for row in subset(stream(rows), 200, 5)[0]()}
    shuffled = random.Random(1).sample(rows, len(rows))
    assert {row["id"] for row in subset(stream(shuffled), 200, 5)[0]()} == among_all
    of_the_first = among_all & {row["id"] for row in rows[:150]}
    assert {row["id"] for row in subset(stream(rows[:150]), len(of_the_first), 5)[0]()} == of_the_first


def test_every_seed_gives_another_subset_of_all_parts_of_the_file():
    rows = many(3000)
    first, second = ([int(row["id"]) for row in subset(stream(rows), 600, seed)[0]()] for seed in (1, 2))
    assert 60 < len(set(first) & set(second)) < 180  # 120 expected
    assert all(130 < sum(start <= name < start + 1000 for name in first) < 270 for start in (0, 1000, 2000))


def test_rows_of_one_image_have_a_luck_of_their_own():
    rows = [row(number, "coco", "coco/one.jpg") for number in range(200)]
    chosen = [int(row["id"]) for row in subset(stream(rows), 100)[0]()]
    assert chosen != list(range(100)) and len(chosen) == 100


def test_missing_images_are_counted():
    _, manifest = subset(stream(many(6)), images=["coco/0.jpg", "sam/1.jpg", "coco/0.jpg", "sam/99.jpg"])
    assert manifest["images"] == {"listed": 3, "found": 2} and manifest["rows"]["result"] == 2


def test_two_sets_with_paths_of_two_roots_come_to_the_same_images(tmp_path):
    ours = [row(n, "lcs", f"llava/llava_pretrain/images/00453/{n:09d}.jpg") for n in range(2, 9)] + [
        row(1, "sam", "s")
    ]
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    records = [{"id": str(n), "image": f"00453/{n:09d}.jpg", "conversations": turns} for n in range(5)]
    (tmp_path / "blip.json").write_text(json.dumps(records))
    blip2 = RowSource(tmp_path / "blip.json", image_prefix="llava/llava_pretrain/images/").conversations
    assert {row["source"] for row in blip2()} == {"lcs"}
    theirs, _ = subset(blip2, images=images_in(stream(ours)))
    mine, _ = subset(stream(ours), images=images_in(blip2))
    assert list(images_in(theirs)) == list(images_in(mine)) == list(images_in(stream(ours)))[:3]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"size": 0}, "`size` must be at least 1, got 0"),
        ({"size": 31}, "`size` is 31, only 30 of 30 rows fit"),
        ({"size": 11, "sources": {"sam"}}, "`size` is 11, only 10 of 30 rows fit"),
        (
            {"sources": {"sam", "imagenet"}},
            r"`sources` names \['imagenet'\], the rows come from \['coco', 'lcs', 'sam'\]",
        ),
        ({"sources": set()}, "None of the 30 rows fits"),
        ({"images": ["0.jpg"]}, "name images like 'coco/0.jpg', the list like '0.jpg'"),
        ({"images": []}, "`images` is empty"),
    ],
)
def test_what_cannot_be_chosen_is_named(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        subset(stream(many(30)), **arguments)


def test_a_set_without_rows_is_refused():
    with pytest.raises(ValueError, match="None of the 0 rows fits"):
        subset(stream([]), 1)


@pytest.mark.parametrize(
    "second",
    [[], many(9), many(11), many(10)[::-1], [*many(9), row(9, "coco", "coco/other.jpg")], [*many(9), row(8)]],
    ids=["empty", "shorter", "longer", "reversed", "another image", "another id"],
)
def test_a_stream_that_changes_between_passes_is_refused(second):
    passes = iter([many(10), second])
    chosen, _ = subset(lambda: iter(next(passes)), 3)
    with pytest.raises(ValueError, match=f"gave 10 rows at first and {len(second)} other rows later"):
        list(chosen())


def test_a_pass_that_was_broken_off_does_not_count():
    rows = SteadyRows(stream(many(3)))
    assert next(rows())["id"] == "0"
    assert [entry["id"] for entry in rows()] == [entry["id"] for entry in rows()] == ["0", "1", "2"]


@RELAXED
@given(st.lists(st.integers(0, 9), max_size=30), st.data())
def test_the_smallest_are_marked_and_the_first_among_equals(draws, data):
    count = data.draw(st.integers(0, len(draws)))
    order = sorted(range(len(draws)), key=lambda place: (draws[place], place))[:count]
    assert np.flatnonzero(smallest(np.array(draws, np.uint64), count)).tolist() == sorted(order)


def test_names_with_half_a_character_can_be_chosen():
    rows = [row("\ud83d", "coco", "coco/\ud83d.jpg"), row(2, "coco", "b.jpg")]
    chosen, _ = subset(stream(rows), 1, images=["coco/\ud83d.jpg"])
    assert list(chosen()) == rows[:1]


def test_a_fingerprint_has_64_bits_that_never_change():
    assert fingerprint("subset", 0, "coco/train2017/000000000009.jpg") == 7427452270314341918
    assert fingerprint("a", "b") != fingerprint("b", "a") != fingerprint("ba")
    keys = [fingerprint(number) for number in range(1000)]
    assert max(keys) > 2**63 > min(keys) >= 0 and image_keys(["a", "b", "a"]).tolist() == sorted(
        [fingerprint("a"), fingerprint("b")]
    )


def test_memory_stays_at_a_few_bytes_a_row():
    def rows():
        return (row(n, "sam", f"sam/images/sa_{n}.jpg") for n in range(40_000))

    def subset_of_half():
        return subset(rows, 20_000, images=images_in(rows))

    def ten_added():
        return add(lambda: iter(()), rows, [rows], 10, 0)

    for choose, count in ((subset_of_half, 20_000), (ten_added, 10)):
        tracemalloc.start()
        chosen, _ = choose()
        assert sum(1 for _ in chosen()) == count
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 40_000 * 60


# Sets of captions of overlapping images; the number in the id says which set wrote it.
def caption_set(name: str, images) -> list[dict]:
    return [row(f"{name}{image}", "sam", f"sam/{image}.jpg", answer=f"{name} on {image}.") for image in images]


@RELAXED
@given(st.lists(st.sets(st.integers(0, 20)), min_size=2, max_size=4), st.sets(st.integers(0, 20)), st.integers(0, 3))
def test_added_images_are_the_same_whichever_set_is_used(sets, in_mix, seed):
    filled = [caption_set(f"s{number}-", sorted(images | {50})) for number, images in enumerate(sets)]
    base = [row("q", "gqa", "gqa/1.jpg"), *caption_set("old", in_mix), row(2, "text")]
    shared = set.intersection(*sets) - in_mix | {50}
    count = max(1, len(shared) // 2)
    chosen = []
    for used in filled:
        rows, manifest = add(
            stream(base), stream(used), [stream(other) for other in filled if other is not used], count, seed
        )
        result = list(rows())
        assert result == list(rows()) and result[: len(base)] == base
        added = result[len(base) :]
        assert len(added) == count and all(new in used for new in added)
        assert {new["images"][0] for new in added} <= {f"sam/{image}.jpg" for image in shared}
        assert manifest["inserted"] == [{"id": new["id"], "image": new["images"][0], "source": "sam"} for new in added]
        assert manifest["images"]["new"] == len(shared) and manifest["rows"]["result"] == len(result)
        assert manifest["by_source"]["result"] == Counter(new["source"] for new in result)
        chosen.append([new["images"][0] for new in added])
    assert all(images == chosen[0] for images in chosen) and len(set(chosen[0])) == count


def test_a_set_may_be_compared_with_itself_and_more_images_contain_fewer():
    captions = caption_set("a", range(100))
    few, many = (add(stream([]), stream(captions), [stream(captions)], count, 3)[1]["inserted"] for count in (10, 50))
    assert few == many[:10]
    other = add(stream([]), stream(captions[::-1]), [], 10, 3)[1]["inserted"]
    assert other == few
    assert add(stream([]), stream(captions), [], 10, 4)[1]["inserted"] != few


def test_of_several_captions_of_an_image_the_first_is_added():
    captions = [row(f"{image}{part}", "sam", f"sam/{image}.jpg") for part in "ab" for image in range(3)]
    rows, _ = add(stream([row("q", "gqa", "gqa/1.jpg")]), stream(captions), [], 3, 0)
    assert sorted(new["id"] for new in rows())[:3] == ["0a", "1a", "2a"]


def test_too_few_shared_images_are_counted():
    base = caption_set("old", [3])
    with pytest.raises(
        ValueError, match="3 images are asked for; the sets share 3, and 2 of these are new to the mix"
    ):
        add(stream(base), stream(caption_set("a", range(4))), [stream(caption_set("b", range(1, 9)))], 3, 0)


@pytest.mark.parametrize(
    ("captions", "other", "count", "reason"),
    [
        (caption_set("a", [1]), caption_set("a", [1]), 0, "`count` must be at least 1, got 0"),
        ([], caption_set("a", [1]), 1, "set of captions has no rows"),
        (caption_set("a", [1]), [], 1, "set of captions has no rows"),
        (caption_set("a", [1]), [row(1, "sam", "a", "b")], 1, "must have one image, got 2"),
        ([row(1, "sam")], caption_set("a", [1]), 1, "must have one image, got 0"),
    ],
)
def test_what_cannot_be_added_is_named(captions, other, count, reason):
    with pytest.raises(ValueError, match=reason):
        add(stream([row("q", "gqa", "gqa/1.jpg")]), stream(captions), [stream(other)], count, 0)


@pytest.mark.parametrize("once", ["mix", "captions"])
def test_what_is_added_and_where_must_be_the_same_in_every_pass(once):
    rows = {"mix": many(9), "captions": caption_set("a", range(9))}
    iterators = {name: iter(values) for name, values in rows.items()}
    base, captions = (lambda name=name: iterators[name] if name == once else iter(rows[name]) for name in rows)
    with pytest.raises(ValueError, match="gave 9 rows at first and 0 other rows later"):
        list(add(base, captions, [], 1, 0)[0]())


def test_a_user_who_changes_an_added_row_does_not_change_the_next_pass():
    rows, _ = add(stream([]), stream(caption_set("a", [1])), [], 1, 0)
    next(rows())["messages"][0]["content"] = "changed"
    assert list(rows()) == caption_set("a", [1])


FRESH = """
import json
sys.path.insert(0, sys.argv[1])
from dataset_scripts.rows import RowSource
from dataset_scripts.subsets import add, subset

def rows():
    for number in range(500):
        yield {"id": str(number), "source": "sam", "images": [f"sam/{number}.jpg"], "messages": []}

chosen, manifest = add(subset(rows, 50, 3)[0], rows, [rows], 20, 3)
print(json.dumps({"hash": hash("sam"), "ids": [row["id"] for row in chosen()], "manifest": manifest}))
"""


def test_the_choice_is_the_same_in_processes_that_hash_text_differently(tmp_path):
    first, second = (run_fresh(FRESH, ROOT, cwd=tmp_path) for _ in range(2))
    assert first.pop("hash") != second.pop("hash")
    assert first == second and len(first["ids"]) == 70
