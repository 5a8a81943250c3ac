"""No message has Pydantic's own words, whatever the wrong value and wherever it was given."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from phi3v_data.dataset import read_manifest
from phi3v_data.errors import UserError
from phi3v_data.formats.dataset_info import read_dataset_info
from phi3v_data.registry import find, names
from phi3v_data.schema import Manifest
from phi3v_data.writing.request import parse_options
from phi3v_train.config import home_groups
from phi3v_train.settings import resolve

PYDANTIC = (
    "nput should",
    "nput is",
    "Field required",
    "xtra inputs",
    "should have",
    "valid ",
    "nable to",
    "Value error",
)
"""Beginnings and pieces of the messages of Pydantic."""

WRONG = ["x", "", -1, 1.5, None, [], {}, [1], ["x"], {"a": 1}, {"a b": 1}, True, math.inf, math.nan, 10**30]


def refusals(tmp_path: Path) -> Iterator[tuple[str, Any, str]]:
    """Field, value and message of everything that is refused: options, settings, dataset.json, dataset_info.json."""

    def refused(field: str, value: Any, read: Any, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Any, str]]:
        try:
            read(*args, **kwargs)
        except UserError as error:
            yield field, value, str(error)

    manifest = {"format": 1, "name": "a", "task": "vqa", "metrics": [], "splits": {}}
    for value in WRONG:
        for name in names():
            for field in find(name).Options.model_fields:
                yield from refused(f"{name} {field}", value, parse_options, find(name), {field: value})
        for field in home_groups():
            yield from refused(field, value, resolve, {field: value})
        for field in Manifest.model_fields:
            (tmp_path / "dataset.json").write_text(json.dumps({**manifest, field: value}))
            yield from refused(field, value, read_manifest, tmp_path)
        for field in ("file_name", "formatting", "columns", "tags", "ranking"):
            yield from refused(field, value, read_dataset_info, json.dumps({"a": {field: value}}))


def test_no_message_has_words_of_pydantic(tmp_path: Path) -> None:
    found = list(refusals(tmp_path))
    assert len(found) > 500
    assert [each for each in found if any(words in each[2] for words in PYDANTIC)] == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"frames": 0}, "--frames of ucf101 must be at least 1, not 0"),
        ({"quality": "high"}, "--quality of ucf101 must be a whole number, not 'high'"),
        ({"image_format": "gif"}, "--image_format of ucf101 must be 'jpeg', 'png' or 'webp', not 'gif'"),
        ({"nope": 1}, "ucf101 has no option 'nope'; its options are "),
    ],
)
def test_options_of_a_converter(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_options(find("ucf101"), options)
    assert str(caught.value).startswith(sentence)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"num_crops": 17}, "num_crops must be at most 16, not 17"),
        ({"labelled": 1}, "labelled is not a known key"),
        ({"splits": {"a": {"rows": "1"}}}, "splits.a.rows must be a whole number, not '1'"),
        (
            {"splits": {"a b": {}}},
            "splits: the name 'a b': a split's name has up to 100 letters, digits, '_', '-' and '.'",
        ),
        ({"task": "poem"}, "task must be 'classification', 'vqa' or 'chat', not 'poem'"),
    ],
)
def test_fields_of_a_manifest(tmp_path: Path, fields: dict[str, Any], sentence: str) -> None:
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps({"format": 1, "name": "a", "task": "vqa", "metrics": [], "splits": {}} | fields))
    with pytest.raises(UserError) as caught:
        read_manifest(tmp_path)
    assert str(caught.value) == f"{path}: {sentence}"


def test_settings_of_a_run_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("use_lora: maybe\nlora_dropout: 1\nmix: [a]\n")
    with pytest.raises(UserError) as caught:
        resolve({}, config_file=file)
    assert str(caught.value) == (
        f"{file}: mix must be a number, not 'a'; {file}: use_lora must be true or false, not 'maybe'; "
        f"{file}: lora_dropout must be below 1, not 1"
    )
