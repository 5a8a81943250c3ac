"""Answers on their way to clients, as a whole or as server-sent events, and refusals."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from phi3v_data.errors import UserError
from phi3v_train.serving.metrics import Metrics
from phi3v_train.serving.protocol import ApiError, chunk, completion, usage
from phi3v_train.serving.request import Piece, ShuttingDownError
from phi3v_train.serving.request import Request as Asked

POLL = 0.5  # seconds between two looks at whether the client is still there
LEFT = ApiError(499, "the client has left")


class Answer:
    """One answer on its way to a client; it is cancelled when the client has left.

    Args:
        asked: the question, which is in the answerer's queue.
        request: of the client.
        identity: `id`, `created` and `model` of the response.
        start: when the request came, by `time.perf_counter`.
        metrics: where it is counted.
    """

    def __init__(
        self, asked: Asked, request: Request, identity: Mapping[str, Any], start: float, metrics: Metrics
    ) -> None:
        self.asked = asked
        self.request = request
        self.identity = identity
        self.start = start
        self.metrics = metrics
        self.status = LEFT.status

    async def pieces(self) -> AsyncIterator[Piece]:
        """Yield the pieces as they come; ends without a `finish` if the client has left."""
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            with suppress(RuntimeError):  # the loop is closed: the server was cut off
                loop.call_soon_threadsafe(arrived.set)

        self.asked.on_piece = tell
        watching = asyncio.ensure_future(self._cancel_when_left())
        try:
            while True:
                arrived.clear()
                while (piece := self.asked.take()) is not None:
                    if self.asked.cancelled:
                        return
                    if piece.finish is not None:
                        self.metrics.answer_tokens.inc(piece.num_tokens)
                        self.metrics.seconds.observe(time.perf_counter() - self.start)
                    yield piece
                    if piece.finish is not None:
                        return
                await arrived.wait()
        finally:
            watching.cancel()
            self.asked.cancel()

    async def _cancel_when_left(self) -> None:
        while not await self.request.is_disconnected():
            await asyncio.sleep(POLL)
        self.asked.cancel()

    async def whole(self) -> Response:
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
            return self._failed(LEFT)
        self.metrics.count(200)
        tokens = usage(self.asked.num_prompt_tokens, last.num_tokens)
        return JSONResponse(completion(self.identity, "".join(text), last.finish, tokens))

    def streamed(self, *, with_usage: bool) -> Response:
        """The response with the answer in pieces."""
        return AnswerStream(self, with_usage=with_usage)

    async def events(self, *, with_usage: bool) -> AsyncIterator[bytes]:
        """Server-sent events."""
        more: dict[str, Any] = {"usage": None} if with_usage else {}
        yield event({**chunk(self.identity, {"role": "assistant", "content": ""}), **more})
        try:
            async for piece in self.pieces():
                if piece.text:
                    yield event({**chunk(self.identity, {"content": piece.text}), **more})
                if piece.finish is not None:
                    yield event({**chunk(self.identity, {}, piece.finish), **more})
                    if with_usage:
                        tokens = usage(self.asked.num_prompt_tokens, piece.num_tokens)
                        yield event({**chunk(self.identity, {}), "choices": [], "usage": tokens})
                    self.status = 200
        except Exception as error:
            told = failure(error)
            self.status = told.status
            yield event(told.body())
            return
        if self.status == 200:
            yield b"data: [DONE]\n\n"

    def _failed(self, error: ApiError) -> Response:
        self.metrics.count(error.status)
        return refusal(error)


class AnswerStream(StreamingResponse):
    """An answer as server-sent events; it is cancelled however the response ends, even before it begins."""

    def __init__(self, answer: Answer, *, with_usage: bool) -> None:
        super().__init__(answer.events(with_usage=with_usage), media_type="text/event-stream")
        self.answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.answer.asked.cancel()
            self.answer.metrics.count(self.answer.status)


def event(value: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def refusal(error: ApiError) -> Response:
    """The response of a request that is refused."""
    return JSONResponse(
        error.body(), status_code=error.status, headers={"Connection": "close"} if error.close else None
    )


def failure(error: Exception) -> ApiError:
    """The error that a client gets for an answer that failed; an unexpected one goes to the log with its traceback."""
    if isinstance(error, ShuttingDownError):
        return ApiError(503, "the server is shutting down; the answer was cut off")
    if isinstance(error, UserError):
        return ApiError(503, str(error))
    logging.getLogger("uvicorn.error").error("a request failed", exc_info=error)
    return ApiError(500, "the server failed on this request; its log says why")
