"""The whole path: order, numbers, limits, splits, identity, overwriting, and a directory that is left as it was."""

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from toy_converter import FILE, TOY, Broken, Toy, ToyOptions, Twice, drafts, make_source, plain_source, rows, tree

import phi3v_data
from phi3v_data import files
from phi3v_data.schema import Manifest, RejectRow
from phi3v_data.writing import parts
from phi3v_data.writing.plan import choose_split, parse_split_shares, spool_plan
from phi3v_data.writing.writer import PartWriter


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return plain_source(tmp_path / "source", {"test": 3, "validation": 4, "train": 9, "extra": 2})


def convert(source: Path, out: Path, **kwargs: object) -> phi3v_data.ConvertResult:
    return phi3v_data.convert(Toy, source, out, **({"workers": 0} | kwargs))  # type: ignore[arg-type]


def test_numbers_run_through_the_splits_in_order(source: Path, tmp_path: Path) -> None:
    result = convert(source, tmp_path / "out")
    assert list(result.manifest.splits) == ["train", "val", "test", "extra"]
    ids = [row["id"] for split in result.manifest.splits for row in rows(result.out_dir, f"toy_{split}.jsonl")]
    assert ids == [
        *(f"train-{n:010d}" for n in range(9)),
        *(f"val-{n:010d}" for n in range(9, 13)),
        *(f"test-{n:010d}" for n in range(13, 16)),
        *(f"extra-{n:010d}" for n in range(16, 18)),
    ]
    assert (result.samples, result.images, result.rejects) == (18, 18, 0)


def test_the_manifest_says_what_is_there(source: Path, tmp_path: Path) -> None:
    import hashlib

    result = convert(source, tmp_path / "out", options={"suffix": "!", "secret": "s"})
    text = (tmp_path / "out/dataset.json").read_text(encoding="utf-8")
    manifest = Manifest.model_validate_json(text)
    assert manifest == result.manifest
    for split, info in manifest.splits.items():
        [(name, digest)] = info.files.items()
        assert digest == f"sha256:{hashlib.sha256((tmp_path / 'out' / name).read_bytes()).hexdigest()}"
        assert info.rows == len(rows(tmp_path / "out", name))
        assert name == f"toy_{split}.jsonl"
    assert manifest.converter is not None
    assert manifest.converter.options["suffix"] == "!"
    assert "secret" not in manifest.converter.options


