"""Environment of every child process of the tests: this checkout before any installed copy, and a Ctrl-C that works."""

import os
import signal
from pathlib import Path

TESTS = Path(__file__).parent

os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(TESTS.parent), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
)
os.environ.setdefault("OMP_NUM_THREADS", "1")
"""Tests share the cores already, and a forked child hangs in the first parallel region of a parent with threads."""

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a script; children would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)
