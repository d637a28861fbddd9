"""The released files: every variant is read, every repair counted, every unusable record named."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dataset_scripts.layouts import source_of
from dataset_scripts.released import ReadReport, read_released
from tests.released_files import BAD, COUNTS, FOLDERS, REPAIRS, write_released


ROOT = Path(__file__).resolve().parents[2]


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
    with pytest.raises(ValueError, match=r"cut.json is damaged or cut off after record 48: .*Download it again"):
        list(read_released(path, report))
    assert report.records == 49


@pytest.mark.parametrize("content", ['{"a": 1}', "", "<html>404</html>"])
def test_a_file_that_is_no_array_is_refused(tmp_path, content):
    path = tmp_path / "page.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="page.json must hold one JSON array"):
        read(path)


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