def test_a_limit_is_per_split_and_before_numbering(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", limit=2)
    assert [row["id"] for row in rows(tmp_path / "out", "toy_val.jsonl")] == ["val-0000000002", "val-0000000003"]


def test_a_reject_leaves_a_hole(source: Path, tmp_path: Path) -> None:
    make_source(source, {"train/g00/s001.txt": "reject", "train/g00/s000.txt": "raise"})
    result = convert(source, tmp_path / "out")
    assert next(row["id"] for row in rows(tmp_path / "out", "toy_train.jsonl")) == "train-0000000002"
    assert next(row["id"] for row in rows(tmp_path / "out", "toy_val.jsonl")) == "val-0000000009"
    assert dict(result.manifest.rejects) == {"converter-error": 1, "toy-reject": 1}
    for row in rows(tmp_path / "out", "rejects.jsonl"):
        RejectRow.model_validate(row)


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_workers_do_not_change_a_byte(source: Path, tmp_path: Path, workers: int) -> None:
    make_source(
        source, {"train/g00/s001.txt": "reject", "train/g01/s003.txt": "raise", "test/g00/s000.txt": "bytes cut"}
    )
    convert(source, tmp_path / "here")
    moved = tmp_path / "elsewhere" / "moved"
    shutil.copytree(source, moved)
    convert(moved, tmp_path / "other", workers=workers)
    assert tree(tmp_path / "here", hidden=True) == tree(tmp_path / "other", hidden=True)


def test_nothing_of_this_machine_is_in_the_output(source: Path, tmp_path: Path) -> None:
    make_source(
        source, {"train/g00/s001.txt": "reject", "train/g01/s003.txt": "raise", "test/g00/s000.txt": "path no.png"}
    )
    convert(source, tmp_path / "out")
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes(), path


def test_splits_of_ones_own_keep_groups_together(tmp_path: Path) -> None:
    source = plain_source(tmp_path / "source", {"all": 200}, per_group=4)
    result = convert(source, tmp_path / "out", split="train=0.8,val=0.1,test=0.1", seed=3)
    groups = {
        split: {row["group"] for row in rows(tmp_path / "out", f"toy_{split}.jsonl")}
        for split in result.manifest.splits
    }
    assert set(groups) == {"train", "val", "test"}
    assert sum(len(group) for group in groups.values()) == 50
    assert 30 <= len(groups["train"]) <= 48


@given(st.lists(st.text(max_size=8), min_size=1, max_size=50), st.integers(0, 5))
@settings(max_examples=50, deadline=None)
def test_rows_added_later_move_no_one(groups: list[str], seed: int) -> None:
    shares = parse_split_shares("train=0.5,val=0.25,test=0.25")
    before = {group: choose_split(group, shares, seed) for group in groups}
    assert {group: choose_split(group, shares, seed) for group in [*groups, "more"]} | {"more": ""} == before | {
        "more": ""
    }


@pytest.mark.parametrize(
    "text", ["", "train", "train=1.2", "train=0.5,val=0.4", "train=0.5,train=0.5", "a/b=1", "train=x"]
)
def test_impossible_shares_are_refused(text: str) -> None:
    with pytest.raises(phi3v_data.UserError, match="--split"):
        parse_split_shares(text)


def test_a_finished_directory_is_left_alone(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    result = convert(source, tmp_path / "out", workers=2)
    assert result.already_complete
    assert result.samples == 18
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"options": {"suffix": "!"}}, 'options.suffix "" -> "!"'),
        ({"limit": 1}, "limit null -> 1"),
        ({"plain": True}, "plain false -> true"),
        ({"split": "train=1"}, "split null"),
        ({"unlabelled": True}, "unlabelled"),
    ],
)
def test_another_run_on_a_finished_directory_is_refused(
    source: Path, tmp_path: Path, changed: dict[str, object], said: str
) -> None:
    convert(source, tmp_path / "out")
    before = tree(tmp_path / "out", hidden=True)
    with pytest.raises(phi3v_data.UserError) as error:
        convert(source, tmp_path / "out", **changed)
    assert said in str(error.value)
    assert "--overwrite" in str(error.value)
    assert tree(tmp_path / "out", hidden=True) == before


