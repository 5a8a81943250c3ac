"""ms-swift (git of 2026-08-22 and 4.6.0 on PyPI)."""

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar

from phi3v_data.formats.chat import Fault
from phi3v_data.formats.consumers.base import Consumer, Effect, OverRows, RowView, content_key, num_refs, packed_file
from phi3v_data.messages import counted, shown

DELETED = "deletes the row, in silence after ten of them"
REPLACED = "cannot encode the row, and trains another, chosen at random, in its place"
_KNOWN_KEYS = frozenset({"role", "content", "from", "value", "loss", "loss_scale", "tool_calls"})
_MESSAGES = ("messages", "conversation", "conversations")
_REJECTED = "rejected_response"


class Swift(Consumer):
    """Reads messages with `<image>` tags, blocks as OpenAI's, and rows of a question and an answer."""

    name = "ms-swift"
    title = "ms-swift"
    formats = ("swift", "sharegpt", "openai")
    roles = (
        "system", "user", "human", "assistant", "gpt", "bot", "tool_call", "function_call", "tool_response", "tool",
        "function_response", "observation", "observations",
    )  # fmt: skip
    media: ClassVar = {"<video>": ("videos", "video"), "<audio>": ("audios", "audio")}
    effects: ClassVar = {
        "turn-order": Effect("joins messages of one role, and puts an empty user message before an answer", "warning"),
        "system-message-place": Effect(REPLACED),
        "last-turn-open": Effect("trains the answers before it"),
        "wrong-type": Effect("deletes the row, or trains another, chosen at random, in its place"),
        "missing-field": Effect(DELETED),
        "role-unknown": Effect(DELETED),
        "placeholder-in-text": Effect("puts a file or a box of the row in its place, or keeps it if there is none"),
        "image-missing": Effect(REPLACED),
        "key-ignored": Effect("takes the message, and ignores this column"),
    }

    def judge(self, fault: Fault, view: RowView | None) -> Fault | None:
        if fault.code == "image-in-answer":
            return None  # for models that generate images
        if fault.code == "nothing-trained" and fault.field == "label":
            return None  # of KTO
        if fault.code == "image-count" and view is not None:
            tag = next((tag for tag, columns in self.media.items() if fault.field in columns), "")
            tags = self.num_tags(view, tag or "<image>") + (0 if tag else len(view.chat.images))
            files = num_refs(view.row.get(fault.field)) if tag else _num_images(view)
            words = (
                "ms-swift puts the missing tags before the first message but the system's in silence"
                if tags < files
                else "ms-swift keeps the surplus tags as text"
            )
            return replace(fault, message=f"{fault.message}: {words}")
        if fault.code == "wrong-type" and view is not None and fault.field.endswith((".loss", ".loss_scale")):
            return _of_weight(fault, view)
        if fault.code == "wrong-type" and view is None and fault.hint:
            return fault  # it parses the JSON text of messages, and takes the first of several answers
        if fault.field == _REJECTED and view is not None and isinstance(view.row[_REJECTED], list | tuple):
            return None  # messages in place of a text
        if fault.field == "history" and view is not None and isinstance(view.row["history"], str):
            words = f"{fault.message}: ms-swift reads the text of a Python list, others do not"
            return replace(fault, message=words, severity="warning")
        if fault.code == "wrong-type" and view is not None and _has_blocks(view, fault.field):
            words = f"{fault.message}: ms-swift reads blocks, which other formats have"
            return replace(
                fault, message=words, hint=f"give --format {'trl' if 'images' in view.row else 'openai or axolotl'}"
            )
        return super().judge(fault, view)

    def over_rows(self) -> OverRows:
        return _OneForm()

    def check_file(self, name: str, kind: str) -> Iterator[Fault]:
        if name.endswith(".gz"):  # under another name, `datasets` unpacks it
            yield packed_file("ms-swift goes by the end of a file's name")

    def check(self, view: RowView) -> Iterator[Fault]:
        for column in ("images", "image"):
            if view.row.get(column) == "":
                text = f"ms-swift takes an empty text for the path of a folder: it {REPLACED}"
                yield Fault("wrong-type", column, text, "write null or [], or leave the key out")
        answers = [message for message in view.chat.messages if message.role == "assistant"]
        last = view.chat.messages[-1] if view.chat.messages else None
        if last in answers and last.weight == 0 and any(answer.weight for answer in answers):
            yield Fault("end-trained", last.field, "ms-swift trains the end token of a last answer with loss false")
        rejected = view.chat.rejected
        if rejected is not None and last is not None and rejected.text == last.text:
            yield Fault(
                "nothing-trained", rejected.field, "the rejected answer is the chosen one: ms-swift deletes the row"
            )
        for where, message in view.messages:
            key = content_key(message)
            if message.get("role") == "system" and isinstance(message.get(key), list | tuple):
                text = f"ms-swift does not join the blocks of a system message: it {REPLACED}"
                yield Fault("wrong-type", f"{where}.{key}", text, "write a text")
            for key in message:
                if key not in _KNOWN_KEYS:
                    hint = "ms-swift reads 'loss'" if key == "weight" else ""
                    text = f"ms-swift drops the key {shown(key)} of a message without a word"
                    yield Fault("key-ignored", f"{where}.{key[:60]}", text, hint)


