"""A conversation as turns of a sample, and back; the only place that knows what a sample can hold."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from phi3v_data.draft import DraftTurn
from phi3v_data.formats.chat import Chat, Fault, ImageRef, Message, Part
from phi3v_data.json_text import invalid_character
from phi3v_data.messages import counted, escaped
from phi3v_data.schema import Sample, ToolStep, Turn

ROLE_WORDS = {"system": "a system message", "user": "a user message", "assistant": "an answer"}


def check_turns(chat: Chat, *, merge_turns: bool = False) -> list[Fault]:
    """Faults that keep a conversation from being a sample: order of roles, empty answers, images in answers.

    Args:
        merge_turns: consecutive messages of one role are allowed; see `merged`.
    """
    messages = merged(chat.messages) if merge_turns else chat.messages
    faults = []
    previous = "system"
    for number, message in enumerate(messages):
        role, field = message.role, message.field
        if role == "system" and number:
            faults.append(Fault("system-message-place", field, "a system message comes after the first message"))
            continue
        if role == "user" and previous == "user":
            faults.append(
                Fault("turn-order", field, "two user messages in a row", "join them, or import with --merge_turns")
            )
        elif role == "user" and previous in ("tool_call", "tool"):
            faults.append(Fault("turn-order", field, "a call of tools has no answer"))
        elif role == "tool_call" and previous not in ("user", "tool_call", "tool"):
            faults.append(Fault("turn-order", field, "a call of tools does not follow a user message or a result"))
        elif role == "tool" and previous not in ("tool_call", "tool"):
            faults.append(Fault("turn-order", field, "the result of a tool does not follow a call"))
        elif role == "assistant" and previous == "tool_call":
            faults.append(Fault("turn-order", field, "a call of tools has no result"))
        elif role == "assistant" and previous not in ("user", "tool"):
            said = "the first message is an answer" if previous == "system" else "two answers in a row"
            faults.append(Fault("turn-order", field, said, "each answer follows a user message"))
        if role in ("assistant", "tool", "tool_call") and message.images:
            what = "an answer" if role == "assistant" else "a message of tools"
            faults.append(Fault("image-in-answer", field, f"{what} has {counted(len(message.images), 'image')}"))
        if role == "tool_call" and not message.text:
            faults.append(Fault("empty-text", field, "the call of tools is empty"))
        if role == "system" and message.images:
            faults.append(Fault("image-in-answer", field, "the system message has an image"))
        if role == "assistant" and not message.text.strip() and not message.images:
            faults.append(Fault("empty-text", field, "the answer is empty", "give the text that is to be learned"))
        previous = role
    if not any(message.role == "assistant" for message in messages):
        where = messages[-1].field if messages else ""
        faults.append(Fault("no-turns", where, "the conversation has no answer"))
    elif messages[-1].role in ("tool_call", "tool"):
        faults.append(
            Fault("last-turn-open", messages[-1].field, "the last message is not an answer", "add the answer")
        )
    elif messages[-1].role == "user":
        faults.append(Fault("last-turn-open", messages[-1].field, "the last message is the user's", "add the answer"))
    if (rejected := chat.rejected) is not None:
        if rejected.role != "assistant" or rejected.images:
            faults.append(
                Fault("image-in-answer", rejected.field, "the rejected answer must be a text of the assistant")
            )
        elif not rejected.text.strip():
            faults.append(Fault("empty-text", rejected.field, "the rejected answer is empty"))
    return faults


def check_content(chat: Chat, *, merge_turns: bool = False) -> list[Fault]:
    """Faults that keep a conversation from being a sample, whatever the order of its messages: no text, no weight.

    Args:
        merge_turns: consecutive messages of one role are joined; see `merged`.
    """
    messages = merged(chat.messages) if merge_turns else chat.messages
    faults = [
        Fault("empty-text", message.field, "the message has neither text nor images")
        for message in messages
        if message.role == "user" and not message.images and not message.text.strip()
    ]
    answers = [message for message in messages if message.role == "assistant"]
    if answers and all(message.weight == 0 for message in answers):
        where = answers[0].field.partition("[")[0]
        said = "all answers have weight 0, so that no answer of the row is trained"
        faults.append(Fault("nothing-trained", where, said))
    return faults


def check_characters(chat: Chat) -> list[Fault]:
    """Faults of characters that no text of a row may have."""
    texts = [(message.field, message.text) for message in chat.messages]
    if chat.rejected is not None:
        texts.append((chat.rejected.field, chat.rejected.text))
    found = ((field, invalid_character(text)) for field, text in (*texts, ("tools", chat.tools), *texts_beside(chat)))
    return [Fault("invalid-text", field, f"the text has {problem}") for field, problem in found if problem is not None]


def texts_beside(chat: Chat) -> Iterator[tuple[str, str]]:
    """The field and the text of what comes with the messages: `id`, `group`, `answers`, `meta`."""
    yield "id", chat.id
    yield "group", chat.group
    for number, text in enumerate(chat.answers):
        yield f"answers[{number}]", text
    for key, value in chat.meta.items():
        field = f"meta.{escaped(key[:60])}"
        yield field, key
        if isinstance(value, str):
            yield field, value


def merged(messages: Iterable[Message]) -> tuple[Message, ...]:
    """The messages with consecutive ones of one role joined, a blank line between their texts."""
    result: list[Message] = []
    for message in messages:
        if result and result[-1].role == message.role and message.role in ("user", "assistant"):
            before = result[-1]
            gap: tuple[Part, ...] = ("\n\n",) if before.text and message.text else ()
            result[-1] = replace(
                before, parts=(*before.parts, *gap, *message.parts), weight=min(before.weight, message.weight)
            )
        else:
            result.append(message)
    return tuple(result)


def to_turns(chat: Chat) -> tuple[str, list[tuple[DraftTurn, list[ImageRef]]]]:
    """The system message and the turns of a conversation in which `check_turns` finds nothing.

    The images of a turn are beside it as references, in order, for the caller to load.
    """
    system = ""
    turns: list[tuple[DraftTurn, list[ImageRef]]] = []
    question: Message | None = None
    steps: list[tuple[list[str], list[str]]] = []
    for message in chat.messages:
        if message.role == "system":
            system = message.text
        elif message.role == "user":
            question = message
        elif message.role == "tool_call":
            if not steps or steps[-1][1]:
                steps.append(([], []))
            steps[-1][0].append(message.text)
        elif message.role == "tool":
            steps[-1][1].append(message.text)
        elif question is not None:
            text, images, offsets = offsets_of(question.parts)
            turn = DraftTurn(
                text,
                message.text,
                image_offsets=offsets if any(offsets) else (),
                weight=message.weight,
                steps=[ToolStep(calls=tuple(calls), results=tuple(results)) for calls, results in steps],
            )
            turns.append((turn, images))
            question = None
            steps = []
    return system, turns


def offsets_of(parts: Iterable[Part]) -> tuple[str, list[ImageRef], list[int]]:
    """The text of parts, its images, and the character offset of each image in the text."""
    text = ""
    images: list[ImageRef] = []
    offsets: list[int] = []
    for part in parts:
        if isinstance(part, str):
            text += part
        else:
            images.append(part)
            offsets.append(len(text))
    return text, images, offsets


def to_chat(sample: Sample, refer: Callable[[str], str | bytes]) -> Chat:
    """A sample as a conversation; `refer` gives the reference of an image by its path under `images/`."""
    messages = [Message("system", (sample.system,), field="system")] if sample.system else []
    for number, turn in enumerate(sample.conversations):
        where = f"conversations[{number}]"
        messages.append(Message("user", _parts(turn, refer, where), field=f"{where}.user"))
        for step_number, step in enumerate(turn.steps):
            at = f"{where}.steps[{step_number}]"
            messages += [Message("tool_call", (text,), field=f"{at}.calls[{n}]") for n, text in enumerate(step.calls)]
            results = [(text,) if text else () for text in step.results]
            messages += [Message("tool", text, field=f"{at}.results[{n}]") for n, text in enumerate(results)]
        messages.append(Message("assistant", (turn.assistant,), turn.weight, f"{where}.assistant"))
    return Chat(
        tuple(messages),
        id=sample.id,
        answers=sample.answers,
        group=sample.group,
        meta={**sample.meta},
        rejected=Message("assistant", (sample.rejected,), field="rejected") if sample.rejected else None,
        tools=sample.tools,
    )


def _parts(turn: Turn, refer: Callable[[str], str | bytes], where: str) -> tuple[Part, ...]:
    if not turn.images:
        return (turn.user,) if turn.user else ()
    parts: list[Part] = []
    at = 0
    for number, (path, offset) in enumerate(
        zip(turn.images, turn.image_offsets or (0,) * len(turn.images), strict=True)
    ):
        if offset > at:
            parts.append(turn.user[at:offset])
            at = offset
        parts.append(ImageRef(refer(path), f"{where}.images[{number}]"))
    if turn.user[at:]:
        parts.append(turn.user[at:])
    return tuple(parts)
