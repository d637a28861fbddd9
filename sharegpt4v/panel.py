"""What is seen of a captioning run, on standard error: a live panel in a terminal, plain lines elsewhere."""

import sys
import time
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from .options import visible


LINE_SECONDS = 10.0  # between plain lines
REFRESH_SECONDS = 0.25
BAR_WIDTH = 48


class RunPanel(AbstractContextManager):
    """
    Shows where a run stands: images done, by state, images and tokens a second, cost, time left.

    Args:
        title (`str`): What runs.
        console (`Console`, *optional*): Where; standard error by default.
    """

    def __init__(self, title: str, console: Console | None = None):
        self._title = title
        self._console = console or Console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False) if self._console.is_terminal else None
        self._last = 0.0
        self._line = self._note = ""

    def __enter__(self) -> "RunPanel":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, snapshot: Any, last: bool = False) -> None:
        """
        Show a snapshot, unless another was shown just now.

        Args:
            snapshot (`Snapshot`): Where the run stands.
            last (`bool`, defaults to `False`): Whether it is the last one, which is always shown, as is a new note.
        """
        now = time.monotonic()
        due = last or snapshot.note != self._note
        if now - self._last < (REFRESH_SECONDS if self._live else LINE_SECONDS) and not due:
            return
        self._last, self._note = now, snapshot.note
        facts = facts_of(snapshot)
        if self._live is not None:
            self._live.update(_panel(visible(self._title), facts, visible(snapshot.note)), refresh=True)
            return
        line = ", ".join(f"{name} {value}" for name, value in facts.items())
        line = f"{self._title}: {line}" + (f" ({snapshot.note})" if snapshot.note else "")
        if line != self._line:
            sys.stderr.write(visible(line) + "\n")
            sys.stderr.flush()
            self._line = line


def facts_of(snapshot: Any) -> dict[str, str]:
    """
    What people read of a snapshot.

    Args:
        snapshot (`Snapshot`): Where a run stands.

    Returns:
        `dict[str, str]`: Names and values, in order.
    """
    done = sum(snapshot.done.values())
    written = sum(snapshot.written.states.values())
    seconds = max(snapshot.seconds, 1e-9)
    failed = {state: count for state, count in sorted(snapshot.done.items()) if state != "ok" and count}
    facts = {"done": f"{done} of {snapshot.total}", "ok": str(snapshot.done["ok"])}
    facts |= {state: str(count) for state, count in failed.items()}
    facts["images/s"] = f"{written / seconds:.2f}"
    facts["tokens/s"] = f"{snapshot.written.completion_tokens / seconds:.0f}"
    if snapshot.written.cost:
        facts["cost of this run"] = f"{snapshot.written.cost:.4f}"
    if snapshot.deaths:
        facts["workers restarted"] = str(snapshot.deaths)
    left = snapshot.total - done
    facts["time left"] = _duration(left * seconds / written) if written and left > 0 else ("-" if left > 0 else "0 s")
    return facts


def _panel(title: str, facts: dict[str, str], note: str) -> Group:
    done, total = (int(number) for number in facts["done"].split(" of "))
    table = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        table.add_row(Text(name, style="dim"), Text(value))
    bar = ProgressBar(total=max(total, 1), completed=done, width=BAR_WIDTH)
    return Group(Text(title, style="bold"), bar, table, Text(note, style="yellow"))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
