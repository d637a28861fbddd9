"""The leak check: row 48 of the fault matrix, canary by canary."""

import io
import json
import os
import pickle
import socket
import struct
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import save_file

from model_cards.leak_text import Machine, this_machine
from model_cards.leaks import check_leaks


MACHINE = Machine(
    hosts=frozenset({"gpu-node-17"}),
    users=frozenset({"mmustermann"}),
    folders=frozenset({"/fastdisk/projects"}),
    secrets={"c4n4ry-of-the-environment": "$MY_API_KEY"},
)
# Put together here, so that no scanner takes this file for a leak.
HUB_TOKEN = "hf_" + "aBcDeFgHiJ" * 3 + "kLmN"
SECRETS = {
    "hub": HUB_TOKEN,
    "openai": "sk-" + "proj-" + "a1B2c3D4e5" * 5,
    "openai_classic": "sk-" + "a" * 20 + "T3BlbkFJ" + "b" * 20,
    "aws": "AKIA" + "ABCDEFGHIJ234567",
    "github": "ghp_" + "a1B2c3D4e5F6" * 3,
    "private_key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "slack": "xoxb-" + "1234567890-1234567890-abcdefabcdef",
    "environment": "c4n4ry-of-the-environment",
    "address": "https://me:" + "hunter2hunter" + "@host.example.com/x",
}
GPS = b"".join(
    (
        b"Exif\0\0II*\0\x08\0\0\0",
        struct.pack("<HHHII", 1, 0x8825, 4, 1, 26) + bytes(4),
        struct.pack("<H", 4),
        struct.pack("<HHI4s", 1, 2, 2, b"N\0\0\0") + struct.pack("<HHII", 2, 5, 3, 80),
        struct.pack("<HHI4s", 3, 2, 2, b"E\0\0\0") + struct.pack("<HHII", 4, 5, 3, 104) + bytes(4),
        struct.pack("<6I", 48, 1, 8, 1, 0, 1) * 2,
    )
)


def leaks(folder, **options):
    """Findings as (file, kind)."""
    return [(leak.file, leak.kind) for leak in check_leaks(folder, machine=MACHINE, **options).leaks]