class _OneForm(OverRows):
    """ms-swift reads one column of messages in a whole file, or finds the answer by the name of its column.

    If a row has a rejected answer, it deletes those without.
    """

    def __init__(self) -> None:
        self._forms: dict[str, tuple[int, int]] = {}  # column of messages -> place of the first row, number of rows
        self._answer: tuple[int, str] | None = None  # place and column of the first answer without messages
        self._pairs: dict[bool, tuple[int, int]] = {}  # has a rejected answer -> place of the first row, number of rows

    def row(self, view: RowView, place: int, count: int = 1) -> None:
        form = next((key for key in _MESSAGES if view.row.get(key) is not None), "")
        first, number = self._forms.get(form, (place, 0))
        self._forms[form] = min(first, place), number + count
        is_pair = view.row.get(_REJECTED) is not None
        first, number = self._pairs.get(is_pair, (place, 0))
        self._pairs[is_pair] = min(first, place), number + count
        column = next((each.field for each in view.chat.messages[::-1] if each.role == "assistant"), "")
        is_mistaken = not form and column not in ("", "response", "output", "answer")
        if is_mistaken and (self._answer is None or place < self._answer[0]):
            self._answer = place, column

    def end(self, num_rows: int) -> Iterator[tuple[int | None, Fault]]:
        read = next((key for key in _MESSAGES if key in self._forms), "")
        for form, (place, number) in self._forms.items():
            if form != read:
                words = f"ms-swift reads {shown(read)} of the whole file, and drops {counted(number, 'row')} without it"
                yield place, Fault("missing-field", form, words, "write all rows in one form")
        if len(self._pairs) > 1:
            place, number = self._pairs[False]
            words = f"other rows have a rejected answer, so that ms-swift deletes {counted(number, 'row')} without one"
            yield place, Fault("missing-field", _REJECTED, words, "put them into a file of their own")
        if self._answer is not None and not read:
            place, column = self._answer
            words = f"the file has no messages, so ms-swift takes the column {shown(column)} for the answer"
            hint = "give 'messages', or name the column 'response'"
            yield place, Fault("column-mistaken", column, words, hint)


def _of_weight(fault: Fault, view: RowView) -> Fault | None:
    """The fault of a `loss` that is not true or false, as ms-swift takes it; None for a `loss_scale`, any number."""
    where, _, key = fault.field.rpartition(".")
    value = next((message.get(key) for place, message in view.messages if place == where), None)
    if key == "loss_scale":
        return None if isinstance(value, int | float) else fault
    said = "false, and does not train" if not value else "true, and trains"
    words = f"{fault.message}: ms-swift takes it for {said} the answer"
    return replace(fault, message=words, hint="write true or false")


def _has_blocks(view: RowView, field: str) -> bool:
    """Whether a field is a message's content, and an array."""
    found = (each for where, each in view.messages if field == f"{where}.{content_key(each)}")
    return any(isinstance(message.get(content_key(message)), list | tuple) for message in found)


def _num_images(view: RowView) -> int:
    return num_refs(view.row.get("images", view.row.get("image")))
