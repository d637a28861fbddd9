"""The service itself: which request means what, who asks, and the faults that were asked for."""

import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote

from tests.hub_stand_in import large_files, repositories, revisions
from tests.hub_stand_in.access import ACCOUNTS, Account, account_of, known, openable, readable, writable, writer
from tests.hub_stand_in.faults import Faults
from tests.hub_stand_in.store import HubError, Repository, Store
from tests.hub_stand_in.wire import Answer, Listener, Request, json_answer


_API = r"/api/(?P<kind>model|dataset|space)s/(?P<id>[^/]+/[^/]+)"
_ALONE = r"/api/(?P<kind>model|dataset|space)s/(?P<id>[^/]+)"
_REVISION = r"(?P<revision>[^/]+)"
_PAGE = r"/(?:(?P<kind>dataset|space)s/)?(?P<id>[^/]+/[^/]+)"
_OBJECTS = rf"{_PAGE}\.git/info/lfs/objects"
_BYTES = r"/(?P<kind>model|dataset|space)/(?P<id>[^/]+/[^/]+)/(?P<sha256>[0-9a-f]{64})/(?P<part>\d+)"
# Method, path, stage, and what answers. The first that fits is taken; HEAD is answered like GET.
Routes: TypeAlias = list[tuple[str, str, str, Callable[..., Answer]]]
ROUTES: Routes = [
    ("GET", r"/api/whoami-v2", "whoami", repositories.whoami),
    ("POST", r"/api/validate-yaml", "validate_yaml", repositories.validate_yaml),
    ("POST", r"/api/repos/create", "create", repositories.create),
    ("DELETE", r"/api/repos/delete", "delete", repositories.delete),
    ("POST", r"/api/repos/move", "move", repositories.move),
    ("GET", rf"{_API}(?:/revision/{_REVISION})?", "info", repositories.info),
    ("GET", rf"{_ALONE}(?:/revision/{_REVISION})?", "info", repositories.info),
    ("PUT", rf"{_API}/settings", "settings", repositories.settings),
    ("GET", rf"{_API}/auth-check(?P<write>/write)?", "access", repositories.check_access),
    ("GET", rf"{_API}/tree/{_REVISION}(?:/(?P<path>.*))?", "tree", revisions.tree),
    ("POST", rf"{_API}/paths-info/{_REVISION}", "paths_info", revisions.paths_info),
    ("GET", rf"{_API}/refs", "refs", revisions.refs),
    ("GET", rf"{_API}/commits/{_REVISION}", "commits", revisions.commits),
    ("POST", rf"{_API}/preupload/{_REVISION}", "preupload", revisions.preupload),
    ("POST", rf"{_API}/commit/{_REVISION}", "commit", revisions.commit),
    ("POST", rf"{_API}/branch/{_REVISION}", "branch", revisions.create_branch),
    ("DELETE", rf"{_API}/branch/{_REVISION}", "branch", revisions.delete_branch),
    ("POST", rf"{_API}/tag/{_REVISION}", "tag", revisions.create_tag),
    ("DELETE", rf"{_API}/tag/{_REVISION}", "tag", revisions.delete_tag),
    ("GET", rf"{_PAGE}/resolve/{_REVISION}/(?P<path>.+)", "resolve", revisions.resolve),
    ("POST", rf"{_OBJECTS}/batch", "lfs_batch", large_files.batch),
    ("POST", rf"{_OBJECTS}/complete", "lfs_complete", large_files.complete),
    ("POST", rf"{_OBJECTS}/verify", "lfs_verify", large_files.verify),
]
STORAGE_ROUTES: Routes = [
    ("PUT", _BYTES, "lfs_upload", large_files.put),
    ("GET", _BYTES, "storage", large_files.get),
]


