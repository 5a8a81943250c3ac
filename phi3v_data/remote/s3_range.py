"""Ranges of objects of S3 by one request each, compared with the etag in the request and in its answer."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar

T = TypeVar("T")

PRECONDITION_FAILED = 412
_NO_SUCH_RANGE = 416

_STATES = ("generation", "ETag", "etag", "blob_id", "md5Hash", "sha256", "version_id")
"""Fields of fsspec's description of an object of which one changes with its content, the best one first."""


def wait_for(fs: Any, request: Callable[[], Awaitable[T]], timeout: float) -> T:
    """The result of a request that runs in the thread of an fsspec file system. Raises TimeoutError."""
    from fsspec.asyn import sync

    result: T = sync(fs.loop, request, timeout=timeout)
    return result


async def range_of_s3(fs: Any, path: str, etag: str, start: int, end: int) -> tuple[bytes, str]:
    """A range of an object, if it has this etag, and the etag of the answer; a weak one cannot be asked for."""
    bucket, key, _ = fs.split_path(path)
    only = {"IfMatch": f'"{etag}"'} if etag and '"' not in etag else {}
    try:
        answer = await fs._call_s3("get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}", **only)
    except OSError as error:
        if status_of(error) == _NO_SUCH_RANGE:  # of an object without content
            return b"", ""
        raise
    try:
        return await answer["Body"].read(), etag_of(answer)
    finally:
        answer["Body"].close()


def status_of(error: OSError) -> int:
    """The status of the answer of S3 that s3fs made this error of; 0 if there was none."""
    answer = getattr(error.__cause__, "response", None) or {}
    return int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def etag_of(info: Mapping[str, Any]) -> str:
    value = next((info[name] for name in _STATES if info.get(name)), "")
    return str(value).strip('"')
