"""
Upload of a staged folder, so that a repository is complete or shows nothing of it.

How, and why so (huggingface_hub 2.4): `upload_folder`, with hf_xet installed, makes a row of commits on the branch
itself, and whoever loads the repository meanwhile, or after a cut, gets half of it. `create_commit` is atomic, and
`preupload_lfs_files` stores large files beforehand, by their hash and in no commit. So files are stored in chunks, and
one commit makes them visible all at once. The store is the state of an upload: it answers for what it has already, so
a rerun sends the rest, from any machine, and no file of state can be lost or go stale. Branches would add nothing, for
the Hub cannot move `main` to one. One commit takes thousands of such files; more are refused with advice.

A new repository is made private whatever was asked for. It becomes public last, when its content is verified.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard, get_token
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.sha import git_hash

from .hub_calls import AGAIN, HubBusy, HubCalls, PublishError, RepoRefused, Sent, TokenRejected
from .staging import Staged, load_line


logger = logging.getLogger(__name__)
FILES_PER_COMMIT = 10_000
FILES_AT_ONCE, BYTES_AT_ONCE = 64, 4 << 30
HUBS_OWN = ".gitattributes"  # the Hub writes one into every repository


@dataclass(frozen=True)
class Published:
    """
    What was published.

    Args:
        repo_id (`str`): Name on the Hub.
        repo_type (`str`): `model`, `dataset` or `space`.
        url (`str`): Page.
        commit (`str`): 40 hexadecimal digits.
        tag (`str`): Its name.
        private (`bool`): Whether only its owner sees it.
        load (`str`): Line of Python that loads exactly this.
        changed (`bool`): Whether this run made the commit; `False` if it was there.
    """

    repo_id: str
    repo_type: str
    url: str
    commit: str
    tag: str
    private: bool
    load: str
    changed: bool


def publish(
    staged: Staged,
    tag: str,
    private: bool = True,
    update: bool = False,
    tries: int = 6,
    longest_wait: float = 300,
) -> Published:
    """
    Publish a folder. The leak check is the caller's, before this.

    Args:
        staged (`Staged`): It.
        tag (`str`): Name of the version; one that is there already must name the same content.
        private (`bool`, defaults to `True`): `False` to let everyone see it, once it is complete.
        update (`bool`, defaults to `False`): Whether a repository that has other files may get these in their place.
        tries (`int`, defaults to 6): How often a call is made at most.
        longest_wait (`float`, defaults to 300): Seconds to wait at most because the Hub asks for it.

    Returns:
        `Published`: Where it is.

    Raises:
        `PublishError`: Of a kind that fits; the message says what was sent and what to do.
    """
    if len(staged.files) > FILES_PER_COMMIT:
        raise RepoRefused(
            f"{len(staged.files)} files are more than the {FILES_PER_COMMIT} that one commit takes, and several would "
            "show half of them. Pack them: `sharegpt4v data build` writes Parquet with images inside."
        )
    token = get_token()
    if not token:
        raise TokenRejected("There is no Hub token, so nothing was sent. Run `hf auth login`, or set HF_TOKEN.")
    sent = Sent(staged.repo_id, token, files=len(staged.files))
    return _Publication(staged, HubCalls(sent, tries, longest_wait), HfApi(token=token)).run(tag, private, update)


class _Publication:
    """One upload, step by step."""

    def __init__(self, staged: Staged, calls: HubCalls, api: HfApi):
        self.staged, self.calls, self.api, self.sent = staged, calls, api, calls.sent
        self.where: Any = {"repo_id": staged.repo_id, "repo_type": staged.repo_type}

    def run(self, tag: str, private: bool, update: bool) -> Published:
        """Do all of it, see [`publish`]."""
        self._check_token()
        self._check_card()
        self._open(private)
        operations = [
            CommitOperationAdd(path_in_repo=name, path_or_fileobj=str(self.staged.folder / name))
            for name in self.staged.files
        ]
        head, remote = self._look()
        there = _same(remote, operations)
        self._check_tag(tag, head if there else None)
        others = sorted(set(remote) - {HUBS_OWN})
        if others and not there and not update:
            raise RepoRefused(
                f"{self.staged.repo_id} has {len(others)} files already, first {', '.join(others[:3])}, and nothing "
                "was sent. Pass --update to put this version in their place (they stay in its history), or choose "
                "another --repo."
            )
        if there:
            commit = head
            logger.info("%s has this content already, as %s.", self.staged.repo_id, head)
        else:
            self._store(operations)
            commit = self._commit(operations, head, remote)
        self._verify(commit, operations)
        self.sent.commit = commit
        self._tag(tag, commit)
        if not private and self.sent.private:
            self.calls.call("make it public", lambda: self.api.update_repo_settings(**self.where, private=False))
            self.sent.private = False
        prefix = {"model": "", "dataset": "datasets/", "space": "spaces/"}[self.staged.repo_type]
        url = f"{self.api.endpoint}/{prefix}{self.staged.repo_id}"
        line = load_line(self.staged, commit)
        return Published(
            self.staged.repo_id, self.staged.repo_type, url, commit, tag, self.sent.private, line, not there
        )

    def _check_token(self) -> None:
        who = self.calls.call("check the token", self.api.whoami)
        if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
            raise TokenRejected(
                "This token may only read, so nothing was sent. Make one with the role `write` at "
                "https://huggingface.co/settings/tokens, and set HF_TOKEN or run `hf auth login`."
            )

    def _check_card(self) -> None:
        """The Hub refuses a commit with a card that it does not like; better before anything is stored."""
        card = self.staged.folder / "README.md"
        if not card.is_file():
            raise RepoRefused(f"{self.staged.folder} has no README.md, and nothing was sent. Stage it again.")
        try:
            text = RepoCard(card.read_text(encoding="utf-8"), ignore_metadata_errors=True)
            self.calls.call("check the card", lambda: text.validate(repo_type=self.staged.repo_type))
        except ValueError as error:
            raise RepoRefused(f"The Hub does not accept README.md, and nothing was sent: {error}") from error

    def _open(self, private: bool) -> None:
        """Make the repository, or see that this may be published to the one that is there."""
        found = self.calls.call("look for the repository", self._info)
        if found is None:
            options: Any = {"space_sdk": self._sdk()} if self.staged.repo_type == "space" else {}
            self.calls.call(
                "make the repository",
                lambda: self.api.create_repo(**self.where, private=True, exist_ok=True, **options),
            )
            self.sent.exists = True
            found = self.calls.call("look at the repository", self._info)
        self.sent.exists, self.sent.private = True, bool(found is not None and found.private)
        if found is None:
            raise PublishError(f"{self.staged.repo_id} was made but cannot be seen. {AGAIN}")
        # Also tells apart a gated repository of others, and one that this token may only read.
        try:
            self.calls.call("check the right to write", lambda: self.api.auth_check(**self.where, write=True))
        except TokenRejected as error:
            if not found.gated:
                raise
            raise RepoRefused(
                f"{self.staged.repo_id} is gated, and not yours: choose another --repo. {error}"
            ) from error
        if private and not self.sent.private:
            raise RepoRefused(
                f"{self.staged.repo_id} is public, and nothing was sent. Pass --public to publish there, or make it "
                f"private: `hf repos settings {self.staged.repo_id} --private`."
            )

    def _info(self) -> Any:
        try:
            return self.api.repo_info(**self.where)
        except GatedRepoError:
            raise
        except RepositoryNotFoundError:
            return None

    def _sdk(self) -> str:
        from .front_matter import split_card

        front = split_card((self.staged.folder / "README.md").read_text(encoding="utf-8"))[0]
        return str(front.get("sdk", "static"))

    def _look(self) -> tuple[str, dict[str, RepoFile]]:
        """The newest commit and its files."""
        head = str(self.calls.call("look at the repository", lambda: self.api.repo_info(**self.where)).sha)
        return head, self._tree(head)

    def _tree(self, commit: str) -> dict[str, RepoFile]:
        def list_it() -> dict[str, RepoFile]:
            entries = self.api.list_repo_tree(**self.where, revision=commit, recursive=True)
            return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

        return self.calls.call("list the files", list_it)

    def _check_tag(self, tag: str, commit: str | None) -> None:
        target = self._tags().get(tag)
        if target is not None and target != commit:
            raise RepoRefused(
                f"{self.staged.repo_id} has a version {tag} with other content, commit {target}, and nothing was "
                "sent. Name this one by --tag."
            )

    def _tags(self) -> dict[str, str]:
        refs = self.calls.call("list the tags", lambda: self.api.list_repo_refs(**self.where))
        return {one.name: one.target_commit for one in refs.tags}

    def _store(self, operations: list[CommitOperationAdd]) -> None:
        """Send large files, chunk by chunk, in no commit; those that are stored are not sent again."""
        for chunk in _chunks(operations):
            send = partial(self.api.preupload_lfs_files, additions=chunk, free_memory=False, **self.where)
            self.calls.call("send files", send)
            self.sent.stored += len(chunk)
            self.sent.size += sum(operation.upload_info.size for operation in chunk)
            logger.info("%d of %d files are stored.", self.sent.stored, self.sent.files)

    def _commit(self, operations: list[CommitOperationAdd], head: str, remote: dict[str, RepoFile]) -> str:
        """Show everything at once."""
        gone = [CommitOperationDelete(name) for name in sorted(set(remote) - set(self.staged.files) - {HUBS_OWN})]

        def commit_it() -> str:
            now, files = self._look()
            if now != head:  # the answer of an earlier try was lost, or someone else was here
                if _same(files, operations):
                    return now
                raise HubBusy(
                    f"Someone else has changed {self.staged.repo_id} meanwhile (commit {now}). {self.sent} Look at "
                    "that commit, then run the same command again, with --update to put this version on top."
                )
            made = self.api.create_commit(
                operations=[*operations, *gone],
                commit_message=f"Publish with sharegpt4v ({len(operations)} files)",
                parent_commit=head,
                **self.where,
            )
            return str(made.oid)

        return self.calls.call("make the commit", commit_it)

    def _verify(self, commit: str, operations: list[CommitOperationAdd]) -> None:
        """What the Hub shows is what was meant, before it gets a name and is shown to others."""
        files = self._tree(commit)
        if not _same(files, operations):
            expected = {operation.path_in_repo for operation in operations}
            absent, more = sorted(expected - set(files)), sorted(set(files) - expected - {HUBS_OWN})
            raise PublishError(
                f"Commit {commit} of {self.staged.repo_id} is not what was sent (absent: {absent[:3]}, unknown: "
                f"{more[:3]}), so it got no tag and its visibility is unchanged. A .gitignore there can be why."
            )

    def _tag(self, tag: str, commit: str) -> None:
        def tag_it() -> None:
            if self._tags().get(tag) != commit:
                self.api.create_tag(**self.where, tag=tag, revision=commit)

        self.calls.call("tag the commit", tag_it)
        self.sent.tag = tag


def _chunks(operations: list[CommitOperationAdd]) -> Iterator[list[CommitOperationAdd]]:
    chunk: list[CommitOperationAdd] = []
    size = 0
    for operation in operations:
        if chunk and (len(chunk) == FILES_AT_ONCE or size + operation.upload_info.size > BYTES_AT_ONCE):
            yield chunk
            chunk, size = [], 0
        chunk.append(operation)
        size += operation.upload_info.size
    if chunk:
        yield chunk


def _same(remote: dict[str, RepoFile], operations: list[CommitOperationAdd]) -> bool:
    """Whether a commit has exactly these files with these bytes."""
    names = {operation.path_in_repo for operation in operations}
    if set(remote) - {HUBS_OWN} != names - {HUBS_OWN}:
        return False
    sizes = all(remote[one.path_in_repo].size == one.upload_info.size for one in operations)
    return sizes and all(_same_bytes(remote[one.path_in_repo], one) for one in operations)


def _same_bytes(file: RepoFile, operation: CommitOperationAdd) -> bool:
    if file.lfs is not None:
        return file.lfs.sha256 == operation.upload_info.sha256.hex()
    return file.blob_id == git_hash(Path(str(operation.path_or_fileobj)).read_bytes())
