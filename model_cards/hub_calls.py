"""
Calls to the Hub that are tried again when that can help, and errors that say what was sent and what to do.

`huggingface_hub` (2.4) tries uploads of files again by itself, but neither commits, nor tags, nor settings; there a
second try is safe only for who looks first whether the first one has worked, which [`model_cards.publish`] does.
"""

import email.utils
import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar

import httpx2
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import parse_ratelimit_headers


logger = logging.getLogger(__name__)
Result = TypeVar("Result")
# 412, a commit was made meanwhile, is tried again by who has looked at that commit.
PASSING = (408, 409, 412, 425, 429, 500, 502, 503, 504)
AGAIN = "Run the same command again: it continues where this one stopped."


class PublishError(OSError):
    """Nothing that is half published can be seen; the message says what was sent and what to do."""


class TokenRejected(PublishError):
    """There is no token, or it may not do this."""


class RepoRefused(PublishError):
    """The repository is not one that this may be published to."""


class HubBusy(PublishError):
    """Someone else changes the repository."""


class HubDown(PublishError):
    """The Hub, or the way to it, failed too often, or asks for a long pause."""


@dataclass
class Sent:
    """
    What the Hub has so far.

    Args:
        repo (`str`): Name of the repository.
        token (`str`): Never shown.
    """

    repo: str
    token: str = field(default="", repr=False)
    exists: bool = False
    private: bool = True
    stored: int = 0
    files: int = 0
    size: int = 0
    commit: str | None = None
    tag: str | None = None

    def __str__(self) -> str:
        if self.commit:
            tagged = f", tagged {self.tag}" if self.tag else ", without its tag"
            private = "private" if self.private else "public"
            return (
                f"Sent: all {self.files} files, complete as commit {self.commit} of the {private} repository{tagged}."
            )
        if not self.exists:
            return "Nothing was sent."
        if not self.stored:
            return f"No file was sent; {self.repo} is as it was, or new, private and empty."
        return (
            f"Sent: up to {self.stored} of {self.files} files ({self.size / 1e6:.1f} MB). They are in no commit, so "
            f"{self.repo} shows none of them."
        )


class HubCalls:
    """
    Makes calls, again if need be.

    Args:
        sent (`Sent`): What messages tell.
        tries (`int`): How often a call is made at most.
        longest_wait (`float`): Seconds to wait at most because the Hub asks for it.
        sleep (`Callable[[float], Any]`): What waits.
    """

    def __init__(self, sent: Sent, tries: int, longest_wait: float, sleep: Callable[[float], Any] = time.sleep):
        self.sent, self.tries, self.longest_wait, self.sleep = sent, tries, longest_wait, sleep

    def call(self, stage: str, function: Callable[[], Result]) -> Result:
        """
        Make a call.

        Args:
            stage (`str`): What it is for, in messages.
            function (`Callable`): It; a second call must do no harm.

        Returns:
            What it returns.

        Raises:
            `PublishError`: It failed, and trying again has not helped or cannot.
        """
        for number in range(1, self.tries + 1):
            try:
                return function()
            except PublishError:
                raise
            except (OSError, RuntimeError, httpx2.HTTPError) as error:
                if not is_passing(error) or number == self.tries:
                    raise self.explain(stage, error) from error
                wait = max(asked_wait(error), 0.5 * 2 ** (number - 1))
                if wait > self.longest_wait:
                    until = datetime.fromtimestamp(time.time() + wait).astimezone().strftime("%H:%M:%S %Z")
                    raise HubDown(
                        f"The Hub asks to wait {wait:.0f} s, until {until} ({stage}). {self.sent} Then run the same "
                        "command again: it continues where this one stopped."
                    ) from error
                logger.warning("%s: %s; again in %.1f s (%d of %d).", stage, _short(error), wait, number, self.tries)
                self.sleep(wait)
        raise HubDown(f"{stage}: not one try was allowed.")

    def explain(self, stage: str, error: Exception) -> PublishError:
        """
        Turn an error into one that says what was sent and what to do.

        Args:
            stage (`str`): What failed.
            error (`Exception`): How.

        Returns:
            `PublishError`: Of the kind that fits.
        """
        status, said = status_of(error), _short(error)
        if self.sent.token:
            said = said.replace(self.sent.token, "***")
        kind: type[PublishError] = PublishError
        if isinstance(error, OfflineModeIsEnabled):
            return PublishError(f"HF_HUB_OFFLINE is set, so nothing can be published. Unset it. {self.sent}")
        if _gated(error):
            kind, advice = RepoRefused, f"Ask for access on the page of {self.sent.repo}, or choose another --repo."
        elif status == 401:
            kind, advice = TokenRejected, "The token is wrong or has expired. Run `hf auth login`, or set HF_TOKEN."
        elif status == 403:
            kind = TokenRejected
            advice = (
                f"This token may not write to {self.sent.repo}. Make one with the role `write` for that namespace at "
                "https://huggingface.co/settings/tokens, or choose another --repo."
            )
        elif status in (409, 412):
            kind, advice = (
                HubBusy,
                f"Someone else is changing {self.sent.repo}. Run the same command again later.",
            )
        elif status is None or status in PASSING:
            kind, advice = HubDown, AGAIN
        elif status == 413:
            advice = "Write smaller shards, or fewer files that are not Parquet or safetensors."
        else:
            advice = f"If that does not tell why, look at the page of {self.sent.repo}. {AGAIN}"
        how = f"HTTP {status}" if status else type(error).__name__
        return kind(f"Stopped at: {stage} ({how}). {said} {self.sent} {advice}")


