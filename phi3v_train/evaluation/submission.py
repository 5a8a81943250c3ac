"""Predictions in the files that the datasets' own evaluation takes.

    docvqa         a JSON array of {"questionId": 337, "answer": "..."}
    hateful_memes  CSV with the header id,proba,label; proba is P(yes) / (P(yes) + P(no)), label 1 for yes
    nlvr2          CSV without a header, identifier,True or identifier,False

`meta.source_id` is the id that the source gave the row.
"""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi3v_data.errors import UserError
from phi3v_data.files import write_text
from phi3v_train.evaluation.answers import name_of, normalise, yes_share
from phi3v_train.evaluation.metric import Records
from phi3v_train.evaluation.records import Prediction


@dataclass(frozen=True, slots=True)
class SubmissionFormat:
    """The name of the file and the function that makes its text."""

    file: str
    text: Callable[[Records], str]


def docvqa(records: Records) -> str:
    """The array that the DocVQA challenge takes."""
    rows = [{"questionId": _number(source_id(record)), "answer": record["prediction"]} for record in records]
    return json.dumps(rows, ensure_ascii=False, indent=1) + "\n"


def hateful_memes(records: Records) -> str:
    """The CSV of the hateful memes challenge."""
    rows = [(source_id(record), f"{yes_share(record):.6f}", int(says_yes(record))) for record in records]
    return _csv([("id", "proba", "label"), *rows])


def nlvr2(records: Records) -> str:
    """The CSV that NLVR2's evaluation script reads."""
    return _csv([(source_id(record), says_yes(record)) for record in records])


FORMATS = {
    "docvqa": SubmissionFormat("submission.json", docvqa),
    "hateful_memes": SubmissionFormat("submission.csv", hateful_memes),
    "nlvr2": SubmissionFormat("submission.csv", nlvr2),
}
"""Formats by the name of their dataset."""


def write_submission(records: Records, name: str, folder: Path) -> Path:
    """Write the submission file of a format into a folder and return its path.

    Raises:
        UserError: a record lacks `meta.source_id` or scores, or two have the same source id.
    """
    seen: set[str] = set()
    for record in records:
        key = str(source_id(record))
        if key in seen:
            raise UserError(
                f"{name_of(record)}: the source id {key!r} is predicted twice, and --format {name} takes one answer "
                "each; use --eval_turns last or first"
            )
        seen.add(key)
    path = folder / FORMATS[name].file
    write_text(path, FORMATS[name].text(records))
    return path


def source_id(record: Prediction) -> Any:
    """The id that the source gave the row.

    Raises:
        UserError: it was not kept.
    """
    value = record["meta"].get("source_id")
    if value is None:
        raise UserError(
            f"{name_of(record)} has no meta.source_id, the id that the submission names it by; convert the dataset "
            "again with its converter, without --plain"
        )
    return value


def says_yes(record: Prediction) -> bool:
    """Whether the answer is yes or true; another text than yes, no, true, false is decided by the scores."""
    text = normalise(record["prediction"])
    if text in ("yes", "true"):
        return True
    return False if text in ("no", "false") else yes_share(record) >= 0.5


def _number(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value


def _csv(rows: list[tuple[Any, ...]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()
