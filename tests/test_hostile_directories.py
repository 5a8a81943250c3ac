"""A directory from elsewhere: whatever its files say, nothing outside it is touched, and one sentence says why."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from half_published import SOURCE, convert
from in_process import Cli, make_cli
from kills import killed_before
from toy_converter import TOY, make_source, tree

import phi3v_data

OUTSIDE = ("../victim/x.jsonl", "/victim/x.jsonl", "a/../../victim/x.jsonl", "..\\victim\\x.jsonl", "C:/x.jsonl", "")


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return make_cli(capsys, monkeypatch)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_source(tmp_path / "source", SOURCE)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """Files beside the directory that nobody may touch."""
    folder = tmp_path / "victim"
    for name in ("x.jsonl", "x_train.jsonl", "x.png", "000000.json", "images/train/a.png", "convert/parts/000000.json"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("precious")
    return folder


@pytest.fixture
def directory(source: Path, tmp_path: Path) -> Path:
    """A complete set."""
    convert(source, tmp_path / "dir")
    return tmp_path / "dir"


@pytest.fixture
def interrupted(source: Path, tmp_path: Path) -> Path:
    """A conversion that was killed after its first part."""
    make_source(source, {f"train/g{n}/s.txt": f"image {n} train/{n}.png" for n in range(5, 9)})
    killed_before("replace", 3, lambda: convert(source, tmp_path / "dir"))
    assert [path.name for path in (tmp_path / "dir/.phi3v/convert/parts").iterdir()] == ["000000.json"]
    return tmp_path / "dir"


def state(folder: Path) -> dict[str, str]:
    """All that is in a folder, links as such."""
    links = {str(path): os.readlink(path) for path in folder.rglob("*") if path.is_symlink()}
    return tree(folder, hidden=True) | links


def edit(path: Path, change: dict[str, Any]) -> None:
    """Replace values of a JSON file, given by dotted names."""
    value = json.loads(path.read_text())
    for name, new in change.items():
        *way, last = name.split(".")
        at = value
        for key in way:
            at = at[int(key) if isinstance(at, list) else key]
        if isinstance(at, list):
            at[int(last)] = new
        else:
            at[last] = new
    path.write_text(json.dumps(value))


def refused(cli: Cli, *args: object, words: str) -> None:
    """Assert that a command says one sentence with these words, and nothing else."""
    code, out, err = cli(*args)
    assert (code, out) == (2, ""), (args, code, out, err)
    assert err.startswith("error: "), (args, err)
    assert words in err, (args, err)
    assert err.count("\n") == 1, (args, err)


def toy(source: Path, out: Path, *more: object) -> list[object]:
    return ["convert", "--converter", TOY, "--source", source, "--out_dir", out, "--workers", 0, *more]


ROWS = {"rows": 0, "images": 0}
MANIFESTS: list[dict[str, Any]] = [
    {"name": "../victim/x"},
    {"name": "/victim/x"},
    {"name": "a/b"},
    {"name": ".phi3v"},
    {"name": "..\\x"},
    {"splits": {"../victim/x": ROWS | {"files": {}}}},
    {"splits": {"": ROWS | {"files": {}}}},
    *({"splits": {"train": ROWS | {"files": {name: "sha256:0"}}}} for name in OUTSIDE),
    *({"splits": {"train": ROWS | {"files": {name: ""}}}} for name in (".phi3v/x.jsonl", "rejects.jsonl", "x.txt")),
]


@pytest.mark.parametrize("change", MANIFESTS)
def test_a_manifest_with_a_name_that_leads_elsewhere_is_invalid(
    cli: Cli, directory: Path, source: Path, victim: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    edit(directory / "dataset.json", change)
    before = state(tmp_path)
    code, out, _ = cli("validate", directory, "--json")
    assert code == 1
    assert "manifest-invalid" in json.loads(out)["summary"]["problems"]
    new = tmp_path / "new"
    for args, words in (
        (["split", directory, new, "--split", "train=0.5,val=0.5"], "dataset.json: manifest-invalid"),
        (["merge", directory, new, "--name", "x"], ""),
        (["preview", directory], "dataset.json: "),
        (["card", directory], "dataset.json: "),
        (toy(source, directory, "--overwrite"), "dataset.json: "),
    ):
        refused(cli, *args, words=words)
    with pytest.raises(phi3v_data.UserError, match=r"dataset\.json: "):
        phi3v_data.Dataset(directory)
    after = {name: digest for name, digest in state(tmp_path).items() if "dir/.phi3v" not in name}
    assert after == {name: digest for name, digest in before.items() if "dir/.phi3v" not in name}


@pytest.mark.parametrize("change", [MANIFESTS[0], MANIFESTS[7]])
def test_clean_repairs_a_set_with_such_a_manifest_without_believing_it(
    cli: Cli, directory: Path, victim: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    """`split` names it as the way out."""
    edit(directory / "dataset.json", change)
    before = tree(victim)
    assert cli("clean", directory, tmp_path / "new")[0] in (0, 1)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {
        ".phi3v",
        "dataset.json",
        "images",
        "removed.jsonl",
        "toy_train.jsonl",
        "toy_val.jsonl",
    }
    assert tree(victim) == before
    assert cli("validate", tmp_path / "new")[0] == 0


def test_training_refuses_such_a_manifest(cli: Cli, directory: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from phi3v_train.cli.app import main

    edit(directory / "dataset.json", {"name": "../victim/x"})
    code, out, err = cli("plan", "--data_dir", directory, "--model_name_or_path", "tiny", "--output_dir",
                         tmp_path / "run", main=main)  # fmt: skip
    assert (code, out) == (2, "")
    assert "dataset.json: name: " in err


PUBLICATIONS: list[Any] = [
    *({"install": [], "remove": ["toy_train.jsonl", name]} for name in OUTSIDE),
    *({"install": ["images", name], "remove": []} for name in ("../victim", "/victim", ".phi3v", "..", "dataset.json")),
    {"install": [], "remove": [".phi3v"]},
    {"install": [], "remove": ["images/train"]},
    {"install": [], "remove": "images"},
    {"install": [], "remove": [3]},
    {"install": []},
    {"install": [], "remove": [], "more": []},
    ["images"],
    "images",
]


@pytest.mark.parametrize("staged", [True, False])
@pytest.mark.parametrize("publication", PUBLICATIONS)
def test_a_forged_publication_removes_nothing(
    cli: Cli, directory: Path, source: Path, victim: Path, tmp_path: Path, publication: Any, staged: bool
) -> None:
    text = json.dumps(publication).replace('"/victim', f'"{victim}')
    (directory / ".phi3v/convert/publishing.json").write_text(text)
    if staged:
        (directory / ".phi3v/convert/stage").mkdir()
        (directory / ".phi3v/convert/stage/dataset.json").write_text((directory / "dataset.json").read_text())
    other = tmp_path / "other"
    convert(source, other)
    before = state(tmp_path)
    for args in (
        toy(source, directory),
        toy(source, directory, "--overwrite"),
        ["split", other, directory, "--split", "train=0.5,val=0.5", "--overwrite"],
        ["convert", "--finish", directory],
    ):
        refused(cli, *args, words="publishing.json: ")
    locks = ("convert.lock", "workers.lock")
    assert {name: each for name, each in state(tmp_path).items() if not name.endswith(locks)} == {
        name: each for name, each in before.items() if not name.endswith(locks)
    }


RECEIPTS: list[dict[str, Any]] = [
    {"rows.0.images": [[name, 3, "0" * 64]]} for name in ("../../../../../victim/x.png", "/victim/x.png", "a/../b.png")
]
RECEIPTS += [{"rows.0.images": [["train/a.png", 3, digest]]} for digest in ("../../../../victim/x.png", "0" * 63)]
RECEIPTS += [{"rows.0.split": split} for split in ("../../../../victim/x", "/victim/x", "")]
RECEIPTS += [{"collided": ["../../../../../victim/x.png"]}, {"rows.0.number": "1"}]


@pytest.mark.parametrize("change", RECEIPTS)
def test_a_forged_record_of_a_part_is_refused_whole(
    cli: Cli, interrupted: Path, source: Path, victim: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    edit(interrupted / ".phi3v/convert/parts/000000.json", change)
    shutil.rmtree(interrupted / ".phi3v/convert/run")  # scratch, which each run clears
    before = state(tmp_path)
    refused(cli, *toy(source, interrupted), words="parts/000000.json: was not written by phi3v")
    assert state(tmp_path) == before


@pytest.mark.parametrize("name", ["identity", "complete"])
@pytest.mark.parametrize("value", [{}, {"identity": 3, "overwrite": True}, {"identity": {}, "overwrite": "no"}])
def test_a_forged_identity_is_refused_whole(
    cli: Cli, interrupted: Path, source: Path, value: dict[str, Any], name: str
) -> None:
    if name == "complete" and isinstance(value.get("identity"), dict):
        value = {"identity": []}
    (interrupted / f".phi3v/convert/{name}.json").write_text(json.dumps(value))
    before = tree(interrupted, hidden=True)
    refused(cli, *toy(source, interrupted), words=f"{name}.json: was not written by phi3v")
    assert tree(interrupted, hidden=True) == before


@pytest.mark.parametrize("name", ["identity.json", "parts/000000.json"])
def test_an_endless_journal_is_not_read(cli: Cli, interrupted: Path, source: Path, name: str) -> None:
    path = interrupted / ".phi3v/convert" / name
    os.truncate(path, 5 << 30)  # zeros that take no place on the disk
    limit = {"identity.json": "268,435,456", "parts/000000.json": "2,147,483,648"}[name]
    words = f"was not written by phi3v (it has 5,368,709,120 bytes, over the limit of {limit})"
    refused(cli, *toy(source, interrupted), words=words)
    assert path.stat().st_size == 5 << 30


def test_an_endless_manifest_is_not_read(cli: Cli, directory: Path, tmp_path: Path) -> None:
    """Commands that need `dataset.json` say in one sentence that it is over the limit."""
    os.truncate(directory / "dataset.json", 5 << 30)
    words = "it has 5,368,709,120 bytes, over the limit of 268,435,456"
    code, out, _ = cli("validate", directory)
    assert (code, out.count(words)) == (1, 1)
    code, out, err = cli("split", directory, tmp_path / "new", "--split", "train=0.5,val=0.5")
    assert (code, out, err.count(words), err.count("\n")) == (2, "", 1, 1)
    assert cli("convert", "--finish", directory)[0] == 2
    with pytest.raises(phi3v_data.UserError, match="over the limit of 268,435,456"):
        phi3v_data.Dataset(directory)


LINKS = {
    ".phi3v": "",
    ".phi3v/convert": "convert",
    ".phi3v/convert/parts": "convert/parts",
    ".phi3v/convert/parts/000000.json": "000000.json",
    ".phi3v/convert/stage": "",
    ".phi3v/convert/stage/images": "images",
    ".phi3v/convert/stage/images/train": "images/train",
    ".phi3v/convert/stage/images/train/5.png": "x.png",
    ".phi3v/convert/stage/toy_train.jsonl": "x.jsonl",
    ".phi3v/convert/collisions": "",
    ".phi3v/convert/packed": "",
    ".phi3v/convert/run": "",
    ".phi3v/convert/source": "",
    ".phi3v/convert/old": "",
    ".phi3v/convert/identity.json": "x.jsonl",
    ".phi3v/convert/complete.json": "x.jsonl",
    ".phi3v/convert/publishing.json": "x.jsonl",
    ".phi3v/convert/marker.json": "x.jsonl",
    ".phi3v/convert.lock": "x.jsonl",
    ".phi3v/workers.lock": "new",
}


@pytest.mark.parametrize(("name", "target"), LINKS.items())
def test_nothing_of_the_journal_is_followed_through_a_link(
    cli: Cli, interrupted: Path, source: Path, victim: Path, name: str, target: str
) -> None:
    path = interrupted / name
    if path.exists():
        path.rename(interrupted.with_name("aside"))
    path.symlink_to(victim / target)
    before = (state(victim), state(interrupted))
    for args in (
        toy(source, interrupted),
        toy(source, interrupted, "--overwrite"),
        ["convert", "--finish", interrupted],
    ):
        code, out, err = cli(*args)
        assert (code, out) == (2, ""), (args, err)
        assert str(path.relative_to(interrupted)) in err, (args, err)
        assert "Traceback" not in err
    assert (state(victim), state(interrupted)) == before


FIFOS = ("dataset.json", "toy_train.jsonl", ".phi3v/convert/complete.json", ".phi3v/convert/publishing.json")


@pytest.mark.parametrize("name", FIFOS)
def test_a_fifo_in_the_place_of_a_file_is_named_and_never_waited_for(
    cli: Cli, directory: Path, source: Path, tmp_path: Path, name: str
) -> None:
    path = directory / name
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    signal.alarm(60)  # ends the tests where something waits
    refused(cli, *toy(source, directory, "--overwrite"), words=f"{path}")
    if not name.startswith(".phi3v"):
        code, out, _ = cli("validate", directory, "--json")
        found = json.loads(out)["problems"]
        assert code == 1
        assert [each["file"] for each in found if "not a regular file" in each["message"]] == [name]
        refused(cli, "split", directory, tmp_path / "new", "--split", "train=0.5,val=0.5", words="not a regular file")
        with pytest.raises(phi3v_data.UserError, match="not a regular file"):
            phi3v_data.Dataset(directory)["train"]
    signal.alarm(0)


@pytest.mark.parametrize("kind", ["fifo", "device", "huge"])
def test_a_list_beside_a_set_that_cannot_be_read_is_one_sentence(
    cli: Cli, directory: Path, tmp_path: Path, kind: str
) -> None:
    def put(path: Path) -> str:
        path.unlink(missing_ok=True)
        if kind == "fifo":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        else:
            with path.open("wb") as file:
                file.truncate((1 << 28) + 1)
            return "it has 268,435,457 bytes, over the limit of 268,435,456"
        return "it is not a regular file"

    shutil.copytree(directory, tmp_path / "other")
    signal.alarm(60)  # ends the tests where something waits
    reason = put(directory / "rejects.jsonl")
    sentence = f"error: {directory}/rejects.jsonl: cannot be read ({reason}); make it readable, or remove it\n"
    for command in (
        ["split", directory, tmp_path / "new", "--split", "train=0.5,val=0.5"],
        ["clean", directory, tmp_path / "new"],
        ["merge", directory, tmp_path / "other", tmp_path / "new"],
    ):
        code, _, err = cli(*command)
        assert (code, err) == (2, sentence)
        assert not (tmp_path / "new" / "dataset.json").exists()
    put(directory / "README.md")
    code, _, err = cli("card", directory)
    assert (code, err) == (2, f"error: {directory}/README.md: cannot be read ({reason}); move it away\n")
    (directory / "rejects.jsonl").unlink()
    assert cli("clean", directory, tmp_path / "clean")[0] == 0
    put(tmp_path / "clean" / "removed.jsonl")
    code, out, err = cli("clean", directory, tmp_path / "clean")
    assert (code, "left out" in out) == (0, False), err
    signal.alarm(0)


def test_a_foreign_list_of_removed_rows_is_not_believed(cli: Cli, directory: Path, tmp_path: Path) -> None:
    assert cli("clean", directory, tmp_path / "clean")[0] == 0
    known = '{"file": "a", "line": 3, "id": "a", "code": "empty-text", "message": "m"}'
    lines = [
        "no JSON",
        "[1]",
        '{"line": 1, "code": "evil"}',
        '{"line": 1, "code": []}',
        '{"code": "empty-text"}',
        known,
    ]
    (tmp_path / "clean" / "removed.jsonl").write_text("\n".join(lines) + "\n" + "x" * 200_000)
    code, out, err = cli("clean", directory, tmp_path / "clean")
    assert (code, err) == (0, "")
    assert "1 left out (1 empty-text; see" in out


def test_an_index_behind_a_link_is_neither_read_nor_written(directory: Path, victim: Path) -> None:
    (directory / ".phi3v/index").symlink_to(victim)
    before = state(victim)
    assert phi3v_data.Dataset(directory)["train"][0].id == "train-0000000000"
    assert state(victim) == before


def test_overwriting_a_set_whose_images_are_a_link_removes_the_link_only(
    cli: Cli, directory: Path, source: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "elsewhere"
    (directory / "images").rename(elsewhere)
    (directory / "images").symlink_to(elsewhere)
    before = tree(elsewhere)
    assert cli(*toy(source, directory, "--overwrite", "--suffix", "!"))[0] == 0
    assert tree(elsewhere) == before
    assert not (directory / "images").is_symlink()
    assert cli("validate", directory)[0] == 0


def test_overwriting_never_believes_rows_about_files_outside(
    cli: Cli, directory: Path, source: Path, victim: Path
) -> None:
    line = json.loads((directory / "toy_train.jsonl").read_text().splitlines()[0])
    line["conversations"][0]["images"].append("../../victim/x.png")
    (directory / "toy_train.jsonl").write_text(json.dumps(line) + "\n")
    before = state(victim)
    refused(cli, *toy(source, directory, "--overwrite"), words="is not used by a row")
    assert state(victim) == before


@pytest.mark.parametrize("text", ["xx{", "", "[1]"])
def test_a_damaged_publication_is_refused_by_readers_and_writers_alike(
    cli: Cli, directory: Path, source: Path, text: str
) -> None:
    path = directory / ".phi3v/convert/publishing.json"
    path.write_text(text)
    before = {name: each for name, each in state(directory).items() if not name.endswith(("lock", "/validate"))}
    for args in (
        ["validate", directory],
        ["stats", directory],
        ["convert", "--finish", directory],
        toy(source, directory),
    ):
        code, out, err = cli(*args)
        assert (code, out) == (2, "")
        assert "publishing.json: is damaged" in err
        assert "make the set again in a new folder, or remove this file if you know that the set is complete" in err
    assert {name: each for name, each in state(directory).items() if not name.endswith(("lock", "/validate"))} == before
    path.unlink()
    assert cli("validate", directory)[0] == 0
