"""The stand-in itself, below the clients: links, ranges, refusals, the environment of processes, and its end."""

import hashlib
import json
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.hub_stand_in.access import USER, WRITE
from tests.hub_stand_in.large_files import link
from tests.hub_stand_in.store import HubError
from tests.hub_stand_in.wire import part_of
from tests.hub_stand_in.world import HubStandIn


ONE = f"{USER}/one"
DATA = b"0123456789"
SHA256 = hashlib.sha256(DATA).hexdigest()


def ask(method: str, url: str, body: bytes | None = None, token: str = "", **headers: str) -> tuple[int, bytes, Any]:
    """Status, body and headers of an answer; redirects are not followed to another status."""
    given = headers | ({"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, given, method=method), timeout=10) as answer:
            return answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read(), error.headers


@pytest.fixture(scope="module")
def hub():
    """A Hub with a repository that has the bytes of one large object."""
    with HubStandIn() as hub:
        hub.repos.create(ONE)
        assert ask("PUT", link(hub, "PUT", hub.repo(ONE), SHA256), DATA)[0] == 200
        yield hub


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("bytes=0-3", (0, 4)),
        ("bytes=4-", (4, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-99", (0, 10)),
        ("bytes=8-99", (8, 10)),
        ("bytes=10-", None),
        ("bytes=-", None),
        ("lines=1-2", None),
        (None, None),
    ],
)
def test_a_range_is_understood(header, part):
    assert part_of(10, header) == part


def test_a_link_gives_a_range_and_refuses_one_beyond_the_end(hub):
    url = link(hub, "GET", hub.repo(ONE), SHA256)
    status, body, headers = ask("GET", url, Range="bytes=2-4")
    assert (status, body, headers["Content-Range"]) == (206, b"234", "bytes 2-4/10")
    status, body, headers = ask("GET", url, Range="bytes=10-12")
    assert (status, body, headers["Content-Range"]) == (416, b"", "bytes */10")
    assert ask("GET", url, Range="lines=1-2")[:2] == (200, DATA)
    status, body, headers = ask("HEAD", url)
    assert (status, body, headers["Content-Length"]) == (200, b"", "10")


def test_a_link_is_good_for_what_it_was_signed_for(hub):
    read, write = (link(hub, method, hub.repo(ONE), SHA256) for method in ("GET", "PUT"))
    assert ask("GET", read)[0] == 200 and ask("GET", read, token=WRITE)[0] == 400
    assert ask("GET", write)[0] == ask("GET", read[:-1] + "x")[0] == ask("PUT", read, DATA)[0] == 403


def test_bytes_other_than_those_announced_are_not_kept(hub):
    sha256 = hashlib.sha256(b"other").hexdigest()
    status, body, _ = ask("PUT", link(hub, "PUT", hub.repo(ONE), sha256), DATA)
    assert status == 400 and b"not those announced" in body
    assert hub.repo(ONE).uploaded == {SHA256} and not hub.repos.blobs.path(sha256).exists()


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([{"key": "lfsFile", "value": {"path": "a.bin", "oid": "0" * 64}}], "was not uploaded"),
        ([{"key": "deletedFile", "value": {"path": "a.txt"}}], "not there"),
        ([{"key": "file", "value": {"path": "../a", "content": "a"}}], "Invalid path"),
        ([{"key": "file", "value": {"path": name, "content": "a"}} for name in ("a", "a/b")], "a file and a folder"),
        ([{"key": "file", "value": {"path": "README.md", "content": "---\nlicense: [\n---\n"}}], "bad YAML"),
        ([{"key": "file", "value": {"path": "a.txt"}}], "KeyError"),
        ([{"key": "rename", "value": {"path": "a.txt"}}], "Unknown line"),
    ],
)
def test_a_commit_that_cannot_be_made_changes_nothing(hub, lines, said):
    body = b"\n".join(json.dumps(line).encode() for line in [{"key": "header", "value": {"summary": "s"}}, *lines])
    before = hub.repo(ONE).head
    status, answer, _ = ask("POST", f"{hub.url}/api/models/{ONE}/commit/main", body, token=WRITE)
    assert status == 400 and said in json.loads(answer)["error"]
    assert hub.repo(ONE).head is before


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/nothing", 404),
        ("POST", f"/api/models/{ONE}/commit/main?create_pr=1", 400),
        ("POST", "/api/repos/create", 400),
    ],
)
def test_what_is_not_served_is_refused(hub, method, path, status):
    assert ask(method, f"{hub.url}{path}", b"[1", token=WRITE)[0] == status


def test_a_repository_that_is_not_there_is_named(hub):
    with pytest.raises(KeyError, match=ONE):
        hub.repo("tester/two")
    with pytest.raises(HubError, match="already created"):
        hub.repos.create(ONE)


def test_programs_use_the_hub_by_their_environment(hub, tmp_path):
    """Its command line uploads and downloads, with a token and a home that this process does not have."""
    program = shutil.which("hf", path=str(Path(sys.executable).parent))
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "notes.txt").write_text("notes")
    for words in (["upload", f"{USER}/cli", "made", "--private"], ["download", f"{USER}/cli", "--local-dir", "got"]):
        done = subprocess.run(
            [str(program), *words], cwd=tmp_path, env=hub.env(), capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "got" / "notes.txt").read_text() == "notes" and hub.repo(f"{USER}/cli").private


def test_an_end_leaves_nothing_behind():
    with HubStandIn() as hub:
        hub.repos.create(ONE)
        folder, home = hub.repos.blobs.folder, Path(hub.env()["HF_HOME"])
        assert list(folder.iterdir()) and home.is_dir()
        url = hub.url
    assert not folder.exists() and not home.exists()
    with pytest.raises(urllib.error.URLError):
        ask("GET", f"{url}/api/whoami-v2")
