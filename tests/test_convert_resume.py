"""An interrupted conversion is only resumed where its source still says the same; else it is refused by name.

Every source here is made twice with the same keys and sizes, and other content.
"""

import csv
import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from toy_converter import Toy, drafts, make_source, noise, plain_source, rows, tree

import phi3v_data
from phi3v_data.writing import plan

OLD = Path(__file__).parent / "data/old_journals"
"""Directories that earlier versions left, `.phi3v` called `phi3v`. By commit a5e38ca: one interrupted in a planned
conversion, one in a generator, one complete. By a12a97c: `table`, interrupted after 3 of 9 rows, with its source."""


class Stop(BaseException):
    """Ends a run where Ctrl-C would."""


def interrupt(converter: Any, source: Path, out: Path, after: int = 4, **settings: Any) -> None:
    """Convert in this process, and stop once `after` samples are done."""

    def stop(stage: str, done: int, total: int | None) -> None:
        if stage == "convert" and done >= after:
            raise Stop

    with pytest.raises(Stop):
        phi3v_data.convert(converter, source, out, workers=0, progress=stop, **settings)
    assert any((out / ".phi3v/convert/parts").iterdir())


def resume(converter: Any, source: Path, out: Path, **settings: Any) -> phi3v_data.ConvertResult:
    return phi3v_data.convert(converter, source, out, workers=0, **settings)


def refusal(converter: Any, source: Path, out: Path, **settings: Any) -> str:
    """The sentence by which resuming is refused; the directory stays as it is, and --overwrite gives what it should."""
    before = kept(out)
    with pytest.raises(phi3v_data.UserError) as error:
        resume(converter, source, out, **settings)
    assert kept(out) == before
    message = str(error.value)
    assert "\n" not in message
    assert len(message.replace(str(out), "")) <= 300
    assert "--overwrite" in message
    resume(converter, source, out, overwrite=True, **settings)
    resume(converter, source, out.with_name("fresh"), **settings)
    assert tree(out, hidden=True) == tree(out.with_name("fresh"), hidden=True)
    return message


def kept(out: Path) -> dict[str, str]:
    """All files of a directory but what was unpacked of its source."""
    return {name: digest for name, digest in tree(out, hidden=True).items() if "/convert/source" not in name}


def moved(source: Path) -> Path:
    """The same source somewhere else, with other times."""
    place = source.with_name("moved")
    shutil.copytree(source, place)
    for path in place.rglob("*"):
        os.utime(path, ns=(1, 1))
    shutil.rmtree(source)
    return place


def image(seed: int) -> bytes:
    """A BMP: every image of one size has the same number of bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(noise(seed, 8, "colour")).save(buffer, "bmp")
    return buffer.getvalue()


def samples(answers: Iterable[str]) -> list[dict[str, str]]:
    return [{"photo": f"{n}.bmp", "question": "What?", "answer": answer} for n, answer in enumerate(answers)]


def write_csv(file: Path, answers: Iterable[str]) -> None:
    with file.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["photo", "question", "answer"])
        writer.writeheader()
        writer.writerows(samples(answers))


def write_json(file: Path, answers: Iterable[str]) -> None:
    file.write_text(json.dumps(samples(answers)))


def write_jsonl(file: Path, answers: Iterable[str]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in samples(answers)))


def write_parquet(file: Path, answers: Iterable[str]) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow
    import pyarrow.parquet

    table = [{**row, "photo": {"bytes": image(n), "path": None}} for n, row in enumerate(samples(answers))]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), file, row_group_size=2)


MAP = json.dumps({"images": "photo", "user": "{question}", "assistant": "{answer}"})
TABLES: dict[str, Callable[[Path, Iterable[str]], None]] = {
    "rows.csv": write_csv,
    "rows.json": write_json,
    "rows.jsonl": write_jsonl,
    "rows.parquet": write_parquet,
}


def table(folder: Path, name: str, answers: str) -> Path:
    """A source of a table and its images; one letter of `answers` is one row's answer."""
    folder.mkdir(exist_ok=True)
    TABLES[name](folder / name, answers)
    if name != "rows.parquet":
        for n in range(len(answers)):
            (folder / f"{n}.bmp").write_bytes(image(n))
    return folder


