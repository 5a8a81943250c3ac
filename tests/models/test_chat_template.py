"""The chat template, a file, against the chat format."""

import pytest

from phi3v_data.tokens.chat import TurnText
from phi3v_data.tokens.phi3v import CHAT
from phi3v_train.models.phi3v.processing_phi3_v import Phi3VProcessor
from phi3v_train.models.phi3v.tiny import tiny_processor

CONVERSATIONS = {
    "text": ("", [TurnText("What is two?", " one more ")]),
    "system": ("Be brief.", [TurnText("q", "a"), TurnText("r", "b")]),
    "images": ("", [TurnText("Compare.", "a", 2), TurnText("And?", "b", 1), TurnText("So?", "c")]),
    "inside": ("s", [TurnText("this or that", "a", 3, (0, 4, 12))]),
}


def messages(system: str, turns: list[TurnText]) -> list[dict[str, object]]:
    """The conversation as transformers takes it, images as blocks."""
    found: list[dict[str, object]] = [{"role": "system", "content": system}] if system else []
    for turn in turns:
        blocks: list[dict[str, str]] = []
        offsets = list(turn.offsets or (0,) * turn.num_images)
        for begin, end in zip([0, *offsets], [*offsets, len(turn.user)], strict=True):
            if turn.user[begin:end]:
                blocks.append({"type": "text", "text": turn.user[begin:end]})
            blocks.append({"type": "image"})
        found += [{"role": "user", "content": blocks[:-1]}, {"role": "assistant", "content": turn.assistant}]
    return found


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_the_template_writes_the_chat_format(name: str) -> None:
    """All but the end of the text, which the released template leaves out as well."""
    processor: Phi3VProcessor = tiny_processor()
    system, turns = CONVERSATIONS[name]
    whole = processor.apply_chat_template(messages(system, turns))
    assert whole + CHAT.end_of_text == CHAT.conversation_text(turns, system=system)


def test_the_generation_prompt_of_the_template_is_that_of_the_chat_format() -> None:
    asked = messages("s", [TurnText("q", "", 1)])[:-1]
    prompt = tiny_processor().apply_chat_template(asked, add_generation_prompt=True)
    assert prompt == CHAT.turn_prompt(TurnText("q", "", 1), system="s")
