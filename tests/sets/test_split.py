"""split: what belongs together stays together, nothing leaks, rows added later move no one."""

import hashlib
import json
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import run_data
from set_builders import encoded, make_image, png, read_rows, row, split_of, tree, write_set

from phi3v_data.choices import ImageMode, SplitBy
from phi3v_data.errors import UserError
from phi3v_data.schema import Manifest
from phi3v_data.sets.shares import share_notes
from phi3v_data.sets.split import split_set
from phi3v_data.validate import validate
from phi3v_data.writing.plan import choose_split

LEAKS = ("leak-image", "leak-group", "leak-sample")


def many(count: int, per_group: int = 2) -> list[dict[str, object]]:
    return [row(f"r{n}", f"{n}.png", group=f"g{n // per_group}") for n in range(count)]


@pytest.fixture
def grouped(tmp_path: Path) -> Path:
    images = {f"{n}.png": png(n) for n in range(60)}
    rows = many(60)
    return write_set(
        tmp_path / "in",
        {"test_train.jsonl": rows[:40], "test_val.jsonl": rows[40:]},
        images,
        metrics=["anls"],
        num_crops=4,
    )


def sizes_of(folder: Path) -> dict[str, int]:
    return {split: len(rows) for split, rows in read_rows(folder).items()}


def test_shares_are_met_exactly(grouped: Path, tmp_path: Path) -> None:
    result = split_set(grouped, tmp_path / "out", "train=0.5,val=0.25,test=0.25")
    assert sizes_of(tmp_path / "out") == {"train": 30, "val": 16, "test": 14}  # 15 pairs: val gets the odd one
    where = split_of(tmp_path / "out")
    assert all(where[f"r{n}"] == where[f"r{n + 1}"] for n in range(0, 60, 2))
    assert result.samples == 60
    report = validate(tmp_path / "out")
    assert report.ok
    assert report.summary.problems == {}


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ("train=0.8,val=0.1,test=0.1", {"train": 80, "val": 10, "test": 10}),
        ("train=0.98,val=0.01,test=0.01", {"train": 98, "val": 1, "test": 1}),
        ("train=0.666,val=0.334", {"train": 67, "val": 33}),
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_single_rows_meet_any_shares(shares: str, expected: dict[str, int], seed: int, tmp_path: Path) -> None:
    write_set(tmp_path / "in", {"train.jsonl": [row(f"r{n}", answer=f"a{n % 3}") for n in range(100)]})
    for stratify in (False, True):
        out = tmp_path / f"out{stratify}"
        split_set(tmp_path / "in", out, shares, seed=seed, stratify=stratify)
        assert sizes_of(out) == expected


def test_a_large_group_goes_where_it_fits_and_small_ones_fill_up(tmp_path: Path) -> None:
    rows = [row(f"r{n}", group="big" if n < 45 else f"g{n}") for n in range(100)]
    write_set(tmp_path / "in", {"train.jsonl": rows})
    for seed in range(5):
        split_set(tmp_path / "in", tmp_path / f"out{seed}", "train=0.5,val=0.5", seed=seed)
        assert sizes_of(tmp_path / f"out{seed}") == {"train": 50, "val": 50}
        where = split_of(tmp_path / f"out{seed}")
        assert len({where[f"r{n}"] for n in range(45)}) == 1


def test_the_first_hashes_fill_the_first_split(tmp_path: Path) -> None:
    """Ten single rows by the hash of their group with seed 0 (sha256sum): g1 g3 g4 ... and last g2, g0."""
    write_set(tmp_path / "in", {"train.jsonl": [row(f"r{n}", group=f"g{n}") for n in range(10)]})
    split_set(tmp_path / "in", tmp_path / "out", "train=0.8,test=0.2")
    where = split_of(tmp_path / "out")
    assert sorted(name for name, split in where.items() if split == "test") == ["r0", "r2"]
    split_set(tmp_path / "in", tmp_path / "other", "train=0.8,test=0.2", seed=1)
    assert split_of(tmp_path / "other") != where


