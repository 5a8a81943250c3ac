"""Requests on their way to the model: their bodies, the queue, clients that leave. The model is a stand-in."""

import io
import json
import queue
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from PIL import Image
from served import RED, ask_about, post, running, until

from phi3v_data.errors import Reject
from phi3v_train.data.encode import EncodedPrompt
from phi3v_train.serving import body, images
from phi3v_train.serving.address import bind
from phi3v_train.serving.answerer import NOWHERE
from phi3v_train.serving.app import ServerSettings, make_app
from phi3v_train.serving.protocol import ApiError, Limits, read_chat
from phi3v_train.serving.request import Piece, Request, Sampling
from phi3v_train.serving.run_server import GracefulServer

LIMITS = Limits(body_bytes=100_000, pixels=10_000, all_pixels=15_000)


class StandIn:
    """In place of an answerer: `asked` are the requests that came, `images` those of the last one; tests answer them.

    `go` lets prompts be encoded.
    """

    def __init__(self, max_waiting: int = 64) -> None:
        self.max_waiting = max_waiting
        self.num_waiting = self.num_running = 0
        self.asked: queue.SimpleQueue[Request] = queue.SimpleQueue()
        self.images: list[Any] = []
        self.encoding = threading.Semaphore(0)
        self.go = threading.Event()
        self.go.set()

    def check_text(self, text: str, *, num_images: int) -> None:
        """Takes any text."""

    def encode(self, sample: Any, images: list[Any]) -> EncodedPrompt:
        self.images = images
        self.encoding.release()
        assert self.go.wait(60)
        return EncodedPrompt(np.arange(5), (), 0, (), NOWHERE)

    def submit(self, prompt: EncodedPrompt, sampling: Sampling) -> Request:
        self.num_waiting += 1
        self.asked.put(made := Request(prompt, sampling))
        return made

    def cut_off(self) -> None:
        """There is nothing to cut off."""

    def close(self) -> None:
        self.go.set()


@pytest.fixture
def stand_in() -> StandIn:
    return StandIn()


@pytest.fixture
def address(stand_in: StandIn) -> Iterator[str]:
    with running(make_app(stand_in, ServerSettings(name="tiny", limits=LIMITS))) as made:  # type: ignore[arg-type]
        yield made


def connect(address: str, content: dict[str, Any], unsent: int = 0) -> socket.socket:
    """A connection on which a request was sent, but for `unsent` further bytes of its body."""
    host, port = address.removeprefix("http://").split(":")
    text = json.dumps(content)
    connection = socket.create_connection((host, int(port)), timeout=60)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    connection.sendall(f"{head}Content-Length: {len(text) + unsent}\r\n\r\n{text}".encode())
    return connection


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_before_its_prompt_is_encoded_is_not_answered(
    address: str, stand_in: StandIn, stream: bool
) -> None:
    stand_in.go.clear()
    with connect(address, {"messages": ask_about("Hi"), "stream": stream}):
        assert stand_in.encoding.acquire(timeout=60)
    stand_in.go.set()
    request = stand_in.asked.get(timeout=60)
    until(lambda: request.cancelled, 10)
    until(lambda: b'phi3v_requests_total{status="499"} 1.0' in urlopen(f"{address}/metrics").read(), 10)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_in_the_middle_of_a_fast_answer_ends_it(
    address: str, stand_in: StandIn, stream: bool
) -> None:
    """Pieces that come without a pause leave no time to look after the client."""
    with connect(address, {"messages": ask_about("Hi"), "stream": stream}):
        request = stand_in.asked.get(timeout=60)
        request.put(Piece("a"))

    def more() -> bool:
        request.put(Piece("a"))
        return request.cancelled

    until(more, 10)


def test_requests_that_wait_hold_up_neither_answers_nor_refusals(address: str, stand_in: StandIn) -> None:
    """More of them than the server has threads, forty; the last one that came is answered first."""
    waiting = [connect(address, {"messages": ask_about("Hi"), "stream": True}) for _ in range(50)]
    requests = [stand_in.asked.get(timeout=60) for _ in waiting]
    with ThreadPoolExecutor(1) as pool:
        last = pool.submit(post, address, {"messages": ask_about("Hi")})
        stand_in.asked.get(timeout=10).put(Piece("yes", "stop", 1))
        assert last.result(10)[1]["choices"][0]["message"]["content"] == "yes"
    assert post(address, {"messages": "no"})[0] == 400
    for connection, request in zip(waiting, requests, strict=True):
        request.put(Piece("", "stop"))
        connection.close()


