"""The models of the format and the JSON Schemas made from them."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from phi3v_data.errors import NotFoundError
from phi3v_data.schema import Diagnostic, Manifest, RejectRow, Report, Sample, SplitInfo, Summary, Turn
from phi3v_data.schema_files import SCHEMAS, json_schema, to_text

ROOT = Path(__file__).parents[1]
SAMPLE_ROW = (
    '{"id": "val-0000000300", "source": "ucf101", "conversations": [{"images": '
    '["val/BabyCrawling/v_BabyCrawling_g21_c04.0.jpg", "val/BabyCrawling/v_BabyCrawling_g21_c04.1.jpg"], "user": '
    '"Classify the video into one of the following classes: ApplyEyeMakeup, ApplyLipstick, Archery, BabyCrawling, '
    'BalanceBeam, BandMarching, BaseballPitch, Basketball, BasketballDunk, BenchPress.", "assistant": "BabyCrawling"}]}'
)


def test_a_row_of_the_phi35_vision_sample_loads_and_is_written_back_byte_for_byte() -> None:
    sample = Sample.from_json(SAMPLE_ROW)
    assert sample.conversations[0].assistant == "BabyCrawling"
    assert sample.images[1].endswith(".1.jpg")
    assert sample.to_json(plain=True) == sample.to_json() == SAMPLE_ROW


def test_optional_keys_are_written_only_when_set_and_in_order() -> None:
    turn = Turn(images=("a.png", "b.png"), user="one two", assistant="x", image_offsets=(0, 4))
    sample = Sample(
        id="a", source="s", conversations=(turn,), system="be brief", answers=("x", "y"), group="g", meta={"k": None}
    )
    row = sample.to_row()
    assert list(row) == ["id", "source", "conversations", "system", "answers", "group", "meta"]
    assert list(row["conversations"][0]) == ["images", "user", "assistant", "image_offsets"]
    assert list(sample.to_row(plain=True)) == ["id", "source", "conversations"]
    assert "image_offsets" not in Turn(images=("a",), user="", assistant="", image_offsets=(0,)).to_row()


def test_a_weight_is_written_only_if_0() -> None:
    row = {"id": "a", "source": "s", "conversations": [{"images": [], "user": "u", "assistant": "a"}]}
    line = json.dumps(row)
    for weight in ({}, {"weight": 1}):
        given = {**row, "conversations": [{**row["conversations"][0], **weight}]}
        sample = Sample.from_json(json.dumps(given))
        assert sample.conversations[0].weight == 1
        assert sample.to_json() == line
    zero = line.replace('"a"}]', '"a", "weight": 0}]')
    sample = Sample.from_json(zero)
    assert sample.to_json() == zero
    assert sample.to_json(plain=True) == line


@pytest.mark.parametrize(
    "change",
    [
        {"id": 3},
        {"id": ""},
        {"source": None},
        {"conversations": []},
        {"conversations": [{"user": "u"}]},
        {"conversations": [{"user": "u", "assistant": "a", "images": "x.png"}]},
        {"conversations": [{"user": "u", "assistant": "a", "images": [1]}]},
        {"conversations": [{"user": "u", "assistant": "a", "image_offsets": [-1]}]},
        {"conversations": [{"user": "u", "assistant": "a", "image_offsets": [1.0]}]},
        {"conversations": [{"user": "u", "assistant": "a", "weight": 2}]},
        {"conversations": [{"user": "u", "assistant": "a", "weight": 1.0}]},
        {"conversations": [{"user": "u", "assistant": "a", "weight": True}]},
        {"conversations": [{"user": "u", "assistant": "a", "extra": 1}]},
        {"extra": 1},
        {"answers": "x"},
        {"meta": {"a": [1]}},
        {"meta": {"a": {"b": 1}}},
        {"system": True},
    ],
)
def test_rows_that_are_almost_right_are_refused(change: dict[str, Any]) -> None:
    row = {"id": "a", "source": "s", "conversations": [{"images": [], "user": "u", "assistant": "a"}]}
    Sample.from_json(json.dumps(row))
    with pytest.raises(ValidationError):
        Sample.from_json(json.dumps({**row, **change}))


def test_models_are_frozen_and_shareable() -> None:
    sample = Sample.from_json(SAMPLE_ROW)
    with pytest.raises(ValidationError):
        sample.id = "other"  # type: ignore[misc]  # that is what must fail
    assert isinstance(sample.conversations, tuple)
    assert isinstance(sample.conversations[0].images, tuple)


def test_numbers_that_json_cannot_spell_are_refused() -> None:
    with pytest.raises(ValidationError):
        Manifest.model_validate_json('{"format": 1, "name": "d", "task": "chat", "splits": {}, "num_crops": NaN}')
    with pytest.raises(ValueError, match="JSON"):
        Sample.from_json(SAMPLE_ROW).model_copy(update={"meta": {"a": float("nan")}}).to_json()


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | text
)
turns = st.builds(
    Turn,
    images=st.lists(text, max_size=3),
    user=text,
    assistant=text,
    image_offsets=st.lists(st.integers(1, 9), max_size=3),
    weight=st.integers(0, 1),
)
samples = st.builds(
    Sample,
    id=text.filter(bool),
    source=text,
    conversations=st.lists(turns, min_size=1, max_size=3),
    system=text,
    answers=st.lists(text, max_size=3),
    group=text,
    meta=st.dictionaries(text, scalars, max_size=3),
)
names = st.from_regex(r"[A-Za-z0-9][a-z0-9_-]{0,8}", fullmatch=True)
manifests = st.builds(
    Manifest,
    name=st.just("") | names.map("d{}".format),
    task=st.sampled_from(["classification", "vqa", "chat"]),
    metrics=st.lists(text, max_size=2),
    splits=st.dictionaries(
        names,
        st.builds(
            SplitInfo,
            rows=st.integers(0, 99),
            images=st.integers(0, 99),
            files=st.dictionaries(names.map("d_{}.jsonl".format), text),
        ),
        max_size=2,
    ),
    classes=st.lists(text, max_size=3),
    num_crops=st.none() | st.integers(1, 16),
    rejects=st.dictionaries(text, st.integers(0, 9), max_size=2),
)


@given(samples)
@settings(max_examples=150, deadline=None)
def test_write_read_write_is_the_identity_for_samples(sample: Sample) -> None:
    line = sample.to_json()
    assert "\n" not in line
    again = Sample.from_json(line)
    assert again == sample
    assert again.to_json() == line


@given(manifests)
@settings(max_examples=50, deadline=None)
def test_write_read_write_is_the_identity_for_manifests(manifest: Manifest) -> None:
    assert Manifest.model_validate_json(manifest.to_json()) == manifest


def test_the_report_reads_back() -> None:
    found = Diagnostic(code="bom", severity="warning", file="a.jsonl", line=1, message="m")
    summary = Summary(samples=1, turns=1, images=0, splits={"train": 1}, problems={"bom": 1})
    report = Report(dir="d", ok=True, level="quick", summary=summary, problems=(found,), stats={"turns": {"1": 1}})
    value = json.loads(report.model_dump_json())
    assert Report.model_validate_json(json.dumps(value)) == report
    assert list(value) == ["format", "dir", "ok", "level", "summary", "problems", "stats"]
    assert list(value["problems"][0]) == ["code", "severity", "file", "line", "id", "field", "message", "hint"]


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_schema_files_are_those_of_the_models(name: str) -> None:
    committed = (ROOT / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8")
    assert committed == to_text(json_schema(name)), "the models have moved on: run `make docs`"


def test_there_are_no_other_schema_files_of_the_format() -> None:
    ours = {
        path.name.removesuffix(".schema.json")
        for path in (ROOT / "schemas").glob("*.schema.json")
        if json.loads(path.read_text())["$id"].startswith("urn:phi3v:format-1:")
    }
    assert ours == set(SCHEMAS)


@pytest.mark.parametrize(("model", "name"), [(Sample, "sample"), (Manifest, "manifest"), (RejectRow, "reject")])
def test_schemas_are_closed_and_name_every_field(model: type[BaseModel], name: str) -> None:
    schema = json_schema(name)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["additionalProperties"] is False
    assert list(schema["properties"]) == list(model.model_fields)
    required = [field for field, info in model.model_fields.items() if info.is_required()]
    assert schema["required"] == required


def test_every_field_of_a_row_is_documented() -> None:
    schema = json_schema("sample")
    assert schema["$defs"]["Turn"]["properties"]["image_offsets"]["description"]
    assert all("title" not in value for value in schema["properties"].values())


def test_the_examples_in_the_page_on_the_format_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
    blocks = dict(re.findall(r"```(json|python)\n(.*?)```", page, re.DOTALL))
    sample = Sample.from_json(blocks["json"])
    assert sample.to_json() + "\n" == blocks["json"]
    (tmp_path / "ucf101_train.jsonl").write_text(blocks["json"] * 2)
    for name in sample.images:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"jpg")
    exec(compile(blocks["python"].replace("demo_out/ucf101", str(tmp_path)), "format.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "2 val-0000000300 BabyCrawling"
    assert printed[1:] == ["[3]", "[3]"]


def test_an_unknown_schema_is_named() -> None:
    with pytest.raises(NotFoundError, match="no schema 'samples'; did you mean 'sample'"):
        json_schema("samples")