def test_a_split_of_few_rows_is_noted(tmp_path: Path) -> None:
    write_set(tmp_path / "in", {"train.jsonl": [row(f"r{n}") for n in range(50)]})
    done = run_data("split", tmp_path / "in", tmp_path / "out", "--split", "train=0.9,val=0.08,test=0.02")
    assert (done.returncode, done.stdout) == (
        0,
        f"{tmp_path / 'out'}: 50 samples (train 45, val 4, test 1), 0 images\n",
    )
    assert done.stderr.splitlines() == [
        "note: split val has only 4 rows, too few for a meaningful score",
        "note: split test has only 1 row, too few for a meaningful score",
    ]


def test_rows_and_images_are_as_they_were_and_the_manifest_is_carried_over(grouped: Path, tmp_path: Path) -> None:
    before = tree(grouped)
    split_set(grouped, tmp_path / "out", "train=0.7,val=0.3", seed=5)
    assert tree(grouped) == before
    lines = sorted(line for path in grouped.glob("*.jsonl") for line in path.read_bytes().splitlines())
    assert (
        sorted(line for path in (tmp_path / "out").glob("*.jsonl") for line in path.read_bytes().splitlines()) == lines
    )
    manifest = Manifest.model_validate_json((tmp_path / "out/dataset.json").read_bytes())
    assert (manifest.metrics, manifest.num_crops) == (("anls",), 4)
    assert [(step.name, step.options["seed"]) for step in manifest.history] == [("split", 5)]
    assert (tmp_path / "out/images/7.png").stat().st_ino == (grouped / "images/7.png").stat().st_ino


def test_images_can_be_copied(grouped: Path, tmp_path: Path) -> None:
    split_set(grouped, tmp_path / "out", "train=0.7,val=0.3", images=ImageMode.copy)
    copy, original = tmp_path / "out/images/7.png", grouped / "images/7.png"
    assert copy.read_bytes() == original.read_bytes()
    assert copy.stat().st_ino != original.stat().st_ino


def test_rows_that_share_pixels_are_joined_whatever_their_groups_and_names(tmp_path: Path) -> None:
    images = {f"{n}.png": png(n) for n in range(40)}
    images |= {f"again{n}.bmp": encoded(make_image(n), "BMP") for n in range(0, 40, 3)}
    rows = many(40) + [row(f"s{n}", f"again{n}.bmp", group=f"other{n}") for n in range(0, 40, 3)]
    write_set(tmp_path / "in", {"train.jsonl": rows}, images)
    split_set(tmp_path / "in", tmp_path / "out", "train=0.6,val=0.4")
    where = split_of(tmp_path / "out")
    assert all(where[f"s{n}"] == where[f"r{n}"] for n in range(0, 40, 3))
    report = validate(tmp_path / "out")
    assert not report.summary.problems.keys() & {*LEAKS, "leak-near-image"}


def test_rows_without_a_group_leave_groups_whole(tmp_path: Path) -> None:
    """They stand before, between and after the rows of groups, whose texts and images are all different."""
    rows = [row("a"), row("b")]
    for number in range(12):
        rows += [row(f"g{number}-0", group=f"g{number}"), row(f"x{number}"), row(f"g{number}-1", group=f"g{number}")]
    folder = write_set(tmp_path / "in", {"test_train.jsonl": [*rows, row("c")]})
    split_set(folder, tmp_path / "out", "train=0.5,val=0.5")
    where = split_of(tmp_path / "out")
    assert len(where) == 39
    assert [where[f"g{number}-0"] == where[f"g{number}-1"] for number in range(12)] == [True] * 12
    assert {where[f"g{number}-0"] for number in range(12)} == {"train", "val"}


