"""A folder with files of another tool is told what it is, instead of a finding for every line."""

import json
from pathlib import Path
from typing import Any

import pytest

from phi3v_data.errors import UserError
from phi3v_data.validate import validate

TAGGED = {"conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]}
BLOCKS = [
    {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]},
    {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
]
STRINGS = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "A cat."}]


@pytest.mark.parametrize(("name", "rows", "more", "said"), [
    ("data.json", [{**TAGGED, "image": "cat.jpg"}] * 3, {}, "'data.json' has rows in the format llava"),
    ("train.jsonl", [{"messages": BLOCKS, "images": ["cat.jpg"]}], {}, "'train.jsonl' has rows in the format trl"),
    ("train.jsonl", [{"messages": STRINGS}], {}, "'train.jsonl' has rows in the format swift"),
    ("train.json", [{"messages": STRINGS}], {"dataset_info.json": "{}"}, "has rows in the format sharegpt"),
    ("train/metadata.jsonl", [{"images_file_names": [], "messages": BLOCKS}], {},
     "is an image folder of `datasets`: 'train/metadata.jsonl' names its images"),
])  # fmt: skip
def test_one_sentence_names_the_file_and_what_to_do(
    tmp_path: Path, name: str, rows: list[Any], more: dict[str, str], said: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    lines = "\n".join(map(json.dumps, rows))
    path.write_text(json.dumps(rows) if name.endswith(".json") else lines, encoding="utf-8")
    for other, text in more.items():
        (tmp_path / other).write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        validate(tmp_path)
    assert said in str(caught.value)
    assert "phi3v-data import" in str(caught.value)
    assert list(tmp_path.glob(".phi3v/*")) == []


def test_shards_of_mosaicml_are_named(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "shard.00000.mds").write_bytes(b"")
    with pytest.raises(UserError, match=r"MosaicML streaming, as 'train/shard\.00000\.mds' shows, .* not read"):
        validate(tmp_path)


def test_a_folder_with_a_row_of_its_own_is_validated(tmp_path: Path) -> None:
    own = {"id": "1", "source": "s", "conversations": [{"images": [], "user": "Hi", "assistant": "Hello"}]}
    rows = [{"messages": STRINGS}] * 3
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, [own, *rows])), encoding="utf-8")
    report = validate(tmp_path)
    assert report.summary.samples == 4
    assert report.summary.problems["missing-field"] == 9  # id, source and conversations of each foreign row
