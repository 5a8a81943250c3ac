"""Shards for MosaicML streaming, read as the format is described; benchmarks/formats runs the package itself."""

import hashlib
import json
import os
import re
import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from five_samples import FIVE, FULL, image_bytes, write_set
from PIL import Image

from phi3v_data.choices import ImageRefs
from phi3v_data.errors import UserError
from phi3v_data.exporting import ExportRequest, LossyError, export_set
from phi3v_data.schema import Sample, Turn


def read_split(folder: Path) -> list[dict[str, Any]]:
    """All samples of a split by its index, values decoded by their encodings; images as bytes."""
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    assert index["version"] == 2
    found = []
    for shard in index["shards"]:
        data = (folder / shard["raw_data"]["basename"]).read_bytes()
        assert len(data) == shard["raw_data"]["bytes"]
        assert shard["hashes"] == ["sha256"]
        assert shard["raw_data"]["hashes"] == {"sha256": hashlib.sha256(data).hexdigest()}
        (number,) = struct.unpack_from("<I", data)
        assert number == shard["samples"]
        offsets = struct.unpack_from(f"<{number + 1}I", data, 4)
        header = json.loads(data[4 * (number + 2) : offsets[0]])
        assert header == {key: value for key, value in shard.items() if key not in ("raw_data", "zip_data", "samples")}
        assert (header["format"], header["compression"], shard["zip_data"]) == ("mds", None, None)
        assert header["column_names"] == sorted(header["column_names"])
        assert header["column_sizes"] == [None] * len(header["column_names"])
        assert offsets[-1] == len(data)
        for start, stop in pairwise(offsets):
            found.append(decoded(data[start:stop], header["column_names"], header["column_encodings"]))
    return found


def decoded(data: bytes, names: list[str], encodings: list[str]) -> dict[str, Any]:
    sizes = struct.unpack_from(f"<{len(names)}I", data)
    at = 4 * len(names)
    row = {}
    for name, encoding, size in zip(names, encodings, sizes, strict=True):
        value = data[at : at + size]
        at += size
        if name == "images":
            zero, number = struct.unpack_from("<2I", value)
            assert zero == 0
            lengths = struct.unpack_from(f"<{number}I", value, 8)
            begin = 8 + 4 * number
            row[name] = []
            for length in lengths:
                row[name].append(value[begin : begin + length])
                begin += length
            assert begin == size
        else:
            row[name] = {"str": bytes.decode, "json": json.loads}[encoding](value)
    assert at == len(data)
    return row


def encodings(folder: Path) -> dict[str, str]:
    shard = json.loads((folder / "index.json").read_text())["shards"][0]
    return dict(zip(shard["column_names"], shard["column_encodings"], strict=True))


def messages_of(sample: Sample, *, weights: bool) -> list[dict[str, Any]]:
    """Blocks in the order of text and images."""
    found: list[dict[str, Any]] = []
    if sample.system:
        found.append({"role": "system", "content": [{"type": "text", "text": sample.system}]})
    for turn in sample.conversations:
        blocks: list[dict[str, Any]] = []
        at = 0
        for offset in turn.image_offsets or (0,) * len(turn.images):
            if offset > at:
                blocks.append({"type": "text", "text": turn.user[at:offset]})
            blocks.append({"type": "image"})
            at = offset
        if turn.user[at:]:
            blocks.append({"type": "text", "text": turn.user[at:]})
        answer: dict[str, Any] = {"role": "assistant", "content": [{"type": "text", "text": turn.assistant}]}
        found += [{"role": "user", "content": blocks}, {**answer, "weight": turn.weight} if weights else answer]
    return found


def test_every_column_of_every_row_is_read_back_with_the_original_bytes_of_images(tmp_path: Path) -> None:
    rows = (*FIVE, FULL)
    source = write_set(tmp_path / "set", rows)
    write_set(source, FIVE[:2], "val")
    result = export_set("mosaicml", source, tmp_path / "mds")
    assert (result.rows, result.images, result.left_out) == ({"train": 6, "val": 2}, 10, {})
    assert sorted(os.listdir(tmp_path / "mds")) == [".phi3v", "train", "val"]
    assert sorted(os.listdir(tmp_path / "mds" / "train")) == ["index.json", "shard.00000.mds"]
    found = read_split(tmp_path / "mds" / "train")
    assert [row["id"] for row in read_split(tmp_path / "mds" / "val")] == ["chat-0001", "chat-0002"]
    for sample, row in zip(rows, found, strict=True):
        assert row == {
            "id": sample.id,
            "images": image_bytes(source, sample),
            "messages": messages_of(sample, weights=True),
            "answers": list(sample.answers),
            "group": sample.group,
            "meta": sample.meta,
        }


