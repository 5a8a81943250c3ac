"""Imported by the fork server of the workers, and by nothing else: SIGTERM does not end it.

A cluster sends the signal to every process of a job. The fork server ends when the main process does.
"""

import pickle
import signal
import sys
from types import TracebackType


def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print why a worker could not start, unless the main process ends: its pipes and semaphores are gone then."""
    if not issubclass(kind, EOFError | FileNotFoundError | ConnectionError | pickle.UnpicklingError):
        sys.__excepthook__(kind, error, trace)


signal.signal(signal.SIGTERM, signal.SIG_IGN)
sys.excepthook = report
