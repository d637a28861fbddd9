"""What `huggingface_hub` does with a Hub, on the stand-in: repositories, files, revisions, access, cards."""

from pathlib import Path

import pytest

from tests.hub_stand_in.access import EXPIRED, READ, STRANGER, USER, WRITE
from tests.hub_stand_in.world import HubStandIn


PART = 1000  # bytes; larger objects travel in parts
PROGRAM = Path(__file__).with_name("programs") / "protocol.py"


@pytest.fixture(scope="module")
def hub():
    """A Hub whose pages and parts are small."""
    with HubStandIn(part_size=PART, page_size=3) as hub:
        yield hub


@pytest.fixture(scope="module")
def found(hub, tmp_path_factory):
    """What the client found and what it was refused."""
    return hub.run(PROGRAM.read_text(encoding="utf-8"), READ, EXPIRED, STRANGER, cwd=tmp_path_factory.mktemp("client"))


@pytest.fixture
def facts(found):
    """What the client found."""
    return found["facts"]


def test_a_repository_is_created_once(hub, facts, found):
    assert facts["whoami"] == [USER, ["laboratory"]]
    assert facts["url"] == [f"{hub.url}/tester/one", "tester/one"] and facts["exist_ok"] == "tester/one"
    assert found["errors"]["exists"][:2] == ["HfHubHTTPError", 409]


def test_files_come_back_as_they_were(facts):
    assert facts["snapshot"] == [True, True] and facts["odd"] == "odd" and facts["verified"] == 0


def test_every_revision_has_its_own_files(facts):
    first, second = facts["commits"]
    assert facts["read"] == {"main": '{"a": 1}', "v1.0": "{}", first: "{}", second: '{"a": 1}'}
    assert "a b/é#1.txt" in facts["files"]["v1.0"] and "a b/é#1.txt" not in facts["files"]["feature/x"]
    assert {"copy.safetensors", "copy.json"} <= set(facts["files"]["feature/x"])
    assert facts["refs"]["v1.0"] == first and facts["refs"]["main"] == second
    assert facts["history"][1:] == [["First", "All of it.", [USER]], ["initial commit", "", ["system"]]]


def test_what_did_not_change_makes_no_commit(facts):
    assert facts["again"] is True


def test_a_large_object_travels_in_parts_and_by_signed_links_without_a_token(hub, facts):
    assert facts["lfs"][0] == 3328
    parts = [one for one in hub.seen("lfs_upload") if not one.path.endswith("/0")]
    assert len(parts) == 4 and len(hub.seen("lfs_complete")) == 1
    assert not any("authorization" in one.headers for one in hub.seen("lfs_upload") + hub.seen("storage"))
    assert any(one.headers.get("authorization") == f"Bearer {WRITE}" for one in hub.seen("resolve"))


def test_trees_come_in_pages_with_the_last_commit_of_each_entry(hub, facts):
    assert facts["tree"]["config.json"] == [8, "Upload config.json with huggingface_hub"]
    assert facts["tree"]["deep/er/table.parquet"] == [160, "First"] and facts["tree"]["deep"] == [None, "First"]
    assert facts["top"] == sorted(facts["top"]) and "deep" in facts["top"] and "deep/er" not in facts["top"]
    assert facts["below"] == ["deep/er", "deep/er/table.parquet"] and facts["paths"] == ["config.json", "deep"]
    assert any("cursor" in one.query for one in hub.seen("tree"))


def test_parts_of_a_file_are_read_by_range(hub, facts):
    assert facts["range"] == bytes(index % 256 for index in range(1000, 1007)).hex()
    assert any(one.status == 206 for one in hub.seen("storage"))
    assert facts["glob"] == ["tester/one/deep/er/table.parquet"]


def test_information_has_the_card_and_the_files(facts):
    private, sha, card, sizes = facts["info"]
    assert private is True and sha == facts["commits"][1]
    assert card == {"license": "mit", "tags": ["tiny"]} and sizes["model.safetensors"] == 3328
    assert facts["exists"] == [True, False, False, False] and facts["license"] == "apache-2.0"


@pytest.mark.parametrize("kind", ["dataset", "space"])
def test_types_have_names_of_their_own(facts, kind):
    assert facts[kind] == [kind, "tester/one"]


def test_repositories_move_and_go(facts, found):
    assert facts["moved"] == [True, False] and found["errors"]["deleted"][0] == "RepositoryNotFoundError"


@pytest.mark.parametrize(
    ("name", "error", "status", "said"),
    [
        ("tag_exists", "HfHubHTTPError", 409, "v1.0"),
        ("moved_on", "HfHubHTTPError", 412, "A commit has happened since"),
        ("branch_protected", "HfHubHTTPError", 403, "main branch"),
        ("no_tag", "RevisionNotFoundError", 404, "v9"),
        ("no_file", "RemoteEntryNotFoundError", 404, "nothing.json"),
        ("no_revision", "RevisionNotFoundError", 404, "v9"),
        ("no_repo", "RepositoryNotFoundError", 404, "tester/none"),
        ("no_canonical", "RepositoryNotFoundError", 404, "gpt2"),
        ("no_folder", "RemoteEntryNotFoundError", 404, "nowhere"),
        ("bad_card", "ValueError", None, '"license\\" must be'),
        ("bad_card_committed", "ValueError", None, '"tags" must be'),
        ("private_anybody", "RepositoryNotFoundError", 401, "Repository Not Found"),
        ("private_stranger", "RepositoryNotFoundError", 404, "Repository Not Found"),
        ("private_expired", "HfHubHTTPError", 401, "expired"),
        ("private_wrong", "HfHubHTTPError", 401, "Invalid credentials"),
        ("whoami_expired", "HfHubHTTPError", 401, "Invalid user token"),
        ("create_anybody", "HfHubHTTPError", 401, "Invalid username or password"),
        ("create_expired", "HfHubHTTPError", 401, "expired"),
        ("create_read_only", "HfHubHTTPError", 403, "may only read"),
        ("create_elsewhere", "HfHubHTTPError", 403, "don't have the rights"),
        ("commit_read_only", "HfHubHTTPError", 403, "may only read"),
        ("commit_anybody", "HfHubHTTPError", 401, "Invalid username or password"),
        ("commit_stranger", "HfHubHTTPError", 403, "don't have the rights"),
        ("gated_anybody", "GatedRepoError", 401, "restricted"),
        ("gated_stranger", "GatedRepoError", 403, "authorized list"),
    ],
)
def test_a_refusal_is_the_error_that_the_client_has_for_it(found, name, error, status, said):
    kind, code, text = found["errors"][name]
    assert (kind, code) == (error, status) and said in text


def test_a_refused_change_leaves_nothing_behind(hub, facts):
    assert "late.txt" not in facts["files"]["main"] and "x.txt" not in hub.repo("tester/one").names
    assert facts["public"] is True and facts["gated_info"] == "manual"
    assert {(one.kind, one.id) for one in hub.repos} == {
        (kind, "tester/one") for kind in ("model", "dataset", "space")
    }
