"""Faults of a Hub, and what the real client makes of each: an error that says so, or a second try."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.hub_stand_in.faults import STAGES
from tests.hub_stand_in.world import HubStandIn


PROGRAM = Path(__file__).with_name("programs") / "faults.py"
ALWAYS = 99
GONE = [["ReadError", None], ["WriteError", None]]  # which of them depends on who is quicker
# Stages that the client tries once: a repository, what it does, the stage, how it fails, and the error.
AT_ONCE: dict[str, tuple[Any, ...]] = {
    "tester/create-503": ("publish", "create", 503, [["HfHubHTTPError", 503]]),
    "tester/create-429": ("publish", "create", 429, [["HfHubHTTPError", 429]]),
    "tester/commit-409": ("publish", "commit", 409, [["HfHubHTTPError", 409]]),
    "tester/commit-412": ("publish", "commit", 412, [["HfHubHTTPError", 412]]),
    "tester/commit-429": ("publish", "commit", 429, [["HfHubHTTPError", 429]]),
    "tester/commit-503": ("publish", "commit", 503, [["HfHubHTTPError", 503]]),
    "tester/commit-cut": ("publish", "commit", "cut", GONE),
    "tester/commit-lost": ("publish", "commit", "lost", GONE),
    "tester/tag-500": ("publish", "tag", 500, [["HfHubHTTPError", 500]]),
    "tester/lfs-403": ("publish", "lfs_upload", 403, [["HfHubHTTPError", 403]]),
    "tester/storage-503": ("fetch", "storage", 503, [["HfHubHTTPError", 503]]),
    "tester/storage-cut": ("fetch", "storage", "cut", GONE),
    "tester/whoami-429": ("whoami", "whoami", 429, [["HfHubHTTPError", 429]]),
}
# Stages that it tries again: with one fault each it gets there, with a fault each time it gives up.
AGAIN: dict[str, tuple[Any, ...]] = {
    "tester/preupload-503": ("publish", "preupload", 503),
    "tester/preupload-429": ("publish", "preupload", 429),
    "tester/batch-502": ("publish", "lfs_batch", 502),
    "tester/upload-500": ("publish", "lfs_upload", 500),
    "tester/upload-cut": ("publish", "lfs_upload", "cut"),
    "tester/upload-lost": ("publish", "lfs_upload", "lost"),
    "tester/verify-504": ("publish", "lfs_verify", 504),
    "tester/resolve-503": ("look", "resolve", 503),
}
GIVES_UP: dict[str, tuple[Any, ...]] = {
    "tester/never-preupload": ("publish", "preupload", 503, [["HfHubHTTPError", 503]]),
    "tester/never-batch": ("publish", "lfs_batch", 429, [["HfHubHTTPError", 429]]),
    "tester/never-upload": ("publish", "lfs_upload", 500, [["HfHubHTTPError", 500]]),
}
READY = [name for name, (act, *_) in {**AT_ONCE, **AGAIN}.items() if act in ("look", "fetch")]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A Hub, and the folder where its client works."""
    with HubStandIn() as hub:
        yield hub, tmp_path_factory.mktemp("client")


def outcomes(world, wanted: list[tuple[str, str]]) -> dict[str, dict]:
    """What comes of it, by repository."""
    hub, folder = world
    return hub.run(PROGRAM.read_text(encoding="utf-8"), json.dumps(wanted), cwd=folder)


@pytest.fixture(scope="module")
def found(world):
    """What came of everything with its fault, how the repositories stood then, and what came of it once more."""
    hub, _ = world
    outcomes(world, [(name, "publish") for name in READY])
    for name, (_, stage, behaviour, *_) in {**AT_ONCE, **AGAIN}.items():
        about = None if stage == "whoami" else name
        hub.fail(stage, behaviour, times=1, repository=about)
    for name, (_, stage, behaviour, _) in GIVES_UP.items():
        hub.fail(stage, behaviour, times=ALWAYS, repository=name)
    cases = {**AT_ONCE, **AGAIN, **GIVES_UP}
    first = outcomes(world, [(name, act) for name, (act, *_) in cases.items()])
    state = {one.id: (len(one.commits), one.names, dict(one.tags)) for one in hub.repos}
    hub.mend()
    second = outcomes(world, [(name, "publish") for name in cases])
    return {"first": first, "state": state, "second": second}


@pytest.mark.parametrize("name", [*AT_ONCE, *GIVES_UP])
def test_a_fault_is_an_error_that_names_it(found, name):
    *_, expected = {**AT_ONCE, **GIVES_UP}[name]
    outcome = found["first"][name]
    assert any(error in outcome["errors"] for error in expected), outcome["said"]


@pytest.mark.parametrize("name", AGAIN)
def test_a_fault_that_passes_is_tried_again(found, name):
    assert "result" in found["first"][name], found["first"][name].get("said")


@pytest.mark.parametrize("name", [name for name in (*AT_ONCE, *GIVES_UP) if name not in READY])
def test_a_fault_before_the_commit_leaves_no_file_in_the_repository(found, name):
    commits, names, tags = found["state"].get(name, (0, [], {}))
    after = name in ("tester/tag-500", "tester/commit-lost")
    assert (commits, names) == ((2, ["README.md", "model.safetensors"]) if after else (min(commits, 1), []))
    assert tags == {}


@pytest.mark.parametrize("name", [*AT_ONCE, *AGAIN, *GIVES_UP])
def test_the_same_call_once_more_completes(world, found, name):
    hub, _ = world
    assert "result" in found["second"][name], found["second"][name].get("said")
    assert hub.repo(name).names == ["README.md", "model.safetensors"] and len(hub.repo(name).commits) == 2
    assert hub.repo(name).tags == {"v1": found["second"][name]["result"]}


def test_a_cut_upload_is_reset_halfway(world, found):
    hub, _ = world
    cut, whole, *_ = hub.seen("lfs_upload", "tester/upload-cut")
    assert (cut.status, whole.status) == (0, 200) and cut.stream.left == cut.stream.length // 2


@pytest.mark.parametrize(("stage", "behaviour"), [("comit", 503), ("commit", "explode")])
def test_a_fault_that_there_is_not_is_refused(world, stage, behaviour):
    hub, _ = world
    with pytest.raises(ValueError, match="must be"):
        hub.fail(stage, behaviour)
    assert "commit" in STAGES
