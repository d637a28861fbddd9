"""Publishing to the stand-in Hub: row 47 of the fault matrix, and row 50."""

import json
import subprocess
import sys
import threading
import time
from itertools import count

import pytest

from dataset_scripts.build import write_repo
from evaluation.metrics import write_metric
from tests.hub_stand_in.access import EXPIRED, READ, STRANGER, WRITE
from tests.hub_stand_in.world import HubStandIn
from tests.model_cards.published import adapter_folder, model_folder
from tests.tiny import noise_image


NUMBERS = count()
NO_SECRETS = ("hf_may", "hf_once", "hf_someone")
QUICK = ("--tries", "1")


class Publisher:
    """A process that publishes to a Hub."""

    def __init__(self, hub):
        self.hub = hub
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.model_cards.publish_child"],
            env=hub.env(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __call__(self, *words, token=WRITE):
        """Exit code, standard output and errors of `sharegpt4v publish`."""
        self.process.stdin.write(json.dumps({"words": [str(word) for word in words], "token": token}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert not any(secret in answer["output"] + answer["errors"] for secret in NO_SECRETS)
        return answer["code"], answer["output"], answer["errors"]


@pytest.fixture(scope="module")
def hub():
    with HubStandIn() as running:
        yield running


@pytest.fixture(scope="module")
def child(hub):
    publisher = Publisher(hub)
    yield publisher
    publisher.process.stdin.close()
    publisher.process.wait(20)


@pytest.fixture
def publish(hub, child):
    hub.mend()
    return child


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("run") / "model")


@pytest.fixture
def repo():
    return f"tester/little-{next(NUMBERS)}"


def is_complete(hub, repo, tag="v1.0", private=True, kind="model"):
    """Whether all is there: files, tag and visibility."""
    found = hub.repo(repo, kind)
    return "README.md" in found.names and found.tags.get(tag) == found.head.sha and found.private == private


def shows_nothing(hub, repo, kind="model"):
    """Whether nobody can take it for a published one."""
    found = hub.repos.find(repo, kind)
    return found is None or (found.private and not found.names and not found.tags)


def test_a_model_is_private_complete_tagged_and_its_load_line_is_pinned(publish, hub, source, repo):
    code, output, _ = publish("model", source, "--repo", repo, "--json")
    told = json.loads(output)["published"]
    assert code == 0 and is_complete(hub, repo)
    assert told["commit"] == hub.repo(repo).head.sha and told["private"] is True
    assert told["load"].endswith(f'from_pretrained("{repo}", revision="{told["commit"]}")')
    assert set(hub.repo(repo).names) == set(json.loads(output)["files"])


def test_one_commit_makes_everything_visible(publish, hub, source, repo):
    publish("model", source, "--repo", repo)
    assert len(hub.repo(repo).history("main")) == 2  # the Hub's own, and this


def test_a_second_run_sends_nothing(publish, hub, source, repo):
    publish("model", source, "--repo", repo)
    before = hub.repo(repo).head.sha
    code, output, _ = publish("model", source, "--repo", repo)
    assert (code, hub.repo(repo).head.sha) == (0, before)
    assert "had this content already" in output
    assert len(hub.seen("lfs_upload", repo)) == 1


def test_a_public_repository_is_private_until_it_is_complete(publish, hub, source, repo):
    hub.fail("tag", 500, repository=repo, retry_after=None)
    code, _, errors = publish("model", source, "--repo", repo, "--public", *QUICK)
    found = hub.repo(repo)
    assert (code, found.private) == (8, True)
    assert f"complete as commit {found.head.sha} of the private repository, without its tag" in errors
    assert publish("model", source, "--repo", repo, "--public")[0] == 0
    assert is_complete(hub, repo, private=False)


def test_a_dry_run_writes_the_folder_and_asks_the_hub_nothing(publish, hub, source, repo, tmp_path):
    asked = len(hub.seen())
    code, output, _ = publish("model", source, "--repo", repo, "--dry-run", "--stage", tmp_path / "out", "--json")
    told = json.loads(output)
    assert (code, len(hub.seen()), hub.repos.find(repo)) == (0, asked, None)
    on_disk = {path.relative_to(tmp_path / "out").as_posix(): path.stat().st_size
               for path in (tmp_path / "out").rglob("*") if path.is_file()}  # fmt: skip
    assert told["files"] == on_disk
    assert (told["licence"], told["findings"], told["blocked"]) == ("llama2", [], False)


def test_a_leak_blocks_before_any_byte_leaves_and_is_allowed_by_its_id(publish, hub, repo, tmp_path):
    folder = model_folder(tmp_path / "run")
    (folder / "notes.txt").write_text("ask jane.doe@university.edu")
    asked = len(hub.seen())
    code, output, _ = publish("model", folder, "--repo", repo, "--json")
    (finding,) = json.loads(output)["findings"]
    assert (code, len(hub.seen())) == (3, asked)
    assert (finding["file"], finding["kind"]) == ("notes.txt", "e-mail")
    assert publish("model", folder, "--repo", repo, "--allow", finding["id"])[0] == 0
    assert "notes.txt" in hub.repo(repo).names


def test_missing_facts_of_the_card_send_nothing(publish, hub, repo, tmp_path):
    folder = model_folder(tmp_path / "run")
    (folder / "card.yaml").unlink()
    asked = len(hub.seen())
    code, _, errors = publish("model", folder, "--repo", repo)
    assert (code, len(hub.seen())) == (1, asked)
    assert "license" in errors and "card.yaml" in errors


@pytest.mark.parametrize(
    ("token", "words"),
    [(None, "no Hub token"), (READ, "may only read"), (EXPIRED, "expired"), (STRANGER, "may not write")],
)
def test_a_token_that_will_not_do_is_told_and_nothing_is_sent(publish, hub, source, repo, token, words):
    code, _, errors = publish("model", source, "--repo", repo, token=token)
    assert (code, hub.repos.find(repo)) == (7, None)
    assert words in errors and "othing was sent" in errors
    assert publish("model", source, "--repo", repo)[0] == 0
    assert is_complete(hub, repo)


def test_a_repository_with_other_files_is_changed_only_with_update(publish, hub, repo, tmp_path):
    folder = model_folder(tmp_path / "run")
    (folder / "old.txt").write_text("old")
    publish("model", folder, "--repo", repo)
    first = hub.repo(repo).head.sha
    (folder / "old.txt").unlink()
    code, _, errors = publish("model", folder, "--repo", repo, "--tag", "v1.1")
    assert (code, hub.repo(repo).head.sha) == (1, first) and "--update" in errors
    assert publish("model", folder, "--repo", repo, "--tag", "v1.1", "--update")[0] == 0
    found = hub.repo(repo)
    assert "old.txt" not in found.names and found.tags == {"v1.0": first, "v1.1": found.head.sha}


def test_a_tag_is_never_moved(publish, hub, repo, tmp_path):
    folder = model_folder(tmp_path / "run")
    publish("model", folder, "--repo", repo)
    first = hub.repo(repo).head.sha
    (folder / "new.txt").write_text("new")
    code, _, errors = publish("model", folder, "--repo", repo, "--update")
    assert (code, hub.repo(repo).head.sha, hub.repo(repo).tags) == (1, first, {"v1.0": first})
    assert "--tag" in errors


def test_a_public_repository_is_not_written_to_unless_public_is_asked_for(publish, hub, source, repo):
    hub.repos.create(repo, private=False)
    code, _, errors = publish("model", source, "--repo", repo)
    assert (code, hub.repo(repo).names) == (1, []) and "--public" in errors
    assert publish("model", source, "--repo", repo, "--public")[0] == 0


def test_a_gated_repository_of_others_is_refused_and_an_own_one_is_not(publish, hub, source, repo):
    hub.repos.create("stranger/gated", gated="manual")
    code, _, errors = publish("model", source, "--repo", "stranger/gated", "--public")
    assert (code, hub.repo("stranger/gated").names) == (1, []) and "gated" in errors
    hub.repos.create(repo, private=True, gated="manual")
    assert publish("model", source, "--repo", repo)[0] == 0


STAGES = ["whoami", "validate_yaml", "info", "create", "access", "tree", "refs", "commit", "tag"]
# The client itself asks again for trees, and for descriptions whose answer is lost.
FAILING = [(stage, 503) for stage in STAGES if stage != "tree"]
FAILING += [(stage, "lost") for stage in STAGES if stage not in ("tree", "info")]


@pytest.mark.parametrize(("stage", "behaviour"), FAILING)
def test_a_stage_that_fails_leaves_nothing_half_and_a_rerun_completes(publish, hub, source, repo, stage, behaviour):
    hub.fail(stage, behaviour, retry_after=None)
    code, _, errors = publish("model", source, "--repo", repo, *QUICK)
    assert code == 8
    assert ("Sent:" in errors or "No file was sent" in errors or "Nothing was sent" in errors) and "again" in errors
    if stage == "tag" or (stage, behaviour) == ("commit", "lost"):
        assert hub.repo(repo).private and "README.md" in hub.repo(repo).names  # whole, in one commit
    else:
        assert shows_nothing(hub, repo)
    assert publish("model", source, "--repo", repo)[0] == 0
    assert is_complete(hub, repo) and len(hub.repo(repo).history("main")) == 2


def test_every_stage_that_fails_once_is_tried_again(publish, hub, source, repo):
    for stage, behaviour in zip(STAGES, [500, "lost", 502, "lost", 504, 429, 503, "lost", "lost"], strict=True):
        hub.fail(stage, behaviour)
    for stage in ("preupload", "lfs_batch", "lfs_upload", "lfs_verify"):
        hub.fail(stage, 503)
    code, _, errors = publish("model", source, "--repo", repo)
    assert code == 0, errors
    assert is_complete(hub, repo) and len(hub.repo(repo).history("main")) == 2


def test_an_upload_that_is_cut_goes_on(publish, hub, source, repo):
    hub.fail("lfs_upload", "cut")
    assert publish("model", source, "--repo", repo)[0] == 0
    assert is_complete(hub, repo)


def test_an_upload_that_keeps_failing_leaves_nothing_half_and_a_rerun_completes(publish, hub, source, repo):
    hub.fail("lfs_upload", 503, times=99)  # huggingface_hub itself tries six times
    code, _, errors = publish("model", source, "--repo", repo, *QUICK)
    assert code == 8 and shows_nothing(hub, repo) and "No file was sent" in errors
    hub.mend()
    assert publish("model", source, "--repo", repo)[0] == 0
    assert is_complete(hub, repo)


def test_files_that_are_stored_are_not_sent_again(publish, hub, source, repo):
    hub.fail("commit", 503, retry_after=None)
    code, _, errors = publish("model", source, "--repo", repo, *QUICK)
    assert code == 8 and "They are in no commit" in errors and shows_nothing(hub, repo)
    assert publish("model", source, "--repo", repo)[0] == 0
    assert len(hub.seen("lfs_upload", repo)) == 1


@pytest.mark.parametrize("status", [409, 412])
def test_another_commit_that_goes_on_ends_as_busy_and_a_rerun_completes(publish, hub, source, repo, status):
    hub.fail("commit", status, times=2)
    code, _, errors = publish("model", source, "--repo", repo, "--tries", "2")
    assert (code, shows_nothing(hub, repo)) == (5, True) and "else" in errors
    assert publish("model", source, "--repo", repo)[0] == 0
    assert is_complete(hub, repo)


def test_a_commit_of_someone_else_meanwhile_is_not_written_over(publish, hub, source, repo):
    hub.fail("commit", 503, retry_after=2)
    outcome = []
    thread = threading.Thread(target=lambda: outcome.append(publish("model", source, "--repo", repo)))
    thread.start()
    while not hub.seen("commit", repo):
        time.sleep(0.02)
    found = hub.repo(repo)
    theirs = found.commit("main", {**found.head.files, "theirs.txt": found.keep(b"theirs")}, "theirs")
    thread.join()
    ((code, _, errors),) = outcome
    assert (code, found.names, found.tags) == (5, ["theirs.txt"], {}) and theirs.sha in errors
    assert publish("model", source, "--repo", repo, "--update")[0] == 0
    assert is_complete(hub, repo)


@pytest.mark.parametrize("stage", ["create", "commit"])
def test_a_rate_limit_is_waited_for_as_long_as_it_asks(publish, hub, source, repo, stage):
    hub.fail(stage, 429, retry_after=2)
    started = time.monotonic()
    assert publish("model", source, "--repo", repo)[0] == 0
    assert time.monotonic() - started >= 2
    assert is_complete(hub, repo)


def test_a_long_rate_limit_ends_with_the_time_to_come_back(publish, hub, source, repo):
    hub.fail("commit", 429, retry_after=3600)
    code, _, errors = publish("model", source, "--repo", repo)
    assert (code, shows_nothing(hub, repo)) == (8, True)
    assert "wait 3600 s, until" in errors
    assert publish("model", source, "--repo", repo)[0] == 0


def test_a_killed_publication_shows_nothing_and_a_rerun_completes(publish, hub, source, repo):
    hub.fail("commit", 503, times=9, retry_after=60)
    victim = Publisher(hub)
    words = ["model", str(source), "--repo", repo]
    victim.process.stdin.write(json.dumps({"words": words, "token": WRITE}) + "\n")
    victim.process.stdin.flush()
    while not hub.seen("commit", repo):
        time.sleep(0.05)
    victim.process.kill()
    victim.process.wait()
    assert shows_nothing(hub, repo)
    hub.mend()
    assert publish("model", source, "--repo", repo)[0] == 0
    assert is_complete(hub, repo)


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Adapters, a dataset and a metric."""
    folder = tmp_path_factory.mktemp("others")
    adapter_folder(folder / "adapter", base_model="tester/base", base_model_revision="v1.0")
    talk = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "Noise."}]
    rows = [{"id": str(n), "source": "coco", "images": [noise_image(n)], "messages": talk} for n in range(3)]
    write_repo(folder / "dataset", {}, {"talk": {"train": rows}})
    write_metric("mme", folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "name", "facts"),
    [
        ("adapter", "adapter", {}),
        ("dataset", "dataset", {"license": "cc-by-nc-4.0", "language": "en", "sources": "coco", "limits": "Noise.",
                                "made_by": "me"}),
        ("metric", "mme", {"license": "apache-2.0"}),
    ],
)  # fmt: skip
def test_everything_else_is_private_too(publish, hub, others, kind, name, facts):
    repo = f"laboratory/{name}"
    words = [word for fact, value in facts.items() for word in ("--fact", f"{fact}={value}")]
    code, output, errors = publish(kind, others / name, "--repo", repo, *words)
    repo_type = {"dataset": "dataset", "metric": "space"}.get(kind, "model")
    assert code == 0, output + errors
    assert is_complete(hub, repo, kind=repo_type)
    assert hub.repo(repo, repo_type).head.sha in output


def test_nothing_is_ever_created_public(hub):
    asked = hub.seen("create")
    assert asked and all(request.body["visibility"] == "private" for request in asked)
