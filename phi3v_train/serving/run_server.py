"""Runs the application until it is told to stop, and ends it: first the answers that were begun, for a limited time."""

import asyncio
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from phi3v_data.messages import counted
from phi3v_train.serving.answerer import Answerer
from phi3v_train.serving.connection import Connection

TOLD = 2.0  # seconds for clients to be told that their answer was cut off
STEP = 0.05  # seconds between two looks at what is still open


class GracefulServer(uvicorn.Server):
    """A server that ends in order.

    After the first signal no more connections are taken and answers that were begun are finished, for at most `grace`
    seconds. Then, or at a second signal, the others are cut off, and their clients are told. After `run` has returned,
    `signals` are those that were taken, and `num_cut` is the number of answers that were cut off.
    """

    def __init__(self, app: FastAPI, answerer: Answerer, *, grace: float, say: Callable[[str], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,  # h11, which limits the size of headers; httptools does not
                log_level="warning",
                access_log=False,
                server_header=False,
                lifespan="on",
            )
        )
        self.answerer = answerer
        self.grace = grace
        self.say = say
        self.signals: list[int] = []
        self.num_cut = 0

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM; unlike uvicorn's own it does not raise them again at the end."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; with a second signal at once."""
        self.signals.append(sig)
        self.force_exit = self.should_exit
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Finish the answers that were begun, cut off those that take too long, and close the application."""
        for server in self.servers:
            server.close()
        for each in sockets or []:
            each.close()
        for connection in list(self.server_state.connections):
            cycle = getattr(connection, "cycle", None)
            if cycle is not None and cycle.more_body and not cycle.response_complete:
                connection.transport.close()  # half a request, of which the rest may never come
            else:
                connection.shutdown()
        if unfinished := self._num_unfinished():
            again = "; Ctrl-C again ends at once" if signal.SIGINT in self.signals else ""
            limit = f", at most {self.grace:g} s" if self.grace else ""
            self.say(f"finishing {counted(unfinished, 'answer')}{limit}{again}")
        if not await self._all_ended(self.grace):
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # it would show a traceback for each request
            self.num_cut = self._num_unfinished()
            self.answerer.cut_off()
            await self._all_ended(TOLD, forced=False)
        await self.lifespan.shutdown()

    def _num_unfinished(self) -> int:
        """Requests that have come whole and are not answered to their end, those without a prompt yet among them."""
        cycles = [getattr(connection, "cycle", None) for connection in self.server_state.connections]
        return sum(cycle is not None and not (cycle.more_body or cycle.response_complete) for cycle in cycles)

    async def _all_ended(self, seconds: float, *, forced: bool = True) -> bool:
        """Whether all requests end within some seconds; no longer waited for at a second signal if `forced`."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while self.server_state.connections or self.server_state.tasks:
            if loop.time() >= end or (forced and self.force_exit):
                return False
            await asyncio.sleep(STEP)
        return True


def serve(app: FastAPI, answerer: Answerer, listening: socket.socket, *, grace: float) -> tuple[int, int]:
    """Serve until SIGTERM or Ctrl-C; the signal, and the number of answers that were cut off."""

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    server = GracefulServer(app, answerer, grace=grace, say=say)
    server.run(sockets=[listening])
    return (server.signals or [signal.SIGTERM])[0], server.num_cut