@pytest.mark.parametrize("name", TABLES)
def test_a_corrected_table_is_not_mixed_with_the_old_one(tmp_path: Path, name: str) -> None:
    source = table(tmp_path / "source", name, "aaaaaa")
    interrupt("table", source, tmp_path / "out", options={"map": MAP})
    table(source, name, "abaaaa")
    message = refusal("table", source, tmp_path / "out", options={"map": MAP})
    assert f"'{name}'" in message
    row = {
        "rows.csv": "rows.csv:3",
        "rows.json": "rows.json[1]",
        "rows.jsonl": "rows.jsonl:2",
        "rows.parquet": "train[1]",
    }
    assert f"(item '{row[name]}')" in message


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_was_moved_and_touched_is_the_same(tmp_path: Path, name: str) -> None:
    source = table(tmp_path / "source", name, "aaaaaa")
    interrupt("table", source, tmp_path / "out", options={"map": MAP})
    result = resume("table", moved(source), tmp_path / "out", options={"map": MAP})
    assert (result.samples, result.resumed) == (6, 4)


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_a_changed_image_of_a_table_is_named(tmp_path: Path, name: str) -> None:
    source = table(tmp_path / "source", name, "aaaaaa")
    interrupt("table", source, tmp_path / "out", options={"map": MAP})
    if name == "rows.csv":
        (source / "1.bmp").write_bytes(image(77))
    else:
        import pyarrow
        import pyarrow.parquet

        cells = pyarrow.parquet.read_table(source / name).to_pylist()
        cells[1]["photo"]["bytes"] = image(77)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(cells), source / name, row_group_size=2)
    message = refusal("table", source, tmp_path / "out", options={"map": MAP})
    assert ("'1.bmp' of the source" if name == "rows.csv" else "'rows.parquet', group 0:1 of the source") in message


@pytest.mark.parametrize("kind", ["parquet", "save_to_disk"])
def test_a_table_whose_images_changed_after_a_complete_run_is_named(tmp_path: Path, kind: str) -> None:
    """The plan reads no images, so that it is the same."""
    datasets = pytest.importorskip("datasets")

    def write(last: int) -> Path:
        cells = [{**row, "photo": {"bytes": image(n), "path": None}} for n, row in enumerate(samples("aaaaaa"))]
        cells[5]["photo"]["bytes"] = image(last)
        shutil.rmtree(source, ignore_errors=True)
        rows = datasets.Dataset.from_list(cells, split="train")
        if kind == "parquet":
            source.mkdir()
            rows.to_parquet(str(source / "train.parquet"), batch_size=2)
        else:
            rows.save_to_disk(str(source))
        return source

    source = tmp_path / "source"
    interrupt("table", write(5), tmp_path / "out", options={"map": MAP})
    assert resume("table", write(77), tmp_path / "out", options={"map": MAP}).resumed == 4
    assert resume("table", write(77), tmp_path / "out", options={"map": MAP}).already_complete
    said = refusal("table", write(5), tmp_path / "out", options={"map": MAP})
    file = "train.parquet" if kind == "parquet" else "data-00000-of-00001.arrow"
    assert f"is complete, but the source has changed since: '{file}' has other content; --overwrite" in said


def test_images_outside_the_source_may_move_but_not_change(tmp_path: Path) -> None:
    source = table(tmp_path / "source", "rows.csv", "aaaaaa")
    (tmp_path / "photos").mkdir()
    for path in source.glob("*.bmp"):
        path.rename(tmp_path / "photos" / path.name)
    interrupt("table", source, tmp_path / "out", options={"map": MAP, "image_dir": str(tmp_path / "photos")})
    (tmp_path / "photos").rename(tmp_path / "other")
    options = {"map": MAP, "image_dir": str(tmp_path / "other")}
    (tmp_path / "other/0.bmp").write_bytes(image(77))
    with pytest.raises(phi3v_data.UserError, match=r"^'0\.bmp' of the source has changed"):
        resume("table", source, tmp_path / "out", options=options)
    (tmp_path / "other/0.bmp").write_bytes(image(0))
    assert resume("table", source, tmp_path / "out", options=options).resumed == 4


def test_a_changed_map_is_other_settings(tmp_path: Path) -> None:
    source = table(tmp_path / "source", "rows.csv", "aaaaaa")
    (tmp_path / "map.yaml").write_text("images: photo\nuser: '{question}'\nassistant: '{answer}'\n")
    interrupt("table", source, tmp_path / "out", options={"map": tmp_path / "map.yaml"})
    (tmp_path / "map.yaml").write_text("images: photo\nuser: '{question}'\nassistant: '{answer}!'\n")
    message = refusal("table", source, tmp_path / "out", options={"map": tmp_path / "map.yaml"})
    assert "options.map" in message