def test_equal_texts_without_images_are_kept_in_one_split(tmp_path: Path) -> None:
    rows = [row(f"r{n}", user=f"Question {n % 30}?") for n in range(90)]
    write_set(tmp_path / "in", {"train.jsonl": rows})
    split_set(tmp_path / "in", tmp_path / "out", "train=0.6,val=0.4")
    assert "leak-sample" not in validate(tmp_path / "out").summary.problems


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.sets(st.integers(0, 15), max_size=3)), min_size=20, max_size=40),
    st.integers(0, 3),
    st.booleans(),
)
def test_any_set_splits_without_a_leak_or_is_refused(
    samples: list[tuple[int, set[int]]], seed: int, stratify: bool
) -> None:
    images = {f"{n}.png": png(n) for n in range(16)}
    rows = [
        row(f"r{n}", *(f"{k}.png" for k in sorted(used)), group=f"g{group}", answer="ab"[group % 2])
        for n, (group, used) in enumerate(samples)
    ]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_set(folder / "in", {"train.jsonl": rows}, images)
        try:
            split_set(folder / "in", folder / "out", "train=0.5,val=0.5", seed=seed, stratify=stratify)
        except UserError:
            assert not (folder / "out").exists()
            return
        assert not validate(folder / "out", use_receipt=False).summary.problems.keys() & set(LEAKS)
        assert split_of(folder / "out").keys() == {value["id"] for value in rows}


def test_stratified_splits_have_their_share_of_every_label(tmp_path: Path) -> None:
    rows = [row(f"r{n}", answer=("common" if n % 10 else "rare"), user=f"{n}?") for n in range(1000)]
    write_set(tmp_path / "in", {"train.jsonl": rows})
    split_set(tmp_path / "in", tmp_path / "out", "train=0.8,val=0.1,test=0.1", stratify=True)
    counts = {
        split: Counter(value["conversations"][0]["assistant"] for value in values)
        for split, values in read_rows(tmp_path / "out").items()
    }
    assert counts == {
        "train": {"common": 720, "rare": 80},
        "val": {"common": 90, "rare": 10},
        "test": {"common": 90, "rare": 10},
    }


def test_free_text_is_not_a_label(tmp_path: Path) -> None:
    write_set(tmp_path / "in", {"train.jsonl": [row(f"r{n}", answer=f"Text {n}.") for n in range(10_001)]})
    with pytest.raises(UserError, match="free text"):
        split_set(tmp_path / "in", tmp_path / "out", "train=0.5,val=0.5", stratify=True)


def test_one_image_in_all_rows_cannot_be_split(tmp_path: Path) -> None:
    rows = [row(f"r{n}", "logo.png", f"{n}.png") for n in range(12)]
    write_set(tmp_path / "in", {"train.jsonl": rows}, {f"{n}.png": png(n) for n in range(12)} | {"logo.png": png(99)})
    done = run_data("split", tmp_path / "in", tmp_path / "out", "--split", "train=0.8,val=0.2")
    assert (done.returncode, done.stdout) == (2, "")
    assert "the rows with 'r0' (they share images, such as 'logo.png'): 12 of 12 rows" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_group_far_beyond_every_share_is_named(tmp_path: Path) -> None:
    rows = [row(f"r{n}", group="big" if n < 70 else f"g{n}") for n in range(100)]
    write_set(tmp_path / "in", {"train.jsonl": rows})
    with pytest.raises(UserError, match=r"group 'big': 70 of 100 rows, but split train should have 50; change"):
        split_set(tmp_path / "in", tmp_path / "out", "train=0.5,val=0.5")
    assert split_set(tmp_path / "in", tmp_path / "out", "train=0.7,val=0.3").samples == 100


def test_by_image_and_by_id(grouped: Path, tmp_path: Path) -> None:
    result = split_set(grouped, tmp_path / "image", "train=0.5,val=0.5", by=SplitBy.image)
    assert sizes_of(tmp_path / "image") == {"train": 30, "val": 30}
    assert any("in several splits, which validate reports as leak-group" in note for note in result.notes)
    split_set(grouped, tmp_path / "id", "train=0.5,val=0.5", by=SplitBy.id)
    assert sizes_of(tmp_path / "id") == {"train": 30, "val": 30}
    assert split_of(tmp_path / "id") != split_of(tmp_path / "image")


def test_what_cannot_be_read_for_certain_is_refused(tmp_path: Path) -> None:
    write_set(tmp_path / "in", {"train.jsonl": [row("a"), "{broken", row("b")]})
    with pytest.raises(UserError, match=r"train\.jsonl:2: json-syntax: .*phi3v-data clean"):
        split_set(tmp_path / "in", tmp_path / "out", "train=0.5,val=0.5")


