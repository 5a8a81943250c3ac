"""Folders of shards: rows and images are those of the directory that they were made of."""

import base64
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
from colour_sets import colour_directory
from in_process import Cli, make_cli
from shard_files import KINDS, add, write_shards, write_tar

from phi3v_data.dataset import Dataset
from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.media.export_pack import PackedImage, write_pack
from phi3v_data.media.images import load_image, probe, read_image_file
from phi3v_data.media.pack import RepeatedNameError
from phi3v_data.media.packed import open_pack
from phi3v_data.shards.view import data_directory, open_dataset
from phi3v_data.validate import validate


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_directory(tmp_path_factory.mktemp("shards") / "colours")


@pytest.fixture(params=KINDS)
def export(request: pytest.FixtureRequest, directory: Path, tmp_path: Path) -> Path:
    return write_shards(directory, tmp_path / "export", request.param)


def test_rows_and_image_bytes_are_those_of_the_directory(directory: Path, export: Path) -> None:
    view = Dataset(data_directory(export))
    source = Dataset(directory)
    assert list(view) == ["train", "val"]
    for split in source:
        assert len(view[split]) == len(source[split])
        for ours, theirs in zip(view[split], source[split], strict=True):
            assert (ours.id, ours.answers, ours.system) == (theirs.id, theirs.answers, theirs.system)
            assert [(turn.user, turn.assistant, len(turn.images)) for turn in ours.conversations] == [
                (turn.user, turn.assistant, len(turn.images)) for turn in theirs.conversations
            ]
            for name, other in zip(ours.images, theirs.images, strict=True):
                path = view[split].image_path(name)
                assert not path.exists()
                assert read_image_file(path) == (directory / "images" / other).read_bytes()
                assert (probe(path).width, load_image(path).size) == (28, (28, 28))


def test_an_export_is_read_from_python_like_its_directory(directory: Path, export: Path) -> None:
    with pytest.raises(NotFoundError, match=r"it may be an export, which `phi3v_data\.open_dataset` reads"):
        Dataset(export)
    there, here = open_dataset(export), open_dataset(directory)
    assert list(there) == list(here) == ["train", "val"]
    for split in here:
        pictures = [[there[split].image_bytes(name) for name in sample.images] for sample in there[split]]
        assert pictures == [[(directory / "images" / name).read_bytes() for name in row.images] for row in here[split]]


def test_the_report_is_that_of_the_directory(directory: Path, export: Path) -> None:
    """Every check, of rows, images, tokens and between splits; the second time by the receipt."""
    expected = validate(directory, use_receipt=False)
    for _ in range(2):
        report = validate(export)
        assert report.ok
        assert report.dir == str(export)
        assert report.summary == expected.summary.model_copy(update={"problems": {}})  # no image is left over
        digests = report.stats["image_digests"]  # of other names
        assert digests.keys() == expected.stats["image_digests"].keys()
        assert {**report.stats, "image_digests": expected.stats["image_digests"]} == expected.stats
    assert (data_directory(export) / ".phi3v/validate/receipt.json").is_file()
    assert validate(export, workers=2, fresh=True).summary == report.summary


