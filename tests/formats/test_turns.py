"""The order of messages that a sample can hold; every fault is at its own message."""

import pytest

from phi3v_data.formats.swift import Swift
from phi3v_data.formats.turns import check_turns, merged

TEXTS = {"s": ("system", "Be terse."), "u": ("user", "Hi"), "a": ("assistant", "Hello"), "e": ("assistant", " ")}


@pytest.mark.parametrize(("order", "faults"), [
    ("ua", []),
    ("sua", []),
    ("suaua", []),
    ("usa", [("system-message-place", 1)]),
    ("ssua", [("system-message-place", 1)]),
    ("uasua", [("system-message-place", 2)]),
    ("au", [("turn-order", 0), ("last-turn-open", 1)]),
    ("uua", [("turn-order", 1)]),
    ("uaa", [("turn-order", 2)]),
    ("uau", [("last-turn-open", 2)]),
    ("ue", [("empty-text", 1)]),
    ("u", [("no-turns", 0)]),
    ("s", [("no-turns", 0)]),
])  # fmt: skip
def test_each_fault_of_the_order_is_at_its_message(order: str, faults: list[tuple[str, int]]) -> None:
    messages = [{"role": TEXTS[letter][0], "content": TEXTS[letter][1]} for letter in order]
    chat = Swift().read({"messages": messages}).chat
    assert chat is not None
    assert [(fault.code, fault.field) for fault in check_turns(chat)] == [
        (code, f"messages[{number}].content") for code, number in faults
    ]


def test_joined_messages_are_not_a_fault() -> None:
    messages = [{"role": TEXTS[letter][0], "content": TEXTS[letter][1]} for letter in "uuaa"]
    chat = Swift().read({"messages": messages}).chat
    assert chat is not None
    assert check_turns(chat, merge_turns=True) == []


def test_an_answer_joined_with_one_that_is_not_trained_is_not_trained() -> None:
    texts = [("a", True), ("b", False), ("c", True)]
    messages = [{"role": "assistant", "content": text, "loss": loss} for text, loss in texts]
    chat = Swift().read({"messages": messages}).chat
    assert chat is not None
    assert [(message.text, message.weight) for message in merged(chat.messages[:2])] == [("a\n\nb", 0)]
    assert [(message.text, message.weight) for message in merged(chat.messages[1:])] == [("b\n\nc", 0)]
