"""Output of a command: results on stdout, progress and notes on stderr.

rich is imported when the first console is created, so that the help of a command stays fast.
"""

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import IO, TYPE_CHECKING

from phi3v_data.messages import printable
from phi3v_data.streams import stream_behind

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

PLAIN_INTERVAL = 10.0
"""Seconds between two progress lines if stderr is not a terminal."""

PLAIN_WIDTH = 120
"""Width of tables, in columns, if the output is not a terminal."""


def make_console(file: IO[str] | None = None) -> "Console":
    """A console on `file` (default stdout): colours on terminals only, `NO_COLOR` respected, no guessed markup, and
    only its own escape codes.
    """
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class PrintableConsole(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(printable(segment.text), segment.style)

    stream = stream_behind(sys.stdout if file is None else file)
    plain = not stream.isatty()
    width = PLAIN_WIDTH if plain else None
    return PrintableConsole(file=stream, highlight=False, emoji=False, soft_wrap=plain, width=width)


class ProgressBar:
    """Progress of one command, called as `progress(stage, done, total)`; `total` is None if not known yet.

    `units` names the unit of stages whose name does not.

    Shows a bar with rate and time left on a terminal, elsewhere a plain line every 10 seconds, and nothing if `quiet`.
    A call between two updates takes about a microsecond, so callers need not throttle.
    """

    def __init__(
        self, *, quiet: bool = False, units: Mapping[str, str] | None = None, file: IO[str] | None = None
    ) -> None:
        self._units = units or {}
        self._file = sys.stderr if file is None else file
        self._quiet = quiet
        self._terminal = not quiet and self._file.isatty()
        self._progress: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._stage = ""
        self._stage_start = self._last = time.monotonic()
        self._stage_done = 0

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __call__(self, stage: str, done: int, total: int | None = None) -> None:
        if self._quiet:
            return
        if stage in self._units:
            stage = f"{stage} ({self._units[stage]})"
        now = time.monotonic()
        if stage != self._stage:
            self._stage, self._stage_start, self._stage_done = stage, now, done
            self._last = now if not self._terminal else 0.0
        final = total is not None and done >= total
        if self._terminal:
            if final or now - self._last >= 0.1:
                self._last = now
                self._draw(stage, done, total)
        elif now - self._last >= PLAIN_INTERVAL:
            self._last = now
            print(self._line(stage, done, total, now), file=self._file, flush=True)

    def close(self) -> None:
        """Stop the display; the last state of each bar stays on the terminal."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _draw(self, stage: str, done: int, total: int | None) -> None:
        if self._progress is None:
            self._progress = _make_rich_progress(self._file)
            self._progress.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=total)
        self._progress.update(self._tasks[stage], completed=done, total=total)

    def _line(self, stage: str, done: int, total: int | None, now: float) -> str:
        rate = (done - self._stage_done) / max(now - self._stage_start, 1e-9)
        text = f"{stage}: {done:,}"
        if total:
            text += f" of {total:,} ({100 * done / total:.0f} %)"
        text += f", {rate:,.3g}/s" if rate < 1000 else f", {rate:,.0f}/s"
        if total and rate > 0:
            text += f", {format_seconds((total - done) / rate)} left"
        return text


def format_seconds(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _make_rich_progress(file: IO[str]) -> "Progress":
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class RateColumn(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text("" if speed is None else f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.1f}/s", style="dim")

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(compact=True),
        console=make_console(file),
    )


@contextmanager
def progress_bar(*, quiet: bool = False, units: Mapping[str, str] | None = None) -> Iterator[ProgressBar]:
    """Yield a progress bar: `with progress_bar(quiet=quiet) as progress: ... progress("images", 10, 200)`."""
    with ProgressBar(quiet=quiet, units=units) as bar:
        yield bar
