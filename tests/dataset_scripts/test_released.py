"""The released files: every variant is read, every repair counted, every unusable record named, no text altered."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from dataset_scripts.layouts import source_of
from dataset_scripts.released import ReadReport, SeenTexts, read_released
from dataset_scripts.schema import validate_conversation
from tests.released_files import BAD, COUNTS, FOLDERS, REPAIRS, write_released


ROOT = Path(__file__).resolve().parents[2]
# Every example overwrites the file of the one before, so a `tmp_path` for all of them is fine.
PROPERTY = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=()))
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=6
)
CUES = ["<image>", "<image>\nWhat?", "What? <image>", "Why?", " ", "a\r\nb", "\ud800", "\udc00x", "😀"]
WORDS = st.sampled_from(CUES) | st.text() | VALUES
TURNS = st.fixed_dictionaries({}, optional={"from": st.sampled_from(["human", "gpt"]) | VALUES, "value": WORDS})
RECORDS = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from(["1", 2, "\ud800"]) | VALUES,
        "image": st.sampled_from(["coco/a.jpg", "", "/etc/passwd", "a/../b", "a\ud800"]) | VALUES,
        "conversations": st.lists(TURNS, max_size=4) | VALUES,
        "model": VALUES,
        "extra": VALUES,
    },
)


def read(path: Path, on_bad: str = "error") -> tuple[list, ReadReport]:
    report = ReadReport()
    return list(read_released(path, report, on_bad)), report


def one(tmp_path: Path, record: object) -> Path:
    path = tmp_path / "one.json"
    path.write_text(json.dumps([record]), encoding="utf-8")
    return path


def record(question: str = "<image>\nWhat is it?", answer: str = "A cat.", **changes) -> dict:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": "1", "image": "coco/train2017/000000000001.jpg", "conversations": turns, **changes}


@pytest.mark.parametrize("kind", COUNTS)
def test_the_report_equals_the_ledger_row_for_row(tmp_path, kind):
    path = tmp_path / f"{kind}.json"
    ledger = write_released(path, kind, 2000, repairs_each=3, bad_each=2, duplicates=5)
    records, report = read(path, "skip")
    assert report.records == ledger.records == 2000 + 2 * len(BAD)
    assert report.by_source == ledger.by_source and sum(report.by_source.values()) == len(records) == 2000
    assert report.repairs == ledger.repairs
    assert report.duplicate_ids == ledger.duplicate_ids == 5
    assert [row["record"] for row in report.refused] == list(ledger.refused)
    for row in report.refused:
        assert ledger.refused[row["record"]] in row["reason"] and row["file"] == path.name


def test_the_generator_writes_the_documented_totals():
    totals = {kind: sum(counts.values()) for kind, counts in COUNTS.items()}
    assert totals == {"cap100k": 102_025, "pt": 1_246_901, "mix": 665_058}


def test_records_come_out_clean_and_in_order(tmp_path):
    path = tmp_path / "mix.json"
    write_released(path, "mix", 500, repairs_each=2)
    records, _ = read(path)
    assert [row.number for row in records] == list(range(500))
    for row in records:
        roles = [message["role"] for message in row.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all("<image>" not in message["content"] and message["content"].strip() for message in row.messages)
        assert isinstance(row.id, str) and (row.image is None) == (row.source == "text")


@pytest.mark.parametrize("question", ["<image>\nWhat is it?", "What is it?\n<image>", "<image> What is it?  "])
def test_the_placeholder_may_be_first_or_last(tmp_path, question):
    records, _ = read(one(tmp_path, record(question)))
    assert records[0].messages[0]["content"] == "What is it?"


@pytest.mark.parametrize("reason", BAD)
def test_a_bad_record_stops_with_file_number_and_reason(tmp_path, reason):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps([record(), BAD[reason](record())]), encoding="utf-8")
    with pytest.raises(ValueError) as error:
        read(path)
    assert str(error.value).startswith(f"{path}, record 1: ") and reason in str(error.value)


@pytest.mark.parametrize("name", [True, "", 1.5, ["1"]])
def test_an_id_that_is_neither_text_nor_whole_number_is_refused(tmp_path, name):
    with pytest.raises(ValueError, match="record 0: `id` must be a text or a number"):
        read(one(tmp_path, record(id=name)))


def test_an_unknown_way_to_treat_bad_records_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`on_bad` must be 'error' or 'skip', got 'ignore'"):
        read(one(tmp_path, record()), "ignore")


@pytest.mark.parametrize("name", REPAIRS)
def test_each_repair_alone_is_counted_once(tmp_path, name):
    raw = record()
    REPAIRS[name](raw)
    records, report = read(one(tmp_path, raw))
    assert report.repairs == {name: 1} and len(records) == 1
    assert [message["content"] for message in records[0].messages] == ["What is it?", "A cat."]


@pytest.mark.parametrize(("folder", "source"), [(path, name) for name, path in FOLDERS.items()])
def test_the_source_follows_from_the_folder(folder, source):
    assert source_of(folder.format(1, 2)) == source


def test_images_of_unknown_folders_and_text_have_sources_too():
    assert (source_of("somewhere/a.jpg"), source_of(None)) == ("other", "text")


@pytest.mark.parametrize("encode", [lambda text: b"\xef\xbb\xbf" + text, lambda text: text.replace(b", ", b",\r\n ")])
def test_byte_order_marks_and_windows_line_ends_are_read(tmp_path, encode):
    path = tmp_path / "file.json"
    text = json.dumps([record(answer="Ein Café 🐈."), record(id=2)], ensure_ascii=False)
    path.write_bytes(encode(text.encode()))
    records, _ = read(path)
    assert records[0].messages[1]["content"] == "Ein Café 🐈." and records[1].id == "2"


def test_a_file_that_is_cut_off_is_named_after_its_last_whole_record(tmp_path):
    path = tmp_path / "cut.json"
    write_released(path, "pt", 50)
    path.write_bytes(path.read_bytes()[:-400])
    report = ReadReport()
    with pytest.raises(ValueError, match=r"cut.json is damaged or cut off at record 49: .*Download it again"):
        list(read_released(path, report))
    assert report.records == 49


@pytest.mark.parametrize("content", ['{"a": 1}', "", "<html>404</html>"])
def test_a_file_that_is_no_array_is_refused(tmp_path, content):
    path = tmp_path / "page.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="page.json must hold one JSON array"):
        read(path)


@PROPERTY
@given(values=st.lists(RECORDS | VALUES, max_size=4), escaped=st.booleans())
def test_any_json_is_read_into_valid_rows_or_refused_by_number(tmp_path, values, escaped):
    path = tmp_path / "any.json"
    path.write_bytes(json.dumps(values, ensure_ascii=escaped).encode("utf-8", "surrogatepass"))
    records, report = read(path, "skip")
    for row in records:
        images = [] if row.image is None else [row.image]
        validate_conversation({"id": row.id, "source": row.source, "images": images, "messages": row.messages})
    numbers = sorted([row.number for row in records] + [entry["record"] for entry in report.refused])
    assert numbers == list(range(len(values))) and report.records == len(values)
    json.dumps([report.refused, report.repairs], ensure_ascii=False, allow_nan=False).encode()
    if report.refused:
        with pytest.raises(ValueError) as error:
            read(path)
        first = report.refused[0]
        assert str(error.value) == f"{path}, record {first['record']}: {first['reason']}"


@PROPERTY
@given(
    values=st.lists(st.text(max_size=40) | st.integers() | VALUES, max_size=5),
    space=st.text(" \t\r\n", max_size=9),
    chunk=st.integers(1, 9),
)
@example(values=[-100, 0.0, 1e300], space="", chunk=4)
def test_the_items_do_not_depend_on_how_the_file_is_cut(tmp_path, monkeypatch, values, space, chunk):
    monkeypatch.setattr("dataset_scripts.released.CHUNK", chunk)
    path = tmp_path / "items.json"
    body = f"{space},{space}".join(json.dumps(value) for value in values)
    path.write_text(f"{space}[{space}{body}{space}]{space}", newline="")
    _, report = read(path, "skip")
    assert report.records == len(values)


@pytest.mark.parametrize("text", [r"\ud800", r"a\udc00b", r"\ud800\u0041", "\udcff"])
@pytest.mark.parametrize("place", ["id", "answer"])
def test_text_that_utf8_cannot_hold_is_refused_and_never_altered(tmp_path, text, place):
    whole = json.dumps([record(), record(**{place: "HERE"})]).replace("HERE", text)
    path = tmp_path / "half.json"
    path.write_bytes(whole.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match="record 1: The (id|text of turn 1) holds half a surrogate pair or bytes"):
        read(path)
    records, report = read(path, "skip")
    assert len(records) == len(report.refused) == 1
    json.dumps(report.refused, ensure_ascii=False).encode()


def test_a_pair_of_surrogates_is_one_character(tmp_path):
    path = tmp_path / "pair.json"
    path.write_text(json.dumps([record(answer="😀")], ensure_ascii=True))
    assert r"\ud83d\ude00" in path.read_text()
    assert read(path)[0][0].messages[1]["content"] == "😀"


def test_numbers_of_any_length_are_read(tmp_path):
    records, _ = read(one(tmp_path, record(id=2**70, score=1e308)))
    assert records[0].id == str(2**70)


@pytest.mark.parametrize("depth", [10_000, 200_000])
def test_brackets_in_brackets_end_with_the_record_not_with_the_memory(tmp_path, depth):
    path = tmp_path / "deep.json"
    path.write_text(json.dumps([record()])[:-1] + ", " + "[" * depth + "]" * depth + "]")
    with pytest.raises(ValueError, match=r"deep.json, record 1: it is nested too deeply"):
        read(path, "skip")


def test_a_record_without_end_is_not_read_into_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("dataset_scripts.released.CHUNK", 100)
    monkeypatch.setattr("dataset_scripts.released.MAX_RECORD", 1000)
    path = tmp_path / "long.json"
    path.write_text(json.dumps([record(answer="a" * 500), record(answer="a" * 5000)]))
    with pytest.raises(ValueError, match="damaged or cut off at record 1: Unterminated string"):
        read(path)


@pytest.mark.parametrize("tail", ["", ",]", "] x", "][]", " 1]", ",,1]"])
def test_what_follows_the_records_must_be_the_end(tmp_path, tail):
    path = tmp_path / "tail.json"
    path.write_text(json.dumps([record()])[:-1] + tail)
    with pytest.raises(ValueError, match=r"tail.json is damaged or cut off at record [01]: "):
        read(path)


def test_turns_are_numbered_as_in_the_file(tmp_path):
    raw = record(answer=" ")
    raw["conversations"].insert(0, {"from": "gpt", "value": "Hello."})
    with pytest.raises(ValueError, match=r"record 0: turn 2 \(assistant\) is empty"):
        read(one(tmp_path, raw))


def test_an_empty_array_has_no_records(tmp_path):
    path = tmp_path / "none.json"
    path.write_text(" [ ]\n")
    assert read(path) == ([], ReadReport())


def test_an_image_prefix_completes_every_path(tmp_path):
    path = one(tmp_path, record(image="00453/004539375.jpg"))
    (row,) = read_released(path, ReadReport(), image_prefix="llava/llava_pretrain/images/")
    assert (row.image, row.source) == ("llava/llava_pretrain/images/00453/004539375.jpg", "lcs")


def test_seen_texts_are_known_beyond_a_merge(monkeypatch):
    monkeypatch.setattr("dataset_scripts.released.MERGE_IDS", 8)
    seen = SeenTexts()
    assert not any(seen.add(str(number)) for number in range(30))
    assert all(seen.add(str(number)) for number in range(30)) and not seen.add("30")


MEASURE = """
import json, sys
from pathlib import Path
from dataset_scripts.layouts import source_of
from dataset_scripts.released import ReadReport, read_released

