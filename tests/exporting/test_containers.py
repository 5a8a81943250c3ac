"""Exports with the images inside: Parquet for the Hub, image folders, WebDataset and Energon, read by their readers."""

import base64
import gc
import io
import json
import os
import tarfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from five_samples import FIVE, FULL, image_bytes, write_set
from PIL import Image

from phi3v_data.dataset import Dataset
from phi3v_data.errors import UserError
from phi3v_data.exporting import ExportRequest, export_set
from phi3v_data.formats.base import RowFormat
from phi3v_data.formats.hub import Hub
from phi3v_data.formats.imagefolder import ImageFolder
from phi3v_data.formats.turns import check_turns, to_turns
from phi3v_data.formats.webdataset import WebDataset
from phi3v_data.media.images import read_image_file
from phi3v_data.media.tar_member import tar_member
from phi3v_data.schema import Manifest, Sample, SplitInfo, Turn
from phi3v_data.shards.view import data_directory

ROWS = (*FIVE, FULL)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_set(tmp_path / "set", ROWS)


def as_read(style: RowFormat, row: dict[str, Any]) -> tuple[Any, ...]:
    """A row as a format reads it, images as bytes or names."""
    reading = style.read(row)
    assert reading.chat is not None
    assert list(reading.faults) == []
    assert check_turns(reading.chat) == []
    system, turns = to_turns(reading.chat)
    chat = reading.chat
    return (
        chat.id, system, chat.answers, chat.group, dict(chat.meta),
        [(turn.user, turn.assistant, tuple(turn.image_offsets), turn.weight) for turn, _ in turns],
        [image.value for _, images in turns for image in images],
    )  # fmt: skip


def as_given(sample: Sample, images: list[Any]) -> tuple[Any, ...]:
    return (
        sample.id, sample.system, sample.answers, sample.group, dict(sample.meta),
        [(turn.user, turn.assistant, turn.image_offsets, turn.weight) for turn in sample.conversations],
        images,
    )  # fmt: skip