def test_a_source_that_grew_is_another_run(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out")
    make_source(source, {"train/g09/s999.txt": "image 1"})
    with pytest.raises(
        phi3v_data.UserError,
        match=r"out is complete, but the source has changed since: train has 10 items, not 9; --overwrite starts over",
    ):
        convert(source, tmp_path / "out")


def test_processes_with_one_number_write_parts_to_other_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Containers on one file system have such, and a dead task may still run."""
    (tmp_path / "source" / "cat").mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(tmp_path / "source" / "cat" / "a.png")
    names = []

    class Writer(PartWriter):
        def __init__(self, *args: Any) -> None:
            names.append(args[-1].name)
            super().__init__(*args)

    monkeypatch.setattr(parts, "PartWriter", Writer)
    for out in ("one", "two"):
        files._process_name.cache_clear()  # as in another process
        phi3v_data.convert("image_folder", tmp_path / "source", tmp_path / out, workers=0)
    first, second = names
    assert first != second
    assert first.split("-")[:2] == second.split("-")[:2] == ["scratch", str(os.getpid())]


def test_a_file_that_changed_is_named_although_the_plan_did_not_open_it(tmp_path: Path) -> None:
    (folder := tmp_path / "source" / "train" / "x").mkdir(parents=True)
    for number in range(3):
        Image.new("RGB", (8, 6 + number)).save(folder / f"{number}.png")
    phi3v_data.convert("image_folder", tmp_path / "source", tmp_path / "out", workers=0)
    with open(folder / "1.png", "ab") as file:
        file.write(b"x")
    said = (
        r"has changed since: 'train/x/1\.png' is newer than that; --overwrite starts over, or choose another --out_dir$"
    )
    with pytest.raises(phi3v_data.UserError, match=said):
        phi3v_data.convert("image_folder", tmp_path / "source", tmp_path / "out", workers=0)


def test_overwriting_gives_what_a_fresh_run_gives(source: Path, tmp_path: Path) -> None:
    make_source(source, {"test/g00/s000.txt": "reject"})
    convert(source, tmp_path / "out", options={"suffix": "!"})
    (tmp_path / "out/notes.txt").write_text("mine")
    convert(source, tmp_path / "out", overwrite=True, split="train=0.5,dev=0.5")
    assert (tmp_path / "out/notes.txt").read_text() == "mine"
    (tmp_path / "out/notes.txt").unlink()
    convert(source, tmp_path / "fresh", split="train=0.5,dev=0.5")
    assert tree(tmp_path / "out", hidden=True) == tree(tmp_path / "fresh", hidden=True)


def test_overwriting_that_fails_leaves_the_old_set(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out")
    before = tree(tmp_path / "out", hidden=True)
    make_source(source, {"train/g00/s000.txt": "import"})
    with pytest.raises(phi3v_data.UserError, match="no_such_module_of_mine"):
        convert(source, tmp_path / "out", overwrite=True)
    assert tree(tmp_path / "out", hidden=True) == before


def test_images_that_no_row_uses_are_not_overwritten(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out")
    (tmp_path / "out/images/mine.png").write_bytes(b"x")
    before = tree(tmp_path / "out", hidden=True)
    with pytest.raises(phi3v_data.UserError, match=r"mine\.png is not used by a row"):
        convert(source, tmp_path / "out", overwrite=True, limit=1)
    assert tree(tmp_path / "out", hidden=True) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_with_files_of_the_users_is_refused(source: Path, tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "out/images").mkdir(parents=True)
    (tmp_path / "out/photo.jpg").write_bytes(b"x")
    with pytest.raises(phi3v_data.UserError, match=r"not a phi3v dataset \(images, photo\.jpg\)"):
        convert(source, tmp_path / "out", overwrite=overwrite)
    assert sorted(tree(tmp_path / "out", hidden=True)) == ["images", "photo.jpg"]


def test_a_set_of_another_origin_is_only_overwritten_on_demand(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out", limit=1)
    shutil.rmtree(tmp_path / "out/.phi3v")
    with pytest.raises(phi3v_data.UserError, match="that was made elsewhere"):
        convert(source, tmp_path / "out")
    convert(source, tmp_path / "out", overwrite=True)
    convert(source, tmp_path / "fresh")
    assert tree(tmp_path / "out", hidden=True) == tree(tmp_path / "fresh", hidden=True)


def test_a_file_in_the_way_is_named(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(phi3v_data.UserError, match="is a file"):
        convert(source, tmp_path / "file")
    with pytest.raises(phi3v_data.UserError, match="is a file"):
        convert(source, tmp_path / "file" / "deeper")


@pytest.mark.parametrize("place", ["out", "out/a/b"])
def test_a_run_that_cannot_start_leaves_nothing(tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    for converter, source in (
        (Toy, "nowhere"),
        (Toy, tmp_path / "empty"),
        (Broken, tmp_path / "empty"),
        (Twice, tmp_path / "empty"),
    ):
        with pytest.raises(phi3v_data.UserError):
            phi3v_data.convert(converter, source, tmp_path / place, workers=1)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["empty"]


def test_a_plan_that_fails_says_where(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        phi3v_data.UserError, match=r"plan of broken failed: KeyError: 'b' \(toy_converter\.py:[0-9]+\)"
    ):
        phi3v_data.convert(Broken, tmp_path / "empty", tmp_path / "out")
    with pytest.raises(phi3v_data.UserError, match="the key 'a' twice"):
        phi3v_data.convert(Twice, tmp_path / "empty", tmp_path / "out")


def test_not_one_sample_is_an_error_that_tells_the_reasons(tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", {"train/g/a.txt": "reject", "train/g/b.txt": "bytes cut"})
    with pytest.raises(
        phi3v_data.UserError, match=r"none of 2 .*1 image-unreadable, 1 toy-reject.*train/g/a\.txt asked"
    ):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("source", "out"), [("source", "source/out"), ("out/source", "out"), ("source", "source")])
def test_source_and_output_may_not_be_in_each_other(tmp_path: Path, source: str, out: str) -> None:
    plain_source(tmp_path / source, {"train": 1})
    before = tree(tmp_path)
    with pytest.raises(phi3v_data.UserError, match="must not be inside each other"):
        convert(tmp_path / source, tmp_path / out)
    assert tree(tmp_path) == before


def test_without_a_source_and_a_hub_id_it_asks(tmp_path: Path) -> None:
    with pytest.raises(phi3v_data.UserError, match="--source"):
        phi3v_data.convert(Toy, None, tmp_path / "out")


def test_without_a_source_the_hub_id_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    code = "import phi3v_data; phi3v_data.convert('ucf101', None, 'out')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert "sayakpaul/ucf101-subset" in done.stderr.splitlines()[-1]
    assert "UserError" in done.stderr.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"limit": 0}, "limit"),
        ({"workers": -1}, "workers"),
        ({"engine": "slurm"}, "local or ray"),
        ({"options": {"size": "big"}}, "--size of toy must be a whole number"),
        ({"options": {"sise": 3}}, "its options are size, scale"),
        ({"options": {"mode": "sepia"}}, "'grey' or 'colour'"),
    ],
)
def test_a_wrong_argument_is_one_sentence(source: Path, tmp_path: Path, kwargs: dict[str, object], said: str) -> None:
    with pytest.raises(phi3v_data.UserError) as error:
        convert(source, tmp_path / "out", **kwargs)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_generator_is_a_converter(source: Path, tmp_path: Path) -> None:
    result = phi3v_data.convert(drafts, source, tmp_path / "out")
    assert result.samples == 36
    assert result.images == 18
    assert list(result.manifest.splits) == ["train", "val", "test", "extra"]
    assert next(row["id"] for row in rows(tmp_path / "out", "drafts_extra.jsonl")) == "extra-0000000000"
    assert phi3v_data.convert(f"{FILE}:drafts", source, tmp_path / "out").already_complete
    limited = phi3v_data.convert(drafts, source, tmp_path / "limited", limit=1)
    assert limited.samples == 4
    shared = phi3v_data.convert(drafts, source, tmp_path / "shared", split="a=0.5,b=0.5", plain=True)
    assert set(shared.manifest.splits) == {"a", "b"}


def test_a_generator_that_stops_says_where_and_resumes_later(tmp_path: Path) -> None:
    source = plain_source(tmp_path / "source", {"train": 100})
    phi3v_data.convert(drafts, source, tmp_path / "whole")
    kept = (source / "train/g45/s090.txt").read_text()
    (source / "train/g45/s090.txt").write_text("raise")
    with pytest.raises(phi3v_data.UserError, match=r"ValueError: enough \(toy_converter\.py:[0-9]+\)"):
        phi3v_data.convert(drafts, source, tmp_path / "out")
    (source / "train/g45/s090.txt").write_text(kept)
    result = phi3v_data.convert(drafts, source, tmp_path / "out")
    assert result.resumed == 128
    assert tree(tmp_path / "out", hidden=True) == tree(tmp_path / "whole", hidden=True)


def test_a_converter_defined_in_a_script_works_with_workers(source: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    text = FILE.read_text(encoding="utf-8").replace("FILE = Path(__file__).resolve()", "FILE = Path(__file__)")
    call = f"phi3v_data.convert(Toy, {str(source)!r}, {str(tmp_path / 'out')!r}, workers=2)"
    script.write_text(f'{text}\n\nif __name__ == "__main__":\n    print({call}.samples)\n')
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.stdout == "18\n", done.stderr
    script.write_text(f"{text}\n\n{call.replace('out', 'bare')}\n")
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert "if __name__ == '__main__'" in done.stderr.splitlines()[-1]


def test_a_converter_that_no_worker_can_import_says_so(source: Path, tmp_path: Path) -> None:
    class LocalOptions(ToyOptions):
        more: int = 3

    class Local(Toy):
        Options = LocalOptions

    with pytest.raises(phi3v_data.UserError, match="workers=0"):
        phi3v_data.convert(Local, source, tmp_path / "out", workers=2)
    assert not (tmp_path / "out").exists()
    assert phi3v_data.convert(Local, source, tmp_path / "out", workers=0).samples == 18


def test_items_of_one_bundle_are_in_one_part(tmp_path: Path) -> None:
    items = [phi3v_data.Item("train", str(n), bundle=str(n // 5)) for n in range(23)]
    plan = spool_plan(items, tmp_path)
    borders = {part.first for part in plan.parts}
    assert borders <= {0, 5, 10, 15, 20}
    assert sum(part.count for part in plan.parts) == 23


def test_a_read_only_finished_directory_still_says_complete(source: Path, tmp_path: Path) -> None:
    convert(source, tmp_path / "out")
    folders = [tmp_path / "out", *(path for path in (tmp_path / "out").rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(stat.S_IRUSR | stat.S_IXUSR | stat.S_IROTH | stat.S_IXOTH)
    try:
        assert convert(source, tmp_path / "out").already_complete
    finally:
        for folder in folders:
            folder.chmod(0o755)


def test_an_interrupted_run_with_other_settings_is_refused(source: Path, tmp_path: Path) -> None:
    make_source(source, {"extra/g00/s001.txt": "import"})
    with pytest.raises(phi3v_data.UserError):
        convert(source, tmp_path / "out")
    before = tree(tmp_path / "out", hidden=True)
    with pytest.raises(phi3v_data.UserError, match=r"interrupted conversion with other settings: options\.suffix"):
        convert(source, tmp_path / "out", options={"suffix": "?"})
    assert tree(tmp_path / "out", hidden=True) == before
    text = "image 1 extra/s001.png"
    (source / "extra/g00/s001.txt").write_text(text.ljust(len("import")))
    convert(source, tmp_path / "out", overwrite=True)
    convert(source, tmp_path / "fresh")
    assert tree(tmp_path / "out", hidden=True) == tree(tmp_path / "fresh", hidden=True)


def test_a_damaged_journal_is_repaired(source: Path, tmp_path: Path) -> None:
    """State after a power cut: receipts that are empty, images that are cut or gone, images without a receipt."""
    make_source(source, {"extra/g00/s001.txt": "import"})
    with pytest.raises(phi3v_data.UserError):
        convert(source, tmp_path / "out")
    convert_dir = tmp_path / "out/.phi3v/convert"
    receipts = sorted((convert_dir / "parts").iterdir())
    receipts[0].write_bytes(b"")
    images = sorted((convert_dir / "stage/images").rglob("*.png"))
    os.truncate(images[-1], 10)
    images[-3].unlink()
    (convert_dir / "stage/images/train/s999.png").write_bytes(b"left over")
    (source / "extra/g00/s001.txt").write_text("reject")
    result = convert(source, tmp_path / "out")
    assert 0 < result.resumed < 18
    assert json.loads((tmp_path / "out/rejects.jsonl").read_text())["item"] == "extra/g00/s001.txt"
    convert(source, tmp_path / "fresh")
    assert tree(tmp_path / "out", hidden=True) == tree(tmp_path / "fresh", hidden=True)


def test_the_example_converter_works_from_python_and_as_a_generator(tmp_path: Path) -> None:
    from PIL import Image

    example = FILE.parent.parent / "examples/custom_converter.py"
    (tmp_path / "receipts").mkdir()
    for n in range(3):
        Image.new("RGB", (20, 10), (n, 0, 0)).save(tmp_path / f"receipts/{n}.png")
        (tmp_path / f"receipts/{n}.txt").write_text(f"What is the total?\n{n}.50 eur\n", encoding="utf-8")
    result = phi3v_data.convert(
        f"{example}:Receipts", tmp_path / "receipts", tmp_path / "out", options={"upper": True}, workers=2
    )
    assert [row["conversations"][0]["assistant"] for row in rows(result.out_dir, "receipts_train.jsonl")] == [
        f"{n}.50 EUR" for n in range(3)
    ]
    short = phi3v_data.convert(f"{example}:receipts_short", tmp_path / "receipts", tmp_path / "short")
    assert short.samples == 3


def test_the_toy_is_found_by_file(source: Path, tmp_path: Path) -> None:
    assert phi3v_data.convert(TOY, source, tmp_path / "out", workers=2).samples == 18


class Misspelt(Toy):
    """Asks for a metric that there is not."""

    def describe(self, source: phi3v_data.Source, options: ToyOptions) -> phi3v_data.DatasetInfo:
        return phi3v_data.DatasetInfo(name="toy", metrics=("accuracy", "acuracy"))


def test_a_metric_that_there_is_not_is_refused_before_anything_is_converted(source: Path, tmp_path: Path) -> None:
    with pytest.raises(phi3v_data.UserError, match=r"metrics: there is no metric 'acuracy'; there are accuracy, anls,"):
        phi3v_data.convert(Misspelt, source, tmp_path / "out", workers=0, name="mine")
    assert not (tmp_path / "out" / "dataset.json").exists()
