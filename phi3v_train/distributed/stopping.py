"""SIGTERM and Ctrl-C as a request to stop: the run ends after the step that it is in, with a checkpoint.

All processes of a run are told of the request in the exchange that every step makes anyway, so they stop after the same
step, also where only one of them got the signal.
"""

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

from phi3v_train.distributed.group import Group
from phi3v_train.launch import LAUNCHED

SIGNALS = (signal.SIGTERM, signal.SIGINT)

SAME = 5.0
"""Seconds within which a signal of the same kind is taken for the same request: a cluster sends it to every process of
the job, and torchrun, which gets it too, passes it on.
"""

MESSAGE = "stopping after this step, with a checkpoint; a second signal ends the run at once"
EARLY = "stopping; nothing has been trained yet, so the same command starts over; a second signal ends the run at once"


class Interrupted(Exception):  # noqa: N818 - an outcome, not a failure
    """Work was left undone because the run is to stop; raised by all processes together."""


class StopRequest:
    """Listens for the signals while a block runs; outside the main thread it receives none.

    Args:
        is_main: this process prints what happens.

    `saves`: the run has a checkpoint or writes one before it stops; False until the first step begins.
    """

    def __init__(self, *, is_main: bool = True) -> None:
        self.saves = False
        self._is_main = is_main
        self._launched = LAUNCHED in os.environ
        self._of_many = "RANK" in os.environ
        self._received: dict[int, float] = {}
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            # Our launcher gets Ctrl-C itself and passes it on as SIGTERM.
            for number in SIGNALS[:1] if self._launched else SIGNALS:
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        first = self._received.get(number)
        if first is not None and not self._launched and (not self._of_many or now - first > SAME):
            os._exit(128 + number)
        if not self._received and self._is_main:
            # Not print: the signal may have come in the middle of one.
            os.write(2, f"\n{MESSAGE if self.saves else EARLY}\n".encode())
        self._received.setdefault(number, now)

    @property
    def is_set(self) -> bool:
        """Whether this process is to stop."""
        return bool(self._received)

    def flags(self) -> tuple[float, ...]:
        """One number for each of `SIGNALS`, to be summed over the processes."""
        return tuple(float(number in self._received) for number in SIGNALS)

    @staticmethod
    def signal_of(flags: tuple[float, ...]) -> int:
        """The signal that summed flags stand for, 0 for none."""
        return next((int(number) for number, count in zip(SIGNALS, flags, strict=True) if count), 0)

    def agree(self, group: Group) -> int:
        """The signal that any process got, 0 for none; called by all of them together."""
        return self.signal_of(tuple(group.sum(self.flags())))
