"""The progress line of a run, on stderr."""

import sys
import time
from typing import TextIO

from phi3v_data.console import format_seconds
from phi3v_train.training.loop import StepResult

PLAIN_INTERVAL = 10.0
"""Seconds between two lines if stderr is not a terminal."""


class ProgressLine:
    """Rewrites one line on a terminal; elsewhere prints one now and then, the first and the last step always.

    `quiet` leaves out the progress, not what `say` is given.
    """

    def __init__(self, total_steps: int, *, start: int = 0, quiet: bool = False, file: TextIO | None = None) -> None:
        self._file = file if file is not None else sys.stderr
        self._quiet = quiet
        self._terminal = not quiet and self._file.isatty()
        self._total = total_steps
        self._start = start
        self._begin = time.monotonic()
        self._last = 0.0
        self._width = 0

    def __call__(self, result: StepResult, memory: int) -> None:
        """Show a finished step; `memory` in bytes."""
        if self._quiet:
            return
        now = time.monotonic()
        edge = result.step in (self._start + 1, self._total)
        if not edge and now - self._last < (0.1 if self._terminal else PLAIN_INTERVAL):
            return
        self._last = now
        text = format_step(result, self._total, memory, self._seconds_left(result.step, now))
        if self._terminal:
            print(f"\r{text.ljust(self._width)}", end="", file=self._file, flush=True)
            self._width = len(text)
        else:
            print(text, file=self._file, flush=True)

    def say(self, text: str) -> None:
        """A line of its own, above the progress line: warnings and scores, which are printed in any case."""
        self.close()
        print(text, file=self._file, flush=True)

    def close(self) -> None:
        """End the line that is being rewritten."""
        if self._terminal and self._width:
            print(file=self._file, flush=True)
            self._width = 0

    def _seconds_left(self, step: int, now: float) -> float:
        return (now - self._begin) / max(step - self._start, 1) * (self._total - step)


def format_step(result: StepResult, total: int, memory: int, seconds_left: float) -> str:
    """`step 12/300  loss 1.234  1,234 tokens/s  4.2 images/s  12.3 GB  3 min 20 s left`."""
    seconds = max(result.seconds, 1e-9)
    parts = [
        f"step {result.step}/{total}",
        f"loss {result.loss:.4f}",
        f"lr {result.lr:.2e}",
        f"{result.num_tokens / seconds:,.0f} tokens/s",
        f"{result.num_images / seconds:,.1f} images/s",
        f"{memory / 1e9:.1f} GB",
        f"{format_seconds(seconds_left)} left",
    ]
    return "  ".join(parts)
