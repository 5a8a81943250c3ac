"""Every process hears at once when another one dies, whatever it is waiting for.

The main process keeps a connection to each of the others. When a process ends, the system closes its end; when its
machine ends, keepalive finds out. Whoever leaves in order says so before. A thread listens, because a collective call
on GPUs would wait for a dead process until its time is over.
"""

import selectors
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from torch.distributed.distributed_c10d import Store

from phi3v_train.distributed.rank_info import RankInfo, master

PORT = "phi3v/watch"
BYE, SAID, LOST = b"bye", b"said", b"lost "
"""Before a process ends: all is well; or its error is printed; and, from the main one, that another has ended."""
CONNECT_SECONDS = 20.0
KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
"""A machine that is gone is noticed after 35 seconds."""

Lost = Callable[[], NoReturn]


class PeerMonitor:
    """Listens for deaths from now until `close`.

    Args:
        rank_info: which process this is.
        store: where the main process says on which port it listens.
        lost: called on the listening thread when a process is gone; it ends this one.

    `heard` is set when one is gone, `dead` is its rank; `is_told`: it, or the main process, has said why.
    """

    def __init__(self, rank_info: RankInfo, store: Store, lost: Lost) -> None:
        self._lost = lost
        self._selector = selectors.DefaultSelector()
        self._wake, woken = socket.socketpair()
        self._selector.register(woken, selectors.EVENT_READ, "close")
        self._peers: dict[int, socket.socket] = {}
        self._closed = threading.Event()
        self._word = BYE
        self.heard = threading.Event()
        self.is_told = False
        self.dead = -1
        if rank_info.is_main:
            server = listen()
            store.set(PORT, str(server.getsockname()[1]))
            self._selector.register(server, selectors.EVENT_READ, "server")
        else:
            self._connect(rank_info, int(store.get(PORT)))
        self._thread = threading.Thread(target=self._listen, daemon=True, name="watch")
        self._thread.start()

    def close(self, word: bytes = BYE) -> None:
        """Leave, with a last word: `BYE`, or `SAID` for an error that this process has told itself."""
        self._word = word
        self._closed.set()
        self._wake.send(b"x")
        if not self.heard.is_set():
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
                    self._hear(key.data)
        for connection in self._peers.values():
            send(connection, self._word)
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

    def _hear(self, rank: int) -> None:
        connection = self._peers[rank]
        try:
            word = connection.recv(256)
        except OSError:
            word = b""
        if word.startswith(BYE):
            self._selector.unregister(self._peers.pop(rank))
            return
        if self._closed.is_set():
            return
        if word.startswith(SAID):
            self.is_told = True
        dead = int(word.removeprefix(LOST)) if word.startswith(LOST) else rank
        self.dead = dead
        self.heard.set()
        for other in set(self._peers) - {rank}:
            send(self._peers[other], SAID if self.is_told else LOST + str(dead).encode())
        self._lost()


def listen() -> socket.socket:
    """A socket on a free port, for both kinds of addresses where the machine has them."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def keep_alive(connection: socket.socket) -> None:
    """Let the system find out when the other machine is gone."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def send(connection: socket.socket, word: bytes) -> None:
    """Say something to a process that may be gone."""
    try:
        connection.send(word)
    except OSError:
        return