def memes(folder: Path, labels: str, order: str = "012345") -> Path:
    """Hateful memes in the official layout."""
    (folder / "img").mkdir(parents=True, exist_ok=True)
    for n in range(len(labels)):
        (folder / f"img/{n}.bmp").write_bytes(image(n))
    entries = [
        {"id": n, "img": f"img/{order[n]}.bmp", "label": int(label), "text": "words"} for n, label in enumerate(labels)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return folder


@pytest.mark.parametrize(("labels", "order"), [("010000", "012345"), ("000000", "102345")])
def test_a_corrected_annotation_file_is_named_with_the_item(tmp_path: Path, labels: str, order: str) -> None:
    source = memes(tmp_path / "source", "000000")
    interrupt("hateful_memes", source, tmp_path / "out")
    memes(source, labels, order)
    message = refusal("hateful_memes", source, tmp_path / "out")
    assert message.startswith("'train.jsonl' of the source has changed")
    assert ("'train.jsonl:1'" if order[0] == "1" else "'train.jsonl:2'") in message


def test_an_image_that_an_annotation_names_is_read_again(tmp_path: Path) -> None:
    source = memes(tmp_path / "source", "000000")
    interrupt("hateful_memes", source, tmp_path / "out")
    (source / "img/3.bmp").write_bytes(image(77))
    message = refusal("hateful_memes", source, tmp_path / "out")
    assert message.startswith("'img/3.bmp' of the source has changed")
    assert "(item 'train.jsonl:4')" in message


def clips(folder: Path) -> Path:
    """Six clips in class folders with official lists beside them, all of one size."""
    mini = Path(__file__).parent.parent / "examples/data/UCF101_subset"
    clip = min(mini.rglob("*.avi"), key=lambda path: path.stat().st_size).read_bytes()
    for n in range(6):
        path = folder / f"UCF-101/Walk/v_Walk_g{n:02d}_c01.avi"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(clip)
    return folder


def lists(folder: Path, test: str) -> None:
    (folder / "ucfTrainTestlist").mkdir(exist_ok=True)
    names = {"train": [n for n in "012345" if n not in test], "test": list(test)}
    for split, numbers in names.items():
        text = "".join(f"Walk/v_Walk_g0{n}_c01.avi\n" for n in numbers)
        (folder / f"ucfTrainTestlist/{split}list01.txt").write_text(text)


@pytest.mark.skipif(not Path(__file__).parents[1].joinpath("examples/data").exists(), reason="needs the mini set")
def test_clips_and_their_lists_are_compared(tmp_path: Path) -> None:
    pytest.importorskip("av")
    folder = clips(tmp_path / "clips")
    lists(folder, "5")
    source = folder / "UCF-101"
    interrupt("ucf101", source, tmp_path / "out", options={"frames": 1})
    shutil.copytree(tmp_path / "out", tmp_path / "again")
    changed = source / "Walk/v_Walk_g01_c01.avi"
    content = bytearray(changed.read_bytes())
    changed.write_bytes(bytes(content[:-1]) + bytes([content[-1] ^ 1]))
    with pytest.raises(phi3v_data.UserError, match=r"^'Walk/v_Walk_g01_c01\.avi' of the source has changed"):
        resume("ucf101", source, tmp_path / "out", options={"frames": 1})
    changed.write_bytes(bytes(content))
    lists(folder, "0")
    with pytest.raises(
        phi3v_data.UserError, match=r"the source has changed since: 'trainlist01\.txt' has other content"
    ):
        resume("ucf101", source, tmp_path / "out", options={"frames": 1})
    lists(folder, "5")
    folder.rename(tmp_path / "moved")
    result = resume("ucf101", tmp_path / "moved/UCF-101", tmp_path / "again", options={"frames": 1})
    assert result.resumed == 4


def pack(folder: Path, archive: Path) -> Path:
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as packed:
            for path in sorted(folder.rglob("*.txt")):
                packed.write(path, path.relative_to(folder))
    else:
        with tarfile.open(archive, "w") as packed_tar:
            for path in sorted(folder.rglob("*.txt")):
                packed_tar.add(path, path.relative_to(folder))
    return archive


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_member_of_an_archive_is_named_and_an_equal_archive_resumes(tmp_path: Path, kind: str) -> None:
    """Also: an archive of the same name, size and time is unpacked again when it was replaced."""
    folder = plain_source(tmp_path / "files", {"train": 8})
    archive = pack(folder, tmp_path / f"source.{kind}")
    times = (archive.stat().st_atime_ns, archive.stat().st_mtime_ns)
    interrupt(Toy, archive, tmp_path / "out")
    shutil.copytree(tmp_path / "out", tmp_path / "same")
    pack(folder, tmp_path / "new").replace(archive)
    assert resume(Toy, archive, tmp_path / "same").resumed == 4
    make_source(folder, {"train/g00/s001.txt": "image 9 train/s001.png"})
    pack(folder, archive)
    os.utime(archive, ns=times)
    message = refusal(Toy, archive, tmp_path / "out")
    assert message.startswith(f"'source.{kind}: train/g00/s001.txt' of the source has changed")
    assert f"(item 'source.{kind}: train/g00/s001.txt')" in message


def test_a_folder_that_was_unpacked_from_the_archive_is_the_same_source(tmp_path: Path) -> None:
    folder = plain_source(tmp_path / "files", {"train": 8})
    interrupt(Toy, pack(folder, tmp_path / "source.zip"), tmp_path / "out")
    assert resume(Toy, folder, tmp_path / "out").resumed == 4


def test_a_file_that_a_converter_reads_by_itself_is_noted(tmp_path: Path) -> None:
    """`examples/custom_converter.py` reads a text that no interface names, beside the image of the item."""
    example = f"{Path(__file__).parents[1] / 'examples/custom_converter.py'}:Receipts"
    source = tmp_path / "source"
    source.mkdir()
    for n in range(6):
        (source / f"{n}.png").write_bytes(b"")
        from PIL import Image

        Image.new("RGB", (8, 8), (n, 0, 0)).save(source / f"{n}.png")
        (source / f"{n}.txt").write_text(f"What?\n{n}.50\n")
    interrupt(example, source, tmp_path / "out")
    (source / "2.txt").write_text("What?\n7.50\n")
    message = refusal(example, source, tmp_path / "out")
    assert message.startswith("'2.txt' of the source has changed")
    assert "(item '2.png')" in message


def test_a_file_that_was_missing_and_came_is_another_source(tmp_path: Path) -> None:
    source = plain_source(tmp_path / "source", {"train": 6})
    make_source(source, {"train/g00/s001.txt": "path late.bmp"})
    interrupt(Toy, source, tmp_path / "out")
    (source / "train/g00/late.bmp").write_bytes(image(1))
    assert refusal(Toy, source, tmp_path / "out").startswith("'train/g00/late.bmp' of the source has changed")


def test_a_file_that_changes_while_it_is_read_ends_the_run(tmp_path: Path) -> None:
    source = plain_source(tmp_path / "source", {"train": 4})

    class Growing(Toy):
        def convert(self, item: phi3v_data.Item, options: Any) -> phi3v_data.Draft:
            draft = super().convert(item, options)
            if item.key.endswith("s002.txt"):
                with Path(item.path).open("a") as file:
                    file.write("more")
            return draft

    with pytest.raises(phi3v_data.UserError, match=r"^'train/g01/s002\.txt' of the source changed while it was read"):
        phi3v_data.convert(Growing, source, tmp_path / "out", workers=0)


def own_converter(file: Path, answer: str, tail: str = "") -> str:
    file.write_text(
        "import phi3v_data\n\n\nclass Own(phi3v_data.Converter[phi3v_data.Options]):\n    name = 'own'\n\n"
        "    def plan(self, source, options):\n"
        "        return [phi3v_data.Item('train', file.path, str(file.file)) for file in source.files()]\n\n"
        "    def convert(self, item, options):\n"
        f"        return phi3v_data.Draft(user='?', assistant={answer!r})\n{tail}"
    )
    return f"{file}:Own"


@pytest.fixture
def fresh_modules(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forget the user's files that this process has loaded, as another process would not know them."""
    import sys

    def forget() -> None:
        for name in [name for name in sys.modules if name.startswith("phi3v_data_user_")]:
            monkeypatch.delitem(sys.modules, name)

    return forget


def test_the_converters_own_file_belongs_to_the_identity(tmp_path: Path, fresh_modules: Callable[[], None]) -> None:
    source = plain_source(tmp_path / "source", {"train": 6})
    name = own_converter(tmp_path / "own.py", "yes")
    interrupt(name, source, tmp_path / "out")
    own_converter(tmp_path / "own.py", "no!")
    fresh_modules()
    assert "other settings: the converter's own file;" in refusal(name, source, tmp_path / "out")
    own_converter(tmp_path / "own.py", "yes")
    fresh_modules()
    with pytest.raises(phi3v_data.UserError, match="was converted with other settings: the converter's own file;"):
        resume(name, source, tmp_path / "out")


def test_a_module_that_the_converters_file_imports_from_beside_it_belongs_to_it(
    tmp_path: Path, fresh_modules: Callable[[], None]
) -> None:
    source = plain_source(tmp_path / "source", {"train": 6})
    name = own_converter(tmp_path / "own.py", "yes", "\n\nfrom own_words import WORDS  # noqa: E402, F401\n")
    (tmp_path / "own_words.py").write_text("import own_other\nWORDS = 'a'\n")
    (tmp_path / "own_other.py").write_text("")
    interrupt(name, source, tmp_path / "out")
    (tmp_path / "own_other.py").write_text("WORDS = 'b'\n")
    fresh_modules()
    with pytest.raises(phi3v_data.UserError, match="other settings: the converter's own file"):
        resume(name, source, tmp_path / "out")


def test_how_a_script_calls_its_converter_is_not_part_of_it(tmp_path: Path, fresh_modules: Callable[[], None]) -> None:
    source = plain_source(tmp_path / "source", {"train": 6})
    name = own_converter(tmp_path / "own.py", "yes", "\n\nif __name__ == '__main__':\n    print(1)\n")
    interrupt(name, source, tmp_path / "out")
    own_converter(tmp_path / "own.py", "yes", "\n\nif __name__ == '__main__':\n    print(2)\n    print(3)\n")
    fresh_modules()
    assert resume(name, source, tmp_path / "out").resumed == 4


def test_a_finished_directory_of_a_corrected_table_is_not_called_complete(tmp_path: Path) -> None:
    source = table(tmp_path / "source", "rows.csv", "aaaaaa")
    resume("table", source, tmp_path / "out", options={"map": MAP})
    table(source, "rows.csv", "abaaaa")
    with pytest.raises(phi3v_data.UserError) as error:
        resume("table", source, tmp_path / "out", options={"map": MAP})
    assert str(error.value) == (
        f"{tmp_path / 'out'} is complete, but the source has changed since: 'rows.csv' has other content; --overwrite "
        "starts over, or choose another --out_dir"
    )


def test_a_table_that_grew_during_an_interrupted_run_is_named(tmp_path: Path) -> None:
    source = table(tmp_path / "source", "rows.csv", "aaaaaa")
    interrupt("table", source, tmp_path / "out", options={"map": MAP})
    table(source, "rows.csv", "aaaaaaaa")
    with pytest.raises(phi3v_data.UserError) as error:
        resume("table", source, tmp_path / "out", options={"map": MAP})
    assert str(error.value) == (
        f"{tmp_path / 'out'} contains an interrupted conversion, but the source has changed since: 'rows.csv' has "
        "other content; restore the old content, or start over with --overwrite"
    )


def test_an_image_of_another_size_is_named(tmp_path: Path) -> None:
    source = plain_source(tmp_path / "source", {"train": 8})
    interrupt(Toy, source, tmp_path / "out")
    (source / "train/g00/s000.txt").write_text("image 1 and more")
    with pytest.raises(phi3v_data.UserError, match=r"changed since: 'train/g00/s000\.txt' has other content; restore"):
        resume(Toy, source, tmp_path / "out")


def test_a_generator_that_draws_something_else_is_refused(tmp_path: Path) -> None:
    """A file that was added in front would make one row come twice and one disappear."""
    source = plain_source(tmp_path / "source", {"train": 40})
    interrupt(drafts, source, tmp_path / "out", after=64)
    (source / "train/g00/a.txt").write_text("image 1")
    assert refusal(drafts, source, tmp_path / "out").startswith("draft 0 has changed since ")


def test_a_generator_that_draws_fewer_is_refused(tmp_path: Path) -> None:
    source = plain_source(tmp_path / "source", {"train": 40})
    interrupt(drafts, source, tmp_path / "out", after=64)
    for n in range(31, 40):
        (source / f"train/g{n // 2:02d}/s{n:03d}.txt").unlink()
    assert "the generator now ends before draft 62" in refusal(drafts, source, tmp_path / "out")


@phi3v_data.converter("photos")
def photos(source: phi3v_data.Source) -> Iterable[phi3v_data.Draft]:
    """One draft per image, given as a path."""
    for file in source.files([".bmp"]):
        yield phi3v_data.Draft(user="?", assistant=file.path, images=[file.file])


@pytest.mark.parametrize("changed", [False, True])
def test_the_images_of_a_generator_are_compared_by_content(tmp_path: Path, changed: bool) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for n in range(70):
        (source / f"{n:02d}.bmp").write_bytes(image(n))
    interrupt(photos, source, tmp_path / "out", after=64)
    source = moved(source)
    if changed:
        (source / "05.bmp").write_bytes(image(99))
        message = refusal(photos, source, tmp_path / "out")
        assert message.startswith("'05.bmp' of the source has changed")
        assert "(item 'draft 5')" in message
    else:
        assert resume(photos, source, tmp_path / "out").resumed == 64


def test_a_generator_resumes_by_what_its_records_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts may have had another size when they were written; nothing is lost and nothing comes twice."""
    source = plain_source(tmp_path / "source", {"train": 150})
    monkeypatch.setattr(plan, "GENERATOR_PART", 32)
    interrupt(drafts, source, tmp_path / "out", after=128)
    monkeypatch.undo()
    result = resume(drafts, source, tmp_path / "out")
    assert (result.resumed, result.samples, result.rejects) == (128, 300, 0)
    resume(drafts, source, tmp_path / "whole")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def old(kind: str, out: Path) -> Path:
    shutil.copytree(OLD / kind, out)
    (out / "phi3v").rename(out / ".phi3v")
    for name in ("convert.lock", "workers.lock"):
        (out / ".phi3v" / name).touch()
    return out


@pytest.mark.parametrize("kind", ["planned", "generator"])
def test_a_journal_of_the_version_before_resumes_by_converting_everything_again(tmp_path: Path, kind: str) -> None:
    """It does not say what its parts were made from, which may have been another source: none of them is kept."""
    converter = Toy if kind == "planned" else drafts
    source = plain_source(tmp_path / "source", {"train": 6 if kind == "planned" else 3})
    if kind == "planned":
        make_source(source, {"train/g02/s005.txt": "reject"})
    out = old(kind, tmp_path / "out")
    with pytest.raises(phi3v_data.UserError, match="limit null -> 1"):
        resume(converter, source, out, limit=1)
    corrected = source / "train/g00/s001.txt"
    corrected.write_text(corrected.read_text()[::-1])
    result = resume(converter, source, out)
    assert result.resumed == 0
    assert result.warnings[-1] == (
        "the interrupted conversion was begun by an older version of phi3v, which did not record digests of the "
        "source: everything was converted again"
    )
    assert resume(converter, source, tmp_path / "fresh").warnings == ()
    assert tree(out, hidden=True) == tree(tmp_path / "fresh", hidden=True)
    name = "toy_train.jsonl" if kind == "planned" else "drafts_train.jsonl"
    assert [row["id"] for row in rows(out, name)] == [
        f"train-{number:010d}" for number in range(6) if kind == "generator" or number != 5
    ]


def test_a_directory_that_the_version_before_finished_is_complete(tmp_path: Path) -> None:
    source = plain_source(tmp_path / "source", {"train": 2})
    out = old("complete", tmp_path / "out")
    assert resume(Toy, source, out).already_complete
    with pytest.raises(phi3v_data.UserError, match="limit null -> 1"):
        resume(Toy, source, out, limit=1)


def test_what_an_earlier_boot_wrote_is_compared_with_its_digest(tmp_path: Path) -> None:
    """A power cut may leave zeros where an image was, at the right size; that part is converted again."""
    source = plain_source(tmp_path / "source", {"train": 12})
    interrupt(Toy, source, tmp_path / "out", after=8)
    journal = tmp_path / "out/.phi3v/convert"
    for part in (0, 1):
        path = journal / f"parts/00000{part}.json"
        record = json.loads(path.read_text())
        assert record["boot"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        path.write_text(json.dumps({**record, "boot": "an earlier one"}))
    staged = sorted((journal / "stage/images/train").iterdir())
    staged[2].write_bytes(bytes(staged[2].stat().st_size))
    result = resume(Toy, source, tmp_path / "out")
    assert result.resumed == 6
    resume(Toy, source, tmp_path / "fresh")
    assert tree(tmp_path / "out", hidden=True) == tree(tmp_path / "fresh", hidden=True)


def test_an_image_that_was_changed_after_the_run_was_interrupted_is_made_again(tmp_path: Path) -> None:
    """With its size and modification time as before."""
    source = plain_source(tmp_path / "source", {"train": 12})
    interrupt(Toy, source, tmp_path / "out", after=8)
    staged = sorted((tmp_path / "out/.phi3v/convert/stage/images/train").iterdir())[2]
    before = staged.stat()
    staged.write_bytes(bytes(before.st_size))
    os.utime(staged, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert resume(Toy, source, tmp_path / "out").resumed == 6
    resume(Toy, source, tmp_path / "fresh")
    assert tree(tmp_path / "out", hidden=True) == tree(tmp_path / "fresh", hidden=True)


def test_the_state_of_a_file_spares_reading_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not that of a file which changed right before it was read: it may change again and keep its times."""
    from phi3v_data import same_source
    from phi3v_data.sources import reads

    source = plain_source(tmp_path / "source", {"train": 6})

    def states(out: Path) -> set[str]:
        record = json.loads((out / ".phi3v/convert/parts/000000.json").read_text())
        return {read[2] for _, _, found in record["sources"] for read in found}

    interrupt(Toy, source, tmp_path / "fresh files")
    assert states(tmp_path / "fresh files") == {""}
    monkeypatch.setattr(reads, "RACY_NS", 0)
    interrupt(Toy, source, tmp_path / "out")
    there = (source / "train/g00/s000.txt").stat()
    assert f"{there.st_size}:{there.st_mtime_ns}:{there.st_ctime_ns}" in states(tmp_path / "out")

    def unread(path: str, state: str) -> str:
        raise AssertionError(f"{path} is read again")

    monkeypatch.setattr(same_source, "known_digest", unread)
    assert resume(Toy, source, tmp_path / "out").resumed == 4


def test_a_saved_dataset_is_compared_by_rows(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")

    def save(folder: Path, answers: str) -> Path:
        table = [{**row, "photo": {"bytes": image(n), "path": None}} for n, row in enumerate(samples(answers))]
        datasets.Dataset.from_list(table, split="train").save_to_disk(str(folder))
        return folder

    source = save(tmp_path / "source", "aaaaaa")
    interrupt("table", source, tmp_path / "out", options={"map": MAP})
    shutil.copytree(tmp_path / "out", tmp_path / "same")
    shutil.rmtree(source)
    save(source, "aaaaab")
    assert resume("table", source, tmp_path / "same", options={"map": MAP}).resumed == 4
    shutil.rmtree(source)
    save(source, "abaaaa")
    assert "'train[1]'" in refusal("table", source, tmp_path / "out", options={"map": MAP})


def test_a_path_that_is_not_text_is_a_reject_and_not_a_traceback(tmp_path: Path) -> None:
    source = plain_source(tmp_path / "source", {"train": 2})

    @phi3v_data.converter("bytes")
    def odd(source: phi3v_data.Source) -> Iterable[phi3v_data.Draft]:
        yield phi3v_data.Draft(user="?", assistant="!", images=["no\udcff.png"])
        yield phi3v_data.Draft(user="?", assistant="!")

    assert resume(odd, source, tmp_path / "out").rejects == 1


@pytest.mark.parametrize(
    "change", [{"planned": [["source", "a"]]}, {"planned": 3}, {"identity": []}, {"overwrite": "yes"}]
)
def test_a_journal_that_says_what_is_never_written_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    source = plain_source(tmp_path / "source", {"train": 6})
    interrupt(Toy, source, tmp_path / "out")
    path = tmp_path / "out/.phi3v/convert/identity.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(phi3v_data.UserError, match=r"identity\.json: was not written by phi3v"):
        resume(Toy, source, tmp_path / "out")


@pytest.mark.parametrize("items", [None, [], "x", 5, {"train": "six"}])
@pytest.mark.parametrize("ended", [True, False], ids=["complete.json", "identity.json"])
def test_a_journal_with_counts_that_are_never_written_is_refused(tmp_path: Path, items: Any, ended: bool) -> None:
    source, out = plain_source(tmp_path / "source", {"train": 6}), tmp_path / "out"
    resume(Toy, source, out) if ended else interrupt(Toy, source, out)
    path = out / ".phi3v/convert" / ("complete.json" if ended else "identity.json")
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({**saved, "identity": {**saved["identity"], "items": items}}))
    (source / "train/g00/s000.txt").unlink()
    with pytest.raises(phi3v_data.UserError, match=rf"{path.name}: was not written by phi3v \(Expected `"):
        resume(Toy, source, out)


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_journal_of_a_newer_version_is_refused_and_kept(tmp_path: Path, overwrite: bool) -> None:
    source, out = plain_source(tmp_path / "source", {"train": 6}), tmp_path / "out"
    interrupt(Toy, source, out)
    path = out / ".phi3v/convert/identity.json"
    usual = path.read_text()
    path.write_text(json.dumps({**json.loads(usual), "format": 3}))
    before = kept(out)
    with pytest.raises(phi3v_data.UserError, match=r"newer version of phi3v \(format 3; this one reads up to 2\)"):
        resume(Toy, source, out, overwrite=overwrite)
    assert kept(out) == before
    path.write_text(usual)
    assert resume(Toy, source, out).resumed == 4


def test_a_journal_leads_to_no_file_outside_the_source(tmp_path: Path) -> None:
    """A record that climbs out of its root, or names a pipe, is read nowhere: it counts as changed."""
    source = plain_source(tmp_path / "source", {"train": 6})
    os.mkfifo(tmp_path / "pipe")
    for root, name in (("source", "../source/train/g00/s000.txt"), ("", str(tmp_path / "pipe"))):
        out = tmp_path / f"out {root}"
        interrupt(Toy, source, out)
        path = out / ".phi3v/convert/parts/000000.json"
        record = json.loads(path.read_text())
        record["sources"][0][2][0][:2] = [root, name]
        path.write_text(json.dumps(record))
        with pytest.raises(phi3v_data.UserError, match=r"^'.*(s000\.txt|pipe)' of the source has changed"):
            resume(Toy, source, out)


@pytest.mark.parametrize(("converter", "count", "after"), [(Toy, 6, 4), (drafts, 40, 64)])
def test_an_interrupted_overwriting_starts_over_where_the_source_has_changed(
    tmp_path: Path, converter: Any, count: int, after: int
) -> None:
    """The same command, with --overwrite, is not refused for ever: it replaces what it had begun."""
    source = plain_source(tmp_path / "source", {"train": count})
    resume(converter, source, tmp_path / "out", limit=2)
    interrupt(converter, source, tmp_path / "out", after=after, overwrite=True)
    if converter is drafts:
        make_source(source, {"train/g00/a.txt": "image 1"})
    make_source(source, {"train/g00/s000.txt": "image 9 train/s000.png"})
    result = resume(converter, source, tmp_path / "out", overwrite=True)
    assert result.resumed == 0
    resume(converter, source, tmp_path / "fresh")
    assert tree(tmp_path / "out", hidden=True) == tree(tmp_path / "fresh", hidden=True)
    make_source(source, {"train/g00/s000.txt": "image 0 train/s000.png"})
    interrupt(converter, source, tmp_path / "out", after=after, overwrite=True)
    assert resume(converter, source, tmp_path / "out", overwrite=True).resumed == after


def test_a_journal_resumes_after_a_change_of_the_code(tmp_path: Path) -> None:
    """Rows of one row group are in one part, whatever the field of `Item` that says so was called at the time."""
    pytest.importorskip("pyarrow")
    shutil.copytree(OLD / "table/source", tmp_path / "source")
    shutil.copytree(OLD / "table/phi3v", tmp_path / "out/.phi3v")
    for name in ("convert.lock", "workers.lock"):
        (tmp_path / "out/.phi3v" / name).touch()
    result = resume("table", tmp_path / "source", tmp_path / "out", options={"map": MAP})
    assert (result.samples, result.resumed) == (9, 3)
    resume("table", tmp_path / "source", tmp_path / "fresh", options={"map": MAP})
    assert tree(tmp_path / "out") == tree(tmp_path / "fresh")
