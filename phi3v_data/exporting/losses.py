"""Reasons why a format cannot carry a row, as sentences."""

from collections.abc import Iterable, Mapping

from phi3v_data.exporting.request import ExportResult, Loss
from phi3v_data.messages import counted, shown

NO_ANSWER = "no-answer"
LEFT_OUT = "the row is left out"

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
    "preference-pair": (
        "with a rejected answer, which {title} has no place for",
        "only the chosen answer is written",
    ),
    "tool-turn": (
        "with tools or calls of them, which {title} has no place for in this form",
        "they are left out, and the answer follows the question",
    ),
    NO_ANSWER: (
        "without an answer, so that {title} would train an empty one",
        LEFT_OUT,
    ),
}
"""Code -> what a row has, and what `lossy` does about it."""


def refusals(lost: Mapping[str, Loss], title: str) -> Iterable[str]:
    """One sentence per reason."""
    for code, loss in lost.items():
        has, remedy = LOST.get(code, (f"of which the first is over a limit: {loss.why}", LEFT_OUT))
        yield f"{code}: {_rows(loss)} {has.format(title=title)} ({_first(loss)}); --lossy: {remedy}"


def warned(result: ExportResult) -> Iterable[str]:
    """One sentence per reason for which something was lost, and per warning."""
    for code, loss in result.lost.items():
        yield f"{code}: {_rows(loss)}: {LOST[code][1] if code in LOST else LEFT_OUT} ({_first(loss)})"
    for code, loss in result.warnings.items():
        yield f"{code}: {_rows(loss)}: {loss.why} ({_first(loss)})"


def _rows(loss: Loss) -> str:
    return counted(loss.rows, "row")


def _first(loss: Loss) -> str:
    words = "such as " if loss.rows > 1 else ""
    return f"{words}{shown(loss.id, 60)} of split {loss.split}"
