"""Faults that were asked for, each at a stage of the service, for a number of requests."""

import threading
from dataclasses import dataclass


STAGES = (
    "whoami", "create", "delete", "move", "settings", "validate_yaml", "access",
    "info", "tree", "paths_info", "refs", "commits", "resolve", "storage",
    "preupload", "lfs_batch", "lfs_upload", "lfs_complete", "lfs_verify", "commit", "branch", "tag",
)  # fmt: skip
BEHAVIOURS = ("cut", "lost")
MESSAGES = {
    401: "Invalid credentials in Authorization header",
    403: "Forbidden",
    409: "Another commit is in progress",
    412: "A commit has happened since. Please refresh and try again.",
    429: "We had to rate limit you",
}


@dataclass
class Fault:
    """
    What goes wrong.

    `behaviour` is a status to answer with; or `cut`: the connection is reset halfway through the body of an upload or
    a download; or `lost`: the work is done and its answer never arrives.
    """

    stage: str
    behaviour: int | str
    times: int
    repository: str | None = None
    retry_after: int | None = None

    @property
    def headers(self) -> dict[str, str]:
        """Those of the answer."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.behaviour == 429:
            headers["RateLimit"] = f'"api";r=0;t={self.retry_after or 0}'
            headers["RateLimit-Policy"] = '"fixed window";"api";q=500;w=300'
        return headers

    @property
    def message(self) -> str:
        """What the answer says."""
        return MESSAGES.get(self.behaviour, "Internal Error") if isinstance(self.behaviour, int) else self.behaviour


class Faults:
    """Faults in the order in which they are to happen."""

    def __init__(self) -> None:
        self._all: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, fault: Fault) -> None:
        """
        Let something go wrong from now on.

        Args:
            fault (`Fault`): What, where and how often.

        Raises:
            `ValueError`: There is no such stage or behaviour.
        """
        if fault.stage not in STAGES:
            raise ValueError(f"`stage` must be one of {', '.join(STAGES)}, got {fault.stage!r}.")
        if not isinstance(fault.behaviour, int) and fault.behaviour not in BEHAVIOURS:
            raise ValueError(f"`behaviour` must be a status or one of {', '.join(BEHAVIOURS)}: {fault.behaviour!r}.")
        with self._lock:
            self._all.append(fault)

    def take(self, stage: str, repository: str | None) -> Fault | None:
        """The fault of a request, counted as used; or nothing."""
        with self._lock:
            for fault in self._all:
                if fault.times > 0 and fault.stage == stage and fault.repository in (None, repository):
                    fault.times -= 1
                    return fault
        return None

    def clear(self) -> None:
        """Let nothing go wrong any more."""
        with self._lock:
            self._all.clear()
