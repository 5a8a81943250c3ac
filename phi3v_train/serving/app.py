"""The server: OpenAI's chat completions over HTTP, with a page to try it, `/health` and `/metrics`."""

import asyncio
import hmac
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from phi3v_data.errors import UserError
from phi3v_data.formats.fetch import FetchLimits, fetch_image
from phi3v_data.messages import shown
from phi3v_train.serving import request as answers
from phi3v_train.serving.address import LOOPBACK, host_name
from phi3v_train.serving.answerer import Answerer
from phi3v_train.serving.protocol import (
    ApiError,
    Body,
    Limits,
    chunk,
    completion,
    in_messages,
    load_images,
    parse_body,
    read_chat,
    sample_of,
    usage,
)
from phi3v_train.serving.request import Piece, QueueFullError, ShuttingDownError

JSON = "application/json"
OPEN_PATHS = ("/", "/health")
"""Paths that need no key: the page, which asks for one, and the sign of life."""
POLL = 0.5  # seconds between two looks at whether the client is still there
FETCH = FetchLimits(max_bytes=20 << 20, connect=5.0, total=15.0, attempts=2, wait=0.5)


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server.

    Attributes:
        name: of the model, as clients may call it.
        api_key: what clients send as bearer token; empty if none is needed.
        hosts: names by which clients may call this server; empty for any.
        origins: web pages of other servers that may ask, as browsers call them: `https://example.com`.
        allow_url: fetch images from public http and https URLs.
    """

    name: str
    api_key: str = ""
    hosts: Sequence[str] = LOOPBACK
    origins: Sequence[str] = ()
    allow_url: bool = False
    limits: Limits = field(default_factory=Limits)


class Metrics:
    """Counts for Prometheus."""

    def __init__(self, answerer: Answerer) -> None:
        self.registry = CollectorRegistry()
        make = partial(Counter, registry=self.registry)
        self.requests = make("phi3v_requests", "Requests for answers, by status of the response.", ["status"])
        self.prompt_tokens = make("phi3v_prompt_tokens", "Tokens of prompts, image tokens included.")
        self.answer_tokens = make("phi3v_answer_tokens", "Tokens of answers.")
        self.seconds = Histogram("phi3v_request_seconds", "Time from request to last token.", registry=self.registry)
        waiting = Gauge("phi3v_waiting", "Requests whose answer has not begun.", registry=self.registry)
        waiting.set_function(lambda: answerer.num_waiting)
        running = Gauge("phi3v_running", "Requests that are being answered.", registry=self.registry)
        running.set_function(lambda: answerer.num_running)


def make_app(answerer: Answerer, settings: ServerSettings) -> FastAPI:
    """The application; its end closes `answerer`, after the answers that were begun."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(answerer.close)

    app = FastAPI(title="phi3v", docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    server = Server(answerer, settings)
    app.add_middleware(Guard, settings=settings)
    if settings.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.origins),
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "X-Stainless-*"],
        )
    app.add_exception_handler(HTTPException, no_such_request)
    app.add_exception_handler(Exception, failed_request)
    app.get("/")(server.page)
    app.get("/health")(server.health)
    app.get("/metrics")(server.metrics_text)
    app.get("/v1/models")(server.models)
    app.get("/v1/models/{name:path}")(server.model)
    app.post("/v1/chat/completions")(server.complete)
    return app