def is_passing(error: BaseException) -> bool:
    """
    Whether another try can help.

    Args:
        error (`BaseException`): What happened.

    Returns:
        `bool`: For a busy or failing server and a broken connection.
    """
    if isinstance(error, OfflineModeIsEnabled | FileNotFoundError | PermissionError) or _gated(error):
        return False
    status = status_of(error)
    if status is not None:
        return status in PASSING
    # An upload that fails is reported as a `RuntimeError`, by hf_xet without a cause.
    return any(isinstance(one, httpx2.TransportError | ConnectionError | RuntimeError) for one in _chain(error))


def status_of(error: BaseException) -> int | None:
    """
    The HTTP status behind an error.

    Args:
        error (`BaseException`): It, or what it was raised from, has an answer.

    Returns:
        `int`, *optional*: Status.
    """
    for one in _chain(error):
        if isinstance(one, HfHubHTTPError):
            return one.response.status_code
    return None


def asked_wait(error: BaseException) -> float:
    """
    How long a server asks to wait.

    Args:
        error (`BaseException`): With its answer.

    Returns:
        `float`: Seconds by `Retry-After` (RFC 9110, 10.2.3: a number or a date) or `RateLimit`; 0 if it does not ask.
    """
    for one in _chain(error):
        if not isinstance(one, HfHubHTTPError):
            continue
        headers = one.response.headers
        text = headers.get("Retry-After", "").strip()
        if text.isdigit():
            return float(text)
        if text:
            try:
                return max(0.0, (email.utils.parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
            except (ValueError, TypeError):
                return 0.0
        limit = parse_ratelimit_headers(headers)
        if limit is not None and limit.remaining == 0:
            return float(limit.reset_in_seconds)
    return 0.0


def _chain(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__


def _gated(error: BaseException) -> bool:
    return any(
        isinstance(one, GatedRepoError)
        or (isinstance(one, HfHubHTTPError) and one.response.headers.get("X-Error-Code") == "GatedRepo")
        for one in _chain(error)
    )


def _short(error: BaseException) -> str:
    for one in _chain(error):
        if isinstance(one, HfHubHTTPError) and one.server_message:
            return one.server_message.strip().rstrip(".") + "."
    text = " ".join(str(list(_chain(error))[-1]).split()) or type(error).__name__
    return text[:300].rstrip(".") + "."
