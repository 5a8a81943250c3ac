"""A small S3 server that answers slowly, with errors, with half a body or with a million keys, as a test wants it."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from loopback import serving

PAGE = 1000
UPLOADS_PAGE = 2


@dataclass
class Stub:
    """A bucket whose objects are the files of a folder; `count` keys more are only listed.

    Attributes:
        latency: seconds before each answer.
        fail: called with the number of a GET of an object, from 0; what is wrong with the answer, or empty:
            `503`, `500`, `drop` (the connection ends in the middle of the body), `stall` (half of it comes), `hang`
            (no answer comes), `drip` (it comes byte by byte, slowly), `cut` (the connection ends before the answer).
        conditions: whether it obeys `If-Match`.
        heads: keys whose description was asked for.
        gets: byte ranges that were asked for, by key.
        bodies: bytes that were sent.
        lists: pages of keys that were sent.
        uploads: keys and ids of unfinished uploads, in the order in which they are listed.
    """

    folder: Path
    latency: float = 0.0
    count: int = 0
    fail: Callable[[int], str] = lambda number: ""
    conditions: bool = True
    heads: list[str] = field(default_factory=list)
    gets: list[tuple[str, str]] = field(default_factory=list)
    bodies: int = 0
    lists: int = 0
    uploads: list[tuple[str, str]] = field(default_factory=list)
    endpoint: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)
    ended: threading.Event = field(default_factory=threading.Event)

    def etag(self, path: Path) -> str:
        """Another one if the file is."""
        found = path.stat()
        return f'"{found.st_size:x}-{found.st_mtime_ns:x}"'


@contextmanager
def running_stub(stub: Stub) -> Iterator[Stub]:
    """Serve in threads of this process."""
    with serving(lambda *args: _Handler(stub, *args), end=stub.ended.set) as stub.endpoint:
        yield stub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def __init__(self, stub: Stub, *args: object) -> None:
        self.stub = stub
        super().__init__(*args)  # type: ignore[arg-type]

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._object(body=False)

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if "list-type" in url.query:
            self._list(parse_qs(url.query))
        elif parse_qs(url.query, keep_blank_values=True).get("uploads") is not None:
            self._list_uploads(parse_qs(url.query))
        else:
            self._object(body=True)

    def do_DELETE(self) -> None:
        """End an unfinished upload."""
        url = urlsplit(self.path)
        key = unquote(url.path).lstrip("/").partition("/")[2]
        self.stub.uploads.remove((key, parse_qs(url.query)["uploadId"][0]))
        self._answer(204, b"")

    def _object(self, *, body: bool) -> None:
        time.sleep(self.stub.latency)
        key = unquote(urlsplit(self.path).path).lstrip("/").partition("/")[2]
        path = self.stub.folder / key
        if not path.is_file():
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>" if body else b"")
            return
        data, etag = path.read_bytes(), self.stub.etag(path)
        asked = self.headers.get("Range", "")
        if not body:
            self.stub.heads.append(key)
        else:
            with self.stub.lock:
                number = len(self.stub.gets)
                self.stub.gets.append((key, asked))
            fault = self.stub.fail(number)
            if fault.isdigit():
                self._answer(int(fault), b"<Error><Code>InternalError</Code><Message>try later</Message></Error>")
                return
            if fault == "hang":
                self.stub.ended.wait()
            if fault in ("hang", "cut"):
                self.close_connection = True
                return
        if self.stub.conditions and self.headers.get("If-Match", etag) != etag:
            self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            return
        headers = {"ETag": etag, "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT", "Accept-Ranges": "bytes"}
        code = 200
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", asked):
            start, end = int(found[1]), min(int(found[2] or len(data)), len(data) - 1)
            if start >= len(data):
                self._answer(416, b"<Error><Code>InvalidRange</Code></Error>")
                return
            headers["Content-Range"] = f"bytes {start}-{end}/{len(data)}"
            data, code = data[start : end + 1], 206
        if body and fault == "drip":
            self._head(code, len(data), headers)
            for byte in data:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                if self.stub.ended.wait(0.05):
                    break
            self.close_connection = True
            return
        if body and fault in ("drop", "stall"):
            self._head(code, len(data), headers)
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            if fault == "stall":
                self.stub.ended.wait()
            self.close_connection = True
            return
        with self.stub.lock:
            self.stub.bodies += len(data) if body else 0
        self._answer(code, data, headers, body=body)

    def _list(self, query: dict[str, list[str]]) -> None:
        time.sleep(self.stub.latency)
        self.stub.lists += 1
        prefix, first = query.get("prefix", [""])[0], int(query.get("continuation-token", ["0"])[0])
        if self.stub.count:
            total = self.stub.count
            keys = [(f"{prefix}{number:09d}.jpg", 1, '"e"') for number in range(first, min(first + PAGE, total))]
        else:
            names = sorted(
                path.relative_to(self.stub.folder).as_posix() for path in self.stub.folder.rglob("*") if path.is_file()
            )
            names = [name for name in names if name.startswith(prefix)]
            total = len(names)
            paths = [(name, self.stub.folder / name) for name in names[first : first + PAGE]]
            keys = [(name, path.stat().st_size, self.stub.etag(path)) for name, path in paths]
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>{escape(etag)}</ETag><Size>{size}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for key, size, etag in keys
        )
        more = first + PAGE < total
        token = f"<NextContinuationToken>{first + PAGE}</NextContinuationToken>" if more else ""
        text = (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>b</Name><KeyCount>{len(keys)}</KeyCount><MaxKeys>{PAGE}</MaxKeys>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{entries}</ListBucketResult>"
        )
        self._answer(200, text.encode(), {"Content-Type": "application/xml"})

    def _list_uploads(self, query: dict[str, list[str]]) -> None:
        prefix = query.get("prefix", [""])[0]
        marker = query.get("key-marker", [""])[0], query.get("upload-id-marker", [""])[0]
        found = [upload for upload in self.stub.uploads if upload[0].startswith(prefix) and upload > marker]
        page = found[:UPLOADS_PAGE]
        more = len(found) > len(page)
        key, number = page[-1] if more else ("", "")
        behind = f"<NextKeyMarker>{key}</NextKeyMarker><NextUploadIdMarker>{number}</NextUploadIdMarker>"
        entries = "".join(f"<Upload><Key>{key}</Key><UploadId>{number}</UploadId></Upload>" for key, number in page)
        text = (
            '<?xml version="1.0"?><ListMultipartUploadsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Bucket>b</Bucket><IsTruncated>{str(more).lower()}</IsTruncated>{behind if more else ''}{entries}"
            "</ListMultipartUploadsResult>"
        )
        self._answer(200, text.encode())

    def _answer(self, code: int, data: bytes, headers: "dict[str, str] | None" = None, *, body: bool = True) -> None:
        self._head(code, len(data), headers or {"Content-Type": "application/xml"})
        if body:
            self.wfile.write(data)

    def _head(self, code: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(length)}.items():
            self.send_header(name, value)
        self.end_headers()