def test_hub_files_have_the_features_of_datasets_and_every_row(source: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    result = export_set("hub", source, tmp_path / "hub")
    assert (result.rows, result.images, result.left_out) == ({"train": 6}, 7, {})
    loaded = datasets.load_dataset(str(tmp_path / "hub"), split="train", cache_dir=str(tmp_path / "cache"))
    value, json_type = datasets.Value, datasets.Json()
    assert loaded.features == datasets.Features(
        {
            "id": value("string"),
            "images": datasets.List(datasets.Image()),
            "messages": datasets.List(
                {"role": value("string"), "content": datasets.List(json_type), "weight": value("int64")}
            ),
            "answers": datasets.List(value("string")),
            "group": value("string"),
            "meta": json_type,
        }
    )
    assert loaded[1]["messages"][0]["content"] == [
        {"type": "image"},
        {"type": "image"},
        {"type": "text", "text": "Which of the two shows money?"},
    ]
    assert [image.size for image in loaded[1]["images"]] == [(48, 32), (48, 32)]
    raw = loaded.cast_column("images", datasets.List(datasets.Image(decode=False)))
    for sample, row in zip(ROWS, raw, strict=True):
        assert as_read(Hub(), row) == as_given(sample, image_bytes(source, sample))
        assert [image["path"] for image in row["images"]] == [name.rpartition("/")[2] for name in sample.images]


def test_hub_files_are_read_without_datasets_too(source: Path, tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    export_set("hub", source, tmp_path / "hub")
    rows = pq.read_table(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet").to_pylist()
    for sample, row in zip(ROWS, rows, strict=True):
        assert as_read(Hub(), row) == as_given(sample, image_bytes(source, sample))


def test_the_card_of_an_export_names_its_files(source: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    write_set(source, FIVE[:1], "val")
    export_set("hub", source, tmp_path / "hub", ExportRequest(shard_bytes=3000))
    files = sorted(os.listdir(tmp_path / "hub" / "data"))
    assert len(files) > 3
    card = (tmp_path / "hub" / "README.md").read_text(encoding="utf-8")
    assert "\n<!-- Written by `phi3v-data export`; export again after a change. -->\n" in card
    assert "phi3v-data card" not in card
    head = yaml.safe_load(card.split("---")[1])
    assert head["configs"] == [
        {
            "config_name": "default",
            "data_files": [
                {"split": "train", "path": [f"data/{name}" for name in files if name.startswith("train")]},
                {"split": "val", "path": "data/val-00000-of-00001.parquet"},
            ],
        }
    ]


def test_row_groups_have_at_most_100_images(tmp_path: Path) -> None:
    pq = pytest.importorskip("pyarrow.parquet")
    rows = [
        Sample(
            id=str(number),
            source="s",
            conversations=(Turn(images=("a.png",) * (number % 8), user="u", assistant="v"),),
        )
        for number in range(100)
    ]
    source = write_set(tmp_path / "set", rows)
    export_set("hub", source, tmp_path / "hub")
    file = pq.ParquetFile(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    groups = [file.read_row_group(number).to_pylist() for number in range(file.num_row_groups)]
    counts = [sum(len(row["images"]) for row in group) for group in groups]
    assert len(counts) == 4
    assert max(counts) <= 100
    assert [row["id"] for group in groups for row in group] == [str(number) for number in range(100)]


def test_two_splits_with_one_name_on_the_hub_are_refused(source: Path, tmp_path: Path) -> None:
    write_set(source, FIVE[:1], "a-b")
    write_set(source, FIVE[1:2], "a_b")
    splits = {name: SplitInfo(rows=1, images=1, files={f"{name}.jsonl": "sha256:0"}) for name in ("a-b", "a_b")}
    (source / "dataset.json").write_text(Manifest(name="", task="chat", splits=splits).to_json())
    with pytest.raises(UserError, match="would both be called a_b on the Hub"):
        export_set("hub", source, tmp_path / "hub")


def test_an_image_folder_is_loaded_by_datasets(source: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    export_set("imagefolder", source, tmp_path / "folder")
    rows = [json.loads(line) for line in (tmp_path / "folder" / "train" / "metadata.jsonl").read_bytes().splitlines()]
    for sample, row in zip(ROWS, rows, strict=True):
        assert as_read(ImageFolder(), row) == as_given(sample, [f"images/{name}" for name in sample.images])
    cache = str(tmp_path / "cache")
    for loaded in (
        datasets.load_dataset(str(tmp_path / "folder"), split="train", cache_dir=cache),
        datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "folder"), split="train", cache_dir=cache),
    ):
        raw = loaded.cast_column("images", datasets.List(datasets.Image(decode=False)))
        assert [row["id"] for row in raw] == [sample.id for sample in ROWS]
        for sample, row in zip(ROWS, raw, strict=True):
            assert [Path(image["path"]).read_bytes() for image in row["images"]] == image_bytes(source, sample)


@pytest.mark.parametrize("name", ["hub", "webdataset", "energon"])
def test_an_export_is_read_as_the_set_that_it_was_made_from(name: str, source: Path, tmp_path: Path) -> None:
    """Every row, with the bytes of its images; what dataset.json says, too."""
    if name == "hub":
        pytest.importorskip("pyarrow")
    info = {"train": SplitInfo(rows=6, images=4, files={"train.jsonl": "sha256:0"})}
    manifest = Manifest(name="five", task="vqa", metrics=("anls",), splits=info, license="mit")
    (source / "dataset.json").write_text(manifest.to_json())
    export_set(name, source, tmp_path / "out", ExportRequest(shard_bytes=3000))
    found = Dataset(data_directory(tmp_path / "out"))
    assert found.manifest is not None
    assert (found.manifest.name, found.manifest.task, found.manifest.metrics) == ("five", "vqa", ("anls",))
    assert list(found) == ["train"]
    for sample, read in zip(ROWS, found["train"], strict=True):
        assert read.to_row() == renamed(sample, read.images).to_row()
        assert [read_image_file(found.image_path(path)) for path in read.images] == image_bytes(source, sample)


def renamed(sample: Sample, images: Sequence[str]) -> Sample:
    """The sample with other names of images."""
    rest = iter(images)
    turns = [
        turn.model_copy(update={"images": tuple(next(rest) for _ in turn.images)}) for turn in sample.conversations
    ]
    return sample.model_copy(update={"conversations": tuple(turns)})


def test_uniform_shards_have_images_as_data_urls_and_only_texts(source: Path, tmp_path: Path) -> None:
    export_set("webdataset", source, tmp_path / "wds", ExportRequest(layout="uniform"))
    with tarfile.open(tmp_path / "wds" / "train-000000.tar") as archive:
        rows = [json.load(archive.extractfile(member)) for member in archive.getmembers()]  # type: ignore[arg-type]
    for sample, row in zip(ROWS, rows, strict=True):
        assert set(map(type, row.values())) == {str}
        *texts, images = as_read(WebDataset(), row)
        *expected, _ = as_given(sample, [])
        assert texts == expected
        assert [base64.b64decode(str(image).partition(";base64,")[2]) for image in images] == image_bytes(
            source, sample
        )


def test_members_of_a_sample_follow_each_other_and_their_names_say_what_they_are(source: Path, tmp_path: Path) -> None:
    (source / "images" / "cup.jpg").unlink()
    Image.new("RGB", (9, 9)).save(source / "images" / "cup.jpg", format="PNG")  # a name that says something else
    export_set("webdataset", source, tmp_path / "wds")
    with tarfile.open(tmp_path / "wds" / "train-000000.tar") as archive:
        members = archive.getmembers()
    assert [member.name for member in members][:5] == [
        "train-000000000.json",
        "train-000000000.0.jpg",
        "train-000000001.json",
        "train-000000001.0.png",
        "train-000000001.1.png",
    ]
    assert {(member.mtime, member.uid, member.uname, member.mode) for member in members} == {(0, 0, "", 0o644)}


@pytest.mark.parametrize("length", [1, 60, 99, 100, 101, 150])
@pytest.mark.parametrize("size", [0, 1, 511, 512, 70_000])
def test_a_member_is_as_tarfile_writes_it(length: int, size: int) -> None:
    name, data = "d/" * (length // 2) + "é"[: length % 2], bytes(range(256)) * (size // 256) + bytes(size % 256)
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        info = tarfile.TarInfo(name + "x")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    written = tar_member(name + "x", data)
    assert written == file.getvalue()[: len(written)]


def test_the_webdataset_package_reads_the_shards(source: Path, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    export_set("webdataset", source, tmp_path / "wds", ExportRequest(shard_bytes=3000))
    paths = sorted(str(path) for path in (tmp_path / "wds").glob("*.tar"))
    assert len(paths) > 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves files open
        found = list(webdataset.WebDataset(paths, shardshuffle=False, empty_check=False).decode("pil"))
        gc.collect()
    assert [sample["__key__"] for sample in found] == [f"train-{number:09}" for number in range(6)]
    for sample, row in zip(ROWS, found, strict=True):
        assert row["json"]["id"] == sample.id
        pixels = [row[name].tobytes() for name in row["json"]["images"]]
        stored = [Image.open(io.BytesIO(data)).convert("RGB").tobytes() for data in image_bytes(source, sample)]
        assert pixels == stored


def test_datasets_reads_the_uniform_shards(source: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    export_set("webdataset", source, tmp_path / "wds", ExportRequest(layout="uniform"))
    loaded = datasets.load_dataset(str(tmp_path / "wds"), split="train", cache_dir=str(tmp_path / "cache"))
    assert [row["json"]["id"] for row in loaded] == [sample.id for sample in ROWS]
    for sample, row in zip(ROWS, loaded, strict=True):
        assert as_read(WebDataset(), row["json"])[:-1] == as_given(sample, [])[:-1]
        assert len(json.loads(row["json"]["images"])) == len(sample.images)


def test_a_layout_that_energon_lacks_is_refused_under_its_own_name(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        export_set("energon", source, tmp_path / "energon", ExportRequest(layout="uniform"))
    assert str(caught.value) == "--layout uniform is not possible with energon; it can be energon"


def test_energon_files_have_their_description_and_cooker(source: Path, tmp_path: Path) -> None:
    result = export_set("energon", source, tmp_path / "energon")
    assert sorted(os.listdir(tmp_path / "energon")) == [".nv-meta", ".phi3v", "cooker.py", "train-000000.tar"]
    assert yaml.safe_load((tmp_path / "energon" / ".nv-meta" / "dataset.yaml").read_text()) == {
        "__module__": "megatron.energon",
        "__class__": "CrudeWebdataset",
    }
    compile((tmp_path / "energon" / "cooker.py").read_text(), "cooker.py", "exec")
    assert result.notes == (
        f"Energon needs an index: energon prepare {tmp_path / 'energon'} --non-interactive --skip-dataset-yaml "
        "--split-parts 'train:train-{000000..000000}.tar'",
    )


@pytest.mark.parametrize("name", ["hub", "webdataset"])
def test_shards_do_not_depend_on_workers_and_stay_below_their_size(name: str, tmp_path: Path) -> None:
    if name == "hub":
        pytest.importorskip("pyarrow")
    rows = [
        Sample(
            id=f"r{n}", source="s", conversations=(Turn(images=(f"{n % 9}.png",), user="u", assistant="v" * n + "w"),)
        )
        for n in range(200)
    ]
    rows[3] = Sample(id="r3", source="s", conversations=(Turn(user="u", assistant=""),))
    source = write_set(tmp_path / "set", rows)
    request = ExportRequest(shard_bytes=20_000, lossy=True)
    for workers, out in ((0, "one"), (2, "two")):
        assert export_set(name, source, tmp_path / out, request, workers=workers).rows == {"train": 199}
    one, two = (
        {str(path.relative_to(tmp_path / out)): path.read_bytes() for path in (tmp_path / out).rglob("*.*")
         if path.suffix in (".tar", ".parquet")}
        for out in ("one", "two")
    )  # fmt: skip
    assert one == two
    assert len(one) > 3
    assert len(Dataset(source)["train"]) == 200
