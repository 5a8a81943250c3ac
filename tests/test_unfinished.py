"""A directory whose run was killed while its files were moved: refused everywhere, and completed by --finish."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from half_published import SOURCE, convert
from in_process import Cli, make_cli
from kills import killed_before
from sets.set_builders import row, write_set
from toy_converter import make_source, rows, tree

import phi3v_data
from phi3v_data.conversion import finish
from phi3v_data.unfinished import UnfinishedError, refuse_unfinished


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return make_cli(capsys, monkeypatch)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make_source(tmp_path / "source", SOURCE)


@pytest.fixture
def wanted(source: Path, tmp_path: Path) -> "dict[str, str]":
    """Digests of all files of the undisturbed set."""
    convert(source, tmp_path / "wanted")
    return tree(tmp_path / "wanted", hidden=True)


@pytest.fixture
def half(source: Path, tmp_path: Path) -> Path:
    """A set whose images and first split are in place, and whose second split is not."""
    out = tmp_path / "half"
    killed_before("rename", 3, lambda: convert(source, out))
    assert sorted(path.name for path in out.iterdir() if path.name != ".phi3v") == [
        "dataset.json",
        "images",
        "toy_train.jsonl",
    ]
    return out


def test_every_command_on_data_refuses_and_names_the_way_out(
    cli: Cli, half: Path, source: Path, tmp_path: Path
) -> None:
    convert(source, tmp_path / "whole")
    before = (tree(half), tree(half / ".phi3v/convert"))
    new = tmp_path / "new"
    for args in (
        ["validate", half],
        ["validate", half, "--level", "quick", "--json"],
        ["validate", half, "--html", tmp_path / "page.html"],
        ["stats", half],
        ["preview", half],
        ["preview", half, "--html", tmp_path / "page.html"],
        ["card", half],
        ["clean", half, new],
        ["split", half, new, "--split", "train=0.5,val=0.5"],
        ["merge", tmp_path / "whole", half, new],
    ):
        code, out, err = cli(*args)
        assert (code, out) == (2, ""), args
        assert err.startswith(f"error: {half}: its files are still being moved into place"), args
        assert "`phi3v-data convert --finish DIR`" in err, args
        assert err.count("\n") == 1, args
        assert len(err) < 300 + len(str(half)), args
    with pytest.raises(phi3v_data.UserError, match=r"convert --finish"):
        phi3v_data.Dataset(half)
    assert not new.exists()
    assert not (tmp_path / "page.html").exists()
    assert (tree(half), tree(half / ".phi3v/convert")) == before


def test_every_command_on_models_refuses_too(cli: Cli, half: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from phi3v_train.cli.app import main

    model = ["--model_name_or_path", "tiny", "--device", "cpu"]
    out = tmp_path / "run"
    for args in (
        ["run", "--data_dir", half, *model, "--output_dir", out],
        ["plan", "--data_dir", half, *model, "--output_dir", out],
        ["eval", "--data_dir", half, *model, "--output_dir", out],
        ["predict", "--data_dir", half, "--eval_split", "train", *model, "--output_dir", out],
        ["inspect", half, "--row", 0, "--model_name_or_path", "tiny"],
    ):
        code, stdout, err = cli(*args, main=main)
        assert (code, stdout) == (2, ""), (args, err)
        assert "`phi3v-data convert --finish DIR`" in err, args
        assert "Traceback" not in err
    assert not (out / "model").exists()


def copies(directory: Path, target: Path) -> "list[Path]":
    """Copies without `.phi3v`, by the tools that people use."""
    made = [target / "cp", target / "rsync"]
    made[0].mkdir(parents=True)
    visible = [path for path in directory.iterdir() if path.name != ".phi3v"]
    subprocess.run(["cp", "-r", *visible, made[0]], check=True)
    if not shutil.which("rsync"):
        return made[:1]
    subprocess.run(["rsync", "-a", "--exclude", ".phi3v", f"{directory}/", made[1]], check=True)
    return made


@pytest.mark.parametrize("rename", [1, 2, 3])
def test_a_copy_without_the_journal_is_refused_whatever_was_moved(
    cli: Cli, source: Path, tmp_path: Path, rename: int
) -> None:
    out = tmp_path / "half"
    killed_before("rename", rename, lambda: convert(source, out))
    for copy in copies(out, tmp_path / "copies"):
        for args in (["validate", copy], ["stats", copy], ["convert", "--finish", copy]):
            code, stdout, err = cli(*args)
            assert (code, stdout) == (2, ""), (args, err)
            assert err.startswith(f"error: {copy}: is a copy without .phi3v of a set"), args
        again = cli("convert", "--converter", Path(__file__).with_name("toy_converter.py"), "Toy", "--source", source,
                    "--out_dir", copy, "--overwrite")  # fmt: skip
        assert again[0] == 2
        assert "is a copy without .phi3v" in again[2]


@pytest.mark.parametrize("rename", [1, 2, 3, 4])
def test_old_labels_never_stand_beside_new_ones(cli: Cli, source: Path, tmp_path: Path, rename: int) -> None:
    """`--overwrite` with other answers, killed between the two splits: also in a copy."""
    out = tmp_path / "out"
    convert(source, out)
    old = tree(out)
    killed_before("rename", rename, lambda: convert(source, out, overwrite=True, suffix="!"))
    assert tree(out) != old
    for directory in (out, *copies(out, tmp_path / "copies")):
        assert cli("validate", directory)[0] == 2
    code, _, err = cli("convert", "--finish", out)
    assert (code, err) == (0, "")
    found = [row for split in ("train", "val") for row in rows(out, f"toy_{split}.jsonl")]
    answers = {row["conversations"][0]["assistant"][-1] for row in found}
    assert answers == {"!"}
    assert cli("validate", out)[0] == 0


def test_versions_that_do_not_know_the_marker_refuse_it(half: Path) -> None:
    """It lacks what format 1 has always required."""
    value = json.loads((half / "dataset.json").read_text())
    assert value["format"] == 1
    assert not {"name", "task", "splits"} & value.keys()


def test_finish_ends_with_the_bytes_of_the_same_command(
    cli: Cli, half: Path, source: Path, tmp_path: Path, wanted: "dict[str, str]"
) -> None:
    shutil.copytree(half, tmp_path / "copy")  # with its journal: it can be completed where it is
    shutil.rmtree(tmp_path / "source")
    line = "3 samples (train 2, val 1), 3 images\n"
    assert cli("convert", "--finish", half) == (0, f"{half}: {line}", "")
    assert cli("convert", "--finish", half) == (0, f"{half}: already complete: {line}", "")
    assert cli("convert", "--finish", tmp_path / "copy")[0] == 0
    assert tree(half, hidden=True) == tree(tmp_path / "copy", hidden=True) == wanted
    make_source(source, SOURCE)
    convert(source, half)
    assert tree(half, hidden=True) == wanted


def test_finish_counts_rejects_as_the_conversion_does(cli: Cli, source: Path, tmp_path: Path) -> None:
    make_source(source, {"val/g2/d.txt": "reject"})
    out = tmp_path / "out"
    killed_before("rename", 2, lambda: convert(source, out))
    assert cli("convert", "--finish", out, "--allow_rejects", 1)[0] == 0
    code, stdout, _ = cli("convert", "--finish", out)
    assert code == 1
    assert "1 rejected" in stdout


def test_finish_says_what_it_cannot_do(cli: Cli, half: Path, source: Path, tmp_path: Path) -> None:
    def refused(*args: object) -> str:
        code, out, err = cli("convert", *args)
        assert (code, out, err.count("\n")) == (2, "", 1)
        return err

    (tmp_path / "empty").mkdir()
    assert "no such directory" in refused("--finish", tmp_path / "gone")
    assert "nothing to finish, it contains no interrupted run of phi3v" in refused("--finish", tmp_path / "empty")
    bare = write_set(tmp_path / "bare", {"x_train.jsonl": [row("a")]})
    assert refused("--finish", bare) == (
        f"error: {bare}: there is nothing to finish, it contains no interrupted run of phi3v\n"
    )
    assert "is a file; give the directory" in refused("--finish", bare / "x_train.jsonl")
    assert "cannot be combined with 'ucf101'" in refused("ucf101", "--finish", half)
    interrupted = tmp_path / "interrupted"
    make_source(source, {f"train/g{n}/s.txt": f"image {n}" for n in range(5, 9)})

    killed_before("replace", 6, lambda: convert(source, interrupted))
    assert "nothing to finish, no files are being moved there yet; run the interrupted" in refused(
        "--finish", interrupted
    )
    (half / ".phi3v/convert/stage/dataset.json").unlink()
    assert "stage/dataset.json is gone" in refused("--finish", half)


def test_what_is_lost_meanwhile_is_named(half: Path) -> None:
    shutil.rmtree(half / "images")
    with pytest.raises(phi3v_data.UserError, match="cannot be completed, images is missing"):
        finish(half)
    assert (half / ".phi3v/convert/stage/toy_val.jsonl").exists()


def test_what_an_earlier_version_left_without_a_marker_is_refused_and_completed(
    cli: Cli, half: Path, wanted: "dict[str, str]"
) -> None:
    (half / "dataset.json").unlink()
    code, out, err = cli("validate", half)
    assert (code, out) == (2, "")
    assert "`phi3v-data convert --finish DIR`" in err
    assert cli("convert", "--finish", half)[0] == 0
    assert tree(half, hidden=True).items() >= wanted.items()


def test_an_interrupted_conversion_is_reported_as_incomplete(
    cli: Cli, source: Path, wanted: "dict[str, str]", tmp_path: Path
) -> None:
    out = tmp_path / "out"
    killed_before("replace", 3, lambda: convert(source, out))
    assert [path.name for path in out.iterdir()] == [".phi3v"]
    sentence = (
        f"{out}: contains an interrupted conversion (or one that is still running), and no set yet; run the same "
        "command again to finish it"
    )
    new = tmp_path / "new"
    for args in (
        ["validate", out],
        ["stats", out],
        ["preview", out],
        ["card", out],
        ["clean", out, new],
        ["split", out, new, "--split", "train=0.5,val=0.5"],
        ["merge", out, new],
    ):
        assert cli(*args) == (2, "", f"error: {sentence}\n"), args
    assert [path.name for path in (out / ".phi3v").iterdir() if path.is_dir()] == ["convert"]  # no trace of `validate`
    with pytest.raises(phi3v_data.UserError) as caught:
        phi3v_data.Dataset(out)
    assert str(caught.value) == sentence
    convert(source, out)
    assert tree(out) == {name: digest for name, digest in wanted.items() if not name.startswith(".phi3v")}


def test_a_damaged_journal_is_refused_where_nothing_else_is_left_of_it(tmp_path: Path) -> None:
    journal = tmp_path / ".phi3v" / "convert" / "publishing.json"
    journal.parent.mkdir(parents=True)
    refuse_unfinished(tmp_path)
    journal.write_text('{"moves": [')
    with pytest.raises(UnfinishedError, match=r"publishing\.json: is damaged"):
        refuse_unfinished(tmp_path)