async def no_such_request(request: Request, error: Exception) -> Response:
    """The response to a path or a method that the server does not have."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        told = ApiError(405, f"{shown(path)} takes {allowed}, not {request.method}")
    elif error.status_code == 404:
        told = ApiError(404, f"there is no path {shown(path)} here; questions go to /v1/chat/completions")
    else:
        told = ApiError(error.status_code, error.detail)
    return JSONResponse(told.body(), status_code=told.status, headers=error.headers)


async def failed_request(request: Request, error: Exception) -> Response:
    """The response to a request on which the server failed; the log has the traceback."""
    return refusal(failure(error))


class Guard:
    """Checks the host that a client calls, the page that makes it ask, and its key, before anything else.

    The host is checked so that a page of another site whose name leads here cannot use this server; the origin, so that
    no page of another site can make a visitor's browser ask.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (error := self.objection(Headers(scope=scope), scope["path"])) is not None:
            await refusal(error)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def objection(self, headers: Headers, path: str) -> ApiError | None:
        """Why a request is refused; None if it is not."""
        hosts = self.settings.hosts
        if hosts and host_name(headers.get("host", "")) not in hosts:
            return ApiError(421, f"this server answers to {', '.join(hosts)} only")
        origin = headers.get("origin")
        own = origin is None or origin.partition("://")[2] == headers.get("host")
        if not own and origin not in self.settings.origins:
            return ApiError(403, f"pages of {shown(origin, 80)} may not ask here; `serve --origins` allows them")
        if self.settings.api_key and path not in OPEN_PATHS:
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self.settings.api_key.encode()):
                return ApiError(401, "the API key is missing or wrong: send 'Authorization: Bearer KEY'")
        return None


class Server:
    """The handlers."""

    def __init__(self, answerer: Answerer, settings: ServerSettings) -> None:
        self.answerer = answerer
        self.settings = settings
        self.metrics = Metrics(answerer)
        self.started = now()

    async def page(self) -> Response:
        """The page to try the model."""
        text = files("phi3v_train.serving").joinpath("page.html").read_text(encoding="utf-8")
        value = json.dumps(self.settings.name).replace("<", "\\u003c")
        headers = {
            "Content-Security-Policy": "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
            "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'",
            "X-Content-Type-Options": "nosniff",
        }
        return HTMLResponse(text.replace('"MODEL_NAME"', value), headers=headers)

    async def health(self) -> dict[str, Any]:
        """That the server is there."""
        return {"status": "ok", "model": self.settings.name}

    async def metrics_text(self) -> Response:
        """Counts in Prometheus' text format."""
        return Response(generate_latest(self.metrics.registry), media_type="text/plain; version=0.0.4")

    def _model(self) -> dict[str, Any]:
        return {"id": self.settings.name, "object": "model", "created": self.started, "owned_by": "phi3v"}

    async def models(self) -> dict[str, Any]:
        """The one model."""
        return {"object": "list", "data": [self._model()]}

    async def model(self, name: str) -> Response:
        """The one model by its name."""
        if name != self.settings.name:
            return refusal(ApiError(404, f"there is no model '{name}' here, only '{self.settings.name}'", "model"))
        return JSONResponse(self._model())

    async def complete(self, request: Request) -> Response:
        """Answer a conversation, as a whole or in pieces."""
        start = time.perf_counter()
        try:
            kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != JSON:
                raise ApiError(415, f"the Content-Type is {shown(kind, 80)}; send {JSON}")
            body = parse_body(await self._body(request))
            if body.model not in ("", self.settings.name):
                raise ApiError(404, f"there is no model '{body.model}' here, only '{self.settings.name}'", "model")
            sampling = body.sampling(self.settings.limits)
            prompt = await run_in_threadpool(self._prompt, body)
            try:
                asked = self.answerer.submit(prompt, sampling)
            except QueueFullError:
                raise ApiError(429, "too many requests wait; try again later") from None
            except ShuttingDownError:
                raise ApiError(503, "the server is shutting down") from None
        except ApiError as error:
            self.metrics.requests.labels(str(error.status)).inc()
            return refusal(error)
        self.metrics.prompt_tokens.inc(asked.num_prompt_tokens)
        identity = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": now(), "model": self.settings.name}
        answer = Answer(self, request, asked, start)
        if body.stream:
            return StreamingResponse(answer.stream(identity, body), media_type="text/event-stream")
        return await answer.whole(identity)

    async def _body(self, request: Request) -> bytes:
        """The bytes of a request, up to the limit."""
        limit = self.settings.limits.body_bytes
        parts = []
        size = 0
        try:
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise ApiError(413, f"the request has more than {limit:,} bytes")
                parts.append(part)
        except ClientDisconnect:
            raise ApiError(499, "the client has left") from None
        return b"".join(parts)

    def _prompt(self, body: Body) -> Any:
        """The encoded prompt of a request; images are read here, in a thread."""
        limits = self.settings.limits
        chat = read_chat(body.messages, limits)
        for message in chat.messages:
            try:
                self.answerer.refuse_markers(message.text, num_images=len(chat.images))
            except UserError as error:
                raise ApiError(400, f"{message.field}: {error}", "messages") from None
        fetch = partial(fetch_image, limits=FETCH) if self.settings.allow_url else None
        images = load_images(chat, limits, fetch)
        try:
            prompt = self.answerer.encode(sample_of(chat), images)
        except UserError as error:
            raise ApiError(400, in_messages(str(error), chat), "messages") from None
        if len(prompt.input_ids) > limits.prompt_tokens:
            raise ApiError(
                400,
                f"the messages have {len(prompt.input_ids):,} tokens, images included, over the limit of "
                f"{limits.prompt_tokens:,}",
                "messages",
            )
        return prompt


