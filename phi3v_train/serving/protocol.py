"""Requests and responses of `/v1/chat/completions`, as OpenAI's API has them; what is not supported is refused.

A refusal is an `ApiError`: a status and one sentence, and the parameter that it is about.
"""

import json
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from phi3v_data.formats.chat import Chat, Fault
from phi3v_data.formats.openai import OpenAI
from phi3v_data.formats.turns import check_turns, offsets_of
from phi3v_data.messages import counted, escaped, short, shown
from phi3v_data.schema import Sample, Turn
from phi3v_train.serving.request import Sampling

NO_TOOLS = "tools are not supported here"
OTHERS = "is not supported here"
REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "n": ((1,), "can only be 1"),
    "store": ((False,), "asks to keep the answer, which this server never does"),
    "logprobs": ((False,), OTHERS),
    "top_logprobs": ((0,), OTHERS),
    "presence_penalty": ((0,), OTHERS),
    "frequency_penalty": ((0,), OTHERS),
    "logit_bias": (({},), OTHERS),
    "tools": (([],), f"cannot be used, as {NO_TOOLS}"),
    "tool_choice": (("none", "auto"), f"cannot be used, as {NO_TOOLS}"),
    "functions": (([],), f"cannot be used, as {NO_TOOLS}"),
    "function_call": (("none", "auto"), f"cannot be used, as {NO_TOOLS}"),
    "response_format": (({"type": "text"},), OTHERS),
    "modalities": ((["text"],), OTHERS),
    "audio": ((), OTHERS),
}
"""Parameters of the API whose effect is not supported here: the values that have none, and what is said of others."""

IGNORED = frozenset(
    {
        *("user", "safety_identifier", "metadata", "service_tier", "parallel_tool_calls"),
        *("prompt_cache_key", "prompt_cache_retention"),
    }
)
"""Parameters that never change an answer: who asks, labels for stored answers, price and speed."""

OF_MESSAGES = frozenset({"role", "content"})
OF_BLOCKS = {"text": frozenset({"type", "text"}), "image_url": frozenset({"type", "image_url"})}

MAX_STOPS = 4
MAX_STOP = 1000
"""Characters of a stop string, which is looked for after each token."""
MAX_TOKEN = 16
"""Characters per token of the limit on prompts; a longer text is refused before it is tokenized."""


EXPECTED = {
    "model": "a text",
    "messages": "an array of one or more messages",
    "stream": "true or false",
    "stream_options": "an object",
    "stream_options.include_usage": "true or false",
    "max_tokens": "an integer from 1 on",
    "max_completion_tokens": "an integer from 1 on",
    "temperature": "a number from 0 to 2",
    "top_p": "a number over 0, up to 1",
    "seed": "an integer of 64 bits",
    "stop": "a text or an array of texts",
}
"""Values that each parameter can have; a message is an object."""

CODES = {401: "invalid_api_key", 429: "rate_limit_exceeded"}
"""OpenAI's `code` of errors, by their status."""


class ApiError(Exception):
    """A request that is refused; `close` if the rest of it is not worth waiting for."""

    def __init__(self, status: int, message: str, param: str | None = None, *, close: bool = False) -> None:
        super().__init__(message)
        self.status = status
        self.message = short(message)
        self.param = None if param is None else escaped(param[:80])
        self.close = close

    def body(self) -> dict[str, Any]:
        """The JSON of the response."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        code = "model_not_found" if (self.status, self.param) == (404, "model") else CODES.get(self.status)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": code}}


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of one request.

    Attributes:
        body_bytes: size of the request, data URLs included; also of all images together, downloads included.
        images: images in all messages.
        pixels: of one image.
        all_pixels: of all images together.
        prompt_tokens: tokens before the answer; also the number of messages.
        new_tokens: tokens of the answer; also the default.
    """

    body_bytes: int = 64 << 20
    images: int = 16
    pixels: int = 50_000_000
    all_pixels: int = 200_000_000
    prompt_tokens: int = 16_384
    new_tokens: int = 1024


class StreamOptions(BaseModel):
    """`stream_options`."""

    model_config = ConfigDict(extra="forbid")
    include_usage: StrictBool = False


