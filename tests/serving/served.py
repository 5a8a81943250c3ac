"""A server over a small model in this process, and images to ask about."""

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.request import Request, urlopen

import uvicorn
from fastapi import FastAPI
from PIL import Image

from phi3v_data.schema import Sample, Turn
from phi3v_train.models.locate import locate
from phi3v_train.serving.address import bind
from phi3v_train.serving.answerer import Answerer
from phi3v_train.serving.app import ServerSettings, make_app
from phi3v_train.serving.load import load
from phi3v_train.settings import resolve

RED, BLUE = Image.new("RGB", (64, 48), (200, 10, 10)), Image.new("RGB", (40, 80), (10, 20, 210))


def small_answerer(model: str = "tiny", **changes: Any) -> Answerer:
    """An answerer of a family's small model."""
    options: dict[str, Any] = {"model_name_or_path": model, "device": "cpu"}
    if model == "tiny":
        options["num_crops"] = 1
    return load(locate(model), resolve(options).config.model, **changes).answerer


def question(text: str, *images: Any) -> tuple[Sample, list[Any]]:
    """A conversation of one question, images first."""
    turn = Turn(images=tuple(str(number) for number in range(len(images))), user=text, assistant="")
    return Sample(id="q", source="q", conversations=(turn,)), list(images)


def data_url(image: Any, kind: str = "PNG") -> str:
    """An image as a data URL."""
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=image.getexif())
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def ask_about(text: str, *images: Any) -> list[dict[str, Any]]:
    """The messages of such a question."""
    blocks = [{"type": "image_url", "image_url": {"url": data_url(image)}} for image in images]
    return [{"role": "user", "content": [*blocks, {"type": "text", "text": text}]}]


def post(address: str, body: Any, **headers: str) -> tuple[int, Any]:
    """Status and JSON of a request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = Request(f"{address}/v1/chat/completions", data, {"Content-Type": "application/json", **headers})
    try:
        with urlopen(request) as response:
            return response.status, json.load(response)
    except OSError as error:
        return error.code, json.load(error)  # type: ignore[attr-defined]


def until(condition: Any, seconds: float = 60.0) -> None:
    """Wait for a condition; fails after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextmanager
def running(app: FastAPI) -> Iterator[str]:
    """Serve on loopback; yields the address."""
    listening = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def served(answerer: Answerer, **settings: Any) -> Iterator[str]:
    """A running server; the answerer is closed at the end."""
    with running(make_app(answerer, ServerSettings(name="tiny", **settings))) as address:
        yield address
