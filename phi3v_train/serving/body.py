"""Reads the body of a request, with limits on its size and on the time between two parts of it."""

import asyncio

from fastapi import Request
from starlette.requests import ClientDisconnect

from phi3v_data.messages import shown
from phi3v_train.serving.protocol import ApiError

STALLED = 30.0  # seconds without a byte of the body, after which the client is told to come again
SLOWEST = 10_000  # bytes per second that a body comes with at least, after as many seconds
JSON = "application/json"


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request of at most `limit` bytes.

    Raises:
        ApiError: it is not JSON by its header, has more bytes, or does not come; or the client has left.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON:
        raise ApiError(415, f"the Content-Type is {shown(kind, 80)}; send {JSON}")
    declared = request.headers.get("content-length", "")
    length = int(declared) if declared.isdecimal() and declared.isascii() else None
    # A client that says how much it sends gets the answer after it; one without end is cut off.
    too_large = ApiError(413, f"the request has more than {limit:,} bytes", close=length is None or length > 4 * limit)
    if length is not None and length > limit:
        raise too_large
    parts: list[bytes] = []
    size = 0
    stream = request.stream()
    start = now = asyncio.get_running_loop().time()
    try:
        while True:
            async with asyncio.timeout_at(STALLED + min(now, start + size / SLOWEST)):
                part = await anext(stream, None)
            if part is None:
                return b"".join(parts)
            size += len(part)
            if size > limit:
                raise too_large
            parts.append(part)
            now = asyncio.get_running_loop().time()
    except TimeoutError:
        slow = f"no more of the request has come for {STALLED:g} s, or less than {SLOWEST:,} bytes per second"
        raise ApiError(408, slow, close=True) from None
    except ClientDisconnect:
        raise ApiError(499, "the client has left") from None