class Body(BaseModel):
    """The parameters that are used."""

    model: StrictStr = ""
    messages: list[dict[str, Any]] = Field(min_length=1)
    stream: StrictBool | None = False
    stream_options: StreamOptions | None = None
    max_tokens: StrictInt | None = Field(None, ge=1)
    max_completion_tokens: StrictInt | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2, strict=True)
    top_p: float | None = Field(None, gt=0, le=1, strict=True)
    seed: StrictInt | None = Field(None, ge=-(1 << 63), lt=1 << 63)
    stop: StrictStr | list[StrictStr] | None = None

    def sampling(self, limits: Limits) -> Sampling:
        """How the answer is generated; by the most likely tokens if there is no word of sampling.

        With a seed or `top_p` alone, the temperature is 1, as it always is at OpenAI.
        """
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if len(stop) > MAX_STOPS or not all(0 < len(each) <= MAX_STOP for each in stop):
            raise ApiError(400, f"'stop' has 1 to {MAX_STOPS} strings of 1 to {MAX_STOP:,} characters", "stop")
        name = "max_tokens" if self.max_completion_tokens is None else "max_completion_tokens"
        asked: int | None = getattr(self, name)
        if self.max_tokens not in (None, asked):
            raise ApiError(400, "'max_tokens' and 'max_completion_tokens' differ: give one of them", "max_tokens")
        if asked is not None and asked > limits.new_tokens:
            raise ApiError(400, f"{name} {asked:,} is over the limit of this server, {limits.new_tokens:,}", name)
        top_p = 1.0 if self.top_p is None else self.top_p
        temperature = self.temperature
        if temperature is None:
            temperature = 1.0 if top_p < 1.0 or self.seed is not None else 0.0
        return Sampling(asked or limits.new_tokens, temperature, top_p, self.seed, tuple(stop))


def parse_body(data: bytes) -> Body:
    """The parameters of a request.

    Raises:
        ApiError: it is not JSON, or has a parameter that is unknown, wrong or not supported.
    """
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        raise ApiError(400, "the request is not JSON") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the request is not a JSON object")
    for name, (harmless, why) in REFUSED.items():
        given = value.pop(name, None)
        if given is not None and given not in harmless:
            raise ApiError(400, f"'{name}' {why}: leave it out", name)
    kept = {name: each for name, each in value.items() if name not in IGNORED}
    if (unknown := next((name for name in kept if name not in Body.model_fields), None)) is not None:
        raise ApiError(400, f"{shown(unknown)} is not a parameter of this server", unknown)
    try:
        return Body.model_validate(kept)
    except ValidationError as error:
        raise refused_value(error) from None


def refused_value(error: ValidationError) -> ApiError:
    """The refusal of a request with a parameter of another type, or out of its range."""
    first = error.errors(include_url=False)[0]
    path = [str(each) for each in first["loc"] if each in Body.model_fields or each in StreamOptions.model_fields]
    where = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        said = f"{shown(where)} is missing"
    elif first["type"] == "extra_forbidden":
        said = f"{shown(where)} is not a parameter of this server"
    elif path == ["messages"] and len(first["loc"]) > 1:
        said = f"messages[{first['loc'][1]}] is {shown(first['input'], 40)}, not an object"
    else:
        said = f"{shown('.'.join(path))} is {shown(first['input'], 40)}, not {EXPECTED['.'.join(path)]}"
    return ApiError(400, said, str(first["loc"][0]))


def read_chat(messages: Sequence[Mapping[str, Any]], limits: Limits) -> Chat:
    """The conversation of a request, which ends in a question.

    Raises:
        ApiError: a message is not as expected, or the order of roles is not one that models are tuned on.
    """
    if len(messages) > limits.prompt_tokens:  # those without text cost time, too
        raise ApiError(400, f"{len(messages):,} messages, over the limit of {limits.prompt_tokens:,}", "messages")
    for index, message in enumerate(messages):
        check_message(message, f"messages[{index}]")
    reading = OpenAI().read({"messages": list(messages)})
    if reading.chat is None or reading.faults:
        raise fault_error(reading.faults[0])
    chat = reading.chat
    if not chat.messages or chat.messages[-1].role != "user":
        raise ApiError(400, "the last message must be the user's", "messages")
    for fault in check_turns(chat):
        if fault.code not in ("no-turns", "last-turn-open", "empty-text"):  # a model may have answered nothing
            raise fault_error(fault)
    length = sum(len(message.text) for message in chat.messages)
    if length > (most := MAX_TOKEN * limits.prompt_tokens):
        raise ApiError(400, f"the messages have {length:,} characters, over the limit of {most:,}", "messages")
    if len(chat.images) > limits.images:
        raise ApiError(400, f"{counted(len(chat.images), 'image')}, over the limit of {limits.images}", "messages")
    return chat


