"""Preference pairs and calls of tools as formats can carry them, in their own form or not at all."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from phi3v_data.errors import UserError
from phi3v_data.formats.chat import Chat, Message
from phi3v_data.messages import shown

PAIR, TOOLS = "preference-pair", "tool-turn"
"""Codes of what a format cannot carry."""


def carried(chat: Chat, lost: list[str], always: Sequence[str], *, pairs: bool, tools: bool) -> Chat:
    """The conversation without what a format cannot carry, whose codes are added to `lost`.

    Args:
        always: fields that every row of the export has.
        pairs: the format has a place for a rejected answer.
        tools: the format has one for calls of tools.

    Raises:
        UserError: some rows of the export have a rejected answer and this one has none.
    """
    if chat.rejected is not None and not pairs:
        lost.append(PAIR)
        chat = replace(chat, rejected=None)
    if pairs and chat.rejected is None and "rejected" in always:
        raise UserError(
            f"row {shown(chat.id)} has no rejected answer and other rows have one, but readers of preference pairs "
            "need one in every row; export the two kinds of rows apart"
        )
    if not tools and (chat.tools or has_calls(chat.messages)):
        lost.append(TOOLS)
        kept = tuple(message for message in chat.messages if message.role not in ("tool_call", "tool"))
        chat = replace(chat, messages=kept, tools="")
    return chat


def has_calls(messages: Sequence[Message]) -> bool:
    """Whether there are calls of tools."""
    return "tool_call" in [message.role for message in messages]  # in half the time of `any`


def calls_alternate(messages: Sequence[Message]) -> bool:
    """Whether every call has exactly one result, as LLaMA-Factory wants it."""
    return not any(one.role == other.role and one.role in ("tool_call", "tool") for one, other in pairwise(messages))


def plain_call(text: str) -> str:
    """A call of tools as {"name", "arguments"}, if it is an object of OpenAI; else unchanged."""
    call = parsed_json(text)
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        return text
    arguments = function.get("arguments")
    if isinstance(arguments, str) and isinstance(found := parsed_json(arguments), Mapping):
        arguments = found
    return json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False)


def openai_call(text: str, number: int) -> dict[str, Any] | None:
    """A call of tools as an object of OpenAI, with an id if it has none; None if its text is not a call."""
    call = parsed_json(text)
    if not isinstance(call, dict):
        return None
    if isinstance(call.get("function"), Mapping):
        return call if isinstance(call.get("id"), str) else {"id": f"call_{number}", "type": "function", **call}
    if not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", {})
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {
        "id": f"call_{number}",
        "type": "function",
        "function": {"name": call["name"], "arguments": arguments},
    }


def openai_messages(messages: Sequence[Message]) -> list[Message | dict[str, Any]] | None:
    """Messages with calls and results as OpenAI's; None if a call cannot be written, or a result has none."""
    written: list[Message | dict[str, Any]] = []
    open_ids: list[str] = []
    number = 0
    for message in messages:
        if message.role == "tool_call":
            call = openai_call(message.text, number)
            number += 1
            if call is None:
                return None
            last = written[-1] if written else None
            if isinstance(last, dict) and "tool_calls" in last:
                last["tool_calls"].append(call)
            else:
                written.append({"role": "assistant", "content": None, "tool_calls": [call]})
                open_ids = []
            open_ids.append(call["id"])
        elif message.role == "tool":
            if not open_ids:
                return None
            written.append({"role": "tool", "tool_call_id": open_ids.pop(0), "content": message.text})
        else:
            written.append(message)
    return written


def parsed_json(text: str) -> Any:
    """The value of a JSON text; None if it is something else."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
