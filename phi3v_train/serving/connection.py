"""A connection to a client, with a limit on the time in which the head of a request comes: uvicorn has none."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD = 30.0  # seconds from the first byte of a request, or from the connection, to the end of its headers


class Connection(H11Protocol):
    """Closes the connection of a client that sends nothing, or half of its headers."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait_for_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._timer is None:  # half of the headers of the next request, for which uvicorn ended its own timer
            self._wait_for_head()

    def _wait_for_head(self) -> None:
        self._timer = self.loop.call_later(HEAD, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
