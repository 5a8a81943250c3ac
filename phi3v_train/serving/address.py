"""The address of a server: checked and bound before anything slow is imported or loaded."""

import socket
from urllib.parse import urlsplit

from phi3v_data.errors import UserError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
KEY_VARIABLE = "PHI3V_API_KEY"


def require_key(host: str, key: str) -> None:
    """Refuse an address that others reach, if clients need no key there, and a key that not every client can send.

    Raises:
        UserError: there is no key, or it has a character that is not printable ASCII.
    """
    if host not in LOOPBACK and not key:
        raise UserError(
            f"--host {host} is not loopback, so anyone who reaches it could use the model: set the environment "
            f"variable {KEY_VARIABLE}, which clients send as API key, or leave out --host"
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(f"{KEY_VARIABLE}: a key has letters, digits and signs of ASCII, which every client can send")


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
    """The host of a `Host` header, without its port and in lower case, as browsers write it."""
    if header.startswith("["):
        return header[1:].partition("]")[0].lower()
    name = header.rpartition(":")[0] if header.count(":") == 1 else header
    return name.removesuffix(".").lower()


def web_origin(text: str) -> str:
    """An origin as browsers write it: without a path, a usual port or capital letters.

    Raises:
        UserError: it has no scheme or host, or more than these and a port.
    """
    refused = UserError(f"--origins {text}: expected SCHEME://HOST or SCHEME://HOST:PORT, as https://example.com")
    try:
        parts = urlsplit(text.strip())
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise refused from None
    if not host or parts.username is not None or parts.path not in ("", "/") or parts.query or parts.fragment:
        raise refused
    if not set("*, ").isdisjoint(host):
        raise refused
    host = f"[{host}]" if ":" in host else host
    usual = {"http": 80, "https": 443}.get(parts.scheme)
    return f"{parts.scheme}://{host}" + ("" if port in (None, usual) else f":{port}")
