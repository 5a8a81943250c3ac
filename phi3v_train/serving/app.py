"""The server: OpenAI's chat completions over HTTP, with a page to try it, `/health` and `/metrics`."""

import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from typing import Any

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from phi3v_data.errors import UserError
from phi3v_data.formats.chat import Chat
from phi3v_data.messages import shown
from phi3v_train.data.encode import EncodedPrompt
from phi3v_train.serving.address import LOOPBACK, host_name
from phi3v_train.serving.answerer import Answerer
from phi3v_train.serving.body import read_body
from phi3v_train.serving.images import decode_images, is_url, read_images
from phi3v_train.serving.metrics import Metrics
from phi3v_train.serving.protocol import (
    ApiError,
    Body,
    Limits,
    in_messages,
    parse_body,
    read_chat,
    sample_of,
)
from phi3v_train.serving.request import QueueFullError, ShuttingDownError
from phi3v_train.serving.responses import Answer, failure, refusal

OPEN_PATHS = ("/", "/health")
"""Paths that need no key: the page, which asks for one, and the sign of life."""
ENCODED = 2  # requests whose images are decoded and encoded at once, as they take many times the memory of their files


@dataclass(frozen=True)
class ServerSettings:
    """Settings of a server.

    Attributes:
        name: of the model, as clients may call it.
        api_key: what clients send as bearer token; empty if none is needed.
        hosts: names by which clients may call this server, in lower case; empty for any.
        origins: web pages of other servers that may ask, as browsers call them: `https://example.com`.
        allow_url: fetch images from public http and https URLs.
    """

    name: str
    api_key: str = ""
    hosts: Sequence[str] = LOOPBACK
    origins: Sequence[str] = ()
    allow_url: bool = False
    limits: Limits = field(default_factory=Limits)


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
            allow_headers=["*"],  # clients send names of their own, openai's `X-Stainless-Os` and others
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
            scheme, _, given = headers.get("authorization", "").partition(" ")
            right = hmac.compare_digest(given.strip().encode("latin-1"), self.settings.api_key.encode())
            if scheme.lower() != "bearer" or not right:
                return ApiError(401, "the API key is missing or wrong: send 'Authorization: Bearer KEY'")
        return None


class Server:
    """The handlers."""

    def __init__(self, answerer: Answerer, settings: ServerSettings) -> None:
        self.answerer = answerer
        self.settings = settings
        self.metrics = Metrics(answerer)
        self.started = now()
        self.num_prepared = 0
        self.encoding = CapacityLimiter(ENCODED)
        self.fetching = CapacityLimiter(max(1, answerer.max_waiting // 2))

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
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

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
            with self._place():
                body = parse_body(await read_body(request, self.settings.limits.body_bytes))
                if body.model not in ("", self.settings.name):
                    raise ApiError(404, f"there is no model '{body.model}' here, only '{self.settings.name}'", "model")
                sampling = body.sampling(self.settings.limits)
                prompt = await self._prompt(body)
                try:
                    asked = self.answerer.submit(prompt, sampling)
                except QueueFullError:
                    raise too_many() from None
                except ShuttingDownError:
                    raise ApiError(503, "the server is shutting down") from None
        except Exception as error:
            told = error if isinstance(error, ApiError) else failure(error)
            self.metrics.count(told.status)
            return refusal(told)
        self.metrics.prompt_tokens.inc(asked.num_prompt_tokens)
        identity = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": now(), "model": self.settings.name}
        answer = Answer(asked, request, identity, start, self.metrics)
        if body.stream:
            return answer.streamed(with_usage=body.stream_options is not None and body.stream_options.include_usage)
        return await answer.whole()

    @contextmanager
    def _place(self) -> Iterator[None]:
        """Counts a request that is read and prepared among those that wait, as it takes memory like them.

        Raises:
            ApiError: as many wait as may wait.
        """
        if self.num_prepared + self.answerer.num_waiting >= self.answerer.max_waiting:
            raise too_many()
        self.num_prepared += 1
        try:
            yield
        finally:
            self.num_prepared -= 1

    async def _prompt(self, body: Body) -> EncodedPrompt:
        """The encoded prompt of a request; images are fetched, decoded and encoded in threads."""
        limits, allow_url = self.settings.limits, self.settings.allow_url
        chat = await run_in_threadpool(self._chat, body)
        slow = allow_url and any(is_url(image) for image in chat.images)
        if slow and self.fetching.available_tokens < 1:  # half of the places are for requests that bring all
            raise ApiError(429, "too many requests wait for downloads of their images; try again later")
        read = partial(read_images, chat, limits, allow_url=allow_url)
        files = await to_thread.run_sync(read, limiter=self.fetching if slow else None)
        prompt = await to_thread.run_sync(self._encode, chat, files, limiter=self.encoding)
        if len(prompt.input_ids) > limits.prompt_tokens:
            raise ApiError(
                400,
                f"the messages have {len(prompt.input_ids):,} tokens, images included, over the limit of "
                f"{limits.prompt_tokens:,}",
                "messages",
            )
        return prompt

    def _chat(self, body: Body) -> Chat:
        """The conversation of a request."""
        chat = read_chat(body.messages, self.settings.limits)
        for message in chat.messages:
            try:
                self.answerer.check_text(message.text, num_images=len(chat.images))
            except UserError as error:
                raise ApiError(400, f"{message.field}: {error}", "messages") from None
        return chat

    def _encode(self, chat: Chat, files: Sequence[bytes]) -> EncodedPrompt:
        """The prompt of a conversation."""
        images = decode_images(chat, files)
        try:
            return self.answerer.encode(sample_of(chat), images)
        except UserError as error:
            raise ApiError(400, in_messages(str(error), chat), "messages") from None


def too_many() -> ApiError:
    """The refusal of a request for which there is no room."""
    return ApiError(429, "too many requests wait; try again later")


def now() -> int:
    """Seconds since 1970, as the API writes times."""
    return int(time.time())