def test_requests_that_are_read_and_encoded_count_among_those_that_wait(address: str, stand_in: StandIn) -> None:
    stand_in.max_waiting = 2
    stand_in.go.clear()
    with connect(address, {"messages": ask_about("Hi")}), connect(address, {"messages": ask_about("Hi")}):
        assert stand_in.encoding.acquire(timeout=60)
        assert stand_in.encoding.acquire(timeout=60)
        status, told = post(address, {"messages": ask_about("Hi")})
    stand_in.go.set()
    assert (status, told["error"]["message"]) == (429, "too many requests wait; try again later")


def test_images_of_two_requests_are_decoded_at_once_at_most(address: str, stand_in: StandIn) -> None:
    stand_in.go.clear()
    connections = [connect(address, {"messages": ask_about("Hi", RED)}) for _ in range(4)]
    assert stand_in.encoding.acquire(timeout=60)
    assert stand_in.encoding.acquire(timeout=60)
    assert not stand_in.encoding.acquire(timeout=0.5)
    stand_in.go.set()
    for connection in connections:
        stand_in.asked.get(timeout=60).put(Piece("", "stop"))
        connection.close()


def talk(address: str, *parts: bytes) -> bytes:
    """All that the server sends to a client that sends these parts after its first line, until it closes."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        )
        for part in parts:
            connection.sendall(part)
        received = b""
        with suppress(ConnectionResetError):  # not all that was sent was read
            while block := connection.recv(1 << 16):
                received += block
    return received


def test_a_body_without_end_is_cut_off(address: str) -> None:
    block = b"4000\r\n" + b" " * 0x4000 + b"\r\n"
    received = talk(address, b"Transfer-Encoding: chunked\r\n\r\n", *[block] * 7)
    assert received.startswith(b"HTTP/1.1 413 ")
    assert b"the request has more than 100,000 bytes" in received
    assert b"413" in talk(address, b"Content-Length: 99999999999\r\n\r\n{")  # told before any of it is read


def test_a_body_that_stops_coming_is_given_up(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "STALLED", 0.3)
    received = talk(address, b"Content-Length: 500\r\n\r\n", b'{"messages": ')
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b"no more of the request has come for 0.3 s" in received


def test_a_body_that_drips_is_given_up(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte at a time would hold a place of those that may wait for hours."""
    monkeypatch.setattr(body, "STALLED", 0.3)
    with connect(address, {}, unsent=500) as connection:
        for _ in range(500):
            connection.sendall(b" ")
            if select.select([connection], [], [], 0.05)[0]:
                break
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 408 ")


@contextmanager
def graceful(answerer: StandIn) -> Iterator[tuple[tuple[str, int], GracefulServer, threading.Thread]]:
    """The server of the command line: its address, itself, its thread."""
    app = make_app(answerer, ServerSettings(name="tiny"))  # type: ignore[arg-type]
    server = GracefulServer(app, answerer, grace=60.0, say=print)  # type: ignore[arg-type]
    listening = bind("127.0.0.1", 0)
    where = listening.getsockname()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield where, server, thread
    finally:
        server.should_exit = True
        thread.join()


def test_a_client_that_sends_no_whole_headers_is_left(stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phi3v_train.serving.connection.HEAD", 0.3)
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\n"
    with graceful(stand_in) as (where, _, _):
        with socket.create_connection(where, timeout=60) as silent:
            assert silent.recv(100) == b""
        with socket.create_connection(where, timeout=60) as dripping, suppress(ConnectionError):
            for byte in head * 20:
                dripping.send(bytes([byte]))
                if select.select([dripping], [], [], 0.05)[0]:
                    break
            else:
                pytest.fail("it is still read")
            assert dripping.recv(100) == b""
        with socket.create_connection(where, timeout=60) as second:
            second.sendall(head + b"\r\n")
            assert second.recv(1 << 16).startswith(b"HTTP/1.1 200 ")
            second.sendall(head)
            while second.recv(1 << 16):
                pass


def test_an_answer_that_takes_longer_than_headers_may_take_comes_whole(
    stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("phi3v_train.serving.connection.HEAD", 0.3)
    with graceful(stand_in) as ((host, port), _, _), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, f"http://{host}:{port}", {"messages": ask_about("Hi")})
        request = stand_in.asked.get(timeout=60)
        time.sleep(0.6)
        request.put(Piece("yes", "stop", 1))
        assert answer.result(60)[1]["choices"][0]["message"]["content"] == "yes"


def test_half_a_request_does_not_hold_up_the_end(stand_in: StandIn) -> None:
    with graceful(stand_in) as (where, server, thread), socket.create_connection(where, timeout=60) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        )
        connection.sendall(b"Content-Length: 500\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")  # it is being read
        server.handle_exit(signal.SIGINT, None)
        thread.join(20)
        assert not thread.is_alive()
    assert server.num_cut == 0


