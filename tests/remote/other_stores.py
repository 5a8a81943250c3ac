"""The APIs of Google's store and of the Hub, as far as their libraries need them to read: the files of a folder."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

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
    """

    folder: Path
    first: Path
    moved: bool = False
    url: str = ""
    requests: list[str] = field(default_factory=list)

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
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            url = urlsplit(self.path)
            stores.requests.append(self.path)
            found = stores.answer(url.path, parse_qs(url.query))
            code, headers = 200 if found is not None else 404, {}
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

        do_POST = do_GET  # noqa: N815

        def log_message(self, *args: object) -> None:
            pass

    with serving(Handler) as stores.url:
        yield stores