def check_message(message: Mapping[str, Any], where: str) -> None:
    """Refuse what a message has beside its role, its text and its images, if it is not empty.

    Raises:
        ApiError: such a key has a value.
    """
    if message.get("role") in ("tool", "function") or message.get("tool_calls") or message.get("function_call"):
        raise ApiError(400, f"{where}: {NO_TOOLS}", "messages")
    refuse_others(message, OF_MESSAGES, where)
    content = message.get("content")
    for index, block in enumerate(content if isinstance(content, list) else []):
        kind = block.get("type") if isinstance(block, dict) else None
        if not isinstance(kind, str) or kind not in OF_BLOCKS:
            continue  # said when the message is read
        place = f"{where}.content[{index}]"
        refuse_others(block, OF_BLOCKS[kind], place)
        image = block.get("image_url")
        if isinstance(image, dict) and image.get("detail") not in (None, "auto"):
            detail = shown(image["detail"], 40)
            why = "'auto' is the only one here: the server's options set the size of images"
            raise ApiError(400, f"{place}.image_url.detail is {detail}; {why}", "messages")
        if isinstance(image, dict):
            refuse_others(image, {"url", "detail"}, f"{place}.image_url")


def refuse_others(value: Mapping[str, Any], known: Set[str], where: str) -> None:
    """Refuse keys that are not known and have a value.

    Raises:
        ApiError: there is one.
    """
    for key, given in value.items():
        if key not in known and given not in (None, "", [], {}):
            raise ApiError(400, f"{where}: {shown(key, 40)} {OTHERS}: leave it out", "messages")


def fault_error(fault: Fault) -> ApiError:
    """The refusal of a request with a fault in its messages."""
    return ApiError(400, f"{fault.field}: {fault.message}" if fault.field else fault.message, "messages")


def sample_of(chat: Chat) -> Sample:
    """The conversation as the encoder takes it; the answer to the last question is empty."""
    system = ""
    turns: list[Turn] = []
    number = 0
    for message in chat.messages:
        if message.role == "system":
            system = message.text
        elif message.role == "user":
            text, images, offsets = offsets_of(message.parts)
            names = tuple(str(number + index) for index in range(len(images)))
            number += len(images)
            turns.append(Turn(images=names, user=text, assistant="", image_offsets=tuple(offsets)))
        else:
            turns[-1] = turns[-1].model_copy(update={"assistant": message.text})
    return Sample(id="request", source="request", conversations=tuple(turns), system=system)


def in_messages(text: str, chat: Chat) -> str:
    """A text that names turns of the sample of a conversation, with the client's own names for them."""
    asked = [message.field.partition(".")[0] for message in chat.messages if message.role == "user"]
    return re.sub(r"conversations\[(\d+)\]\.(user|images)", lambda found: asked[int(found[1])], text)


def usage(num_prompt: int, num_answer: int) -> dict[str, int]:
    """`usage` of a response."""
    return {"prompt_tokens": num_prompt, "completion_tokens": num_answer, "total_tokens": num_prompt + num_answer}


def completion(
    identity: Mapping[str, Any], text: str, finish: Literal["stop", "length"], tokens: Mapping[str, int]
) -> dict[str, Any]:
    """A whole response."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": None}
    return {**identity, "object": "chat.completion", "choices": [choice], "usage": dict(tokens)}


def chunk(identity: Mapping[str, Any], delta: Mapping[str, Any], finish: str | None = None) -> dict[str, Any]:
    """A part of a streamed response."""
    choice = {"index": 0, "delta": dict(delta), "finish_reason": finish, "logprobs": None}
    return {**identity, "object": "chat.completion.chunk", "choices": [choice]}