def test_unlabelled_rows_are_not_mixed_with_labelled_ones(tmp_path: Path) -> None:
    write_set(
        tmp_path / "in", {"a_test.jsonl": [row("a", answer="")], "a_train.jsonl": [row("b")]}, name="a", labelled=False
    )
    with pytest.raises(UserError, match="have no answers"):
        split_set(tmp_path / "in", tmp_path / "out", "train=0.5,val=0.5")


def test_other_content_is_refused_and_overwrite_replaces_a_set(grouped: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").touch()
    args = ("split", grouped, tmp_path / "out", "--split")
    assert "mine.txt" in run_data(*args, "train=0.5,val=0.5").stderr
    (tmp_path / "out/mine.txt").unlink()
    assert run_data(*args, "train=0.5,val=0.5").returncode == 0
    again = run_data(*args, "train=0.5,val=0.5")
    assert "already complete" in again.stdout
    other = run_data(*args, "train=0.5,test=0.5")
    assert other.returncode == 2
    assert "options.split.val" in other.stderr
    assert run_data(*args, "train=0.5,test=0.5", "--overwrite").returncode == 0
    assert {path.name for path in (tmp_path / "out").glob("*.jsonl")} == {"test_train.jsonl", "test_test.jsonl"}
    assert json.loads((tmp_path / "out/dataset.json").read_text())["splits"].keys() == {"train", "test"}


def test_out_inside_dir_is_refused(grouped: Path) -> None:
    with pytest.raises(UserError, match="inside each other"):
        split_set(grouped, grouped / "out", "train=0.5,val=0.5")


def test_the_hash_of_a_group_decides_in_every_version() -> None:
    """Found with sha256sum: of "0\\0g0" to "0\\0g9", the first 8 bytes over 2^64."""
    points = [int(hashlib.sha256(f"0\0g{n}".encode()).hexdigest()[:16], 16) / 2**64 for n in range(10)]
    assert points[0] >= 0.9
    assert points[2] >= 0.8
    shares = {"train": 0.8, "val": 0.1, "test": 0.1}
    assert [choose_split(f"g{n}", shares, 0) for n in range(10)] == ["test", "train", "test", *["train"] * 7]
    assert choose_split("g0", {"train": 1.0}, 0) == "train"


def test_rows_that_name_the_same_missing_image_stay_together(tmp_path: Path) -> None:
    rows = [row(f"r{n}", f"gone{n % 20}.png", group=f"g{n}", user=f"{n}?") for n in range(60)]
    write_set(tmp_path / "in", {"train.jsonl": rows}, {"there.png": png(0)})
    split_set(tmp_path / "in", tmp_path / "out", "train=0.5,val=0.5")
    where = split_of(tmp_path / "out")
    assert set(where.values()) == {"train", "val"}
    for n in range(20):
        assert len({where[f"r{n}"], where[f"r{n + 20}"], where[f"r{n + 40}"]}) == 1, n


def test_the_note_names_what_made_the_shares_differ() -> None:
    half = {"rows": 6, "images": 0, "labelled": True}
    manifest = Manifest.model_validate({"name": "x", "task": "vqa", "splits": {
        name: {"files": {f"x_{name}.jsonl": "sha256:" + "0" * 64}, **half} for name in ("test", "train")
    }})  # fmt: skip
    shares = {"train": 0.8, "test": 0.2}
    got = "train 50.0 %, test 50.0 % instead of train 80 %, test 20 %"
    assert share_notes(shares, manifest) == [f"hashing the groups gave {got}; `phi3v-data split` meets shares exactly"]
    assert share_notes(shares, manifest, limit=6) == [f"--limit 6, which is per split, gave {got}; leave out --limit"]
    assert share_notes(shares, manifest, limit=7)[0].startswith("hashing the groups")
    assert share_notes(shares, manifest, grouped=False) == share_notes(shares, manifest)  # no images
    for num_images, expected in ((6, []), (5, ["12 rows without groups share 10 images"])):  # of 6 rows in each split
        infos = {name: info.model_copy(update={"images": num_images}) for name, info in manifest.splits.items()}
        notes = share_notes(shares, manifest.model_copy(update={"splits": infos}), grouped=False)
        assert [note.partition(",")[0] for note in notes if "without groups" in note] == expected
