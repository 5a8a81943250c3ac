"""Prediction records: what `predictions.jsonl` holds, a line for each generated answer.

{"id": "val-0000000300", "split": "val", "turn": 0, "prediction": "Yes", "answers": ["Yes"],
 "scores": {"yes": 0.81, "no": 0.12}, "meta": {"source_id": "42953"}}
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypedDict, cast

from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.jsonl import read_lines


class Prediction(TypedDict):
    """One generated answer.

    `turn` counts from 0. `answers` are the accepted ones, empty in an unlabelled split. `scores` holds the
    probabilities of `yes` and `no` at the first token of the answer. `meta` is the row's.
    """

    id: str
    split: str
    turn: int
    prediction: str
    answers: list[str]
    scores: dict[str, float]
    meta: dict[str, Any]


FIELD_KINDS: dict[str, tuple[type, str]] = {
    "id": (str, "a string"),
    "split": (str, "a string"),
    "turn": (int, "a whole number, from 0"),
    "prediction": (str, "a string"),
    "answers": (list, "a list of strings"),
    "scores": (dict, "an object of numbers"),
    "meta": (dict, "an object"),
}
"""Fields of a record, their Python type, and its description in errors."""

NO_TURN = -1
"""Turn of a record without one, which will be completed: the last turn of its row that is predicted."""

DEFAULTS: Mapping[str, Any] = {"split": "", "turn": 0, "scores": {}}
"""Fields that a file of the user's own may leave out."""


def read_predictions(path: Path, *, completed: bool = False) -> list[Prediction]:
    """Read a file of predictions, ours or a user's own.

    Args:
        path: the JSONL file.
        completed: `answers` and `meta` may be missing, because they will be taken from the dataset.

    Raises:
        UserError: no such file, a line that is not a record (line, field and what was expected), or two records of one
            answer.
    """
    defaults = {**DEFAULTS, **({"answers": [], "meta": {}, "turn": NO_TURN} if completed else {})}
    records: list[Prediction] = []
    seen: dict[tuple[str, str, int], int] = {}
    try:
        for line in read_lines(path):
            if not line.data.strip():
                continue
            record = _parse(line.data, f"{path}:{line.number}", defaults)
            key = (record["split"], record["id"], record["turn"])
            if key in seen:
                raise UserError(
                    f"{path}:{line.number} id: {record['id']!r} (turn {record['turn']}) was predicted in line "
                    f"{seen[key]} already: keep one of them"
                )
            seen[key] = line.number
            records.append(record)
    except FileNotFoundError:
        raise NotFoundError(f"{path}: the file does not exist") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if not records:
        raise UserError(f"{path}: contains no predictions")
    return records


def _parse(data: bytes, place: str, defaults: Mapping[str, Any]) -> Prediction:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise UserError(f"{place}: not JSON ({error})") from None
    except RecursionError:
        raise UserError(f"{place}: nested too deeply for a prediction") from None
    return check_record(value, place, defaults)


def check_record(value: Any, place: str, defaults: Mapping[str, Any] = MappingProxyType({})) -> Prediction:
    """A parsed record, completed with the `defaults`; `place` names it in errors.

    Raises:
        UserError: it is not a record.
    """
    if not isinstance(value, dict):
        raise UserError(f"{place}: expected a JSON object, a prediction")
    result: dict[str, Any] = {}
    for field, (kind, words) in FIELD_KINDS.items():
        if field not in value and field in defaults:
            value[field] = defaults[field]
        if field not in value:
            advice = (
                "; give --data_dir and --eval_split to take it from the dataset" if field in ("answers", "meta") else ""
            )
            raise UserError(f"{place} {field}: missing; expected {words}{advice}")
        if field == "prediction" and value[field] is None:
            raise UserError(f"{place} prediction: null; a missing prediction is not scored as a wrong one: predict it")
        if not isinstance(value[field], kind) or isinstance(value[field], bool):
            raise UserError(f"{place} {field}: expected {words}")
        result[field] = value[field]
    if not all(isinstance(answer, str) for answer in result["answers"]):
        raise UserError(f"{place} answers: expected a list of strings")
    if not all(isinstance(each, int | float) and not isinstance(each, bool) for each in result["scores"].values()):
        raise UserError(f"{place} scores: expected an object of numbers")
    return cast(Prediction, result)


def complete_from(records: Sequence[Prediction], truth: Sequence[Prediction], where: str) -> list[Prediction]:
    """Take `answers` and `meta` of each record from the dataset; in the dataset's order.

    Args:
        records: predictions.
        truth: records from the dataset, one per prompt; their `prediction` is not used.
        where: names the dataset in errors.

    Raises:
        UserError: a prediction is missing, or one is for a sample that the dataset does not have.
    """
    last = {each["id"]: each["turn"] for each in truth}
    given = {
        (record["id"], last.get(record["id"], 0) if record["turn"] == NO_TURN else record["turn"]): record
        for record in records
    }
    missing = [each for each in truth if (each["id"], each["turn"]) not in given]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(truth)} predictions are missing, the first is that of {missing[0]['id']!r} (turn "
            f"{missing[0]['turn']}) of {where}: predict them, a missing one is not scored as a wrong one"
        )
    known = {(each["id"], each["turn"]) for each in truth}
    strange = next((key for key in given if key not in known), None)
    if strange is not None:
        raise UserError(f"{where} has no sample {strange[0]!r} (turn {strange[1]}), which is among the predictions")
    return [_with_truth(given[each["id"], each["turn"]], each) for each in truth]


def _with_truth(record: Prediction, truth: Prediction) -> Prediction:
    return Prediction(
        id=record["id"],
        split=truth["split"],
        turn=truth["turn"],
        prediction=record["prediction"],
        answers=truth["answers"],
        scores=record["scores"],
        meta=truth["meta"],
    )


def ids_of(records: Sequence[Prediction]) -> Iterator[str]:
    """Ids of the rows behind the records, each once, in order."""
    return iter(dict.fromkeys(record["id"] for record in records))
