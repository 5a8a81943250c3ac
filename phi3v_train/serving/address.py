"""The address of a server: checked and bound before anything slow is imported or loaded."""

import socket

from phi3v_data.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
KEY_VARIABLE = "PHI3V_API_KEY"


def require_key(host: str, key: str) -> None:
    """Refuse an address that others reach, if clients need no key there.

    Raises:
        UserError: there is no key.
    """
    if host not in LOOPBACK and not key:
        raise UserError(
            f"--host {host} is not loopback, so anyone who reaches it could use the model: set the environment "
            f"variable {KEY_VARIABLE}, which clients send as API key, or leave out --host"
        )


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


def host_name(header: str) -> str:
    """The host of a `Host` header, without its port."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if ":" in header else header