def test_a_request_that_is_being_prepared_counts_among_those_that_are_cut_off(stand_in: StandIn) -> None:
    said: list[str] = []
    app = make_app(stand_in, ServerSettings(name="tiny"))  # type: ignore[arg-type]
    server = GracefulServer(app, stand_in, grace=0.0, say=said.append)  # type: ignore[arg-type]
    listening = bind("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    stand_in.go.clear()
    with connect(f"http://127.0.0.1:{listening.getsockname()[1]}", {"messages": ask_about("Hi")}):
        assert stand_in.encoding.acquire(timeout=60)
        server.handle_exit(signal.SIGTERM, None)
        thread.join(60)
    assert (said, server.num_cut) == (["finishing 1 answer"], 1)


def test_all_images_together_have_a_limit(address: str) -> None:
    image = RED.resize((90, 90))
    status, told = post(address, {"messages": ask_about("?", image, image)})
    assert (status, told["error"]["message"]) == (
        400, "messages[0].content[1].image_url.url: with it the images are over the limit of 15,000 pixels in all"
    )  # fmt: skip


def photo() -> Any:
    """Two pixels, red left of blue; by its EXIF orientation shown turned to the right, red above blue."""
    image = Image.new("RGB", (2, 1), (255, 0, 0))
    image.putpixel((1, 0), (0, 0, 255))
    image.getexif()[0x0112] = 6
    return image


def test_a_photo_is_seen_as_browsers_show_it(address: str, stand_in: StandIn) -> None:
    with connect(address, {"messages": ask_about("Hi", photo())}):
        stand_in.asked.get(timeout=60).put(Piece("", "stop"))
    (seen,) = stand_in.images
    assert (seen.size, seen.convert("RGB").tobytes()) == ((1, 2), b"\xff\0\0\0\0\xff")


def links(*names: str) -> list[dict[str, Any]]:
    """A question about images at URLs."""
    blocks = [{"type": "image_url", "image_url": {"url": f"https://example.com/{name}"}} for name in names]
    return [{"role": "user", "content": blocks}]


def test_downloads_of_a_request_have_a_limit_on_bytes_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Together, as sixteen of 20 MiB in 15 s each would be five times what a request may bring."""
    buffer = io.BytesIO()
    Image.effect_noise((200, 200), 90).save(buffer, "PNG")
    assert 30_000 < len(buffer.getvalue()) < 50_000
    monkeypatch.setattr(images, "fetch_image", lambda *args, **limits: buffer.getvalue())
    chat = read_chat(links("a.png", "b.png", "c.png"), limits := Limits(body_bytes=100_000))
    url = "messages[0].content[{}].image_url.url"
    with pytest.raises(ApiError) as error:
        images.read_images(chat, limits, allow_url=True)
    assert error.value.message == f"{url.format(2)}: with it the images are over the limit of 100,000 bytes in all"
    monkeypatch.setattr(images, "FETCH_ALL", 0.0)
    with pytest.raises(ApiError) as error:
        images.read_images(chat, limits, allow_url=True)
    assert error.value.message == f"{url.format(0)}: the images have not been downloaded within 0 s; send data URLs"


def test_slow_downloads_leave_places_to_requests_that_bring_their_images(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in, begun, go = StandIn(max_waiting=2), threading.Semaphore(0), threading.Event()

    def fetch(*args: Any, **limits: Any) -> bytes:
        begun.release()
        assert go.wait(60)
        raise Reject("image-missing", "gone")

    monkeypatch.setattr(images, "fetch_image", fetch)
    app = make_app(stand_in, ServerSettings(name="tiny", allow_url=True))  # type: ignore[arg-type]
    with running(app) as address, connect(address, {"messages": links("a.png")}) as slow:
        assert begun.acquire(timeout=60)
        status, told = post(address, {"messages": links("b.png")})
        assert (status, told["error"]["message"]) == (
            429, "too many requests wait for downloads of their images; try again later"
        )  # fmt: skip
        with connect(address, {"messages": ask_about("Hi", RED)}):
            stand_in.asked.get(timeout=60).put(Piece("", "stop"))
        go.set()
        assert slow.recv(1 << 16).startswith(b"HTTP/1.1 400 ")
