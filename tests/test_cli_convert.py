"""`phi3v-data convert` as a user types it."""

import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from toy_converter import FILE, TOY, Toy, make_source, plain_source, rows, run_cli, tree

import phi3v_data
from phi3v_data.cli.convert import wanted
from phi3v_data.errors import UserError
from phi3v_data.writing.request import SETTINGS

CLIPS = FILE.parent.parent / "examples/data/UCF101_subset"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return plain_source(tmp_path / "source", {"train": 4, "val": 2})


def toy(source: Path, *args: object) -> "tuple[int, str, str]":
    done = run_cli("convert", "--converter", TOY, "--source", source, "--workers", 1, *args)
    return done.returncode, done.stdout, done.stderr


def test_the_last_line_counts_everything(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    make_source(source, {"train/g00/s000.txt": "reject", "val/g00/s000.txt": "bytes cut"})
    line = (
        f"{out}: 4 samples (train 3, val 1), 4 images, "
        f"2 rejected (1 image-unreadable, 1 toy-reject; see {out}/rejects.jsonl)\n"
    )
    assert toy(source, "--out_dir", out) == (1, line, "")
    again = line.replace(f"{out}: 4", f"{out}: already complete: 4")
    assert toy(source, "--out_dir", out) == (1, again, "")
    assert toy(source, "--out_dir", out, "--allow_rejects", 1) == (1, again, "")
    assert toy(source, "--out_dir", out, "--allow-rejects", 2) == (0, again, "")


@pytest.mark.parametrize("style", ["--{}_{}", "--{}-{}"])
def test_both_spellings_of_an_option_are_one(source: Path, tmp_path: Path, style: str) -> None:
    code, stdout, _ = toy(source, style.format("out", "dir"), tmp_path / "out", style.format("allow", "rejects"), 1)
    assert (code, stdout.split(":")[0]) == (0, str(tmp_path / "out"))


def test_options_of_a_converter_become_options_of_the_command(source: Path, tmp_path: Path) -> None:
    code, _, stderr = toy(
        source, "--out_dir", tmp_path / "out", "--suffix", "!", "--loud", "--words", "a", "--words", "b", "--fold", "2",
        "--size=5", "--mode", "grey", "--scale", "0.5", "--secret", "xyz",
    )  # fmt: skip
    assert code == 0, stderr
    turn = rows(tmp_path / "out", "toy_train.jsonl")[0]["conversations"][0]
    assert turn["user"] == "What is it? a b"
    assert turn["assistant"] == "ANSWER TRAIN/G00/S000.TXT!"
    manifest = (tmp_path / "out/dataset.json").read_text()
    assert '"fold": 2' in manifest
    assert "xyz" not in manifest


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--size", "big"], "--size of toy must be a whole number, not 'big'"),
        (["--size", "0"], "--size of toy must be at least 1, not 0"),
        (["--mode", "sepia"], "'grey' or 'colour'"),
        (["--scale", "x"], "--scale of toy must be a number, not 'x'"),
        (["--split", "train=2"], "--split"),
        (["--engine", "slurm"], "local or ray"),
        (["--limit", "0"], "--limit must be at least 1"),
    ],
)
def test_a_wrong_value_is_one_sentence(source: Path, tmp_path: Path, args: list[str], said: str) -> None:
    code, stdout, stderr = toy(source, "--out_dir", tmp_path / "out", *args)
    assert (code, stdout) == (2, "")
    assert stderr.startswith("error: ")
    assert said in stderr
    assert stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ([], "no converter given; choose one of cauldron"),
        (["ucf101"], "--out_dir is missing"),
        (["nothing", "--out_dir", "x"], "no converter 'nothing'"),
        (["--converter", "nowhere.py:A", "--out_dir", "x"], "--converter nowhere.py: the file does not exist"),
        (["ucf101", "--source", "nowhere", "--out_dir", "x"], "'nowhere' does not exist"),
    ],
)
def test_what_is_missing_is_asked_for(tmp_path: Path, args: list[str], said: str) -> None:
    done = run_cli("convert", *args, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_help_shows_the_common_and_the_converters_own_options() -> None:
    plain = run_cli("convert", "--help", env={"COLUMNS": "120", "NO_COLOR": "1"})
    own = run_cli("convert", "ucf101", "--help", env={"COLUMNS": "120", "NO_COLOR": "1"})
    for done in (plain, own):
        assert done.returncode == 0, done.stderr
        for option in ("--source", "--out_dir", "--limit", "--split", "--seed", "--plain", "--unlabelled", "--workers"):
            assert option in done.stdout
        for option in ("--allow_rejects", "--engine", "--overwrite", "--converter", "--quiet", "Examples"):
            assert option in done.stdout
    assert "--frames" not in plain.stdout
    for text in ("--frames", "--image_format", "Number of frames per clip.", "[jpeg|png|webp]", "Options of ucf101"):
        assert text in own.stdout
    assert "phi3v-data convert ucf101 --out_dir out" in own.stdout


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("ucf101 --source x", "ucf101"),
        ("--source ucf ucf101", "ucf101"),
        ("--source=ucf ucf101 --out-dir y", "ucf101"),
        ("--frames 8 ucf101", "ucf101"),
        ("--salvage ucf101 --frames 8", "ucf101"),
        ("--quiet -q other", "other"),
        ("image_folder ucf101 --source x", "image_folder"),
        ("--converter a.py:B --source x", "a.py:B"),
        ("--converter=a.py:B x", "a.py:B"),
        ("--converter a.py B", "a.py:B"),
        ("--source x --help", None),
        ("--source", None),
        ("", None),
    ],
)
def test_the_converter_is_found_at_any_position(line: str, name: str | None) -> None:
    assert wanted(line.split()) == name


