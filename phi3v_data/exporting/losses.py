"""Reasons why a format cannot carry a row, as sentences."""

from collections.abc import Iterable, Mapping

from phi3v_data.exporting.request import ExportResult, Loss
from phi3v_data.messages import counted, shown

NO_ANSWER = "no-answer"

LOST = {
    "system-message": (
        "with a system message, which {title} cannot carry",
        "the system message goes before the first user text",
    ),
    "weight": (
        "with an answer of weight 0, which {title} would train",
        "the answer is trained",
    ),
    "placeholder-in-text": (
        "with a text that {title} takes for an image or another placeholder, such as <image>",
        "the text gets a space, as in < image>",
    ),
    NO_ANSWER: (
        "without an answer, so that {title} would train an empty one",
        "the row is left out",
    ),
}
"""Code -> what a row has, and what `lossy` does about it."""

WARNINGS = {
    "image-moved": "with an image inside a text, which LLaVA's own trainer moves to the start (LLaVA-NeXT keeps it if "
    "the text has several)",
    "text-stripped": "with white space at the start or end of a user text or beside an image, which Qwen's trainer "
    "removes",
    "assistant-word": "with the word 'assistant' without a space before it in a user text, which Qwen's trainer (as of "
    "January 2026) takes for the start of an answer",
    "answer-newline": "with an answer that begins with a newline, which axolotl does not train",
    "end-trained": "whose last answer has weight 0, of which ms-swift trains the end token",
}
"""Code -> what a row has, and what the format's readers do with it."""


def refusals(lost: Mapping[str, Loss], title: str) -> Iterable[str]:
    """One sentence per reason."""
    for code, loss in lost.items():
        has, remedy = LOST[code]
        yield f"{code}: {_rows(loss)} {has.format(title=title)} ({_first(loss)}); --lossy: {remedy}"


def warned(result: ExportResult) -> Iterable[str]:
    """One sentence per reason for which something was lost, and per warning."""
    for code, loss in result.lost.items():
        yield f"{code}: {_rows(loss)}: {LOST[code][1]} ({_first(loss)})"
    for code, loss in result.warnings.items():
        yield f"{code}: {_rows(loss)} {WARNINGS[code]} ({_first(loss)})"


def _rows(loss: Loss) -> str:
    return counted(loss.rows, "row")


def _first(loss: Loss) -> str:
    words = "such as " if loss.rows > 1 else ""
    return f"{words}{shown(loss.id, 60)} of split {loss.split}"
