"""Ends this process with a sentence if a server of Ray that it cannot do without is gone.

Ray itself ends the process then, from a thread of its own and mostly without an exception, with exit code 1, which for
a command means that its data has problems.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from phi3v_data.errors import COULD_NOT_RUN
from phi3v_data.messages import shown

_SECONDS_OF_RAY = 60.0
_OPTION_OF_RAY = "RAY_gcs_rpc_server_reconnect_timeout_s"
"""Time for which Ray waits for a head that is gone, and the variable that sets another one."""

_NODE_SECONDS = 5.0  # Ray: some 15
_EARLIER, _EVERY = 3.0, 1.0


@dataclass(frozen=True, slots=True)
class Server:
    """A server: its name in the sentence, how to connect to it, and seconds of silence after which it is gone."""

    name: str
    connect: Callable[[], socket.socket]
    patience: float


class RayWatch:
    """Looks at servers every second, in a thread, until it is stopped."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self._servers = servers
        self._ended = threading.Event()
        threading.Thread(target=self._look, name="ray-watch", daemon=True).start()

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()

    def _look(self) -> None:
        seen = dict.fromkeys((server.name for server in self._servers), time.monotonic())
        while not self._ended.wait(_EVERY):
            for server in self._servers:
                try:
                    server.connect().close()
                    seen[server.name] = time.monotonic()
                except OSError:
                    if time.monotonic() - seen[server.name] > server.patience and not self._ended.is_set():
                        _end(server)


def servers_of(ray: Any) -> list[Server]:
    """The head of the cluster that this process is connected to, and Ray's server on its own machine."""
    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    head = f"the head of the Ray cluster, {shown(context.gcs_address, 60)},"
    found = [Server(head, lambda: socket.create_connection((host.strip("[]"), int(port)), timeout=_EVERY), _patience())]
    own = next((node for node in ray.nodes() if node["NodeID"] == context.get_node_id()), None)
    if own is not None and (path := own.get("RayletSocketName")):
        found.append(Server("the Ray node of this machine", lambda: _connect_unix(path), _NODE_SECONDS))
    return found


def _connect_unix(path: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    try:
        made.settimeout(_EVERY)
        made.connect(path)
    except OSError:
        made.close()
        raise
    return made


def _patience() -> float:
    try:
        seconds = float(os.environ[_OPTION_OF_RAY])
    except (KeyError, ValueError):
        seconds = _SECONDS_OF_RAY
    return max(seconds - _EARLIER, _EVERY)


def _end(server: Server) -> None:
    sys.stdout.flush()
    print(
        f"error: {server.name} has not answered for {server.patience:.0f} s; what was finished is kept: run the same "
        "command to resume",
        file=sys.stderr,
        flush=True,
    )
    os._exit(COULD_NOT_RUN)  # the main thread may be waiting in Ray, which no exception would end
