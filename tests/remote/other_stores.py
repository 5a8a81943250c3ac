"""The APIs of Google's store and of the Hub, as far as their libraries need them: the files of a folder.

Google's takes uploads and deletions too.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from loopback import serving

REPO = "someone/set"
COMMITS = "0123456789" * 4, "9876543210" * 4
"""The commit of the branch main, and the one that it has after `OtherStores.moved` was set."""


@dataclass
class OtherStores:
    """The files of `folder` are objects of any bucket and files of the data set `someone/set`.

    Attributes:
        moved: the branch main is at the second commit, whose files are those of `folder`; those of the first one are in
            `first`.
        requests: paths that were asked for, with their queries.
        fail: how many of the next parts of uploads are answered with an error.
    """

    folder: Path
    first: Path
    moved: bool = False
    url: str = ""
    requests: list[str] = field(default_factory=list)
    fail: int = 0
    parts: dict[str, bytes] = field(default_factory=dict)  # of unfinished uploads

    def files(self, revision: str = "main") -> dict[str, Path]:
        """Names and paths."""
        folder = self.first if revision == COMMITS[0] or (revision == "main" and not self.moved) else self.folder
        return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}

    def answer(self, path: str, query: dict[str, list[str]]) -> Any:
        """JSON, the bytes of a file, or None: there is none."""
        if found := re.fullmatch(r"/storage/v1/b/[^/]+/o(?:/(.+))?", path):
            files = self.files()
            if found[1]:
                name = unquote(found[1])
                return self._object(name, files[name]) if name in files else None
            prefix = query.get("prefix", [""])[0]
            return {"items": [self._object(name, each) for name, each in files.items() if name.startswith(prefix)]}
        if found := re.fullmatch(r"/download/storage/v1/b/[^/]+/o/(.+)", path):
            each = self.files().get(unquote(found[1]))
            wanted = query.get("generation", [""])[0]
            return (
                each.read_bytes() if each and (not wanted or self._object("", each)["generation"] == wanted) else None
            )
        api = f"/api/datasets/{REPO}"
        if path == api or path.startswith(f"{api}/revision/"):
            revision = unquote(path.removeprefix(f"{api}/revision/")) if path != api else "main"
            return {"id": REPO, "sha": revision if revision in COMMITS else COMMITS[self.moved], "siblings": []}
        if found := re.fullmatch(rf"{api}/(tree|paths-info)/([^/]+)(?:/(.*))?", path):
            return [self._entry(name, each) for name, each in self.files(found[2]).items()]
        if found := re.fullmatch(rf"/datasets/{REPO}/resolve/([^/]+)/(.+)", path):
            each = self.files(found[1]).get(unquote(found[2]))
            return each.read_bytes() if each else None
        return None

    def upload(
        self, path: str, query: dict[str, list[str]], place: str, body: bytes
    ) -> tuple[int, dict[str, str], Any]:
        """Answer to an upload: code, headers and JSON; an object is there when its last byte is."""
        if query.get("uploadType") == ["multipart"]:
            # --==0==\nHEADERS\n\nJSON\n--==0==\nHEADERS\n\nDATA\n--==0==--
            head, data = body.removesuffix(b"\n--==0==--").split(b"\n--==0==\n", 1)
            return 200, {}, self._write(json.loads(head.split(b"\n\n", 1)[1])["name"], data.split(b"\n\n", 1)[1])
        if query.get("uploadType") == ["resumable"]:
            name = json.loads(body)["name"]
            self.parts[name] = b""
            return 200, {"Location": f"{self.url}{path}?upload_name={quote(name)}"}, {}
        name = query["upload_name"][0]
        if self.fail:
            self.fail -= 1
            return 503, {}, {"error": {"code": 503, "message": "try again"}}
        found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", place)
        assert found, place
        begin, last, size = map(int, found.groups())
        assert (begin, last + 1 - begin) == (len(self.parts[name]), len(body))
        assert last + 1 == size or len(body) % 262144 == 0, "a part must be a multiple of 256 KiB"
        self.parts[name] += body
        if last + 1 < size:
            return 308, {"Range": f"bytes=0-{last}"}, {}
        return 200, {}, self._write(name, self.parts.pop(name))

    def remove(self, path: str) -> bool:
        """Remove an object; whether it was there."""
        name = unquote(path.partition("/o/")[2])
        there = self.files().get(name)
        if there:
            there.unlink()
        return bool(there)

    def _write(self, name: str, data: bytes) -> dict[str, Any]:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return self._object(name, path)

    def _object(self, name: str, path: Path) -> dict[str, Any]:
        state = path.stat()
        return {
            "kind": "storage#object",
            "name": name,
            "size": str(state.st_size),
            "generation": str(state.st_mtime_ns),
        }

    def _entry(self, name: str, path: Path) -> dict[str, Any]:
        data = path.read_bytes()
        return {"type": "file", "path": name, "size": len(data), "oid": sha1(data).hexdigest()}


@contextmanager
def running(stores: OtherStores) -> Iterator[OtherStores]:
    """Serve in threads of this process."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            url = urlsplit(self.path)
            stores.requests.append(self.path)
            headers: dict[str, str] = {}
            if self.command == "POST" and url.path.startswith("/upload/"):
                place = self.headers.get("Content-Range", "")
                code, headers, found = stores.upload(url.path, parse_qs(url.query), place, body)
            elif self.command == "DELETE":
                found = b"" if stores.remove(url.path) else None
                code = 204 if found is not None else 404
            else:
                found = stores.answer(url.path, parse_qs(url.query))
                code = 200 if found is not None else 404
            content = found if isinstance(found, bytes) else b"" if found is None else json.dumps(found).encode()
            if isinstance(found, bytes) and (
                asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            ):
                code, content = 206, content[int(asked[1]) : int(asked[2]) + 1]
                headers["Content-Range"] = f"bytes {asked[1]}-{int(asked[1]) + len(content) - 1}/{len(found)}"
            self.send_response(code)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_DELETE = do_GET  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    with serving(Handler) as stores.url:
        yield stores
