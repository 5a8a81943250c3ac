"""Runs the application until it is told to stop."""

import signal
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from phi3v_data.errors import UserError

GRACE = 30  # seconds for answers that were begun, after the first signal; a second one ends at once


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, so that a taken port is told before a model is loaded; port 0 is any free one.

    Raises:
        UserError: the address or port cannot be used.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        made = socket.socket(family, kind, number)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(128)
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"--host {host} --port {port}: {reason}; choose another --port, or 0 for any free one"
        ) from None
    return made


def serve(app: FastAPI, listening: socket.socket) -> None:
    """Serve until SIGTERM or Ctrl-C; answers that were begun are completed first, for at most `GRACE` seconds."""
    signal.signal(signal.SIGTERM, _end)  # uvicorn raises what it was sent again, at its end
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=GRACE, server_header=False, lifespan="on"
    )
    uvicorn.Server(config).run(sockets=[listening])


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
