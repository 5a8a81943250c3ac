"""`phi3v-data import webdataset`: our own shards, and the plain convention of `KEY.jpg` beside `KEY.json`."""

import io
import json
import re
import tarfile
from pathlib import Path
from typing import Any

import pytest
from colour_sets import colour_directory
from in_process import Cli, make_cli
from PIL import Image

from phi3v_data.dataset import Dataset
from phi3v_data.errors import UserError
from phi3v_data.exporting import ExportRequest, export_set
from phi3v_data.importing import import_rows
from phi3v_data.jsonl import encode_line
from phi3v_data.schema import Manifest, Sample, SplitInfo, Turn
from phi3v_data.shards.view import data_directory


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return make_cli(capsys, monkeypatch)


def image(colour: str, kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(file, kind)
    return file.getvalue()


def write_shard(path: Path, members: dict[str, Any] | list[tuple[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, value in members.items() if isinstance(members, dict) else members:
            data = value if isinstance(value, bytes) else json.dumps(value).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def content(directory: Path, split: str = "train") -> list[dict[str, Any]]:
    """The rows without ids and names of images, whose bytes stand for them; the id of the source is in `meta`."""
    dataset = Dataset(directory)
    rows = []
    for sample in dataset[split]:
        row = sample.to_row()
        meta = {"source_id": row.pop("id"), **row.pop("meta", {})}
        for turn, value in zip(row["conversations"], sample.conversations, strict=True):
            turn["images"] = [dataset.image_path(name).read_bytes() for name in value.images]
        rows.append({**row, "source": "", "meta": meta})
    return rows


def rejects(directory: Path) -> dict[str, str]:
    lines = (directory / "rejects.jsonl").read_text().splitlines()
    found = [(re.match(r"train\.tar: ([a-z-]+)", row["message"]), row) for row in map(json.loads, lines)]
    return {name[1] if name else row["message"]: row["reason"] for name, row in found}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set with every field that shards carry, in two splits, with two images of the same bytes."""
    root = tmp_path_factory.mktemp("set") / "given"
    (root / "images" / "d").mkdir(parents=True)
    (root / "images" / "d" / "a.jpg").write_bytes(image("red"))
    (root / "images" / "b.png").write_bytes(image("blue", "PNG"))
    (root / "images" / "c.jpg").write_bytes(image("red"))
    turns = (
        Turn(images=("d/a.jpg", "b.png"), user="See <image>: é\n?", assistant="A\u2028b.", image_offsets=(0, 4)),
        Turn(user="Sure?", assistant="Yes.", weight=0),
        Turn(images=("c.jpg",), user="And this?", assistant="Red."),
    )
    full = {"system": "Be brief.", "answers": ("yes", "Yes."), "group": "g", "meta": {"n": 1.5, "k": None}}
    rows = [
        Sample(id="x/1.2", source="s", conversations=turns, **full),  # type: ignore[arg-type]
        *(Sample(id=f"t{n}", source="s", conversations=(Turn(user=f"{n}?", assistant=f"{n}."),)) for n in range(40)),
    ]
    (root / "train.jsonl").write_bytes(b"".join(encode_line(row.to_row()) for row in rows))
    (root / "val.jsonl").write_bytes(encode_line(rows[0].model_copy(update={"id": "v"}).to_row()))
    splits = {name: SplitInfo(rows=1, images=3, files={f"{name}.jsonl": "sha256:0"}) for name in ("train", "val")}
    manifest = Manifest(name="given", task="vqa", metrics=("anls",), splits=splits, license="mit")
    (root / "dataset.json").write_text(manifest.to_json())
    return root


@pytest.mark.parametrize("layout", ["energon", "uniform"])
def test_our_own_shards_come_back_as_the_rows_and_bytes_that_they_were_made_of(
    layout: str, given: Path, tmp_path: Path
) -> None:
    export_set("webdataset", given, tmp_path / "wds", ExportRequest(layout=layout, shard_bytes=2000))
    assert len(list((tmp_path / "wds").glob("train-*.tar"))) > 2
    result = import_rows("webdataset", tmp_path / "wds", tmp_path / "back", workers=0)
    assert (result.rejects, result.warnings, result.notes) == (0, (), ())
    for split in ("train", "val"):
        assert content(tmp_path / "back", split) == [{**row, "source": ""} for row in content(given, split)]
    manifest = Dataset(tmp_path / "back").manifest
    assert manifest is not None
    assert (manifest.name, manifest.task, manifest.metrics, manifest.license) == ("given", "vqa", ("anls",), "mit")


def test_the_bytes_do_not_depend_on_workers_and_a_complete_import_is_not_repeated(given: Path, tmp_path: Path) -> None:
    export_set("webdataset", given, tmp_path / "wds", ExportRequest(shard_bytes=3000))
    trees = []
    for workers in (0, 2):
        out = tmp_path / str(workers)
        import_rows("webdataset", tmp_path / "wds", out, workers=workers)
        trees.append({str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.[jp][spn]*")
                      if ".phi3v" not in path.parts and path.is_file() and path.name != "dataset.json"})  # fmt: skip
    assert trees[0] == trees[1]
    assert import_rows("webdataset", tmp_path / "wds", tmp_path / "0", workers=0).already_complete
    shard = next(path for path in (tmp_path / "wds").glob("*.tar") if b'"39?"' in path.read_bytes())
    shard.write_bytes(shard.read_bytes().replace(b'"39?"', b'"93?"'))
    with pytest.raises(UserError, match=f"the source has changed since: '{shard.name}' has other content; --overwrite"):
        import_rows("webdataset", tmp_path / "wds", tmp_path / "0", workers=0)


def test_an_image_that_was_changed_inside_a_shard_is_noticed_by_a_repeated_import(given: Path, tmp_path: Path) -> None:
    """Although it has the same size and place, so that the plan is the same; a shard that was only copied is not."""
    export_set("webdataset", given, tmp_path / "wds")
    out = tmp_path / "out"
    import_rows("webdataset", tmp_path / "wds", out, workers=0)
    for shard in (tmp_path / "wds").glob("*.tar"):
        shard.write_bytes(shard.read_bytes())
    assert import_rows("webdataset", tmp_path / "wds", out, workers=0).already_complete
    content = bytearray(shard.read_bytes())
    content[content.index(b"\xff\xd9")] ^= 1  # in the last bytes of a JPEG file
    shard.write_bytes(content)
    with pytest.raises(UserError, match=f"the source has changed since: '{shard.name}' has other content; --overwrite"):
        import_rows("webdataset", tmp_path / "wds", out, workers=0)


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"from": "human" if not number % 2 else "gpt", "value": text} for number, text in enumerate(texts)]


def test_plain_samples_get_their_images_by_name_by_number_or_all(cli: Cli, tmp_path: Path) -> None:
    """The JSON is a row of any format; its images have the names of members, other names, or none."""
    red, blue = image("red"), image("blue", "PNG")
    question = talk("<image>\nWhat?", "Red.")
    blocks = [
        {"role": "user", "content": [{"type": "text", "text": "See "}, {"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Red."}]},
    ]
    shard = {
        "a/000.jpg": red, "a/000.json": {"id": 7, "image": "coco/train/1.jpg", "conversations": question},
        "a/001.json": {"image": "a/001.jpg", "conversations": question}, "a/001.jpg": red,
        "a/002.json": {"conversations": question}, "a/002.jpg": red,
        "a/003.0.png": blue, "a/003.1.jpg": red,
        "a/003.json": {"images": ["1.jpg", "0.png"], "conversations": talk("<image><image>\nWhat?", "Red.")},
        "a/004.json": {"messages": blocks}, "a/004.jpg": red,
        "a/005.json": {"conversations": talk("Why?", "So.")}, "a/005.txt": b"why",
    }  # fmt: skip
    write_shard(tmp_path / "wds" / "00000.tar", shard)
    code, _, err = cli("import", "webdataset", tmp_path / "wds", "--out_dir", tmp_path / "back", "--workers", 0)
    assert code == 0, err
    assert "members that are not imported: 'txt'" in err
    rows = content(tmp_path / "back")
    assert [row["meta"]["source_id"] for row in rows] == [
        "7", *(f"00000.tar: a/00{number}" for number in range(1, 6))
    ]  # fmt: skip
    assert [row["conversations"][0]["images"] for row in rows] == [[red], [red], [red], [red, blue], [red], []]
    assert [row["conversations"][0]["user"] for row in rows] == ["What?", "What?", "What?", "What?", "See ", "Why?"]
    assert rows[4]["conversations"][0]["image_offsets"] == [4]


def test_a_single_shard_is_read_without_unpacking_it(cli: Cli, tmp_path: Path) -> None:
    shard = write_shard(
        tmp_path / "in" / "train-000000.tar",
        {"0.json": {"conversations": talk("<image>What?", "Red.")}, "0.jpg": image("red")},
    )
    (tmp_path / "in" / "other.jsonl").write_text("{}\n")
    code, _, err = cli("import", "webdataset", shard, "--out_dir", tmp_path / "back", "--workers", 0)
    assert code == 0, err
    assert "left out" not in err
    assert [row["conversations"][0]["images"] for row in content(tmp_path / "back")] == [[image("red")]]
    assert not list((tmp_path / "back").rglob("*0.json"))
    assert cli("import", "webdataset", tmp_path / "in", "--data", "none.tar", "--out_dir", tmp_path / "no")[0] == 2


def test_a_byte_order_mark_before_a_row_is_harmless_in_each_reader_of_rows(tmp_path: Path) -> None:
    value = {"id": "a", "image": "0.jpg", "conversations": talk("<image>What?", "Red.")}
    row = b"\xef\xbb\xbf" + json.dumps(value).encode()
    shards = write_shard(tmp_path / "wds" / "train.tar", {"0.json": row, "0.jpg": image("red")}).parent
    (tmp_path / "lines.jsonl").write_bytes(row + b"\n")
    (tmp_path / "0.jpg").write_bytes(image("red"))
    for number, (name, source) in enumerate((("webdataset", shards), ("llava", tmp_path / "lines.jsonl"))):
        assert import_rows(name, source, tmp_path / str(number), workers=0).rejects == 0
        (made,) = content(tmp_path / str(number))
        assert made["conversations"] == [{"images": [image("red")], "user": "What?", "assistant": "Red."}]
    (sample,) = Dataset(data_directory(shards))["train"]
    assert (sample.conversations[0].user, sample.images) == ("What?", ("train/0.jpg",))


def test_what_is_wrong_with_a_sample_is_a_reject_with_its_shard_and_key(tmp_path: Path) -> None:
    question = talk("<image>\nWhat?", "Red.")
    write_shard(
        tmp_path / "wds" / "train.tar",
        {
            "no-json.jpg": image("red"),
            "broken.json": b'{"conversations": [', "broken.jpg": image("red"),
            "array.json": [], "array.jpg": image("red"),
            "none.json": {"caption": "A cat."}, "none.jpg": image("red"),
            "more.json": {"conversations": question}, "more.0.jpg": image("red"), "more.1.jpg": image("red"),
            "else.json": {"image": "else/where.jpg", "conversations": question},
            "url.json": {"image": "https://example.org/a.jpg", "conversations": question},
            "open.json": {"conversations": talk("What?", "Red.", "Why?")},
            "bad.json": {"conversations": question}, "bad.jpg": b"no image",
            "good.json": {"conversations": talk("What?", "Red.")},
        },
    )  # fmt: skip
    result = import_rows("webdataset", tmp_path / "wds", tmp_path / "back", workers=0)
    assert result.samples == 1
    assert rejects(tmp_path / "back") == {
        "no-json": "json-not-object",
        "broken": "json-syntax",
        "array": "json-not-object",
        "none": "missing-field",
        "more": "image-count",
        "else": "image-missing",
        "url": "image-missing",
        "open": "last-turn-open",
        "bad": "image-unreadable",
    }


def test_a_folder_of_shards_is_recognized_and_a_folder_without_is_refused(cli: Cli, tmp_path: Path) -> None:
    directory = colour_directory(tmp_path / "colours")
    export_set("webdataset", directory, tmp_path / "wds")
    assert cli("import", "auto", tmp_path / "wds", "--out_dir", tmp_path / "back", "--workers", 0, "-q")[0] == 0
    assert len(Dataset(tmp_path / "back")["train"]) == len(Dataset(directory)["train"])
    (tmp_path / "empty").mkdir()
    code, _, err = cli("import", "webdataset", tmp_path / "empty", "--out_dir", tmp_path / "no")
    assert (code, "contains no data file" in err) == (2, True)


@pytest.mark.parametrize("second", ["b.json", "b.JSON", "b.jpg", "b.Jpg"])
def test_two_members_with_one_name_are_a_reject(tmp_path: Path, second: str) -> None:
    """webdataset's own reader stops at them."""
    row = {"conversations": talk("<image>\nWhich?", "The red one.")}
    other = {"conversations": talk("<image>\nWhich?", "No.")} if second.lower() == "b.json" else image("blue")
    members = [("a.json", row), ("a.jpg", image("red")), ("b.json", row), ("b.jpg", image("red")), (second, other)]
    shard = write_shard(tmp_path / "shards" / "train.tar", members)
    import_rows("webdataset", shard.parent, tmp_path / "out")
    assert [row["source"] for row in content(tmp_path / "out")] == [""]
    (line,) = (tmp_path / "out" / "rejects.jsonl").read_text().splitlines()
    found = json.loads(line)
    assert found["reason"] == "archive-member"
    assert found["message"] == (
        f"train.tar: b: the sample has two members '{second}', and it is not known which is meant"
    )