def damage(directory: Path, out: Path, kind: str) -> Path:
    """An export of a copy of the set in which the image of the fifth training row is cut short."""
    copy = out.with_name("copy")
    shutil.copytree(directory, copy)
    image = copy / "images/train4.png"
    image.write_bytes(image.read_bytes()[:200])
    return write_shards(copy, out, kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_image_is_named_at_its_row(directory: Path, tmp_path: Path, kind: str) -> None:
    report = validate(damage(directory, tmp_path / "export", kind))
    [found] = [problem for problem in report.problems if problem.severity == "error"]
    assert (found.code, found.file, found.line, found.id, found.field) == (
        "image-unreadable", "train-00001-of-00002.jsonl", 1, "train-0000000004", "conversations[0].images[0]"
    )  # fmt: skip


def test_findings_of_an_export_say_where_their_lines_are(directory: Path, tmp_path: Path, cli: Cli) -> None:
    export = damage(directory, tmp_path / "export", KINDS[0])
    code, out, err = cli("validate", export)
    assert code == 1
    assert "\ntrain-00001-of-00002.jsonl:1 " in f"\n{out}"
    assert err == f"note: files and lines are those of {data_directory(export)}, which has the rows of {export}\n"
    assert (data_directory(export) / "train-00001-of-00002.jsonl").is_file()
    _, _, err = cli("validate", tmp_path / "copy")
    assert err == ""


def test_a_changed_shard_gives_another_view_and_an_open_one_reads_nothing_of_it(directory: Path, export: Path) -> None:
    first = data_directory(export)
    assert data_directory(export) == first
    image = next(name for sample in Dataset(first)["train"] for name in sample.images)
    shard = min(export.glob("train*"))
    data = shard.read_bytes()
    shard.unlink()
    shard.write_bytes(data)
    with pytest.raises(OSError, match="was changed since it was opened"):
        read_image_file(first / "images" / image)
    unused, recent = first.with_name("0123456789abcdef"), first.with_name("123456789abcdef0")
    for folder in (unused, recent):
        folder.mkdir()
    os.utime(unused, (0, 0))
    second = data_directory(export)
    assert second != first
    assert sorted(path.name for path in first.parent.iterdir()) == sorted((first.name, second.name, recent.name))
    assert read_image_file(second / "images" / image) == (directory / "images/train0.png").read_bytes()


def test_the_view_that_a_process_reads_stays_whatever_others_do(export: Path, tmp_path: Path) -> None:
    """The same export under another path has a view of its own, and removes none that is in use or was a day ago."""
    (tmp_path / "link").symlink_to(export)
    program = (
        "import sys; from phi3v_data.shards.view import data_directory; "
        "print(data_directory(sys.argv[1]), flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(export)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
        assert reader.stdout is not None
        view = Path(reader.stdout.readline().strip())
        os.utime(view, (0, 0))
        assert data_directory(tmp_path / "link").name != view.name
        assert (view / "dataset.json").is_file()
        reader.communicate("")


def test_a_view_beside_an_export_can_be_read_by_whoever_reads_the_export(export: Path) -> None:
    """Its files have the group of the export's folder, if that says so."""
    export.chmod(0o2770)
    before = os.umask(0o027)
    try:
        view = data_directory(export)
    finally:
        os.umask(before)
    assert view.stat().st_mode & 0o7777 == 0o2750


def test_a_view_that_came_with_a_copied_export_is_not_used(export: Path, tmp_path: Path) -> None:
    view = data_directory(export)
    (view / "train-00000-of-00002.jsonl").write_text("forged\n")
    copy = tmp_path / "copy"
    shutil.copytree(export, copy, copy_function=shutil.copy2)
    assert Dataset(data_directory(copy))["train"][0].conversations[0].assistant == "red"


def test_an_index_of_another_machine_reaches_no_file_of_this_one(tmp_path: Path) -> None:
    """The path of a file is easily guessed, its inode and change time are not."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(b"\x89PNG secret")
    write_pack(tmp_path / "images", "tar", tmp_path, ["secret.png"], [PackedImage("a.png", 0, 0, 11)])
    shutil.copy2(tmp_path / "images", tmp_path / "other")
    assert read_image_file(tmp_path / "images/a.png") == b"\x89PNG secret"
    content = secret.read_bytes()
    secret.unlink()
    secret.write_bytes(content)
    with pytest.raises(OSError, match="was changed"):
        read_image_file(tmp_path / "other/a.png")


def test_names_of_an_index(tmp_path: Path) -> None:
    (tmp_path / "shard").write_bytes(b"0123456789")
    names = ["é.png", "a/b.png", "a/c.png"]
    images = [PackedImage(name, 0, 2 * number, 2) for number, name in enumerate(names)]
    write_pack(tmp_path / "images", "tar", tmp_path, ["shard"], images)
    pack = open_pack(tmp_path / "images")
    assert [pack.read(pack.find(name)) for name in names] == [b"01", b"23", b"45"]
    assert pack.find("a") == pack.find("a/b.pn") == -1
    with pytest.raises(FileNotFoundError):
        read_image_file(tmp_path / "images/a/d.png")
    with pytest.raises(NotADirectoryError):
        read_image_file(tmp_path / "shard/x/y.png")  # the shard is no index
    with pytest.raises(RepeatedNameError, match=r"a/b\.png"):
        write_pack(tmp_path / "again", "tar", tmp_path, ["shard"], [*images, PackedImage("a/b.png", 0, 0, 1)])


def test_a_view_is_in_the_users_cache_where_the_export_takes_none(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As beside shards on a read-only mount; a link in the way is not followed either."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (export / ".phi3v").symlink_to(tmp_path / "elsewhere")
    view = data_directory(export)
    assert view.is_relative_to(tmp_path / "cache/phi3v/view")
    assert validate(export).ok
    assert not (tmp_path / "elsewhere").exists()
    assert data_directory(export) == view


@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("lost", ["train*.jsonl", "val*.jsonl", "dataset.json", "images"])
def test_a_view_that_lost_a_file_or_its_end_is_made_again(export: Path, lost: str, cut: bool) -> None:
    """As whatever cleans a cache may take one, and a disk may lose what was not synced."""
    view = data_directory(export)
    before = {path.name: path.read_bytes() for path in view.iterdir() if path.is_file()}
    file = next(view.glob(lost))
    if cut:
        file.write_bytes(file.read_bytes()[:-10])
    else:
        file.unlink()
    assert data_directory(export) == view
    assert {path.name: path.read_bytes() for path in view.iterdir() if path.name in before} == before


def test_all_that_a_row_says_is_in_the_view(directory: Path, tmp_path: Path) -> None:
    """In another format than that of the other tests: system message, image inside a text, an answer without weight."""
    image = (directory / "images/train0.png").read_bytes()
    question = [
        {"type": "text", "text": "Is "},
        {"type": "image_url", "image_url": {"url": "0.png"}},
        {"type": "text", "text": " red?"},
    ]
    messages = [
        {"role": "system", "content": "Be terse."},
        {"role": "user", "content": question},
        {"role": "assistant", "content": "Yes.", "weight": 0},
        {"role": "user", "content": "Sure?"},
        {"role": "assistant", "content": "Yes!"},
    ]
    tmp_path.joinpath("export").mkdir()
    with tarfile.open(tmp_path / "export/val.tar", "w") as shard:
        add(shard, "a/row.json", json.dumps({"messages": messages}).encode())
        add(shard, "a/row.0.png", image)
    [sample] = Dataset(data_directory(tmp_path / "export"))["val"]
    assert sample.to_row() == {
        "id": "val-0000000000",
        "source": "export",
        "conversations": [
            {"images": ["val/a/row.0.png"], "user": "Is  red?", "assistant": "Yes.", "image_offsets": [3], "weight": 0},
            {"images": [], "user": "Sure?", "assistant": "Yes!"},
        ],
        "system": "Be terse.",
    }


def test_a_view_has_the_format_that_its_rows_need(tmp_path: Path) -> None:
    def text(role: str, words: str) -> list[dict[str, Any]]:
        return [{"role": role, "content": [{"type": "text", "text": words}]}]

    plain = {"images": [], "messages": text("user", "Red?") + text("assistant", "Yes.")}
    pair = {"prompt": text("user", "Red?"), "chosen": text("assistant", "Yes."), "rejected": text("assistant", "No.")}
    for name, rows, expected in (("plain", [plain], 1), ("pairs", [plain, pair, plain], 2)):
        tmp_path.joinpath(name).mkdir()
        with tarfile.open(tmp_path / name / "train.tar", "w") as shard:
            for number, row in enumerate(rows):
                add(shard, f"{number}.json", json.dumps(row).encode())
        view = data_directory(tmp_path / name)
        assert json.loads((view / "dataset.json").read_text())["format"] == expected
        assert [sample.rejected for sample in Dataset(view)["train"]] == ["No." if row is pair else "" for row in rows]


def test_members_in_folders_are_samples_and_what_archivers_add_is_not(directory: Path, tmp_path: Path) -> None:
    image = (directory / "images/train0.png").read_bytes()
    messages = [
        {"role": "user", "content": [{"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Red."}]},
    ]
    tmp_path.joinpath("export").mkdir()
    with tarfile.open(tmp_path / "export/train.tar", "w") as shard:
        for key in ("0", "a/0", "./b//0", "c.d/0"):
            row = {"id": key, "images": ["0.png"], "messages": messages}
            add(shard, f"{key}.json", json.dumps(row).encode())
            add(shard, f"{key}.0.png", image)
            for name in (".hidden.json", f"{key[:-1]}._0.json", f"__MACOSX/{key}.json"):
                add(shard, name, b"no JSON")
    samples = Dataset(data_directory(tmp_path / "export"))["train"]
    assert [(sample.id, sample.images) for sample in samples] == [
        ("0", ("train/0.0.png",)),
        ("a/0", ("train/a/0.0.png",)),
        ("./b//0", ("train/b/0.0.png",)),
        ("c.d/0", ("train/c.d/0.0.png",)),
    ]


def test_images_in_the_text_of_the_json_are_read_from_there(directory: Path, tmp_path: Path) -> None:
    """As in shards for `datasets`, where all samples have the same members; also in an array that is JSON in JSON."""
    names = ["train0.png", "train1.png", "train0.png"]
    contents = [(directory / "images" / name).read_bytes() for name in names]
    urls = [f"data:image/png;base64,{base64.b64encode(content).decode()}" for content in contents]
    messages = [
        {"role": "user", "content": [*[{"type": "image"}] * 3, {"type": "text", "text": "Which is red?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Two of them."}]},
    ]
    for number, encode in enumerate((lambda value: value, json.dumps)):
        export = tmp_path / str(number)
        export.mkdir()
        with tarfile.open(export / "train.tar", "w") as shard:
            row = {"images": encode(urls), "messages": encode(messages)}
            add(shard, "0.json", json.dumps(row).encode())
        split = Dataset(data_directory(export))["train"]
        [sample] = split
        assert sample.images == ("train/0.json.0.png", "train/0.json.1.png", "train/0.json.0.png")
        assert [read_image_file(split.image_path(name)) for name in sample.images] == contents
        assert validate(export).ok


def test_an_image_whose_text_is_cut_is_named_at_its_row(tmp_path: Path) -> None:
    tmp_path.joinpath("export").mkdir()
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A square."}]},
    ]
    row = {"images": ["data:image/png;base64,iVBORw0KG"], "messages": messages}
    with tarfile.open(tmp_path / "export/train.tar", "w") as shard:
        add(shard, "0.json", json.dumps(row).encode())
    [found] = [problem for problem in validate(tmp_path / "export").problems if problem.severity == "error"]
    assert (found.code, found.line) == ("image-unreadable", 1)
    assert found.message.endswith("is damaged: its base64 text is incomplete")


def test_a_tar_that_ends_between_two_samples_is_not_read_as_a_short_one(directory: Path, tmp_path: Path) -> None:
    export = write_shards(directory, tmp_path / "export", "tar", shards=1)
    path = export / "train-000000.tar"
    with tarfile.open(path) as shard:
        last = next(member.offset for member in shard if member.name == "000006.json")
    path.write_bytes(path.read_bytes()[:last])
    with pytest.raises(UserError, match=r"train-000000\.tar is damaged, cut short or compressed \(no end mark\)"):
        data_directory(export)


def without_answer(row: dict[str, Any]) -> None:
    row["messages"] = row["messages"][:1]


def test_a_row_that_is_not_a_sample_is_named(directory: Path, tmp_path: Path) -> None:
    for kind, where in (("tar", "train-000000.tar: 000000"), ("parquet", "train-00000-of-00002.parquet: row 0")):
        export = write_shards(directory, tmp_path / kind, kind, change=without_answer)
        with pytest.raises(UserError) as caught:
            data_directory(export)
        assert str(caught.value) == (
            f"{export}: {where}: messages[0].content: the conversation has no answer; correct the export, or import "
            "it with `phi3v-data import`, which lists such rows"
        )
        assert list((export / ".phi3v/view").iterdir()) == []


def lacks_image(row: dict[str, Any]) -> None:
    if row["images"]:
        row["images"] = ["https://example.org/cat.jpg"]


def has_percent_encoded_image(row: dict[str, Any]) -> None:
    if row["images"]:
        row["images"] = ["data:image/png,%89PNG"]


def test_what_no_view_can_be_made_of(directory: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")

    def refusal(folder: Path) -> str:
        with pytest.raises(UserError) as caught:
            data_directory(folder)
        assert "\n" not in str(caught.value)
        return str(caught.value).removeprefix(str(folder))

    elsewhere = write_shards(directory, tmp_path / "elsewhere", "tar", change=lacks_image)
    assert "'https://example.org/cat.jpg' is not in the shard" in refusal(elsewhere)
    encoded = write_shards(directory, tmp_path / "encoded", "tar", change=has_percent_encoded_image)
    assert "the data URL 'data:image/png,%89PNG' is not base64; write data:image/jpeg;base64,..." in refusal(encoded)
    packed = tmp_path / "packed"
    packed.mkdir()
    whole = write_shards(directory, tmp_path / "whole", "tar", shards=1)
    (packed / "train.tar").write_bytes(gzip.compress((whole / "train-000000.tar").read_bytes()))
    assert "unpack a compressed one with gunzip" in refusal(packed)
    (packed / "train.tar").write_bytes((whole / "train-000000.tar").read_bytes()[:-10240])
    assert "is damaged, cut short or compressed" in refusal(packed)
    (packed / "train.parquet").write_bytes(b"PAR1 not really PAR1")
    assert refusal(packed) == " has both .tar and .parquet files; give a folder with shards of one kind"
    (packed / "train.tar").unlink()
    assert "is damaged or not a parquet file" in refusal(packed)
    captions = tmp_path / "captions"
    captions.mkdir()
    with tarfile.open(captions / "train.tar", "w") as shard:
        add(shard, "0.json", json.dumps({"caption": "A cat."}).encode())
    assert "no conversation: the fields are 'caption'" in refusal(captions)
    with tarfile.open(captions / "train.tar", "w") as shard:
        add(shard, "0.jpg", b"x")
    assert "the sample has no .json" in refusal(captions)


def test_half_a_character_is_named_at_its_row(tmp_path: Path) -> None:
    """It can only come from JSON inside of JSON: outside, the row is not JSON."""
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A \ud83d."}]},
    ]
    for name, row, said in (
        ("inside", {"images": "[]", "messages": json.dumps(messages)}, "messages[1].content: the text has a lone"),
        ("outside", {"images": [], "messages": messages}, "is not JSON"),
    ):
        tmp_path.joinpath(name).mkdir()
        with tarfile.open(tmp_path / name / "train.tar", "w") as shard:
            add(shard, "0.json", json.dumps(row).encode())
        with pytest.raises(UserError, match=re.escape(said)):
            data_directory(tmp_path / name)


def test_names_of_images_in_parquet_end_as_their_paths_do(directory: Path, tmp_path: Path) -> None:
    """If that is the extension of an image; else as their content is."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    image = (directory / "images/train0.png").read_bytes()
    paths = {
        "a.jpg": ".jpg",
        "a/b.c.JPEG": ".jpeg",
        "a.webp/": ".webp",
        "a.webp/.": ".webp",
        "..gif": ".gif",
        "a.jpg/b": ".png",
        "a.txt": ".png",
        ".jpg": ".png",
        "a/.jpg": ".png",
        "jpg": ".png",
        "a.": ".png",
        "..": ".png",
        "": ".png",
        None: ".png",
    }
    images = [{"bytes": image, "path": path} for path in paths]
    contents = [[{"type": "image"}] * len(paths), [{"type": "text", "text": "Red."}]]
    messages = [
        {"role": role, "content": list(map(json.dumps, content))}
        for role, content in zip(("user", "assistant"), contents, strict=True)
    ]
    tmp_path.joinpath("export").mkdir()
    table = pyarrow.Table.from_pylist([{"images": images, "messages": messages}])
    parquet.write_table(table, tmp_path / "export/train.parquet")
    [sample] = Dataset(data_directory(tmp_path / "export"))["train"]
    assert sample.images == tuple(f"train/00000000.{at}{suffix}" for at, suffix in enumerate(paths.values()))


def test_a_text_of_parquet_that_is_not_utf8_is_named_at_its_rows(tmp_path: Path) -> None:
    """pyarrow writes and reads such a file without a word."""
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    ids = pyarrow.array([b"1", b"\xff"], pyarrow.binary()).view(pyarrow.string())
    tmp_path.joinpath("export").mkdir()
    parquet.write_table(pyarrow.table({"id": ids}), tmp_path / "export/train.parquet", store_schema=False)
    with pytest.raises(UserError, match=r"train\.parquet: rows 0 to 1: a text is not UTF-8; correct the export"):
        data_directory(tmp_path / "export")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return make_cli(capsys, monkeypatch)


def test_sets_are_made_of_an_export_as_of_a_directory(directory: Path, export: Path, tmp_path: Path, cli: Cli) -> None:
    assert cli("clean", export, tmp_path / "clean")[0] == 0
    cleaned = Dataset(tmp_path / "clean")
    for split in cleaned:
        for ours, theirs in zip(cleaned[split], Dataset(directory)[split], strict=True):
            assert [(tmp_path / "clean/images" / name).read_bytes() for name in ours.images] == [
                (directory / "images" / name).read_bytes() for name in theirs.images
            ]
    for store in ("files", "shards"):  # the images of an export are in shards of its own kind
        assert cli("store", export, tmp_path / store, "--store", store)[0] == 0
    names = [name for sample in cleaned["train"] for name in sample.images]
    assert all((tmp_path / "files/images" / name).is_file() for name in names)
    assert "28 x 28 PNG" in cli("preview", export, "--row", "1")[1]
    assert json.loads(cli("stats", export, "--json")[1])["dir"] == str(export)
    page = tmp_path / "page.html"
    assert cli("validate", export, "--html", page)[0] == 0
    assert page.read_text(encoding="utf-8").count("data:image/") >= 8


def test_a_folder_with_rows_is_not_an_export(directory: Path, tmp_path: Path) -> None:
    assert data_directory(directory) == directory
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    write_tar(copy / "backup.tar", directory, [])
    assert data_directory(copy) == copy
    assert data_directory(tmp_path / "nowhere") == tmp_path / "nowhere"
    assert not os.path.exists(copy / ".phi3v/view")


@pytest.mark.parametrize("kind", ["loop", "folder"])
def test_a_manifest_of_an_export_that_cannot_be_read_is_named(directory: Path, tmp_path: Path, kind: str) -> None:
    made = write_shards(directory, tmp_path / "export", "tar")
    path = made / "phi3v.json"
    path.unlink(missing_ok=True)
    path.symlink_to(path.name) if kind == "loop" else path.mkdir()
    with pytest.raises(UserError, match=rf"^{re.escape(str(path))}: "):
        data_directory(made)
