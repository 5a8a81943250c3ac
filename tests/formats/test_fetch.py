"""Images by URL, from a real server on 127.0.0.1, which only tests may reach."""

import socket
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from test_import import SAMPLES, image_row, rejects_of, rows_of, write_rows

from phi3v_data.errors import Reject
from phi3v_data.formats import fetch
from phi3v_data.formats.fetch import FetchLimits, fetch_image, is_public
from phi3v_data.importing import import_rows

CAT = (SAMPLES / "llava/images/cat.jpg").read_bytes()
FAST = FetchLimits(max_bytes=1 << 20, connect=5, total=5, attempts=3, wait=0)


class Server(ThreadingHTTPServer):
    """Counts what is asked for; `/busy` answers at the third time."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: Counter[str] = Counter()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked[self.path] += 1
        where = self.path.partition("?")[0].removeprefix("/")
        if where == "busy" and self.server.asked[self.path] < 3:
            self.send_error(503)
        elif where in ("cat.jpg", "busy"):
            self.answer(CAT)
        elif where.startswith("to/"):
            self.redirect(self.path.removeprefix("/to/"))
        elif where == "loop":
            self.redirect("/loop")
        elif where == "large":
            self.answer(bytes(2 << 20))
        elif where == "endless":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(1 << 16))
            except OSError:
                return
        elif where == "cut":
            self.answer(CAT, size=len(CAT) + 1)
        elif where == "slow":
            self.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
            self.wfile.flush()
            self.connection.settimeout(30)
            self.rfile.read(1)  # until the client gives up
        else:
            self.send_error(404)

    def answer(self, data: bytes, size: int | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(size or len(data)))
        self.end_headers()
        try:
            self.wfile.write(data)
        except OSError:
            return

    def redirect(self, target: str) -> None:
        self.send_response(302)
        self.send_header("Location", target)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Not on stderr."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(fetch, "LOCAL_TEST_PORTS", {running.server_port})
        yield running
        running.shutdown()
        thread.join()


def test_the_bytes_come_unchanged_also_through_redirects_and_busy_answers(server: Server) -> None:
    assert fetch_image(f"{server.url}/cat.jpg?size=1", "x", limits=FAST) == CAT
    assert fetch_image(f"{server.url}/to//to/{server.url}/cat.jpg", "x", limits=FAST) == CAT
    assert fetch_image(f"{server.url}/busy", "x", limits=FAST) == CAT
    assert server.asked["/busy"] == 3


@pytest.mark.parametrize(
    ("path", "code", "text", "asked"),
    [
        ("none", "image-missing", "status 404", 1),
        ("loop", "image-missing", "redirected more than 5 times", 6),
        ("large", "image-too-large", "more than 1 MB", 1),
        ("endless", "image-too-large", "more than 1 MB", 1),
        ("cut", "image-missing", "in 3 attempts: ", 3),
        ("to/file:///etc/passwd", "image-missing", "not an http or https URL", 1),
        ("to/http://10.0.0.1/a.jpg", "image-missing", "the address 10.0.0.1, which is not public", 1),
        ("to/http://127.0.0.1:1/a.jpg", "image-missing", "the address 127.0.0.1, which is not public", 1),
        ("to/http://[::1]/a.jpg", "image-missing", "the address ::1, which is not public", 1),
    ],
)
def test_what_cannot_be_fetched_is_a_reject(server: Server, path: str, code: str, text: str, asked: int) -> None:
    with pytest.raises(Reject) as raised:
        fetch_image(f"{server.url}/{path}", "rows.jsonl, line 1, image", limits=FAST)
    assert raised.value.code == code
    assert text in raised.value.message
    assert raised.value.message.startswith("rows.jsonl, line 1, image: ")
    assert server.asked[f"/{path}"] == asked


def test_an_answer_that_never_ends_is_given_up_in_its_header(server: Server) -> None:
    limits = FetchLimits(connect=30, total=0.2, attempts=2, wait=0)
    with pytest.raises(Reject, match="in 2 attempts"):
        fetch_image(f"{server.url}/slow", "x", limits=limits)
    assert server.asked["/slow"] == 2


def test_without_the_allowance_of_tests_the_server_is_refused(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "LOCAL_TEST_PORTS", set())
    for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1"):
        with pytest.raises(Reject) as raised:
            fetch_image(f"http://{host}:{server.server_port}/cat.jpg", "x", limits=FAST)
        assert raised.value.code == "image-missing"
        assert "not public" in raised.value.message
    assert not server.asked


def test_a_name_is_resolved_once_and_the_connection_goes_to_what_was_checked(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def resolve(host: str, port: int, *args: object, **kwargs: object) -> list[Any]:
        if host == "127.0.0.1":  # the connection itself
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1" if len(asked) == 1 else "10.0.0.1", port))]

    monkeypatch.setattr(fetch.socket, "getaddrinfo", resolve)
    with pytest.raises(Reject, match=r"10\.0\.0\.1, which is not public"):
        fetch_image(f"http://images.test:{server.server_port}/to/http://images.test/", "x", limits=FAST)
    assert asked == ["images.test"] * 2
    assert server.asked == {"/to/http://images.test/": 1}


@pytest.mark.parametrize(
    "address",
    ["10.1.2.3", "127.0.0.1", "169.254.169.254", "172.16.0.1", "192.168.1.1", "0.0.0.0", "100.64.0.1", "224.0.0.1",
     "::1", "fe80::1%eth0", "fc00::1", "::ffff:127.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "ff02::1",
     "::127.0.0.1", "64:ff9b:1::a00:1", "::ffff:0:10.0.0.1", "fec0::1", "240.0.0.1"],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::"]
)
def test_addresses_that_are_public(address: str) -> None:
    assert is_public(address)


def test_an_import_fetches_each_url_once(server: Server, tmp_path: Path) -> None:
    refs = [f"{server.url}/cat.jpg"] * 3 + [f"{server.url}/none.jpg"]
    write_rows(tmp_path / "rows.jsonl", [image_row(ref) for ref in refs])
    import_rows("llava", tmp_path / "rows.jsonl", tmp_path / "o", options={"fetch": True}, workers=0)
    assert server.asked == {"/cat.jpg": 1, "/none.jpg": 1}
    [name] = {row["conversations"][0]["images"][0] for row in rows_of(tmp_path / "o")}
    assert (tmp_path / "o/images" / name).read_bytes() == CAT
    [(code, message)] = rejects_of(tmp_path / "o")
    assert (code, message.startswith("rows.jsonl, line 4, image: ")) == ("image-missing", True)
    assert not list((tmp_path / "o/.phi3v").rglob("downloads"))


def test_an_interrupted_import_does_not_fetch_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refs = [f"{server.url}/cat.jpg?{number}" for number in range(6)]
    write_rows(tmp_path / "rows.jsonl", [image_row(ref) for ref in refs])
    real = fetch._with_retries

    def stop_at_the_fourth(url: str, what: str, limits: FetchLimits) -> bytes:
        if url.endswith("?3"):
            raise KeyboardInterrupt
        return real(url, what, limits)

    monkeypatch.setattr(fetch, "_with_retries", stop_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        import_rows("llava", tmp_path / "rows.jsonl", tmp_path / "o", options={"fetch": True}, workers=0)
    monkeypatch.setattr(fetch, "_with_retries", real)
    import_rows("llava", tmp_path / "rows.jsonl", tmp_path / "o", options={"fetch": True}, workers=0)
    assert server.asked == {f"/cat.jpg?{number}": 1 for number in range(6)}
    assert len(rows_of(tmp_path / "o")) == 6
