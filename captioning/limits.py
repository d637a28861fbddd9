"""What holds requests back: rate limits, pauses that an endpoint asks for, a circuit that opens, a budget."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from aiolimiter import AsyncLimiter

from .answers import EndpointDown
from .endpoint_config import EndpointConfig


logger = logging.getLogger(__name__)

Sleep = Callable[[float], Awaitable[None]]
Clock = Callable[[], float]
LONG_PAUSE = 30.0  # seconds from which a pause is a warning
NANO = 1_000_000_000  # costs are added as whole numbers: sums of floats drift below and above a budget


class RateLimits:
    """
    Requests and tokens a minute, spread evenly: at most one second's share (or one request) goes out at once.

    Args:
        rpm (`int`, *optional*): Requests a minute.
        tpm (`int`, *optional*): Tokens a minute.
    """

    def __init__(self, rpm: int | None, tpm: int | None) -> None:
        self._requests = _limiter(rpm)
        self._tokens = _limiter(tpm)

    async def acquire(self, tokens: int) -> None:
        """
        Wait until one more request may be sent.

        Args:
            tokens (`int`): That it is expected to take, answer included.
        """
        if self._tokens is not None:
            left = float(tokens)
            while left > 0:  # in pieces, since one request may take more than a second's share
                part = min(left, self._tokens.max_rate)
                await self._tokens.acquire(part)
                left -= part
        if self._requests is not None:
            await self._requests.acquire()


class Gate:
    """
    Stops all requests together: for a pause that the endpoint asked for, and while it fails time after time.

    After `circuit_failures` failures in a row the circuit opens: nothing is sent for `circuit_seconds`, then one
    request probes; its success closes the circuit, its failure opens it again.

    Args:
        config (`EndpointConfig`): The bounds.
        clock (`Callable[[], float]`): Seconds that only grow.
        sleep (`Callable[[float], Awaitable]`): Waits that many seconds.
    """

    def __init__(self, config: EndpointConfig, clock: Clock, sleep: Sleep) -> None:
        self._config, self._clock, self._sleep = config, clock, sleep
        self._failures = self._trips = 0
        self._paused_until = self._open_until = float("-inf")
        self._open = self._probing = False
        self._resolved = asyncio.Event()
        self.successes = 0
        self.down = ""

    @property
    def is_open(self) -> bool:
        """Whether the circuit is open (`bool`); what is under way then gives up instead of trying again."""
        return self._open

    @property
    def paused_for(self) -> float:
        """Seconds (`float`) until requests may be sent again, as far as a pause is concerned; 0 without one."""
        return max(0.0, self._paused_until - self._clock())

    async def enter(self) -> bool:
        """
        Wait until a first request for an image may be sent.

        Returns:
            `bool`: Whether it is the probe of a half-open circuit; [`Gate.leave`] must be called for it.

        Raises:
            `EndpointDown`: The endpoint failed too often, or asked for too long a pause.
        """
        while True:
            if self.down:
                raise EndpointDown(self.down)
            wait = max(self._paused_until, self._open_until) - self._clock()
            if wait > 0:
                await self._sleep(wait)
            elif not self._open:
                return False
            elif self._probing:
                await self._resolved.wait()
            else:
                self._probing, self._resolved = True, asyncio.Event()
                logger.info("One request tries whether the endpoint answers again.")
                return True

    def leave(self) -> None:
        """End a probe, whatever came of it."""
        self._probing = False
        self._resolved.set()

    def succeeded(self) -> None:
        """Count an answer: the endpoint works."""
        if self._open:
            logger.warning("The endpoint answers again; requests go on.")
        self.successes += 1
        self._failures = self._trips = 0
        self._open = False

    def failed(self, reason: str, probe: bool = False) -> None:
        """
        Count a failure that may not be the fault of the one request.

        Args:
            reason (`str`): What happened, fit for logs.
            probe (`bool`, defaults to `False`): Whether the request was the probe of a half-open circuit.
        """
        self._failures += 1
        if self._open and not probe:
            return  # under way when it opened
        if not self._open and self._failures < self._config.circuit_failures:
            return
        self._open = True
        self._trips += 1
        self._open_until = self._clock() + self._config.circuit_seconds
        if self._trips >= self._config.circuit_trips:
            self._give_up(f"The endpoint failed {self._failures} times in a row, last: {reason}.")
        else:
            logger.warning(
                "%d failures in a row, last: %s. No request for %g s.",
                self._failures,
                reason,
                self._config.circuit_seconds,
            )

    def pause(self, seconds: float) -> None:
        """
        Hold all requests, as the endpoint asked.

        Args:
            seconds (`float`): How long; the longest of several counts.
        """
        until = f"{datetime.now().astimezone() + timedelta(seconds=min(seconds, 10**8)):%Y-%m-%d %H:%M:%S %Z}"
        if seconds > self._config.max_pause:
            self._give_up(f"The endpoint asks for a pause of {seconds:.0f} s, until {until}.")
            return
        if self._clock() + seconds > self._paused_until + 1:  # answers to the same moment come one after the other
            level = logging.WARNING if seconds >= LONG_PAUSE else logging.INFO
            logger.log(level, "The endpoint asks to wait %.1f s: paused until %s.", seconds, until)
        self._paused_until = max(self._paused_until, self._clock() + seconds)

    def _give_up(self, reason: str) -> None:
        if not self.down:
            self.down = f"{reason} Answers so far are kept; run the same command again later."


class Budget:
    """
    What may still be spent; requests that are under way count with the most they can cost.

    Args:
        limit (`float`, *optional*): In the currency of the prices; `None` for no limit.
        spent (`float`, defaults to 0): Already.
    """

    def __init__(self, limit: float | None, spent: float = 0.0) -> None:
        self._limit = None if limit is None else _nano(limit)
        self._spent, self._reserved = _nano(spent), 0
        self._freed = asyncio.Event()

    @property
    def spent(self) -> float:
        """Cost (`float`) of all attempts so far."""
        return self._spent / NANO

    async def reserve(self, cost: float) -> bool:
        """
        Set money aside for a request; waits for those under way where these decide.

        Args:
            cost (`float`): The most it can cost.

        Returns:
            `bool`: `False` if what is left does not do.
        """
        amount = _nano(cost)
        while self._limit is not None and self._spent + self._reserved + amount > self._limit:
            if not self._reserved or self._spent + amount > self._limit:
                return False
            await self._freed.wait()
        self._reserved += amount
        return True

    def settle(self, reserved: float, cost: float) -> None:
        """
        Replace what was set aside by what it cost.

        Args:
            reserved (`float`): As given to [`Budget.reserve`].
            cost (`float`): What was spent.
        """
        self._reserved -= _nano(reserved)
        self._spent += _nano(cost)
        self._freed.set()
        self._freed = asyncio.Event()


def seconds_to_wait(header: str | None, now: float | None = None) -> float | None:
    """
    Read a `Retry-After` header.

    Args:
        header (`str`, *optional*): A number of seconds or an HTTP date.
        now (`float`, *optional*): Seconds since the epoch; the present by default.

    Returns:
        `float`, *optional*: Seconds from now, at least 0; `None` for what is neither.
    """
    if header is None or len(header) > 100:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            when = parsedate_to_datetime(header)
        except (ValueError, IndexError):
            return None
        when = when if when.tzinfo is not None else when.replace(tzinfo=UTC)
        seconds = when.timestamp() - (time.time() if now is None else now)
    return max(0.0, seconds) if seconds < float("inf") else None  # not NaN either


def _limiter(per_minute: int | None) -> AsyncLimiter | None:
    if per_minute is None:
        return None
    share = max(1.0, per_minute / 60)
    return AsyncLimiter(share, share * 60 / per_minute)


def _nano(cost: float) -> int:
    return round(cost * NANO)
