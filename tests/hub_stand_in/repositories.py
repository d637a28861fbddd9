"""Repositories as a whole: make, look at, change, move and delete them; who asks; checks of cards."""

from typing import TYPE_CHECKING, Any

from tests.hub_stand_in.cards import card_data, faults_of
from tests.hub_stand_in.large_files import PREFIX
from tests.hub_stand_in.store import KINDS, MAIN, Commit, HubError, Repository
from tests.hub_stand_in.wire import Answer, Request, json_answer


if TYPE_CHECKING:
    from tests.hub_stand_in.server import Hub


def named_in(request: Request, stage: str) -> str | None:
    """The repository that the body names, where the path does not."""
    if stage == "move":
        return request.body["fromRepo"]
    if stage not in ("create", "delete"):
        return None
    return "/".join(filter(None, (request.body.get("organization"), request.body["name"])))


def whoami(hub: "Hub", request: Request) -> Answer:
    """Say whose token it is."""
    return json_answer(hub.known(request).describe())


def validate_yaml(hub: "Hub", request: Request) -> Answer:
    """Check a card."""
    errors, warnings = faults_of(request.body["content"], request.body.get("repoType", "model"))
    found = {"errors": [{"message": error} for error in errors], "warnings": [{"message": one} for one in warnings]}
    return json_answer(found, 400 if errors else 200)


def create(hub: "Hub", request: Request) -> Answer:
    """Make a repository."""
    body, kind = request.body, request.body.get("type") or "model"
    if kind not in KINDS:
        raise HubError(400, f"Invalid type {kind}")
    namespace = body.get("organization") or hub.known(request).user
    id = f"{namespace}/{body['name']}"
    hub.writer(request, namespace, f"create a {kind}")
    url = f"{hub.url}/{PREFIX[kind]}{id}"
    if kind == "space" and not body.get("sdk"):
        raise HubError(400, '"sdk" is required')
    with hub.store.lock:
        if hub.store.find(id, kind):
            raise HubError(409, f"You already created this {kind} repo: {id}", url=url)
        hub.store.create(id, kind, private=_is_private(body), sdk=body.get("sdk"))
    return json_answer({"url": url, "name": id, "id": id})


def delete(hub: "Hub", request: Request) -> Answer:
    """Delete a repository."""
    body, kind = request.body, request.body.get("type") or "model"
    id = f"{body.get('organization') or hub.known(request).user}/{body['name']}"
    with hub.store.lock:
        hub.store.delete(hub.writable(request, id, kind, "delete a repository"))
    return json_answer({"success": True})


def move(hub: "Hub", request: Request) -> Answer:
    """Give a repository another name."""
    body = request.body
    repository = hub.writable(request, body["fromRepo"], body.get("type") or "model", "move a repository")
    hub.writer(request, body["toRepo"].partition("/")[0], "create a repository")
    with hub.store.lock:
        hub.store.move(repository, body["toRepo"])
    return json_answer({"success": True})


def settings(hub: "Hub", request: Request, kind: str, id: str) -> Answer:
    """Change who may see a repository."""
    repository, body = hub.writable(request, id, kind, "change settings"), request.body
    if "private" in body or "visibility" in body:
        repository.private = _is_private(body)
    repository.gated = body.get("gated", repository.gated)
    return json_answer({"private": repository.private, "gated": repository.gated})


def check_access(hub: "Hub", request: Request, kind: str, id: str, write: str | None) -> Answer:
    """Say whether who asks has the files, or may write."""
    if write:
        hub.writable(request, id, kind, "write")
    else:
        hub.openable(request, id, kind)
    return Answer(b"OK", kind="text/plain")


def info(hub: "Hub", request: Request, kind: str, id: str, revision: str | None) -> Answer:
    """Describe a repository at a revision."""
    repository = hub.readable(request, id, kind)
    commit = repository.at(revision or MAIN)
    card = _card(repository, commit)
    found: dict[str, Any] = {
        "_id": commit.sha[:24],
        "id": id,
        "author": repository.owner,
        "sha": commit.sha,
        "lastModified": commit.date,
        "createdAt": repository.created,
        "private": repository.private,
        "gated": repository.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [*card.get("tags", []), *(f"license:{name}" for name in [card.get("license")] if name)],
        "cardData": card,
        "siblings": [_sibling(name, commit, request.flag("blobs")) for name in sorted(commit.files)],
    }
    if kind == "model":
        found |= {"modelId": id} | {name: card[name] for name in ("pipeline_tag", "library_name") if name in card}
    if kind == "space":
        found |= {"sdk": repository.sdk}
    return json_answer(found)


def _is_private(body: dict[str, Any]) -> bool:
    return body.get("visibility") == "private" or bool(body.get("private"))


def _card(repository: Repository, commit: Commit) -> dict[str, Any]:
    return card_data(repository.read("README.md", commit.sha).decode()) if "README.md" in commit.files else {}


def _sibling(name: str, commit: Commit, with_sizes: bool) -> dict[str, Any]:
    file, found = commit.files[name], {"rfilename": name}
    if not with_sizes:
        return found
    pointer = {"sha256": file.sha256, "size": file.size, "pointerSize": len(file.pointer)}
    return found | {"size": file.size, "blobId": file.oid} | ({"lfs": pointer} if file.is_large else {})
