"""`weight` of a turn: 0 or 1; a row whose turns all have 0 is an error, rows that train other turns are no copies."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from validate_builders import found, line, places, row, turn, write

from phi3v_data.schema import Report, Sample
from phi3v_data.validate import validate
from phi3v_data.validate.control import control_tokens
from phi3v_data.validate.templates import learn_template

TEXTS = st.sampled_from(["0", "1", "-0", "2", "-1", "1.0", "0.0", "1e0", "true", "false", "null", '"1"', "[1]", "10"])


def spelled(row_id: str, *weights: str | None) -> str:
    """A line whose turns have these JSON texts as weights, None for a turn without."""
    text = line(row(row_id, *(turn(f"q{n} {row_id}", weight=f"@{n}@") for n in range(len(weights)))))
    for n, weight in enumerate(weights):
        text = text.replace(f', "weight": "@{n}@"', f', "weight": {weight}' if weight else "")
    return text


def check(directory: Path, files: dict[str, str], *, least: int = 1) -> Report:
    """The report, with templates learned from rows of which there are `least`."""
    write(directory, dict(files))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("phi3v_data.validate.templates.MIN_ROWS", least)
        return validate(directory, use_receipt=False)


@given(st.lists(st.none() | TEXTS, min_size=1, max_size=3), st.booleans())
@settings(max_examples=80, deadline=None)
def test_the_validator_takes_the_weights_that_the_model_takes(
    tmp_path_factory: pytest.TempPathFactory, weights: list[str | None], extra: bool
) -> None:
    """The quick reader, the reader of bad lines (with an `extra` key) and Pydantic agree, field by field."""
    text = spelled("r", *weights)
    try:
        Sample.from_json(text)
        wrong: set[str] = set()
    except ValidationError as error:
        wrong = {f"conversations[{each['loc'][1]}].weight" for each in error.errors() if each["loc"][2:] == ("weight",)}
    valid = text.replace('"source"', '"extra": 1, "source"') if extra else text
    for least in (1, 1 << 30):
        report = check(tmp_path_factory.mktemp("d"), {"train.jsonl": valid}, least=least)
        assert {each.field for each in found(report, "wrong-type")} == wrong
        assert bool(found(report, "unknown-field")) is extra
        assert bool(found(report, "nothing-trained")) is (set(weights) <= {"0", "-0"})


def test_rows_with_weights_are_read_at_once_and_a_weight_given_twice_is_seen(tmp_path: Path) -> None:
    text = spelled("a", "0", "1")
    assert learn_template(text.encode(), control_tokens()) is not None
    assert learn_template(spelled("a", "0", "0").encode(), control_tokens()) is None
    for least in (1, 1 << 30):
        twice = text.replace('"weight": 0', '"weight": 0, "weight": 1')
        report = check(tmp_path, {"train.jsonl": spelled("b", "0", None) + twice}, least=least)
        assert places(report, "duplicate-key") == [("train.jsonl", 2, "conversations[0].weight")]
        assert set(report.summary.problems) == {"duplicate-key"}


def test_a_wrong_weight_is_named_with_line_and_field(tmp_path: Path) -> None:
    report = check(tmp_path, {"train.jsonl": spelled("a", None) + spelled("b", "1", "2")})
    (problem,) = report.problems
    assert (problem.code, problem.line, problem.id) == ("wrong-type", 2, "b")
    assert problem.field == "conversations[1].weight"
    assert problem.message == "must be 0 (context only) or 1 (trained), not the number 2"


@pytest.mark.parametrize("least", [1, 1 << 30])
def test_a_row_that_trains_nothing_is_named(tmp_path: Path, least: int) -> None:
    lines = [spelled(f"r{n}", "0", "1") for n in range(40)]
    lines[7] = spelled("none", "0", "0")
    lines[9] = spelled("one", "0")
    lines[11] = spelled("off", "0", None)
    report = check(tmp_path, {"train.jsonl": "".join(lines), "val.jsonl": spelled("held", "0")}, least=least)
    assert places(report, "nothing-trained") == [
        ("train.jsonl", 8, "conversations"),
        ("train.jsonl", 10, "conversations"),
        ("val.jsonl", 1, "conversations"),
    ]
    assert set(report.summary.problems) == {"nothing-trained"}
    assert report.ok is False
    assert "all 2 turns have weight 0" in found(report, "nothing-trained")[0].message


def test_rows_that_train_other_turns_are_no_duplicates_but_leak(tmp_path: Path) -> None:
    def of(row_id: str, first: int, second: int) -> str:
        return line(row(row_id, turn("q", "a", weight=first), turn("r", "b", weight=second)))

    plain = line(row("d", turn("q", "a"), turn("r", "b")))
    report = check(
        tmp_path,
        {
            "train.jsonl": of("a", 0, 1) + of("b", 1, 0) + of("c", 0, 1) + plain + of("e", 1, 1),
            "val.jsonl": of("f", 0, 1) + of("g", 1, 0) + of("h", 0, 1),
        },
    )
    assert places(report, "duplicate-sample") == [
        ("train.jsonl", 3, None),
        ("train.jsonl", 5, None),
        ("val.jsonl", 3, None),
    ]
    assert [each.id for each in found(report, "leak-sample")] == ["f", "g"]
