"""Objects in a store by name, through fsspec: what there is, ranges of bytes, uploads.

    store = open_store("s3://BUCKET/PREFIX")
    for found in store.objects(): ...          name, size and etag of each object
    store.read(found, offset, size)            a range of an object that has not changed since
    store.open(found)                          the same as a seekable file, read ahead block by block
    store.put(path, name)                      a file as an object that appears as a whole or not at all

fsspec and the library of the protocol are imported on first use. Credentials, endpoints and regions come from each
library's own settings. A request that fails is repeated (`retry.py`).
"""

import io
import os
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any, TypeVar, cast

from phi3v_data.errors import NotFoundError, UserError, how_to_install
from phi3v_data.messages import shown
from phi3v_data.remote.address import EXTRAS, Address, name_below, parse_address
from phi3v_data.remote.range_file import RangeFile
from phi3v_data.remote.retry import ATTEMPTS, ChangedError, StoreError, impatiently, patiently
from phi3v_data.remote.s3_range import PRECONDITION_FAILED, etag_of, range_of_s3, status_of, wait_for

T = TypeVar("T")

AHEAD = 8 << 20
"""Bytes that a file of `Store.open` asks for at once."""

_MOST_AT_ONCE = 16 << 20
"""Bytes of a request: a longer range is asked for in pieces, so that a failure does not repeat the whole."""

_PAGE_BYTES = 1 << 20  # of a page of a list, about, for `longest_request`

_PAGE = 1000
_MOST_EMPTY = 100  # pages of a list one after another
CONNECT_TIMEOUT, READ_TIMEOUT = 10, 30
"""Seconds without a connection, and without a byte of an answer, after which a request has failed (S3, Google's)."""

_ATTEMPTS = {"s3": ATTEMPTS, "gs": 2, "hf": 2}
"""Requests in all; the libraries of the others repeat each of them five times by themselves."""

_PART_ATTEMPTS = 3
"""Requests of each part of an upload to S3, so that one failure does not repeat the whole."""

_MOST_PARTS = 10_000  # of an upload to S3

