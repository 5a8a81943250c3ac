"""Every process notices at once when another one dies, whatever it is waiting for.

The main process keeps a connection to each of the others. When a process exits, the system closes its end; when its
machine fails, keepalive notices. A process that leaves in order sends a message first. A thread listens, because a
collective call on GPUs would wait for a dead process until it times out.
"""

import selectors
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from torch.distributed.distributed_c10d import Store

from phi3v_train.distributed.rank_info import RankInfo, master

PORT = "phi3v/monitor"
BYE, REPORTED, LOST = b"bye", b"reported", b"lost "
"""Last message of a process: all is well; its error is printed; and, from the main one, another has died."""
CONNECT_SECONDS = 20.0
KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
"""A machine that has failed is noticed after 35 seconds."""

Lost = Callable[[], NoReturn]


class PeerMonitor:
    """Listens for lost processes from now until `close`.

    Args:
        rank_info: which process this is.
        store: where the main process publishes the port on which it listens.
        lost: called on the listening thread when a process is lost; it exits this one.

    `lost_peer` is set when a process is lost, `lost_rank` is its rank; `is_reported`: its error is printed already.
    """

    def __init__(self, rank_info: RankInfo, store: Store, lost: Lost) -> None:
        self._lost = lost
        self._selector = selectors.DefaultSelector()
        self._wake, woken = socket.socketpair()
        self._selector.register(woken, selectors.EVENT_READ, "close")
        self._peers: dict[int, socket.socket] = {}
        self._closed = threading.Event()
        self._message = BYE
        self.lost_peer = threading.Event()
        self.is_reported = False
        self.lost_rank = -1
        if rank_info.is_main:
            server = listen()
            store.set(PORT, str(server.getsockname()[1]))
            self._selector.register(server, selectors.EVENT_READ, "server")
        else:
            self._connect(rank_info, int(store.get(PORT)))
        self._thread = threading.Thread(target=self._listen, daemon=True, name="peer monitor")
        self._thread.start()

    def close(self, message: bytes = BYE) -> None:
        """Leave, with a last message: `BYE`, or `REPORTED` after an error that this process has printed."""
        self._message = message
        self._closed.set()
        self._wake.send(b"x")
        if not self.lost_peer.is_set():
            self._thread.join()

    def _connect(self, rank_info: RankInfo, port: int) -> None:
        address = master()[0]
        try:
            connection = socket.create_connection((address, port), timeout=CONNECT_SECONDS)
        except OSError as error:
            print(
                f"warning: rank {rank_info.rank} cannot monitor the other ranks ({address}:{port}: {error.strerror}): "
                "if one of them dies, it may wait for half an hour",
                file=sys.stderr,
            )
            return
        connection.settimeout(None)
        keep_alive(connection)
        connection.send(f"{rank_info.rank:8d}".encode())
        self._peers[0] = connection
        self._selector.register(connection, selectors.EVENT_READ, 0)

    def _listen(self) -> None:
        while not self._closed.is_set():
            for key, _ in self._selector.select():
                if key.data == "server":
                    self._accept(key.fileobj)
                elif key.data != "close":
                    self._receive(key.data)
        for connection in self._peers.values():
            send(connection, self._message)
            connection.close()

    def _accept(self, server: Any) -> None:
        connection, _ = server.accept()
        connection.settimeout(CONNECT_SECONDS)
        try:
            rank = int(connection.recv(8, socket.MSG_WAITALL))
        except (OSError, ValueError):  # not one of us
            connection.close()
            return
        connection.settimeout(None)
        keep_alive(connection)
        self._peers[rank] = connection
        self._selector.register(connection, selectors.EVENT_READ, rank)

    def _receive(self, rank: int) -> None:
        connection = self._peers[rank]
        try:
            message = connection.recv(256)
        except OSError:
            message = b""
        if message.startswith(BYE):
            self._selector.unregister(self._peers.pop(rank))
            return
        if self._closed.is_set():
            return
        if message.startswith(REPORTED):
            self.is_reported = True
        lost_rank = int(message.removeprefix(LOST)) if message.startswith(LOST) else rank
        self.lost_rank = lost_rank
        self.lost_peer.set()
        for other in set(self._peers) - {rank}:
            send(self._peers[other], REPORTED if self.is_reported else LOST + str(lost_rank).encode())
        self._lost()


def listen() -> socket.socket:
    """A socket on a free port, for IPv4 and IPv6 if the machine has both."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def keep_alive(connection: socket.socket) -> None:
    """Let the system notice when the other machine has failed."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def send(connection: socket.socket, message: bytes) -> None:
    """Send a message to a process that may be gone."""
    try:
        connection.send(message)
    except OSError:
        return