class Hub:
    """
    A Hub on two loopback ports: one for the service and one where the bytes of large files travel.

    Args:
        folder (`Path`): Where bytes are kept.
        accounts (`dict[str, Account]`, *optional*): What each token stands for.
        part_size (`int`, *optional*): Larger objects are uploaded in parts of so many bytes; all whole by default.
        page_size (`int`, *optional*, defaults to 1000): Entries on a page of a tree.
    """

    def __init__(
        self,
        folder: Path,
        accounts: dict[str, Account] | None = None,
        part_size: int | None = None,
        page_size: int = 1000,
    ) -> None:
        self.store, self.accounts, self.trouble = Store(folder), dict(accounts or ACCOUNTS), Faults()
        self.part_size, self.page_size, self.secret = part_size, page_size, secrets.token_hex()
        self.log: list[Request] = []
        self._service = Listener(lambda request: self._serve(request, ROUTES))
        self._storage = Listener(lambda request: self._serve(request, STORAGE_ROUTES))
        self.url, self.storage_url = self._service.url, self._storage.url

    def __enter__(self) -> "Hub":
        self._service.start()
        self._storage.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._service.stop()
        self._storage.stop()

    def account(self, request: Request) -> Account | None:
        """Who asks; `None` for anybody."""
        return account_of(self.accounts, request.headers.get("authorization"))

    def known(self, request: Request) -> Account:
        """Who asks, where it must be somebody."""
        return known(self.account(request))

    def readable(self, request: Request, id: str, kind: str) -> Repository:
        """A repository that who asks can see."""
        return readable(self.store, self.account(request), id, kind)

    def openable(self, request: Request, id: str, kind: str) -> Repository:
        """A repository whose files who asks can have."""
        return openable(self.store, self.account(request), id, kind)

    def writable(self, request: Request, id: str, kind: str, what: str) -> Repository:
        """A repository that who asks may change."""
        return writable(self.store, self.account(request), id, kind, what)

    def writer(self, request: Request, namespace: str, what: str) -> Account:
        """Who asks, where they may write to a namespace."""
        return writer(self.account(request), namespace, what)

    def other(self, request: Request) -> Answer | None:
        """Answer what is no part of repositories; for a service that has more than they."""
        return None

    def _serve(self, request: Request, routes: Routes) -> tuple[Answer, str]:
        self.log.append(request)
        try:
            if routes is ROUTES and (answer := self.other(request)) is not None:
                return answer, ""
            method = "GET" if request.method == "HEAD" else request.method
            for wanted, pattern, stage, function in routes:
                if wanted == method and (found := re.fullmatch(pattern, request.path)):
                    return self._answer(request, stage, function, found.groupdict())
            raise HubError(404, "Sorry, we can't find the page you are looking for.")
        except HubError as error:
            return _refusal(error), ""
        except (KeyError, TypeError, ValueError) as error:
            return _refusal(HubError(400, f"Bad request: {type(error).__name__} {error}")), ""

    def _answer(
        self, request: Request, stage: str, function: Callable[..., Answer], groups: dict[str, str | None]
    ) -> tuple[Answer, str]:
        given = {name: unquote(text) if text else text for name, text in groups.items()}
        if "kind" in given:
            given["kind"] = given["kind"] or "model"
        request.stage, request.repository = stage, given.get("id") or repositories.named_in(request, stage)
        fault = self.trouble.take(stage, request.repository)
        if fault is not None and isinstance(fault.behaviour, int):
            raise HubError(fault.behaviour, fault.message, headers=fault.headers)
        fate = fault.behaviour if fault is not None and isinstance(fault.behaviour, str) else ""
        request.stream.cut = fate == "cut" and request.stream.length > 0
        return function(self, request, **given), fate


def _refusal(error: HubError) -> Answer:
    answer = json_answer({"error": error.message, **error.fields}, error.status)
    in_header = error.message.partition("\n")[0].encode("ascii", "replace").decode()
    answer.headers |= error.headers | {"X-Error-Message": in_header}
    if error.code:
        answer.headers["X-Error-Code"] = error.code
    return answer