def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024

before, report = peak(), ReadReport()
for record in read_released(Path(sys.argv[1]), report, "skip"):
    pass
print(json.dumps([peak() - before, report.records, dict(report.by_source), dict(report.repairs), report.duplicate_ids,
                  [row["record"] for row in report.refused]]))
"""


def measure(path: Path) -> list:
    command = [sys.executable, "-c", MEASURE, str(path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "pt.json"
    write_released(path, "pt", 30_000)
    growth, records, *_ = measure(path)
    assert records == 30_000
    assert path.stat().st_size > 25e6
    assert growth < 12e6


@pytest.mark.slow
@pytest.mark.parametrize("kind", COUNTS)
def test_full_size_equals_the_ledger_and_the_documented_counts_within_300_megabytes(tmp_path, kind):
    documented = {
        "cap100k": (
            102_025,
            {"sam": 19_982, "wikiart": 500, "textcaps": 500, "web-celebrity": 498, "web-landmark": 500},
        ),
        "pt": (1_246_901, {"sam": 570_486, "coco": 118_287, "lcs": 558_128}),
        "mix": (665_058, {}),
    }
    path = tmp_path / f"{kind}.json"
    ledger = write_released(path, kind, repairs_each=500, bad_each=50, duplicates=1000)
    growth, records, by_source, repairs, duplicates, refused = measure(path)
    path.unlink()
    total, sources = documented[kind]
    assert records == ledger.records and sum(by_source.values()) == total
    assert {name: by_source[name] for name in sources} == sources
    assert by_source == ledger.by_source and repairs == ledger.repairs
    assert duplicates == ledger.duplicate_ids == 1000 and refused == list(ledger.refused)
    assert growth < 300e6