def photograph(exif=b"", kind="JPEG"):
    """Bytes of a small picture."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "navy").save(buffer, kind, exif=exif)
    return buffer.getvalue()


class Payload:
    """Calls something when it is unpickled."""

    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("file", ["config.json", "README.md", "notes", "code.py", "tokenizer.json"])
def test_a_secret_is_found_in_any_text_and_never_shown(tmp_path, name, file):
    (tmp_path / file).write_text(json.dumps({"value": f"x {SECRETS[name]} y"}))
    found = check_leaks(tmp_path, machine=MACHINE).leaks
    assert {(leak.file, leak.kind) for leak in found} == {(file, "secret")}
    assert all(SECRETS[name] not in str(leak) and "hunter2" not in str(leak) for leak in found)


def test_a_secret_of_the_environment_is_found_in_binary_files(tmp_path):
    (tmp_path / "blob.dat").write_bytes(b"\0\xff" * 3000 + SECRETS["environment"].encode() + b"\0")
    assert leaks(tmp_path) == [("blob.dat", "secret")]


def test_a_secret_over_the_edge_of_two_blocks_is_found_once(tmp_path):
    (tmp_path / "long.txt").write_text("a\n" * ((1 << 19) - 10) + HUB_TOKEN + "\n" + "b\n" * 9000)
    (leak,) = check_leaks(tmp_path, machine=MACHINE).leaks
    assert (leak.place, leak.count) == (f"line {(1 << 19) - 9}", 1)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("see /home/someone/run/a.txt", "absolute path"),
        ('"path": "/data/coco/train2017/1.jpg"', "absolute path"),
        ("open file:///mnt/share/x", "absolute path"),
        (r"C:\Users\someone\model", "absolute path"),
        (r'{"a": "D:\\data\\set"}', "absolute path"),
        ("/fastdisk/projects/secret/run", "absolute path"),
        ("ran on gpu-node-17.cluster", "host name"),
        ("trained by mmustermann", "user name"),
        ("write to jane.doe@university.edu please", "e-mail"),
    ],
)
def test_places_and_people_are_found_with_their_line(tmp_path, text, kind):
    (tmp_path / "README.md").write_text(f"# Title\n\n{text}\n")
    (leak,) = check_leaks(tmp_path, machine=MACHINE).leaks
    assert (leak.kind, leak.place) == (kind, "line 3")


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/datasets/a/b/resolve/main/data/x.parquet",
        "me@example.com and git@github.com:a/b.git",
        "The token limit is 2048; `pad_token`: `<pad>`; api_key_env",
        "from data/train-*.parquet and ~/data/x, ./tmp/x, a/work/b",
        '{"pad_token": "<unk>", "sha256": "' + "0f" * 32 + '"}',
        "#!/usr/bin/env python",
        "A:\\nanswer\\n",
    ],
)
def test_harmless_text_is_not_found(tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    assert leaks(tmp_path) == []


def test_a_vocabulary_may_hold_names_by_chance(tmp_path):
    (tmp_path / "vocab.json").write_text('{"mmustermann": 1, "/home/x/y": 2}')
    assert leaks(tmp_path) == []


def test_a_name_of_a_file_is_looked_at_too(tmp_path):
    (tmp_path / "run-of-mmustermann.txt").write_text("fine")
    assert leaks(tmp_path) == [("run-of-mmustermann.txt", "user name")]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_photograph_with_a_gps_position_is_found(tmp_path, kind):
    (tmp_path / f"a.{kind.lower()}").write_bytes(photograph(GPS, kind))
    (tmp_path / f"b.{kind.lower()}").write_bytes(photograph(kind=kind))
    assert leaks(tmp_path) == [(f"a.{kind.lower()}", "GPS position")]


def test_a_photograph_with_a_gps_position_is_found_inside_a_parquet_shard(tmp_path):
    images = [{"bytes": photograph(GPS if row == 301 else b""), "path": f"{row}.jpg"} for row in range(400)]
    table = pa.table({"image": images, "images": [[image, image] for image in images]})
    pq.write_table(table, tmp_path / "train.parquet", row_group_size=100)
    found = check_leaks(tmp_path, machine=MACHINE).leaks
    assert [(leak.kind, leak.place, leak.count) for leak in found] == [
        ("GPS position", "row 301, image", 1),
        ("GPS position", "row 301, images", 1),
    ]


def test_texts_and_metadata_of_a_parquet_shard_are_looked_at(tmp_path):
    talk = [[{"role": "user", "content": f"hi {row}"}] for row in range(300)]
    talk[280][0]["content"] = f"my key {HUB_TOKEN}"
    table = pa.table({"messages": talk, "source": pa.array(["coco"] * 300).dictionary_encode()})
    table = table.replace_schema_metadata({"note": "by jane.doe@university.edu"})
    pq.write_table(table, tmp_path / "train.parquet")
    found = {(leak.kind, leak.place) for leak in check_leaks(tmp_path, machine=MACHINE).leaks}
    assert found == {("e-mail", "metadata note"), ("secret", "row 280, messages.content")}


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../../key.pem", "file:///etc/passwd", "%2e%2e/key", r"C:\key", "~/k"]
)
def test_a_row_that_names_a_file_outside_the_folder_is_found(tmp_path, name):
    rows = [{"image": "coco/1.jpg"}, {"image": name}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rows.json").write_text(json.dumps([{"images": ["a.jpg", name]}]))
    (tmp_path / "rows.csv").write_text(f"file_name,text\na.jpg,x\n{name},y\n")
    pq.write_table(pa.table({"image_path": ["a.jpg", name]}), tmp_path / "rows.parquet")
    pq.write_table(pa.table({"image": [{"bytes": None, "path": name}]}), tmp_path / "image.parquet")
    found = {(leak.file, leak.place) for leak in check_leaks(tmp_path, machine=MACHINE).leaks}
    assert found >= {
        ("rows.jsonl", "line 2"),
        ("rows.json", "line 1"),
        ("rows.csv", "row 1, file_name"),
        ("rows.parquet", "row 1, image_path"),
        ("image.parquet", "row 0, image"),
    }


def test_rows_that_name_files_of_the_folder_and_of_the_web_are_fine(tmp_path):
    names = ["coco/train2017/1.jpg", "https://example.com/a.jpg", "a..b.jpg", "zip://a.jpg::x.zip"]
    pq.write_table(pa.table({"image": names}), tmp_path / "rows.parquet")
    assert leaks(tmp_path) == []


def test_pickles_are_found_by_their_bytes_whatever_their_name(tmp_path):
    for protocol in (0, 2, 4):
        (tmp_path / f"weights-{protocol}.dat").write_bytes(pickle.dumps(Payload(), protocol))
    (tmp_path / "vocab.txt").write_bytes(pickle.dumps({"a": 1}))
    (tmp_path / "model.bin").write_bytes(b"raw")
    with zipfile.ZipFile(tmp_path / "inner.data", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps([1]))
    found = {file for file, kind in leaks(tmp_path) if kind == "pickle"}
    assert found == {
        "weights-0.dat", "weights-2.dat", "weights-4.dat", "vocab.txt", "model.bin", "inner.data"
    }  # fmt: skip


@pytest.mark.parametrize("text", ["caption\nfoo bar\n", "import os\nimport re\n", "# (x)\n", "(a)\n.", ".", "N."])
def test_text_is_no_pickle(tmp_path, text):
    (tmp_path / "notes.txt").write_text(text)
    assert leaks(tmp_path) == []


def test_archives_are_looked_into(tmp_path):
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        for name, data in {"a.jpg": photograph(GPS), "../b.txt": b"x", "c.json": b'{"by": "mmustermann"}'}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    assert {kind for _, kind in leaks(tmp_path)} == {"GPS position", "file outside", "user name"}


def test_links_out_of_the_folder_are_found_and_their_content_is_checked(tmp_path):
    folder, outside = tmp_path / "repo", tmp_path / "outside.txt"
    folder.mkdir()
    outside.write_text(HUB_TOKEN)
    (folder / "a.txt").symlink_to(outside)
    (folder / "b").symlink_to(tmp_path)
    assert set(leaks(folder)) >= {("a.txt", "file outside"), ("a.txt", "secret"), ("b", "file outside")}


def test_remote_code_without_a_revision_is_found(tmp_path):
    (tmp_path / "config.json").write_text('{"auto_map": {"AutoModel": "someone/code--modeling.Model"}}')
    (tmp_path / "README.md").write_text(
        'load("a/b", trust_remote_code=True)\n'
        f'load("a/b", revision="{"0" * 40}", trust_remote_code=True)\n'
        'load("a/b", f(1), revision="v1.0", trust_remote_code=True)\n'
        'pinned = {"revision": "v1.0", "trust_remote_code": True}\n'
        'load("a/b", revision="main", trust_remote_code=True)\n'
    )
    found = check_leaks(tmp_path, machine=MACHINE).leaks
    assert [(leak.file, leak.place) for leak in found] == [
        ("README.md", "line 1"), ("README.md", "line 5"), ("config.json", "line 1")
    ]  # fmt: skip


def test_what_tools_leave_behind_is_found(tmp_path):
    for name in ("__pycache__/a.pyc", ".ipynb_checkpoints/n.md", ".cache/x", "events.out.tfevents.1", ".DS_Store"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert {kind for _, kind in leaks(tmp_path)} == {"cache"}
    assert len(leaks(tmp_path)) == 5


def test_a_file_beyond_the_limit_of_the_hub_is_found_without_reading_it(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"a": np.zeros(2, np.float32)}, path)
    os.truncate(path, 201 * 1000**3)  # sparse
    assert leaks(tmp_path) == [("model.safetensors", "limit")]


def test_what_cannot_be_read_blocks(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nonsense")
    (tmp_path / "b.safetensors").write_bytes(b"nonsense")
    assert leaks(tmp_path) == [("a.parquet", "unreadable"), ("b.safetensors", "unreadable")]


def test_a_finding_is_allowed_by_its_id_and_only_it(tmp_path):
    (tmp_path / "README.md").write_text("jane.doe@university.edu, john.doe@university.edu")
    first, second = check_leaks(tmp_path, machine=MACHINE).leaks
    report = check_leaks(tmp_path, [first.id, "0" * 12], MACHINE)
    assert (report.leaks, report.allowed, report.unknown) == ([second], [first], ["0" * 12])


def test_an_allowed_secret_does_not_allow_another_of_its_kind(tmp_path):
    (tmp_path / "a.txt").write_text(HUB_TOKEN)
    (leak,) = check_leaks(tmp_path, machine=MACHINE).leaks
    (tmp_path / "a.txt").write_text(HUB_TOKEN[:-2] + "Zz")
    (other,) = check_leaks(tmp_path, [leak.id], MACHINE).leaks
    assert (other.excerpt, other.id == leak.id) == (leak.excerpt, False)


def test_an_id_does_not_depend_on_where_in_the_file_the_finding_is(tmp_path):
    (tmp_path / "a.txt").write_text("jane.doe@university.edu")
    (before,) = check_leaks(tmp_path, machine=MACHINE).leaks
    (tmp_path / "a.txt").write_text("\n\nHello jane.doe@university.edu")
    (after,) = check_leaks(tmp_path, machine=MACHINE).leaks
    assert (before.id, before.place, after.place) == (after.id, "line 1", "line 3")


def test_this_machine_is_known_by_its_host_and_its_secrets(tmp_path):
    code = (
        "import json; from model_cards.leak_text import this_machine; m = this_machine();"
        "print(json.dumps([sorted(m.hosts), sorted(m.users), m.secrets]))"
    )
    env = {**os.environ, "LOGNAME": "mmustermann", "WANDB_API_KEY": "c4n4ry-0123", "HF_TOKEN": HUB_TOKEN}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    hosts, users, secrets = json.loads(done.stdout)
    assert set(hosts) <= {socket.gethostname(), socket.gethostname().split(".")[0]}
    assert "mmustermann" in users and "root" not in users
    assert secrets["c4n4ry-0123"] == "$WANDB_API_KEY" and HUB_TOKEN in secrets
    assert "c4n4ry" not in repr(this_machine())


def test_files_are_not_read_into_memory(tmp_path):
    image = photograph() + os.urandom(400_000)
    rows = pa.table({"image": [{"bytes": image, "path": "a.jpg"}] * 64})
    with pq.ParquetWriter(tmp_path / "train.parquet", rows.schema, compression="none", use_dictionary=False) as writer:
        for _ in range(8):  # 200 MB
            writer.write_table(rows)
    save_file({"a": np.zeros(2, np.float32)}, tmp_path / "model.safetensors")
    os.truncate(tmp_path / "model.safetensors", 50 * 1000**3)
    code = (
        "import resource, sys; from pathlib import Path; import pyarrow.parquet, PIL.Image;"
        "from model_cards.leak_text import Machine; from model_cards.leaks import check_leaks;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "report = check_leaks(Path(sys.argv[1]), [], Machine());"
        "print(len(report.leaks), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    found, grown_kb = map(int, done.stdout.split())
    assert found == 0
    assert grown_kb < 120_000
