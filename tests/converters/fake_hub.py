"""A Hub on this machine: one data set, served over HTTP by ranges, and a count of the bytes that were asked for."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from loopback import serving

COMMIT = "c" * 40


class FakeHub:
    """Serves the files below `root` as the data set `hub_id`."""

    def __init__(self, hub_id: str, root: Path, commit: str = COMMIT) -> None:
        self.hub_id = hub_id
        self.commit = commit
        self.files = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*")) if path.is_file()}
        self.sent: dict[str, int] = {}
        self.refused: list[str] = []
        self.url = ""

    def info(self) -> dict[str, Any]:
        siblings = [{"rfilename": name} for name in self.files]
        return {
            "id": self.hub_id,
            "sha": self.commit,
            "siblings": siblings,
            "private": False,
            "tags": [],
            "downloads": 0,
        }

    def entry(self, name: str) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": self.files[name].stat().st_size, "oid": "0" * 40}


@contextmanager
def serve(hub: FakeHub) -> Iterator[FakeHub]:
    """Run the server until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            api, files = f"/api/datasets/{hub.hub_id}", f"/datasets/{hub.hub_id}/resolve/"
            path = self.path.partition("?")[0]
            if path in (api, f"{api}/revision/{hub.commit}", f"{api}/revision/main"):
                self.answer(json.dumps(hub.info()).encode(), "application/json")
            elif path.startswith(f"{api}/tree/{hub.commit}"):
                folder = path.removeprefix(f"{api}/tree/{hub.commit}").strip("/")
                found = [hub.entry(name) for name in hub.files if name.rpartition("/")[0] == folder]
                self.answer(json.dumps(found).encode(), "application/json")
            elif path.startswith(files):
                self.send_file(path.removeprefix(files).partition("/")[2])
            else:
                hub.refused.append(self.path)
                self.answer(b'{"error": "Repository not found"}', "application/json", 404)

        do_HEAD = do_GET  # noqa: N815 - the name that http.server calls

        def do_POST(self) -> None:
            asked = self.rfile.read(int(self.headers["Content-Length"]))
            found = [
                hub.entry(name)
                for name in hub.files
                if name.encode() in asked or name.replace("/", "%2F").encode() in asked
            ]
            self.answer(json.dumps(found).encode(), "application/json")

        def send_file(self, name: str) -> None:
            content = hub.files[name].read_bytes()
            first, last = 0, len(content) - 1
            if asked := self.headers.get("Range"):
                low, _, high = asked.removeprefix("bytes=").partition("-")
                first, last = int(low), min(int(high or last), last)
            piece = content[first : last + 1]
            if self.command == "GET":
                hub.sent[name] = hub.sent.get(name, 0) + len(piece)
            self.answer(
                piece, "application/octet-stream", 206 if asked else 200, f"bytes {first}-{last}/{len(content)}"
            )

        def answer(self, body: bytes, kind: str, status: int = 200, content_range: str = "") -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", '"0000"')
            self.send_header("X-Repo-Commit", hub.commit)
            if status == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            if content_range:
                self.send_header("Content-Range", content_range)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Says nothing."""

    with serving(Handler) as hub.url:
        yield hub