class Answer:
    """One answer on its way to a client; it is cancelled when the client has left."""

    def __init__(self, server: Server, request: Request, asked: answers.Request, start: float) -> None:
        self.server = server
        self.request = request
        self.asked = asked
        self.start = start

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield the pieces as they come; ends early if the client has left."""
        waiting = iter(self.asked)
        try:
            while True:
                nextone = asyncio.ensure_future(run_in_threadpool(next, waiting, None))
                while not nextone.done():
                    await asyncio.wait([nextone], timeout=POLL)
                    if not nextone.done() and await self.request.is_disconnected():
                        self.asked.cancel()
                        nextone.cancel()
                        return
                piece = nextone.result()
                if piece is None:
                    return
                if piece.finish is not None:
                    self.server.metrics.answer_tokens.inc(piece.num_tokens)
                    self.server.metrics.seconds.observe(time.perf_counter() - self.start)
                yield piece
        finally:
            self.asked.cancel()

    async def whole(self, identity: dict[str, Any]) -> Response:
        """The response with the whole answer."""
        text: list[str] = []
        last: Piece | None = None
        try:
            async for piece in self.pieces():
                text.append(piece.text)
                last = piece
        except Exception as error:
            return self._failed(failure(error))
        if last is None or last.finish is None:
            return self._failed(ApiError(499, "the client has left"))
        self._count(200)
        tokens = usage(self.asked.num_prompt_tokens, last.num_tokens)
        return JSONResponse(completion(identity, "".join(text), last.finish, tokens))

    async def stream(self, identity: dict[str, Any], body: Body) -> AsyncIterator[bytes]:
        """Server-sent events."""
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        more: dict[str, Any] = {"usage": None} if with_usage else {}
        yield event({**chunk(identity, {"role": "assistant", "content": ""}), **more})
        try:
            async for piece in self.pieces():
                if piece.text:
                    yield event({**chunk(identity, {"content": piece.text}), **more})
                if piece.finish is not None:
                    yield event({**chunk(identity, {}, piece.finish), **more})
                    if with_usage:
                        tokens = usage(self.asked.num_prompt_tokens, piece.num_tokens)
                        yield event({**chunk(identity, {}), "choices": [], "usage": tokens})
        except Exception as error:
            told = failure(error)
            self._count(told.status)
            yield event(told.body())
            return
        self._count(200)
        yield b"data: [DONE]\n\n"

    def _count(self, status: int) -> None:
        self.server.metrics.requests.labels(str(status)).inc()

    def _failed(self, error: ApiError) -> Response:
        self._count(error.status)
        return refusal(error)


def event(value: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def refusal(error: ApiError) -> Response:
    """The response of a request that is refused."""
    return JSONResponse(error.body(), status_code=error.status)


def failure(error: Exception) -> ApiError:
    """The error that a client gets for an answer that failed; an unexpected one goes to the log with its traceback."""
    if isinstance(error, ShuttingDownError):
        return ApiError(503, "the server is shutting down; the answer was cut off")
    if isinstance(error, UserError):
        return ApiError(503, str(error))
    logging.getLogger("uvicorn.error").error("a request failed", exc_info=error)
    return ApiError(500, "the server failed on this request; its log says why")


def now() -> int:
    """Seconds since 1970, as the API writes times."""
    return int(time.time())