_UPLOAD: Mapping[str, Mapping[str, Any]] = {
    "s3": {"chunksize": 16 << 20, "max_concurrency": 4},  # bytes in memory: their product
    "gs": {"chunksize": 16 << 20},
}


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object as it was listed: the name below its folder, bytes, and a text that changes with the content."""

    name: str
    size: int
    etag: str


def longest_request(size: int) -> float:
    """Seconds after which a request of some bytes has failed, at 50 kB/s.

    The other limits do not notice a store that has stopped reading, or that sends a byte now and then.
    """
    return 60 + size / 50_000


class Store:
    """The objects below an address."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._fs = _file_system(address.protocol, os.getpid())
        self._attempts = _ATTEMPTS[address.protocol]
        self._files: dict[StoredObject, Any] = {}
        self._opening = threading.Lock()
        self._commit = ""  # of the Hub, which all reads of this process name

    def __str__(self) -> str:
        return str(self.address)

    def where(self, name: str) -> str:
        """The address of an object, for messages."""
        return f"{self.address}/{name}" if name else str(self.address)

    def objects(self) -> Iterator[StoredObject]:
        """Yield the objects below the address, in the order of the store: S3 page by page, so in little memory.

        Raises:
            StoreError: the store cannot be asked.
            UserError: an object has a name that no file below a folder can have.
        """
        for path, size, etag in self._listed():
            if path.endswith("/"):  # what stands for an empty folder
                continue
            name = name_below(self.address.path, path)
            if name is None:
                raise UserError(
                    f"{self}: the object {shown(path)} has a name that no file can have; remove or rename it"
                )
            if not etag:
                raise UserError(f"{self.where(name)}: the store gives no etag, so a change would not be noticed")
            yield StoredObject(name, size, etag)

    def is_empty(self) -> bool:
        """Whether nothing is there, by one request or a few. Raises as `objects`."""
        if self.address.protocol == "s3":
            return next(self.objects(), None) is None
        return not self._patiently(str(self), lambda: self._fs.exists(self.address.path))

    def find(self, name: str = "") -> StoredObject | None:
        """One object, or the one that the address itself names; None if there is none."""
        path = f"{self.address.path}/{name}" if name else self.address.path
        self._fs.invalidate_cache(path)  # Google's knows no `refresh`
        try:
            info = self._patiently(self.where(name), lambda: self._fs.info(path, refresh=True, **self._limit()))
        except FileNotFoundError:
            return None
        if info["type"] != "file":
            return None
        return StoredObject(name, int(info["size"]), etag_of(info))

    def read(self, found: StoredObject, offset: int, size: int) -> bytes:
        """A range of an object; fewer bytes at its end.

        Raises:
            ChangedError: it is not the object that was listed.
            StoreError: the store cannot be asked.
        """
        end = min(offset + size, found.size)
        starts = range(offset, end, _MOST_AT_ONCE)
        return b"".join([self._read_piece(found, start, min(start + _MOST_AT_ONCE, end)) for start in starts])

    def get(self, name: str, most: int) -> bytes | None:
        """The first `most` bytes of an object as it is now, for S3 by one request if it is small; None: there is none.

        Raises as `read`.
        """
        if self.address.protocol == "s3":
            path, start = f"{self.address.path}/{name}", min(most, _MOST_AT_ONCE)
            ask = partial(range_of_s3, self._fs, path, "", 0, start)
            try:
                data, _ = self._patiently(self.where(name), partial(wait_for, self._fs, ask, longest_request(start)))
            except FileNotFoundError:
                return None
            if len(data) < start:
                return data
        found = self.find(name)
        return None if found is None else self.read(found, 0, most)

    def key(self, found: StoredObject, offset: int, size: int) -> str:
        """The name of a range in the local cache: another one if the object is."""
        return f"{self.where(found.name)}\0{found.etag}\0{offset}\0{size}"

    def open(self, found: StoredObject) -> IO[bytes]:
        """An object as a seekable file. Raises as `read`, when it is read."""
        return io.BufferedReader(self._raw(found), AHEAD)

    def ranges(self, found: StoredObject) -> IO[bytes]:
        """As `open`, but only what is read is asked for: for readers that know their ranges, such as pyarrow."""
        return cast("IO[bytes]", self._raw(found))

    def _raw(self, found: StoredObject) -> RangeFile:
        return RangeFile(partial(self.read, found), found.size)

    def put(self, path: Path, name: str) -> StoredObject:
        """Upload a file; the object is there as a whole or, if this process is killed, not at all.

        Raises:
            StoreError: the store cannot be asked, or does not take it.
        """
        target, where, size = f"{self.address.path}/{name}", self.where(name), path.stat().st_size
        options = {**_UPLOAD[self.address.protocol], "timeout": longest_request(size)}
        options["chunksize"] = max(options["chunksize"], -(-size // _MOST_PARTS))
        fs = _file_system(self.address.protocol, os.getpid(), _PART_ATTEMPTS)
        self._patiently(where, lambda: fs.put_file(os.fspath(path), target, **options))
        found = self.find(name)
        if found is None or found.size != size:
            raise ChangedError(f"{where}: is not what was uploaded; another process writes there")
        return found

    def write(self, name: str, data: bytes) -> None:
        """Upload a small object. Raises as `put`."""
        path, timeout = f"{self.address.path}/{name}", longest_request(len(data))
        self._patiently(self.where(name), lambda: self._fs.pipe_file(path, data, timeout=timeout))

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects; one that is not there is removed already. Raises as `put`."""
        for name in names:
            with suppress(FileNotFoundError):
                self._patiently(
                    self.where(name), partial(self._fs.rm_file, f"{self.address.path}/{name}", **self._limit())
                )

    def drop_unfinished(self, names: Collection[str]) -> None:
        """Remove the parts that killed uploads of objects left in S3, which are not visible but cost money.

        Nothing is done where this is not supported or not allowed.
        """
        if self.address.protocol != "s3":
            return
        bucket, prefix, _ = self._fs.split_path(self.address.path)
        call = partial(self._fs.call_s3, Bucket=bucket, timeout=longest_request(_PAGE_BYTES))
        listed = partial(call, "list_multipart_uploads", Prefix=f"{prefix}/" if prefix else "")
        with suppress(StoreError, FileNotFoundError), impatiently():
            for upload in list(self._uploads(listed)):  # all of them, as what is removed changes the pages
                key = upload.get("Key", "")
                if name_below(self.address.path, f"{bucket}/{key}") in names:
                    abort = partial(call, "abort_multipart_upload", Key=key, UploadId=upload.get("UploadId", ""))
                    self._patiently(str(self), abort)

    def _uploads(self, listed: Callable[..., Any]) -> Iterator[Mapping[str, Any]]:
        """Unfinished uploads; `listed` asks for a page of them."""
        following: dict[str, str] = {}
        seen = {("", "")}
        while True:
            page = self._patiently(str(self), partial(listed, **following))
            yield from page.get("Uploads", ())
            behind = page.get("NextKeyMarker", ""), page.get("NextUploadIdMarker", "")
            if not page.get("IsTruncated") or behind in seen or not behind[0]:
                return
            seen.add(behind)
            following = {"KeyMarker": behind[0], "UploadIdMarker": behind[1]}

    def _limit(self) -> Mapping[str, float]:
        """The limit of a small request, for those that take one: not the Hub's."""
        return {} if self.address.protocol == "hf" else {"timeout": longest_request(0)}

    def _patiently(self, where: str, request: Callable[[], T]) -> T:
        return patiently(where, request, self._attempts)

    def _listed(self) -> Iterator[tuple[str, int, str]]:
        if self.address.protocol != "s3":
            self._fs.invalidate_cache()
            try:
                found = self._patiently(str(self), lambda: self._fs.find(self.address.path, detail=True))
            except FileNotFoundError:
                return
            yield from ((path, int(info["size"]), etag_of(info)) for path, info in found.items())
            return
        bucket, prefix, _ = self._fs.split_path(self.address.path)
        self._fs.invalidate_cache()  # what it knows of objects that may have changed
        more: dict[str, str] = {}
        seen, firsts, num_empty = {""}, set(), 0
        while True:
            page = self._patiently(str(self), partial(self._page, bucket, f"{prefix}/" if prefix else "", more))
            entries = page.get("Contents", ())
            first = entries[0].get("Key", "") if entries else ""
            num_empty = 0 if entries else num_empty + 1
            if first in firsts or num_empty > _MOST_EMPTY:  # tokens may be new ones each time
                raise StoreError(f"{self}: the store's list of keys does not end")
            firsts |= {first} if entries else set()
            for entry in entries:
                yield f"{bucket}/{entry.get('Key', '')}", int(entry.get("Size", 0)), etag_of(entry)
            if not page.get("IsTruncated"):
                return
            token = page.get("NextContinuationToken", "")
            if token in seen:
                raise StoreError(f"{self}: the store's list of keys does not end")
            seen.add(token)
            more = {"ContinuationToken": token}

    def _page(self, bucket: str, prefix: str, more: Mapping[str, str]) -> Any:
        try:
            limit = longest_request(_PAGE_BYTES)
            return self._fs.call_s3(
                "list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=_PAGE, timeout=limit, **more
            )
        except FileNotFoundError:
            raise NotFoundError(f"s3://{bucket}: no such bucket") from None

    def _read_piece(self, found: StoredObject, start: int, end: int) -> bytes:
        where = self.where(found.name)

        def request() -> bytes:
            data = self._fetch(found, start, end)
            if len(data) != end - start:
                raise OSError(f"{len(data):,} of {end - start:,} bytes arrived")
            return data

        try:
            return self._patiently(where, request)
        except FileNotFoundError:  # of Google's store also if there is another generation
            now = self.find(found.name)
            if now is not None and now.etag != found.etag:
                raise self._changed(found) from None
            raise ChangedError(f"{where}: was removed while it was read; run the command again") from None

    def _fetch(self, found: StoredObject, start: int, end: int) -> bytes:
        """One request of a range of an object in the state in which it was listed."""
        path = f"{self.address.path}/{found.name}" if found.name else self.address.path
        if self.address.protocol == "hf":
            # The hook by which fsspec's files read a range; unlike `read` it has no position, so that threads share it.
            pinned: bytes = self._opened(found, path)._fetch_range(start, end)
            return pinned
        timeout = longest_request(end - start)
        if self.address.protocol == "gs":
            data: bytes = self._fs.cat_file(f"{path}#{found.etag}", start=start, end=end, timeout=timeout)
            return data
        try:
            data, etag = wait_for(self._fs, partial(range_of_s3, self._fs, path, found.etag, start, end), timeout)
        except OSError as error:
            if status_of(error) == PRECONDITION_FAILED:
                raise self._changed(found) from None
            raise
        if etag and etag != found.etag:  # some servers do not know `If-Match`
            raise self._changed(found)
        return data

    def _opened(self, found: StoredObject, path: str) -> Any:
        """The Hub's file of an object at the commit of now, which is compared with the listing once."""
        file = self._files.get(found)
        if file is None:
            with self._opening:
                file = self._files.get(found)
                if file is None:
                    file = self._open_pinned(path)
                    if (int(file.details["size"]), etag_of(file.details)) != (found.size, found.etag):
                        self._fs.invalidate_cache()
                        raise self._changed(found)
                    self._files[found] = file
        return file

    def _open_pinned(self, path: str) -> Any:
        if not hasattr(resolved := self._fs.resolve_path(path), "repo_id"):
            return self._fs.open(path, "rb", cache_type="none")
        if not self._commit:
            from huggingface_hub import HfApi

            info = HfApi().repo_info(resolved.repo_id, repo_type=resolved.repo_type, revision=resolved.revision)
            self._commit = str(info.sha)
        prefix = "" if resolved.repo_type == "model" else f"{resolved.repo_type}s/"
        plain = f"{prefix}{resolved.repo_id}/{resolved.path_in_repo}"
        return self._fs.open(plain, "rb", revision=self._commit, cache_type="none")

    def _changed(self, found: StoredObject) -> ChangedError:
        return ChangedError(f"{self.where(found.name)}: changed since it was opened; run the command again")


def open_store(path: str | Path | Address) -> Store:
    """The store of an address; one for each process and address, which keeps its connections.

    Raises:
        UserError: it is not a plain address, or the library of its protocol is not installed.
    """
    return _store(path if isinstance(path, Address) else parse_address(path), os.getpid())


@lru_cache(maxsize=64)
def _store(address: Address, process: int) -> Store:
    return Store(address)


@lru_cache(maxsize=8)
def _file_system(protocol: str, process: int, attempts: int = 1) -> Any:
    """fsspec's file system; that of S3 sends each request `attempts` times."""
    try:
        import fsspec

        made = fsspec.filesystem(protocol, skip_instance_cache=True, **_options(protocol))
        if protocol == "s3":
            made.retries = attempts
        return made
    except ImportError:
        raise UserError(
            f"{protocol}:// addresses need the extra {EXTRAS[protocol]!r}: {how_to_install(EXTRAS[protocol])}"
        ) from None


def _options(protocol: str) -> Mapping[str, Any]:
    """Options of a file system. Raises ImportError."""
    if protocol == "s3":
        times = {"connect_timeout": CONNECT_TIMEOUT, "read_timeout": READ_TIMEOUT}
        return {"config_kwargs": {"retries": {"max_attempts": 0}, "max_pool_connections": 64, **times}}
    if protocol == "gs":
        from aiohttp import ClientTimeout

        limits = ClientTimeout(sock_connect=CONNECT_TIMEOUT, sock_read=READ_TIMEOUT)  # without, it waits for ever
        return {"version_aware": True, "requests_timeout": limits}
    return {}
