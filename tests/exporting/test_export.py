"""`phi3v-data export`: files, refusals, losses, images, atomicity."""

import base64
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from five_samples import FIVE, write_set
from kills import in_child

from phi3v_data.choices import ImageMode, ImageRefs
from phi3v_data.cli.app import COMMANDS
from phi3v_data.cli.base import make_group
from phi3v_data.cli.export import export
from phi3v_data.errors import BusyError, UserError
from phi3v_data.exporting import ExportRequest, LossyError, export_set, folder, run
from phi3v_data.lock import lock_file
from phi3v_data.schema import Sample, Turn


def command(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of `phi3v-data export WORDS`."""
    group = make_group("phi3v-data", "", COMMANDS)
    with pytest.raises(SystemExit) as stop:
        group.main(args=["export", *map(str, words)], prog_name="phi3v-data")
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def rows_of(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = (
        json.loads(text) if path.suffix == ".json" else list(map(json.loads, text.splitlines()))
    )
    return rows


def all_files(directory: Path) -> dict[str, bytes]:
    """The bytes of each file, without the state of files on this machine."""
    files = [path for path in directory.rglob("*") if path.is_file() and path.name != folder.STATE]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def many(number: int) -> list[Sample]:
    return [
        Sample(
            id=f"row-{index}",
            source="many",
            conversations=(Turn(images=(f"{index % 7}.png",), user=f"Row {index}?", assistant="é" * (index % 50 + 1)),),
        )
        for index in range(number)
    ]


def test_sharegpt_is_written_with_dataset_info_that_names_every_column_and_tag(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_set(tmp_path / "five")
    code, out, _ = command(capsys, "sharegpt", source, "--out", tmp_path / "out")
    assert (code, out) == (0, f"{tmp_path / 'out'}: 5 rows (train 5), 4 images\n")
    rows = rows_of(tmp_path / "out" / "train.json")
    assert rows[1] == {
        "id": "chat-0002",
        "messages": [
            {"role": "user", "content": "<image>\n<image>\nWhich of the two shows money?"},
            {"role": "assistant", "content": "The second."},
        ],
        "images": ["images/cup.jpg", "images/money/coins.png"],
    }
    assert rows[4]["messages"][0] == {"role": "system", "content": "You are terse. Answer in one word."}
    assert json.loads((tmp_path / "out" / "dataset_info.json").read_text()) == {
        "five_train": {
            "file_name": "train.json",
            "formatting": "sharegpt",
            "columns": {"messages": "messages", "images": "images"},
            "tags": {
                "role_tag": "role",
                "content_tag": "content",
                "user_tag": "user",
                "assistant_tag": "assistant",
                "observation_tag": "observation",
                "function_tag": "function_call",
                "system_tag": "system",
            },
        }
    }
    images = source / "images"
    assert {name: data for name, data in all_files(tmp_path / "out").items() if name.startswith("images/")} == {
        f"images/{path.relative_to(images)}": path.read_bytes() for path in images.rglob("*.*")
    }


@pytest.mark.parametrize("name", ["llava", "qwen"])
def test_a_loss_refuses_the_export_before_anything_is_written(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_set(tmp_path / "five")
    code, out, _ = command(capsys, name, source, "--out", tmp_path / "out")
    assert code == 1
    assert out.splitlines()[0].startswith("system-message: 1 row with a system message")
    assert "'chat-0005' of split train" in out.splitlines()[0]
    assert out.splitlines()[-1].startswith(f"{tmp_path / 'out'}: nothing was written")
    assert sorted(os.listdir(tmp_path)) == ["five"]

    code, out, err = command(capsys, name, source, "--out", tmp_path / "out", "--lossy")
    assert (code, out) == (0, f"{tmp_path / 'out'}: 5 rows (train 5), 4 images; lost: system-message 1\n")
    assert err.startswith("note: system-message: 1 row: the system message goes before the first user text")
    record = json.loads((tmp_path / "out" / ".phi3v" / "export.json").read_text())
    assert record["lost"] == {"system-message": 1}


def test_every_reason_is_counted_with_its_first_row_in_the_order_of_the_rows(tmp_path: Path) -> None:
    rows = [
        Sample(id="a", source="s", conversations=(Turn(user="hi", assistant="ho"),)),
        Sample(
            id="b",
            source="s",
            system="Be kind.",
            conversations=(Turn(user="<image>?", assistant="x", weight=0), Turn(user="u", assistant="v")),
        ),
        Sample(id="c", source="s", conversations=(Turn(user="see", assistant="an <image>"),)),
    ]
    source = write_set(tmp_path / "set", rows)
    write_set(source, [Sample(id="d", source="s", conversations=(Turn(user="q", assistant=""),))], "test")
    with pytest.raises(LossyError) as stop:
        export_set("llava", source, tmp_path / "out")
    assert {code: (loss.rows, loss.split, loss.id) for code, loss in stop.value.lost.items()} == {
        "system-message": (1, "train", "b"),
        "weight": (1, "train", "b"),
        "placeholder-in-text": (2, "train", "b"),
        "no-answer": (1, "test", "d"),
    }
    result = export_set("llava", source, tmp_path / "out", ExportRequest(lossy=True))
    assert dict(result.rows) == {"train": 3, "test": 0}
    assert rows_of(tmp_path / "out" / "test.json") == []
    assert rows_of(tmp_path / "out" / "train.json")[2]["conversations"][1]["value"] == "an < image>"


def test_fields_that_a_format_does_not_carry_are_counted_and_others_are_columns_of_every_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = Sample(id="a", source="s", conversations=(Turn(user="hi", assistant="ho"),))
    full = Sample(
        id="b",
        source="s",
        conversations=(Turn(user="u", assistant="v", weight=0), Turn(user="w", assistant="x")),
        answers=("x", "y"),
        group="g",
        meta={"key": 1, "other": None},
    )
    source = write_set(tmp_path / "set", [plain, full])
    code, out, _ = command(capsys, "openai", source, "--out", tmp_path / "openai")
    assert code == 0
    assert out.endswith("not carried: id 2, answers 1, group 1, meta 1\n")
    assert [set(row) for row in rows_of(tmp_path / "openai" / "train.jsonl")] == [{"messages"}, {"messages"}]
    assert command(capsys, "swift", source, "--out", tmp_path / "swift")[0] == 0
    first, second = rows_of(tmp_path / "swift" / "train.jsonl")
    assert first.keys() == second.keys()
    assert (first["answers"], first["group"], first["meta"]) == ([], "", "")
    assert (second["answers"], second["group"], second["meta"]) == (["x", "y"], "g", '{"key": 1, "other": null}')
    losses = [message.get("loss") for row in (first, second) for message in row["messages"]]
    assert losses == [None, True, None, False, None, True]


def test_images_are_data_urls_with_their_original_bytes(tmp_path: Path) -> None:
    source = write_set(tmp_path / "five")
    result = export_set("openai", source, tmp_path / "out")
    assert result.images == 6
    assert not (tmp_path / "out" / "images").exists()
    urls = [
        part["image_url"]["url"]
        for row in rows_of(tmp_path / "out" / "train.jsonl")
        for message in row["messages"]
        if isinstance(message["content"], list)
        for part in message["content"]
        if part["type"] == "image_url"
    ]
    names = [name for sample in FIVE for name in sample.images]
    for url, name in zip(urls, names, strict=True):
        head, _, data = url.partition(",")
        assert head == f"data:image/{'png' if name.endswith('png') else 'jpeg'};base64"
        assert base64.b64decode(data) == (source / "images" / name).read_bytes()


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [("https://example.com/i/", "https://example.com/i/a%20b%23.png"), ("/data/my set/", "/data/my set/a b#.png")],
)
def test_images_are_named_by_prefix_and_path(prefix: str, expected: str, tmp_path: Path) -> None:
    row = Sample(id="a", source="s", conversations=(Turn(images=("a b#.png",), user="u", assistant="v"),))
    source = write_set(tmp_path / "set", [row])
    request = ExportRequest(image_refs=ImageRefs.url, url_prefix=prefix)
    export_set("axolotl", source, tmp_path / "out", request)
    block = rows_of(tmp_path / "out" / "train.jsonl")[0]["messages"][0]["content"][0]
    assert block == {"type": "image", "url" if "://" in prefix else "path": expected}
    assert not (tmp_path / "out" / "images").exists()


@pytest.mark.parametrize(("mode", "same"), [(ImageMode.link, True), (ImageMode.copy, False)])
def test_images_are_linked_or_copied(mode: ImageMode, same: bool, tmp_path: Path) -> None:
    source = write_set(tmp_path / "five")
    export_set("trl", source, tmp_path / "out", ExportRequest(images=mode))
    pair = source / "images" / "cat.jpg", tmp_path / "out" / "images" / "cat.jpg"
    assert pair[0].samefile(pair[1]) is same
    assert pair[0].read_bytes() == pair[1].read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sharegtp", "DIR", "--out", "OUT"], "no format 'sharegtp' to export to; did you mean sharegpt?"),
        (["llava", "DIR", "--out", "DIR/out"], "must not be inside each other"),
        (["llava", "DIR", "--out", "OUT", "--image_refs", "url"], "--image_refs url needs --url_prefix"),
        (["llava", "DIR", "--out", "OUT", "--url_prefix", "https://a/"], "is needed for --url_prefix"),
        (["llava", "NONE", "--out", "OUT"], "no such directory"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    words: Sequence[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_set(tmp_path / "five")
    places = {"DIR": str(source), "OUT": str(tmp_path / "out"), "NONE": str(tmp_path / "none")}
    given = [places.get(word, word).replace("DIR/", f"{source}/") for word in words]
    code, out, err = command(capsys, *given)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert said in err
    assert not (tmp_path / "out").exists()


def test_a_missing_image_and_wrong_offsets_are_named(tmp_path: Path) -> None:
    source = write_set(tmp_path / "five")
    (source / "images" / "cup.jpg").unlink()
    with pytest.raises(UserError, match=r"images/cup\.jpg: cannot be read"):
        export_set("trl", source, tmp_path / "out")
    wrong = {"images": ["cat.jpg"], "user": "abc", "assistant": "d", "image_offsets": [4]}
    row = {"id": "x", "source": "s", "conversations": [wrong]}
    (source / "train.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"train\.jsonl:1: conversations\[0\]\.image_offsets do not fit"):
        export_set("trl", source, tmp_path / "out")
    assert sorted(os.listdir(tmp_path)) == ["five"]


def test_an_export_is_replaced_only_on_request_and_nothing_else_is(tmp_path: Path) -> None:
    source = write_set(tmp_path / "five")
    out = tmp_path / "out"
    export_set("trl", source, out)
    before = all_files(out)
    with pytest.raises(UserError, match="has an export already, of format 'trl'; --overwrite"):
        export_set("swift", source, out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"has 'notes\.txt', which the export did not write"):
        export_set("swift", source, out, overwrite=True)
    (out / "notes.txt").unlink()
    assert all_files(out) == before
    export_set("swift", source, out, overwrite=True)
    assert json.loads((out / ".phi3v" / "export.json").read_text())["export"] == "swift"
    (tmp_path / "folder").mkdir()
    export_set("swift", source, tmp_path / "folder")  # an empty folder may be there
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="a folder that no export wrote"):
        export_set("swift", source, tmp_path / "home", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["five", "folder", "home", "out"]


@pytest.mark.parametrize("name", ["trl", "webdataset"])
def test_the_same_export_again_is_complete_already(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_set(tmp_path / "five"), tmp_path / "out"
    code, first, _ = command(capsys, name, source, "--out", out, "--lossy")
    before = {path: path.stat() for path in sorted(out.rglob("*"))}
    again = command(capsys, name, source, "--out", out, "--lossy", "--workers", 2)
    assert (code, again) == (0, (0, first.replace(f"{out}: ", f"{out}: already complete: "), ""))
    assert {path: path.stat() for path in sorted(out.rglob("*"))} == before
    result = export_set(name, source, out, ExportRequest(lossy=True))
    assert (result.already_complete, result.path, result.warnings, result.notes) == (True, out, {}, ())
    assert not export_set(name, source, out, ExportRequest(lossy=True), overwrite=True).already_complete


def change_row(source: Path) -> None:
    path = source / "train.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"id": "', b'"id": "x', 1))


def touch_image(source: Path) -> None:
    os.utime(source / "images/cat.jpg", (1, 1))


def swap_images(source: Path) -> None:
    """Of one size and time."""
    one, other = source / "images/cat.jpg", source / "images/cup.jpg"
    one.rename(source / "aside")
    other.rename(one)
    (source / "aside").rename(other)


def write_into_image(source: Path) -> None:
    """As many bytes, with the time put back."""
    path = source / "images/cat.jpg"
    before = path.stat().st_mtime_ns
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"1234")
    os.utime(path, ns=(before, before))


def change_image(source: Path) -> None:
    """With its time put back."""
    path = source / "images/cat.jpg"
    before = path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes() + b"x")
    os.utime(path, ns=(before, before))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_row, r"before 'train\.jsonl' changed; --overwrite replaces it, or choose"),
        (touch_image, "before images were changed, replaced, copied or linked; --overwrite"),
        (change_image, "before images were changed, replaced, copied or linked; --overwrite"),
        (swap_images, "before images were changed, replaced, copied or linked; --overwrite"),
        (write_into_image, "before images were changed, replaced, copied or linked; --overwrite"),
    ],
)
def test_an_export_of_what_a_set_was_before_is_not_taken_for_complete(
    tmp_path: Path, change: Callable[[Path], None], said: str
) -> None:
    source, out = write_set(tmp_path / "five"), tmp_path / "out"
    export_set("trl", source, out, ExportRequest(images=ImageMode.copy))
    change(source)
    with pytest.raises(UserError, match=f"has an export already, {said}"):
        export_set("trl", source, out, ExportRequest(images=ImageMode.copy))
    assert export_set("trl", source, out, ExportRequest(images=ImageMode.copy), overwrite=True).rows
    assert export_set("trl", source, out, ExportRequest(images=ImageMode.copy)).already_complete


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("webdataset", {"shard_bytes": 5_000_000}, "with --shard_mb (in bytes) 450000000 instead of 5000000"),
        ("trl", {"images": ImageMode.copy}, 'with --images "link" instead of "copy"'),
        ("swift", {"image_refs": ImageRefs.data}, 'with --image_refs "path" instead of "data"'),
        ("webdataset", {"layout": "uniform"}, 'with --layout "energon" instead of "uniform"'),
    ],
)
def test_an_export_with_other_settings_is_another_one(
    tmp_path: Path, name: str, settings: dict[str, Any], said: str
) -> None:
    source, out = write_set(tmp_path / "five"), tmp_path / "out"
    export_set(name, source, out, ExportRequest(lossy=True))
    with pytest.raises(UserError) as caught:
        export_set(name, source, out, ExportRequest(lossy=True, **settings))
    assert f"has an export already, {said}" in str(caught.value)


def test_a_link_is_not_taken_for_the_export_behind_it(tmp_path: Path) -> None:
    source, out = write_set(tmp_path / "five"), tmp_path / "out"
    export_set("trl", source, out)
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(UserError, match="link: is a link; choose another --out"):
        export_set("trl", source, tmp_path / "link")
    (out / ".phi3v").rename(tmp_path / "aside")
    (out / ".phi3v").symlink_to(tmp_path / "aside")
    with pytest.raises(UserError, match="is a folder that no export wrote"):
        export_set("trl", source, out)


def test_the_name_of_a_set_without_a_manifest_is_in_its_export(tmp_path: Path) -> None:
    source, out = write_set(tmp_path / "five"), tmp_path / "out"
    export_set("sharegpt", source, out)
    source.rename(tmp_path / "six")
    with pytest.raises(UserError, match="has an export already, before the set was renamed; --overwrite"):
        export_set("sharegpt", tmp_path / "six", out)


def append(out: Path) -> None:
    with next(out.rglob("*.tar")).open("ab") as file:
        file.write(b"x")


def remove(out: Path) -> None:
    next(out.rglob("*.tar")).unlink()


def edit(out: Path) -> None:
    """As many bytes."""
    shard = next(out.rglob("*.tar"))
    shard.write_bytes(shard.read_bytes().replace(b"user", b"USER"))


def add_shard(out: Path) -> None:
    shutil.copy(next(out.rglob("*.tar")), out / "train-000001.tar")


@pytest.mark.parametrize("change", [append, remove, edit, add_shard])
def test_a_changed_or_damaged_export_is_not_taken_for_complete(tmp_path: Path, change: Callable[[Path], None]) -> None:
    source, out = write_set(tmp_path / "five"), tmp_path / "out"
    export_set("webdataset", source, out)
    (out / "notes.txt").write_text("mine")  # is of no consequence
    assert export_set("webdataset", source, out).already_complete
    change(out)
    with pytest.raises(UserError, match="has an export already, whose files have changed or are missing; --overwrite"):
        export_set("webdataset", source, out)


def test_an_export_whose_images_are_gone_is_not_taken_for_complete(tmp_path: Path) -> None:
    source, out = write_set(tmp_path / "five"), tmp_path / "out"
    export_set("trl", source, out)
    (out / "images/cat.jpg").unlink()
    with pytest.raises(UserError, match="has an export already, whose files have changed or are missing; --overwrite"):
        export_set("trl", source, out)


def test_other_links_to_the_images_are_no_change(tmp_path: Path) -> None:
    source, out = write_set(tmp_path / "five"), tmp_path / "out"
    export_set("trl", source, out)
    export_set("swift", source, tmp_path / "second")
    assert export_set("trl", source, out, ExportRequest(image_refs=ImageRefs.path)).already_complete


def test_a_set_that_changes_while_it_is_exported_gives_no_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, out = write_set(tmp_path / "five"), tmp_path / "out"
    write = run._Run.write

    def changing(self: Any, *args: Any) -> Any:
        touch_image(source)
        return write(self, *args)

    monkeypatch.setattr(run._Run, "write", changing)
    with pytest.raises(UserError, match="five: changed while it was exported; run the same command again"):
        export_set("webdataset", source, out)
    assert sorted(os.listdir(tmp_path)) == ["five"]


@pytest.mark.parametrize("kind", ["fifo", "folder", "large"])
def test_a_record_that_is_not_a_file_is_none(tmp_path: Path, kind: str) -> None:
    source, out = write_set(tmp_path / "five"), tmp_path / "out"
    export_set("trl", source, out)
    record = out / ".phi3v" / "export.json"
    record.unlink()
    if kind == "large":
        record.touch()
        os.truncate(record, 300 << 20)
    else:
        os.mkfifo(record) if kind == "fifo" else record.mkdir()
    for overwrite in (False, True):
        with pytest.raises(UserError, match="out: is a folder that no export wrote; choose another --out"):
            export_set("trl", source, out, overwrite=overwrite)


def test_what_a_killed_overwrite_left_is_removed_by_the_same_command(tmp_path: Path) -> None:
    source, out = write_set(tmp_path / "five"), tmp_path / "out"
    export_set("trl", source, out)
    shutil.copytree(out, tmp_path / ".out.export.old")
    (tmp_path / ".out.export-77").mkdir()
    assert export_set("trl", source, out).already_complete
    assert sorted(os.listdir(tmp_path)) == ["five", "out"]


@pytest.mark.parametrize(
    "change",
    [
        {"identity": None},
        {"identity": [1]},
        {"rows": {"train": "5"}},
        {"images": {}},
        {"lost": [["x", 1]]},
        {"output": 5},
        {"not_carried": None},
    ],
)
def test_a_record_of_a_stranger_is_not_believed(tmp_path: Path, change: dict[str, Any]) -> None:
    source, out = write_set(tmp_path / "five"), tmp_path / "out"
    export_set("trl", source, out)
    for record in (out / ".phi3v" / name for name in ("export.json", "export_state.json")):
        value = json.loads(record.read_text())
        record.write_text(json.dumps(value | {name: change[name] for name in change.keys() & value.keys()}))
    with pytest.raises(UserError, match=r"out: has an export already; --overwrite replaces it, or choose another"):
        export_set("trl", source, out)


def test_names_in_a_record_lead_nowhere_else(tmp_path: Path) -> None:
    """Folders behind them would be walked through, and be part of the digest of the files."""
    source, out = write_set(tmp_path / "five"), tmp_path / "out"
    export_set("trl", source, out)
    record = out / ".phi3v" / "export.json"
    value = json.loads(record.read_text())
    record.write_text(json.dumps(value | {"files": [*value["files"], "..", "../five", str(tmp_path), "a\0b", "."]}))
    assert export_set("trl", source, out).already_complete


def test_a_format_of_ones_own_that_changed_is_another_export(tmp_path: Path) -> None:
    source, out, own = write_set(tmp_path / "five"), tmp_path / "out", tmp_path / "mine.py"
    text = "from phi3v_data.formats.trl import TRL\nclass Mine(TRL):\n    name = 'mine'\n"
    own.write_text(text)
    words = ("-m", "phi3v_data", "export", f"{own}:Mine", str(source), "--out", str(out), "--quiet")
    run = partial(subprocess.run, [sys.executable, *words], capture_output=True, text=True)
    assert run().returncode == 0
    assert "already complete" in run().stdout
    own.write_text(text + "    title = 'my tool'\n")
    done = run()
    assert (done.returncode, "before the file of the format changed" in done.stderr) == (2, True)


def test_a_failure_while_writing_leaves_the_old_export_and_nothing_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_set(tmp_path / "five")
    out = tmp_path / "out"
    export_set("trl", source, out)
    before = all_files(out)

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "sync_disk", full)
    with pytest.raises(OSError, match="No space left"):
        export_set("swift", source, out, overwrite=True)
    assert all_files(out) == before
    assert sorted(os.listdir(tmp_path)) == ["five", "out"]


def test_the_next_export_clears_what_a_killed_one_left(tmp_path: Path) -> None:
    """A stage is removed; an old export that was moved aside for a new one that never came is put back."""
    source = write_set(tmp_path / "five")
    out = tmp_path / "out"
    export_set("trl", source, out)
    before = all_files(out)
    os.rename(out, tmp_path / ".out.export.old")
    (tmp_path / ".out.export-1").mkdir()
    (tmp_path / ".out.export-1" / "train.jsonl").write_text("{")
    (tmp_path / ".out.export.lock").touch()
    with pytest.raises(UserError, match="has an export already"):
        export_set("swift", source, out)
    assert all_files(out) == before
    assert sorted(os.listdir(tmp_path)) == ["five", "out"]


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    source = write_set(tmp_path / "five")
    with lock_file(tmp_path / ".out.export.lock", ""), pytest.raises(BusyError, match="another export writes to it"):
        export_set("trl", source, tmp_path / "out")


@pytest.mark.parametrize("name", ["sharegpt", "swift"])
def test_files_do_not_depend_on_parts_and_workers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_set(tmp_path / "many", many(100))
    write_set(source, many(3), "val")
    whole = export_set(name, source, tmp_path / "whole")
    monkeypatch.setattr(run, "PART_BYTES", 2000)
    parted = export_set(name, source, tmp_path / "parts", workers=2)
    assert all_files(tmp_path / "parts") == all_files(tmp_path / "whole")
    assert (whole.rows, whole.images) == (parted.rows, parted.images) == ({"train": 100, "val": 3}, 7)
    rows = rows_of(tmp_path / "parts" / ("train.json" if name == "sharegpt" else "train.jsonl"))
    assert [row["id"] for row in rows] == [f"row-{index}" for index in range(100)]


@pytest.mark.parametrize("overwrite", [False, True], ids=["fresh", "overwrite"])
def test_a_kill_before_any_file_operation_leaves_the_old_export_the_new_one_or_none(
    overwrite: bool, tmp_path: Path
) -> None:
    """The next export then ends with the bytes of an undisturbed one, and leaves nothing aside."""
    source, out = write_set(tmp_path / "five"), tmp_path / "out"
    export_set("swift", source, out)
    wanted = all_files(out)
    shutil.rmtree(out)
    before: dict[str, bytes] = {}
    if overwrite:
        export_set("trl", source, out)
        before = all_files(out)
        shutil.copytree(out, tmp_path / "before")
    point, seen = 0, set()
    while True:
        point += 1
        shutil.rmtree(out, ignore_errors=True)
        if overwrite:
            shutil.copytree(tmp_path / "before", out)
        status = in_child(lambda: export_set("swift", source, out, overwrite=overwrite), point)
        if status == 0:
            break
        assert status == -signal.SIGKILL
        found = all_files(out) if out.exists() else {}
        seen.add("old" if found == before else "new" if found == wanted else "none" if not found else "half")
        if found != wanted:
            export_set("swift", source, out, overwrite=overwrite)
        assert all_files(out) == wanted
    assert point > 20
    assert seen == ({"old", "none", "new"} if overwrite else {"old", "new"})
    left = {"before", "five", "out"} if overwrite else {"five", "out"}
    assert set(os.listdir(tmp_path)) - {".out.export.lock", ".out.export.old"} == left
    if (tmp_path / ".out.export.old").exists():  # killed after the new one was in place: the next export removes it
        export_set("swift", source, out, overwrite=True)
    assert set(os.listdir(tmp_path)) == left


WARNED = [
    ("qwen", Turn(user="What is it?", assistant="A cat."), ()),
    ("qwen", Turn(user="the assistant says", assistant="an assistant"), ()),
    ("qwen", Turn(user=" What is it?", assistant="A cat."), ("text-stripped",)),
    ("qwen", Turn(user="What is it?\n", assistant="A cat."), ("text-stripped",)),
    ("qwen", Turn(user="my-assistant says", assistant="A cat."), ("assistant-word",)),
    ("llava", Turn(images=("a.png",), user="See this.", assistant="Yes."), ()),
    ("llava", Turn(images=("a.png",), user="See this.", assistant="Yes.", image_offsets=(3,)), ("image-moved",)),
    ("axolotl", Turn(user="Sure?", assistant="\nYes."), ("answer-newline",)),
    ("axolotl", Turn(user="Sure?", assistant="Yes.\n"), ()),
    ("trl", Turn(user="What does <image> mean?", assistant="A place."), ("placeholder-in-text",)),
    ("trl", Turn(images=("a.png",), user="See this.", assistant="< image>"), ()),
    ("swift", Turn(user="Sure?", assistant="Yes.", weight=0), ("end-trained",)),
    ("swift", Turn(user="Sure?", assistant="Yes."), ()),
]


@pytest.mark.parametrize(("name", "last", "codes"), WARNED)
def test_what_a_tool_changes_or_trains_otherwise_is_a_warning(
    name: str, last: Turn, codes: tuple[str, ...], tmp_path: Path
) -> None:
    row = Sample(id="a", source="s", conversations=(Turn(user="Is it?", assistant="No."), last))
    result = export_set(name, write_set(tmp_path / "set", [row]), tmp_path / "out")
    assert tuple(result.warnings) == codes
    assert [(loss.rows, loss.split, loss.id) for loss in result.warnings.values()] == [(1, "train", "a")] * len(codes)
    assert all(loss.why for loss in result.warnings.values())


def test_limits_of_a_service_refuse_rows_and_lossy_leaves_them_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    turns = [("few", 10), ("many", 11)]
    rows = [
        Sample(id=name, source="s", conversations=(Turn(images=("a.png",) * count, user="u", assistant="v"),))
        for name, count in turns
    ]
    source = write_set(tmp_path / "set", [*rows, FIVE[3]])
    code, out, err = command(capsys, "openai", source, "--out", tmp_path / "all")
    assert (code, "over-limit" in out + err) == (0, False)  # limits are those of a target
    code, out, _ = command(capsys, "openai", source, "--out", tmp_path / "out", "--target", "together")
    assert code == 1
    assert out.startswith("over-limit: 1 row ")
    assert "the row has 11 images, Together takes 10 (2026-11-28)" in out
    assert "'many' of split train" in out
    code, out, _ = command(capsys, "openai", source, "--out", tmp_path / "out", "--target", "together", "--lossy")
    assert code == 0
    assert "2 rows (train 2), 10 images; lost: over-limit 1" in out
    assert len(rows_of(tmp_path / "out" / "train.jsonl")) == 2
    code, _, err = command(capsys, "openai", source, "--out", tmp_path / "azure", "--target", "azure")
    assert code == 0
    assert "note: split train: the file has 3 rows, Azure wants at least 10" in err


def test_formats_and_sizes_of_images_are_limits_too(tmp_path: Path) -> None:
    row = Sample(id="a", source="s", conversations=(Turn(images=("a.webp",), user="u", assistant="v"),))
    source = write_set(tmp_path / "set", [row])
    with pytest.raises(LossyError) as stop:
        export_set("openai", source, tmp_path / "out", ExportRequest(target="fireworks"))
    assert stop.value.lost["over-limit"].why.startswith("the image is WEBP, Fireworks takes JPEG, PNG")
    export_set("openai", source, tmp_path / "out", ExportRequest(target="azure"))


@pytest.mark.parametrize(
    ("name", "request_", "said"),
    [
        ("openai", ExportRequest(target="openay"), "not a service whose limits are known"),
        ("trl", ExportRequest(target="azure"), "is for the format openai"),
        ("openai", ExportRequest(target="azure", image_refs=ImageRefs.path), "takes data URLs"),
        (
            "openai",
            ExportRequest(target="together", image_refs=ImageRefs.url, url_prefix="https://a/"),
            "takes data URLs",
        ),
    ],
)
def test_a_target_that_does_not_fit_is_one_sentence(
    name: str, request_: ExportRequest, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        export_set(name, write_set(tmp_path / "five"), tmp_path / "out", request_)


def test_the_examples_in_the_help_and_on_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    write_set(tmp_path / "DIR")
    write_set(tmp_path / "data" / "chat")
    page = (Path(__file__).parents[2] / "docs" / "formats.md").read_text(encoding="utf-8").partition("## Export")[2]
    commands = [*export.examples, *re.findall(r"phi3v-data export [^`\n]*", page)]  # type: ignore[attr-defined]
    assert len(commands) > 10
    for command_line in (each for each in commands if "s3://" not in each):  # tests/remote has a store for those
        _, _, *words = shlex.split(command_line)
        code, out, err = command(capsys, *words, *(() if "--overwrite" in words else ("--overwrite",)))
        assert (code, err.startswith("error")) == (0, False), (command_line, err)
        assert out.startswith(words[words.index("--out") + 1])
