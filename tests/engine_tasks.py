"""Functions that workers of an engine run in the tests."""

import faulthandler
import os
import signal


def square_or_die(number: int) -> int:
    """The square; 3 brings its process down, 5 cannot be done."""
    if number == 3:
        faulthandler.disable()
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 5:
        raise ValueError("five is too much")
    return number * number


def process_id(number: int) -> int:
    """The worker's process."""
    return os.getpid()


def wait_for_ever(fifo: str) -> None:
    """Wait on a named pipe; a task that is a number waits for nothing."""
    if not fifo.isdecimal():
        os.open(fifo, os.O_RDONLY)