def test_quiet_and_pipes(source: Path, tmp_path: Path) -> None:
    code, stdout, stderr = toy(source, "--out_dir", tmp_path / "out", "--quiet")
    assert (code, stderr) == (0, "")
    assert stdout.count("\n") == 1
    assert "\x1b" not in stdout


def test_an_option_that_convert_has_itself_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.py").write_text(
        "import phi3v_data\nclass O(phi3v_data.Options):\n    limit: int = 3\n"
        "class A(phi3v_data.Converter[O]):\n    name = 'a'\n"
    )
    done = run_cli("convert", "--converter", tmp_path / "x.py", "--out_dir", tmp_path / "out", "--source", tmp_path)
    assert done.returncode == 2
    assert "a has an option 'limit', which is an option of convert itself; rename it in O" in done.stderr


@pytest.mark.skipif(not CLIPS.exists(), reason="needs the mini set")
def test_real_clips_give_the_same_bytes_for_any_number_of_workers(tmp_path: Path) -> None:
    trees = []
    for workers in (0, 1, 2, 7):
        out = tmp_path / f"out{workers}"
        done = run_cli("convert", "ucf101", "--source", CLIPS, "--out_dir", out, "--workers", workers, "--limit", 4)
        assert done.returncode == 0, done.stderr
        trees.append(tree(out, hidden=True))
    assert trees[0] == trees[1] == trees[2] == trees[3]


def test_the_shares_that_a_split_by_hash_got_are_printed(tmp_path: Path) -> None:
    """20 groups of two samples; by sha256sum 14 of the hashes with seed 0 are below .7."""
    plain_source(tmp_path / "source", {"train": 40})
    code, stdout, stderr = toy(tmp_path / "source", "--out_dir", tmp_path / "out", "--split", "train=0.68,val=0.32")
    assert code == 0
    assert stdout == f"{tmp_path / 'out'}: 40 samples (train 28, val 12), 40 images\n"
    assert stderr == (
        "note: hashing the groups gave train 70.0 %, val 30.0 % instead of train 68 %, val 32 %; "
        "`phi3v-data split` meets shares exactly\n"
    )


