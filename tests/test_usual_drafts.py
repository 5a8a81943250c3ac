"""A draft of the usual types becomes a row without the format's models: the same line, or the same reject."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3v_data.draft import Draft, DraftTurn
from phi3v_data.errors import Reject
from phi3v_data.schema import ToolStep
from phi3v_data.writing import rows
from phi3v_data.writing.rows import RowSettings, Slot, make_row, make_sample, to_line

CAT = (Path(__file__).parent / "data" / "chat_formats" / "llava" / "images" / "cat.jpg").read_bytes()
SLOT = Slot(7, "train", "rows.json[7]", "g")


class Word(str):
    """A text of another class."""


TEXTS = st.sampled_from(
    [
        "What?",
        "A cat.",
        "",
        " \n",
        '"quoted" \\n \\u0000',
        "a\0b",
        "\x1f\x7f",
        "漢字 \U0001f600 é",
        "\u2028",
        "\ud800",
        "</>",
    ]
)
ODD: st.SearchStrategy[Any] = st.sampled_from([None, 3, True, 1.5, b"x", ["a"], ("a",), {"a": 1}, Word("word")])
SCALARS: st.SearchStrategy[Any] = st.one_of(
    TEXTS, st.sampled_from([None, True, 0, -1, 2**63, 10**40, 0.1, -0.0, 1e16, float("nan"), Word("word"), b"x", [1]])
)
IMAGES: st.SearchStrategy[Any] = st.sampled_from([(), [], [CAT], (CAT, CAT), [b"no image"], "cat.jpg", [3]])


@st.composite
def turns(draw: st.DrawFn) -> Any:
    turn = DraftTurn(draw(TEXTS), draw(st.one_of(st.just("A cat."), TEXTS)), draw(st.sampled_from([(), [CAT]])))
    odd: dict[str, Any] = {
        "user": ODD,
        "assistant": ODD,
        "images": IMAGES,
        "image_offsets": st.sampled_from([[0], (1,), [9], [True], "1", (0, 1)]),
        "weight": st.sampled_from([0, 1, 2, True, None, 1.0]),
        "steps": st.sampled_from([[], [ToolStep(calls=("{}",), results=("1",))], [3]]),
    }
    name = draw(st.sampled_from(["", "", "", *odd]))
    if not name:
        return turn
    values = {field: getattr(turn, field) for field in odd}
    return DraftTurn(**{**values, name: draw(odd[name])})


@st.composite
def drafts(draw: st.DrawFn) -> Any:
    values: dict[str, Any] = {"turns": draw(st.lists(turns(), min_size=1, max_size=3))}
    if draw(st.booleans()):
        values = {"user": draw(TEXTS), "assistant": draw(TEXTS), "images": draw(IMAGES)}
    more: dict[str, Any] = {
        "system": st.one_of(TEXTS, ODD),
        "answers": st.one_of(st.lists(TEXTS, max_size=2), ODD),
        "group": st.one_of(TEXTS, ODD),
        "meta": st.one_of(st.dictionaries(st.one_of(TEXTS, st.just(Word("key"))), SCALARS, max_size=3), ODD),
        "notes": st.sampled_from([(), ["frames-repeated"], ["No code"], "x"]),
        "rejected": st.sampled_from(["", "A dog.", " "]),
        "tools": st.sampled_from(["", "[]"]),
        "turns": st.sampled_from([(), [3], "x"]),
    }
    for name in draw(st.lists(st.sampled_from([*more]), max_size=2, unique=True)):
        values[name] = draw(more[name])
    return Draft(**values)


def in_full(draft: Any, row_settings: RowSettings) -> Any:
    sample, prepared, notes = make_sample(SLOT, draft, row_settings)
    return to_line(sample, plain=row_settings.plain), prepared, notes


def outcome(make: Any, draft: Any, row_settings: RowSettings) -> Any:
    """Result of `make`, or the error that it raises."""
    try:
        line, prepared, notes = make(draft, row_settings)
    except Exception as error:  # a draft may be of any shape
        return type(error), str(error)
    return line, {name: image.record for name, image in prepared.items()}, notes


@settings(max_examples=300)
@given(
    draft=drafts(),
    row_settings=st.sampled_from(
        [
            RowSettings("made"),
            RowSettings("made"),
            RowSettings("made", plain=True),
            RowSettings("", all_unlabelled=True),
        ]
    ),
)
def test_a_draft_becomes_the_same_row_or_reject_as_through_the_models(draft: Any, row_settings: RowSettings) -> None:
    quick = outcome(lambda draft, row_settings: make_row(SLOT, draft, row_settings), draft, row_settings)
    assert quick == outcome(in_full, draft, row_settings)


def test_a_usual_draft_does_not_reach_the_models(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> Any:
        raise AssertionError("made through the models")

    monkeypatch.setattr(rows, "make_sample", refuse)
    draft = Draft(
        turns=[DraftTurn("What?", "A cat.", [CAT]), DraftTurn("Sure?", 'Yes, "é".', weight=0)],
        system="Short.",
        answers=("cat",),
        meta={"source_id": "r7", "n": 3, "ok": None},
    )
    line, prepared, notes = make_row(SLOT, draft, RowSettings("made"))
    [name] = prepared
    assert line == (
        '{"id": "train-0000000007", "source": "made", "conversations": [{"images": ["' + name + '"], "user": "What?", '
        '"assistant": "A cat."}, {"images": [], "user": "Sure?", "assistant": "Yes, \\"é\\".", "weight": 0}], '
        '"system": "Short.", "answers": ["cat"], "group": "g", "meta": {"source_id": "r7", "n": 3, "ok": null}}'
    )
    assert notes == ()
    with pytest.raises(AssertionError, match="through the models"):
        make_row(SLOT, Draft(user="What?", assistant="A cat.", meta={"n": 0.5}), RowSettings("made"))


def test_a_draft_without_a_trained_answer_is_a_reject() -> None:
    draft = Draft(turns=[DraftTurn("What?", "A cat.", weight=0), DraftTurn("Sure?", "Yes.", weight=0)])
    with pytest.raises(Reject) as reject:
        make_row(SLOT, draft, RowSettings("made"))
    assert reject.value.code == "nothing-trained"


def test_an_image_makes_the_same_reject() -> None:
    draft = Draft(user="What?", assistant="A cat.", images=[b"no image"])
    with pytest.raises(Reject) as full:
        in_full(draft, RowSettings("made"))
    with pytest.raises(Reject) as quick:
        make_row(SLOT, draft, RowSettings("made"))
    assert (quick.value.code, quick.value.message) == (full.value.code, full.value.message)
