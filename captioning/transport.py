"""One request to a chat endpoint, and what its outcome means: an answer, a fault to try again, the end of the job."""

import asyncio
import logging
from typing import Any

import httpx2
import openai

from .answers import BudgetReached, KeyRejected, Reading, is_filter_error, parse_body, read_answer
from .endpoint_config import EndpointConfig
from .limits import seconds_to_wait
from .redact import Redactor
from .streams import StreamedAnswer


logger = logging.getLogger(__name__)

LONGEST_BODY = 2000  # characters kept of an answer that is no JSON
NO_KEY = "none"  # the client insists on one
STREAMED = {"stream": True, "stream_options": {"include_usage": True}}
RETRIED = (408, 409, 425, 429)
NOT_SENT = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout)


class Fault(Exception):
    """
    A failure that may pass, so the request is worth another attempt.

    Args:
        reason (`str`): What happened, fit for logs.
        wait (`float`, *optional*): Seconds that the endpoint asks to wait.
        limited (`bool`): Whether it is a rate limit, so the endpoint works.
        billed (`bool`): Whether the endpoint may have done, and charged, the work.
        reading (`Reading`, *optional*): What arrived of an answer that broke off.
    """

    def __init__(
        self,
        reason: str,
        wait: float | None = None,
        limited: bool = False,
        billed: bool = False,
        reading: Reading | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason, self.wait, self.limited, self.billed, self.reading = reason, wait, limited, billed, reading


class Rejected(Exception):
    """
    The endpoint refuses this request and would again.

    Args:
        reading (`Reading`): State `failed` or `filtered`, with the body of the error.
    """

    def __init__(self, reading: Reading) -> None:
        super().__init__(reading.error)
        self.reading = reading


def make_client(config: EndpointConfig, key: str, max_retries: int = 0) -> openai.AsyncOpenAI:
    """
    The client of the endpoint.

    Args:
        config (`EndpointConfig`): Address and timeouts.
        key (`str`): The key; empty if the endpoint wants none.
        max_retries (`int`, defaults to 0): Of the client itself; ours rule where it is 0.

    Returns:
        `openai.AsyncOpenAI`: It follows no redirects, which would carry images elsewhere.
    """
    timeout = openai.Timeout(config.read_timeout, connect=config.connect_timeout, pool=None)
    return openai.AsyncOpenAI(
        api_key=key or NO_KEY,
        base_url=config.base_url,
        max_retries=max_retries,
        timeout=timeout,
        http_client=openai.DefaultAsyncHttpxClient(timeout=timeout, follow_redirects=False),
    )


async def ask(
    client: openai.AsyncOpenAI, body: dict[str, Any], stream: bool, limit: float, redactor: Redactor
) -> Reading:
    """
    Send one chat request once.

    Args:
        client (`openai.AsyncOpenAI`): From [`make_client`].
        body (`dict`): The request.
        stream (`bool`): Whether the answer comes in pieces.
        limit (`float`): Seconds until the attempt is given up.
        redactor (`Redactor`): Makes what comes back fit to keep.

    Returns:
        `Reading`: What was answered, whatever it is worth.

    Raises:
        `Fault`: It may work another time.
        `Rejected`: It would not.
        `JobStopped`: No request would.
    """
    if limit <= 0:
        raise Fault("the deadline passed before the request was sent", limited=True)
    pieces = StreamedAnswer()
    try:
        async with asyncio.timeout(limit):
            if stream:
                return await _streamed(client, body, pieces, redactor)
            create: Any = client.chat.completions.with_raw_response.create
            response = (await create(**body)).http_response
            return _whole(response, redactor)
    except TimeoutError:
        problem: Exception = Fault("the deadline passed before the answer was complete", billed=True)
    except openai.APIStatusError as error:
        problem = read_status(error, redactor)
    except openai.APIConnectionError as error:
        cause = error.__cause__ or error
        kind = "timeout" if isinstance(error, openai.APITimeoutError) else "connection"
        reason = f"{kind}: {type(cause).__name__}: {cause}"
        problem = Fault(redactor.line(reason), billed=not isinstance(cause, NOT_SENT))
    except (openai.APIError, httpx2.HTTPError, ValueError, RecursionError) as error:
        what = "the stream broke" if stream else "the answer cannot be read"
        problem = Fault(redactor.line(f"{what}: {type(error).__name__}: {error}"), billed=True)
    if isinstance(problem, Fault) and pieces.begun:
        problem.reading = pieces.read(redactor, problem.reason)
    raise problem  # outside of the handlers: their errors hold whole responses


def read_status(error: openai.APIStatusError, redactor: Redactor) -> Exception:
    """
    What an HTTP error means.

    Args:
        error (`openai.APIStatusError`): As the client raised it.
        redactor (`Redactor`): Makes its text fit to keep.

    Returns:
        `Exception`: `KeyRejected` for 401 and 403, `BudgetReached` for an account without money, `Fault` for what may
            pass, `Rejected` for the rest.
    """
    status, headers = error.status_code, error.response.headers
    try:
        body = parse_body(error.response.content)
    except (ValueError, httpx2.HTTPError, httpx2.StreamError):
        body = None
    said = error.response.text if error.response.is_stream_consumed else ""
    reason = redactor.line(f"HTTP {status}: {said}")
    raw = redactor.json(body, fault=True) if isinstance(body, dict) else None
    details = body.get("error") if isinstance(body, dict) else None
    code = details.get("code") if isinstance(details, dict) else None
    if status < 500 and is_filter_error(body):
        return Rejected(Reading("filtered", raw=raw, error=reason))
    if status in (401, 403):
        return KeyRejected(f"The endpoint refuses the key or its rights. {reason}. Check the key, then run again.")
    if status == 402 or (status == 429 and code == "insufficient_quota"):
        return BudgetReached(f"The account has no money left. {reason}.")
    if status in RETRIED or status >= 500:
        return Fault(reason, wait=seconds_to_wait(headers.get("retry-after")), limited=status == 429)
    return Rejected(Reading("failed", raw=raw, error=reason))


def _whole(response: httpx2.Response, redactor: Redactor) -> Reading:
    try:
        body = parse_body(response.content)
    except ValueError as error:
        kind = response.headers.get("content-type", "unknown")
        said = response.content.decode("utf-8", "replace")
        reason = f"the answer is no JSON ({kind}; {error}): {said}"
        return Reading("failed", raw={"body": redactor.fault(said)[:LONGEST_BODY]}, error=redactor.line(reason))
    return read_answer(body, redactor)


async def _streamed(
    client: openai.AsyncOpenAI, body: dict[str, Any], pieces: StreamedAnswer, redactor: Redactor
) -> Reading:
    create: Any = client.chat.completions.create
    async with await create(**body, **STREAMED) as stream:
        async for chunk in stream:
            pieces.add(
                chunk.model_dump(mode="json", warnings=False, exclude_unset=True)
                if isinstance(chunk, openai.BaseModel)
                else chunk
            )
    reading = pieces.read(redactor)
    if reading.finish_reason is None:
        raise Fault("the stream ended without a finish reason", billed=True, reading=reading)
    return reading
