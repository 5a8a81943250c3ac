"""Ends this process with a sentence if the head of its Ray cluster is gone.

Ray itself ends the process then, from a thread of its own and without an exception, with exit code 1, which for a command
means that its data has problems.
"""

import os
import socket
import sys
import threading
import time

from phi3v_data.errors import COULD_NOT_RUN
from phi3v_data.messages import shown

SECONDS_OF_RAY = 60.0
"""Time for which Ray waits for a head that is gone, unless `RAY_gcs_rpc_server_reconnect_timeout_s` says otherwise."""

_EARLIER, _EVERY = 3.0, 1.0  # seconds


class HeadWatch:
    """Looks at the head every second, in a thread, until it is stopped."""

    def __init__(self, address: str) -> None:
        """
        Args:
            address: `HOST:PORT` of the head's service.
        """
        self._host, _, port = address.rpartition(":")
        self._port = int(port)
        self._ended = threading.Event()
        threading.Thread(target=self._look, name="ray-head", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()

    def _look(self) -> None:
        seen, patience = time.monotonic(), _patience()
        while not self._ended.wait(_EVERY):
            try:
                socket.create_connection((self._host, self._port), timeout=_EVERY).close()
                seen = time.monotonic()
            except OSError:
                if time.monotonic() - seen > patience and not self._ended.is_set():
                    self._end(patience)

    def _end(self, patience: float) -> None:
        where = shown(f"{self._host}:{self._port}", 60)
        sys.stdout.flush()
        print(
            f"error: the head of the Ray cluster, {where}, has not answered for {patience:.0f} s; what was finished is "
            "kept: run the same command to resume",
            file=sys.stderr,
            flush=True,
        )
        os._exit(COULD_NOT_RUN)  # the main thread may be waiting in Ray, which no exception would end


def _patience() -> float:
    try:
        seconds = float(os.environ["RAY_gcs_rpc_server_reconnect_timeout_s"])
    except (KeyError, ValueError):
        seconds = SECONDS_OF_RAY
    return max(seconds - _EARLIER, _EVERY)
