"""Downloads images by URL: with limits on bytes and time, retries, and no way into a private network.

Every host is resolved here, and the connection goes to the address that was checked, so that a name cannot mean
another machine a moment later. Redirects are followed one by one, each checked like the first URL. No proxy is used.
"""

import http.client
import ipaddress
import os
import socket
import ssl
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from phi3v_data.errors import Reject
from phi3v_data.files import name_digest, process_name
from phi3v_data.messages import shown
from phi3v_data.sources.reads import not_noting

MAX_REDIRECTS = 5
_BLOCK = 1 << 16
_REDIRECTS = (301, 302, 303, 307, 308)
_AGAIN = (408, 425, 429, 500, 502, 503, 504)
"""Answers that another attempt may change."""

LOCAL_TEST_PORTS: set[int] = set()
"""Ports of servers on 127.0.0.1 that tests may fetch from; empty outside of tests, and no option fills it."""


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """Limits of one image. `wait`: seconds before the second attempt, doubled before each further one."""

    max_bytes: int = 50 << 20
    connect: float = 10.0  # seconds until connected, and between two blocks of the answer
    total: float = 120.0  # seconds for one attempt
    attempts: int = 4
    wait: float = 1.0


class _TryAgain(Exception):  # noqa: N818 - caught here
    """A failure that may pass."""


def fetch_image(url: str, what: str, folder: Path | None = None, limits: FetchLimits | None = None) -> bytes:
    """The bytes of a URL.

    Args:
        url: an http or https URL.
        what: the field, for messages.
        folder: where a download is kept for the next use of the URL; None: nowhere.

    Raises:
        Reject: `image-missing` (not there, refused, no answer), `image-too-large`.
    """
    limits = limits or FetchLimits()
    kept = None if folder is None else folder / name_digest(url, 32)
    with not_noting():  # a download does not belong to the source
        if kept is not None:
            try:
                return kept.read_bytes()
            except FileNotFoundError:
                pass
        data = _with_retries(url, what, limits)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            aside = kept.with_name(f"{kept.name}.{process_name()}")
            aside.write_bytes(data)
            os.replace(aside, kept)
    return data


def _with_retries(url: str, what: str, limits: FetchLimits) -> bytes:
    wait = limits.wait
    for attempt in range(1, limits.attempts + 1):
        try:
            return _follow(url, what, limits)
        except _TryAgain as error:
            if attempt == limits.attempts:
                raise Reject(
                    "image-missing", f"{what}: {shown(url)} could not be fetched in {attempt} attempts: {error}"
                ) from None
            time.sleep(wait)
            wait *= 2
    raise AssertionError("at least one attempt")


def _follow(url: str, what: str, limits: FetchLimits) -> bytes:
    """One attempt, through redirects."""
    until = time.monotonic() + limits.total
    here = url
    for _ in range(MAX_REDIRECTS + 1):
        try:
            with closing(_open(here, what, limits)) as connection, ExitStack() as stack:
                target = urlsplit(here)
                path = (target.path or "/") + (f"?{target.query}" if target.query else "")
                connection.connect()
                timer = threading.Timer(max(0.0, until - time.monotonic()), _hang_up, (connection.sock,))
                timer.daemon = True
                timer.start()
                stack.callback(timer.cancel)
                connection.request("GET", path, headers={"User-Agent": "phi3v", "Accept": "image/*, */*;q=0.5"})
                answer = connection.getresponse()
                stack.callback(answer.close)
                if answer.status in _REDIRECTS and (location := answer.getheader("Location")):
                    here = urljoin(here, location)
                    continue
                if answer.status in _AGAIN:
                    raise _TryAgain(f"status {answer.status}")
                if answer.status != 200:
                    raise Reject("image-missing", f"{what}: {shown(here)} answers with status {answer.status}")
                return b"".join(_blocks(answer, here, what, limits, until))
        except (OSError, http.client.HTTPException) as error:
            raise _TryAgain(str(error) or type(error).__name__) from None
        except (ValueError, UnicodeError):  # a path or host that no request can have
            raise Reject("image-missing", f"{what}: {shown(here)} is not a valid URL") from None
    raise Reject("image-missing", f"{what}: {shown(url)} is redirected more than {MAX_REDIRECTS} times")


def _blocks(
    answer: http.client.HTTPResponse, url: str, what: str, limits: FetchLimits, until: float
) -> Iterator[bytes]:
    size = 0
    too_large = Reject("image-too-large", f"{what}: {shown(url)} has more than {limits.max_bytes >> 20} MB")
    if answer.length is not None and answer.length > limits.max_bytes:
        raise too_large
    while block := answer.read1(_BLOCK):
        size += len(block)
        if size > limits.max_bytes:
            raise too_large
        yield block
    if time.monotonic() >= until:
        raise _TryAgain(f"not complete after {limits.total:g} s")
    if answer.length:
        raise _TryAgain("the connection was closed early")


def _hang_up(connection: socket.socket) -> None:
    """End a connection that takes too long, even between two bytes of a header."""
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _open(url: str, what: str, limits: FetchLimits) -> http.client.HTTPConnection:
    """A connection to a checked address of the URL's host.

    Raises:
        Reject: another scheme, or an address that is not public.
        _TryAgain: no address, or no connection.
    """
    target = urlsplit(url)
    host = target.hostname or ""
    if target.scheme not in ("http", "https") or not host:
        raise Reject("image-missing", f"{what}: {shown(url)} is not an http or https URL")
    port = target.port or (443 if target.scheme == "https" else 80)
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except socket.gaierror as error:
        raise _TryAgain(f"no address of {host}: {error.strerror}") from None
    addresses = sorted(found)
    if private := next((address for address in addresses if not is_public(address, port)), ""):
        raise Reject(
            "image-missing",
            f"{what}: {shown(url)} is at the address {private}, which is not public; download it yourself",
        )
    if target.scheme == "https":
        return _PinnedHTTPS(host, port, addresses, limits.connect)
    return _Pinned(host, port, addresses, limits.connect)


def is_public(address: str, port: int = 0) -> bool:
    """Whether an address is one of the public internet: not private, loopback, link-local, multicast or reserved."""
    if port in LOCAL_TEST_PORTS and address == "127.0.0.1":
        return True
    there = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(there, ipaddress.IPv6Address):
        if there in _NAT64:
            there = ipaddress.IPv4Address(int(there) & 0xFFFFFFFF)
        else:
            there = there.ipv4_mapped or there.sixtofour or there
    # Reserved ones hold addresses of IPv4 in further ways: `::127.0.0.1`, NAT64 with the prefix of a local network.
    own = getattr(there, "is_site_local", False)
    return there.is_global and not (there.is_multicast or there.is_reserved or own)


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
"""Addresses that hold one of IPv4 in their last 32 bits."""


def _connect(addresses: Collection[str], port: int, timeout: float) -> socket.socket:
    """A connection to the first address that answers."""
    failed: OSError | None = None
    for address in addresses:
        try:
            return socket.create_connection((address, port), timeout)
        except OSError as error:
            failed = error
    raise failed or OSError("no address")


class _Pinned(http.client.HTTPConnection):
    """A connection to given addresses of a host."""

    def __init__(self, host: str, port: int, addresses: Collection[str], timeout: float) -> None:
        super().__init__(host, port, timeout=timeout)
        self._addresses = addresses

    def connect(self) -> None:
        self.sock = _connect(self._addresses, self.port, self.timeout or 0)


class _PinnedHTTPS(_Pinned):
    """The same with TLS; the certificate is checked for the name of the host."""

    default_port = http.client.HTTPS_PORT

    def connect(self) -> None:
        super().connect()
        self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)