@pytest.mark.parametrize(
    ("suffixes", "encoding"),
    [(("jpg", "jpg"), "list[jpeg]"), (("png", "png"), "list[png]"), (("jpg", "png"), "bytes"), (("webp",), "bytes"),
     ((), "list[jpeg]")],
)  # fmt: skip
def test_the_encoding_of_images_is_that_of_their_content(
    suffixes: tuple[str, ...], encoding: str, tmp_path: Path
) -> None:
    """A set whose images are not all JPEG or all PNG has a column of bytes, and the export says how to open them."""
    names = tuple(f"{number}.{suffix}" for number, suffix in enumerate(suffixes))
    rows = [
        Sample(id="a", source="s", conversations=(Turn(images=names, user="u", assistant="v"),)),
        Sample(id="b", source="s", conversations=(Turn(user="u", assistant="w"),)),
    ]
    source = write_set(tmp_path / "set", rows)
    for name in names[:1]:  # a name that says something else
        data = (source / "images" / name).read_bytes()
        (source / "images" / name).unlink()
        renamed = name.partition(".")[0] + ".bmp"
        (source / "images" / renamed).write_bytes(data)
        text = (source / "train.jsonl").read_text().replace(name, renamed)
        (source / "train.jsonl").write_text(text)
    result = export_set("mosaicml", source, tmp_path / "mds")
    assert encodings(tmp_path / "mds" / "train") == {"id": "str", "images": encoding, "messages": "json"}
    assert [len(row["images"]) for row in read_split(tmp_path / "mds" / "train")] == [len(names), 0]
    assert any("mds_decode('list[jpeg]', sample['images'])" in note for note in result.notes) == (encoding == "bytes")


def test_shards_are_below_their_size_in_order_and_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    rows = [
        Sample(
            id=f"r{n}",
            source="s",
            system="s" * (n % 2),
            conversations=(Turn(images=(f"{n % 9}.png",) * (n % 10 // 8), user="u", assistant="v"),) * (1 + n % 9),
            meta={"k": 1e15, "l": n} if n % 5 == 0 else {},
        )
        for n in range(300)
    ]
    rows[3] = Sample(id="r3", source="s", conversations=(Turn(user="u", assistant=""),))
    source = write_set(tmp_path / "set", rows)
    write_set(source, rows[3:4], "val")
    request = ExportRequest(shard_bytes=12_000, lossy=True)
    results = [export_set("mosaicml", source, tmp_path / str(workers), request, workers=workers) for workers in (0, 2)]
    assert {result.rows["train"] for result in results} == {299}
    assert results[0].notes == ("without rows, and left out: val",)
    one, two = (
        {str(path.relative_to(tmp_path / out)): path.read_bytes() for path in (tmp_path / out / "train").iterdir()}
        for out in ("0", "2")
    )
    assert one == two
    assert sorted(one) == ["train/index.json", *(f"train/shard.{number:05}.mds" for number in range(len(one) - 1))]
    assert len(one) > 10
    assert max(map(len, (data for name, data in one.items() if name.endswith(".mds")))) <= 12_000
    assert [row["id"] for row in read_split(tmp_path / "0" / "train")] == [f"r{n}" for n in range(300) if n != 3]


def test_a_shard_has_at_most_64_mib_unless_asked_and_4_gib_ever(tmp_path: Path) -> None:
    source = write_set(tmp_path / "set")
    export_set("mosaicml", source, tmp_path / "mds")
    index = json.loads((tmp_path / "mds" / "train" / "index.json").read_text())
    assert index["shards"][0]["size_limit"] == 67_108_864
    with pytest.raises(UserError, match=r"--shard_mb 5000: a shard of mosaicml must be smaller than 4295 MB"):
        export_set("mosaicml", source, tmp_path / "big", ExportRequest(shard_bytes=5_000_000_000))


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (Sample(id="p", source="s", conversations=(Turn(user="u", assistant="v"),), rejected="w"), "preference-pair"),
        (Sample(id="t", source="s", conversations=(Turn(user="u", assistant="v"),), tools="[]"), "tool-turn"),
        (Sample(id="n", source="s", conversations=(Turn(user="u", assistant=" "),)), "no-answer"),
    ],
)
def test_what_it_cannot_carry_is_refused_or_counted(row: Sample, code: str, tmp_path: Path) -> None:
    source = write_set(tmp_path / "set", [*FIVE[:1], row])
    with pytest.raises(LossyError) as caught:
        export_set("mosaicml", source, tmp_path / "mds")
    assert (list(caught.value.lost), caught.value.title) == ([code], "MosaicML streaming")
    assert not (tmp_path / "mds").exists()
    result = export_set("mosaicml", source, tmp_path / "mds", ExportRequest(lossy=True))
    assert {name: loss.rows for name, loss in result.lost.items()} == {code: 1}
    assert result.rows == {"train": 1 if code == "no-answer" else 2}


@pytest.mark.parametrize("option", [{"layout": "uniform"}, {"image_refs": ImageRefs.data}])
def test_options_of_other_formats_are_refused(option: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=re.escape("is not possible with mosaicml")):
        export_set("mosaicml", write_set(tmp_path / "set"), tmp_path / "mds", ExportRequest(**option))


def test_an_image_that_is_not_one_is_named_before_anything_is_written(tmp_path: Path) -> None:
    source = write_set(tmp_path / "set")
    (source / "images" / "cup.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"cup\.jpg"):
        export_set("mosaicml", source, tmp_path / "mds")
    assert not (tmp_path / "mds").exists()
    Image.new("RGB", (9, 9)).save(source / "images" / "cup.jpg", format="PNG")
    export_set("mosaicml", source, tmp_path / "mds")