def test_rows_of_one_image_that_a_split_may_part_are_noted(tmp_path: Path) -> None:
    """Ten images with four questions each; with a group per image there is nothing to note."""
    (tmp_path / "pages").mkdir()
    lines = ["image,question,answer,group"]
    for number in range(40):
        name = f"{number % 10}.png"
        Image.new("RGB", (30, 20), (20 * (number % 10), 0, 0)).save(tmp_path / "pages" / name)
        lines.append(f"{name},What is {number}?,it,{name}")
    (tmp_path / "pages/with.csv").write_text("\n".join(lines))
    (tmp_path / "pages/without.csv").write_text("\n".join(line.rpartition(",")[0] for line in lines))
    said = {}
    for table in ("with", "without"):
        words = ("--source", str(tmp_path / f"pages/{table}.csv"), "--out_dir", str(tmp_path / table), "--workers", "0")
        done = run_cli("convert", "table", *words, "--split", "train=0.5,val=0.5")
        assert done.returncode == 0, done.stderr
        said[table] = done.stderr
    assert "without groups" not in said["with"]
    [note] = [line for line in said["without"].splitlines() if "without groups" in line]
    assert re.fullmatch(
        r"note: 40 rows without groups share 1\d images, and those of one image may be in different splits; "
        r"`phi3v-data split` keeps them together",
        note,
    )


def test_the_note_on_shares_names_the_cause_and_is_left_out_where_they_are_met(tmp_path: Path) -> None:
    plain_source(tmp_path / "source", {"train": 40})
    shares = ("--split", "train=0.7,val=0.3")
    assert toy(tmp_path / "source", "--out_dir", tmp_path / "out", *shares) == (
        0,
        f"{tmp_path / 'out'}: 40 samples (train 28, val 12), 40 images\n",
        "",
    )
    code, _, stderr = toy(tmp_path / "source", "--out_dir", tmp_path / "few", *shares, "--limit", 10)
    assert (code, stderr) == (
        0,
        "note: --limit 10, which is per split, gave train 50.0 %, val 50.0 % instead of train 70 %, val 30 %; "
        "leave out --limit\n",
    )


def test_empty_and_small_splits_of_a_split_by_hash_are_reported(tmp_path: Path) -> None:
    """Five groups of two, at .48, .24, .55, .81 and .66 by sha256sum."""
    plain_source(tmp_path / "source", {"train": 10})
    shares = "train=0.5,val=0.4,test=0.1"
    code, stdout, stderr = toy(tmp_path / "source", "--out_dir", tmp_path / "out", "--split", shares)
    assert (code, stdout) == (0, f"{tmp_path / 'out'}: 10 samples (train 4, val 6), 10 images\n")
    assert stderr.splitlines()[1:] == [
        "note: split test has no samples: there are too few groups for its share",
        "note: split train has only 4 rows, too few for a meaningful score",
    ]


def test_origin_and_licence_are_those_that_the_user_gives(tmp_path: Path) -> None:
    """In dataset.json, for a converter that has an origin of its own, too; another licence is another conversion."""

    def convert(**credit: str) -> Any:
        return phi3v_data.convert("ucf101", CLIPS, tmp_path / "out", limit=1, workers=0, **credit)  # type: ignore[arg-type]

    credit = {"origin": "Big Buck Bunny, Blender Foundation", "license": "cc-by-3.0"}
    made = convert(**credit).manifest
    assert (made.source, made.license) == (credit["origin"], "cc-by-3.0")
    assert convert(**credit).already_complete
    with pytest.raises(UserError, match="was converted with other settings: license"):
        convert(**credit | {"license": "mit"})
    for text in ("a\nb", "x" * 301):
        with pytest.raises(UserError, match=r"^--license .*: give one line of at most 300 characters$"):
            convert(license=text)


def test_the_settings_of_a_conversion_are_listed_once() -> None:
    """`convert()` takes as keywords what the command has as options; one that does not exist is named."""
    settings = ["limit", "split", "seed", "plain", "lossy", "unlabelled", "workers"]
    settings += ["engine", "ray_address", "ray_resources", "store", "overwrite", "name", "origin", "license"]
    assert list(SETTINGS) == settings
    shown = run_cli("convert", "--help").stdout
    assert [name for name in settings if f"--{name}" not in shown] == []
    with pytest.raises(TypeError, match=r"no setting 'worker'; there are limit, split, seed, plain"):
        phi3v_data.convert(Toy, "nowhere", "out", worker=2)  # type: ignore[call-arg]
