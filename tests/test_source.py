"""Sources by their kind, and hostile archives."""

import gzip
import io
import json
import multiprocessing
import os
import signal
import sys
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.sources.archive import MARKER, extract
from phi3v_data.sources.members import Limits
from phi3v_data.sources.reads import folder_state
from phi3v_data.sources.source import Source

FILES = {"set/b/2.txt": b"two", "set/B/1.txt": b"one", "set/a.txt": b"a", "set/\u00e9.txt": b"accent"}


def add(archive: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(data))


def make_tar(path: Path, mode: str = "w:gz") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]  # typeshed wants a literal mode
        for name, data in FILES.items():
            add(archive, name, data)
        add(archive, "set/._a.txt", b"macOS")
        add(archive, "__MACOSX/set/a.txt", b"macOS")
    return path


def make_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in FILES.items():
            archive.writestr(name, data)
        archive.writestr("set/.DS_Store", b"macOS")
    return path


MAKERS: dict[str, Callable[[Path], Path]] = {
    "s.tar.gz": make_tar,
    "s.tgz": make_tar,
    "s.tar": lambda path: make_tar(path, "w"),
    "s.tar.xz": lambda path: make_tar(path, "w:xz"),
    "s.tar.bz2": lambda path: make_tar(path, "w:bz2"),
    "s.zip": make_zip,
    "no suffix at all": make_zip,
}


@pytest.mark.parametrize("name", MAKERS)
def test_an_archive_lists_what_its_folder_lists(tmp_path: Path, name: str) -> None:
    archive = MAKERS[name](tmp_path / name)
    source = Source.open(archive, work_dir=tmp_path / "work")
    assert source.kind == "archive"
    assert source.describe() == f"archive {name}"
    listed = [(file.path, file.size) for file in source.files()]
    assert listed == [(name, len(FILES[name])) for name in sorted(FILES, key=str.encode)]
    assert all(file.file.read_bytes() == FILES[file.path] for file in source.files())
    folder = Source.open(source.root)
    assert folder.kind == "folder"
    assert [(file.path, file.size) for file in folder.files()] == listed
    assert [file.path for file in source.files((".TXT",))] == [path for path, _ in listed]
    assert source.files((".avi",)) == ()


def test_without_a_working_folder_an_archive_lives_as_long_as_its_source(tmp_path: Path) -> None:
    source = Source.open(make_tar(tmp_path / "s.tar.gz"))
    root = source.root
    assert source.files()[0].file.is_file()
    del source
    assert not root.exists()


def test_a_finished_extraction_is_used_again_and_a_changed_archive_is_not(tmp_path: Path) -> None:
    archive, work = make_tar(tmp_path / "s.tar.gz"), tmp_path / "work"
    root = extract(archive, work)
    touched = root / "set" / "a.txt"
    before = touched.stat().st_ino
    assert extract(archive, work) == root
    assert touched.stat().st_ino == before
    with tarfile.open(archive, "w:gz") as changed:
        add(changed, "new.txt", b"new")
    extract(archive, work)
    assert [file.path for file in Source.open(root).files()] == ["new.txt"]


def test_an_extraction_without_its_marker_is_done_again(tmp_path: Path) -> None:
    archive, work = make_tar(tmp_path / "s.tar.gz"), tmp_path / "work"
    root = extract(archive, work)
    (root / "set" / "a.txt").unlink()
    (work / MARKER).unlink()
    (work / ".files.partial" / "left").mkdir(parents=True)
    extract(archive, work)
    assert (root / "set" / "a.txt").read_bytes() == b"a"
    assert sorted(path.name for path in work.iterdir()) == [MARKER, "files"]


def _extract_until_killed(archive: Path, work: Path) -> None:
    extract(archive, work)


def number_of_files(folder: Path) -> int:
    """How many there are now; the folder comes and goes."""
    try:
        return len(os.listdir(folder))
    except FileNotFoundError:
        return 0


def test_killed_at_any_moment_the_next_run_has_all_files(tmp_path: Path) -> None:
    archive, work = tmp_path / "s.tar", tmp_path / "work"
    with tarfile.open(archive, "w") as made:
        for number in range(2000):
            add(made, f"set/{number:04d}.txt", b"x" * number)
    context = multiprocessing.get_context("spawn")
    for wanted in (1, 300, 900, 1500):
        process = context.Process(target=_extract_until_killed, args=(archive, work))
        process.start()
        partial = work / ".files.partial" / "set"
        while process.is_alive() and number_of_files(partial) < wanted:
            os.sched_yield()
        if process.pid is not None and process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
    files = Source.open(archive, work_dir=work).files()
    assert [(file.path, file.size) for file in files] == [(f"set/{n:04d}.txt", n) for n in range(2000)]


@pytest.mark.parametrize(
    "name", ["../out.txt", "/abs.txt", "a/../../out.txt", "C:\\out.txt", "..\\out.txt", "\\\\host\\out.txt"]
)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_paths_that_lead_outside_are_refused(tmp_path: Path, name: str, kind: str) -> None:
    archive = tmp_path / "in" / f"bad.{kind}"
    archive.parent.mkdir()
    if kind == "tar":
        with tarfile.open(archive, "w") as made:
            add(made, "good.txt", b"good")
            add(made, name, b"bad")
    else:
        with zipfile.ZipFile(archive, "w") as zipped:
            zipped.writestr("good.txt", b"good")
            zipped.writestr(name, b"bad")
    with pytest.raises(UserError, match="leads outside"):
        extract(archive, tmp_path / "in" / "work")
    assert list((tmp_path / "in" / "work").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize(
    ("kind", "target"), [(tarfile.SYMTYPE, "../../x"), (tarfile.SYMTYPE, "/etc/passwd"), (tarfile.LNKTYPE, "../x")]
)
def test_links_that_lead_outside_are_refused(tmp_path: Path, kind: bytes, target: str) -> None:
    archive = tmp_path / "bad.tar"
    with tarfile.open(archive, "w") as made:
        add(made, "set/link.txt", type=kind, linkname=target)
    with pytest.raises(UserError, match="leads outside"):
        extract(archive, tmp_path / "work")


def test_a_chain_of_links_to_folders_cannot_be_used_to_step_outside(tmp_path: Path) -> None:
    archive = tmp_path / "bad.tar"
    with tarfile.open(archive, "w") as made:
        add(made, "d/up", type=tarfile.SYMTYPE, linkname="..")
        add(made, "x", type=tarfile.SYMTYPE, linkname="d/up/..")
        add(made, "x/out.txt", b"bad")
    with pytest.raises(UserError):
        extract(archive, tmp_path / "work")
    assert not (tmp_path / "out.txt").exists()


def test_links_between_files_of_the_archive_become_files(tmp_path: Path) -> None:
    archive = tmp_path / "links.tar"
    with tarfile.open(archive, "w") as made:
        add(made, "a/soft.txt", type=tarfile.SYMTYPE, linkname="../b/real.txt")
        add(made, "b/real.txt", b"content")
        add(made, "c/hard.txt", type=tarfile.LNKTYPE, linkname="b/real.txt")
        add(made, "c/soft to soft.txt", type=tarfile.SYMTYPE, linkname="../a/soft.txt")
    root = extract(archive, tmp_path / "work")
    for file in Source.open(root).files():
        assert file.file.read_bytes() == b"content"
        assert not file.file.is_symlink()
    with zipfile.ZipFile(tmp_path / "links.zip", "w") as zipped:
        entry = zipfile.ZipInfo("a/soft.txt")
        entry.create_system, entry.external_attr = 3, 0o120777 << 16
        zipped.writestr(entry, "../b/real.txt")
        zipped.writestr("b/real.txt", b"content")
    root = extract(tmp_path / "links.zip", tmp_path / "work2")
    assert (root / "a" / "soft.txt").read_bytes() == b"content"


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "bad.tar", "w") as made:
        add(made, "dev", type=kind)
    with pytest.raises(UserError, match="device or a pipe"):
        extract(tmp_path / "bad.tar", tmp_path / "work")


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_bombs_are_refused_before_they_fill_the_disk(tmp_path: Path, kind: str) -> None:
    archive, zeros = tmp_path / f"bomb.{kind}", bytes(64 << 20)
    if kind == "zip":
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
            zipped.writestr("zeros", zeros)
    else:
        with tarfile.open(archive, "w:gz") as made:
            add(made, "zeros", zeros)
    with pytest.raises(UserError, match="bomb"):
        extract(archive, tmp_path / "work")
    limits = Limits(max_bytes=1 << 20)
    with pytest.raises(UserError, match="more than 1048576 bytes"):
        extract(archive, tmp_path / "work", limits)


def peak_of(call: Callable[[], object]) -> int:
    """The most bytes that Python holds while `call` ends in a UserError about a bomb or a header."""
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"bomb|a header of|more than"):
            call()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK])
def test_a_header_that_unpacks_to_gigabytes_is_refused_before_it_is_read(tmp_path: Path, kind: bytes) -> None:
    size = 256 << 20
    header = tarfile.TarInfo("././@PaxHeader")
    header.type, header.size = kind, size
    with gzip.open(tmp_path / "bomb.tar.gz", "wb", compresslevel=1) as stream:
        stream.write(header.tobuf(tarfile.GNU_FORMAT))
        for _ in range(32):
            stream.write(bytes(1 << 20))
    assert peak_of(lambda: extract(tmp_path / "bomb.tar.gz", tmp_path / "work")) < 8 << 20


@pytest.mark.parametrize("name", [".hidden/zeros", "__MACOSX/zeros", "caf\udce9"])
def test_members_that_are_passed_over_count_against_the_limits_before_they_are_read(tmp_path: Path, name: str) -> None:
    member = tarfile.TarInfo(name)
    member.size = 2 << 30
    head = member.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape")
    with gzip.open(tmp_path / "s.tar.gz", "wb") as stream:
        stream.write(head)  # and nothing after it: reading on would say "cut short"
    with pytest.raises(UserError, match="more than 200 times its size"):
        extract(tmp_path / "s.tar.gz", tmp_path / "work")
    (tmp_path / "s.tar").write_bytes(head + bytes(1 << 16))
    with pytest.raises(UserError, match="more than 1073741824 bytes"):
        extract(tmp_path / "s.tar", tmp_path / "work", Limits(max_bytes=1 << 30, max_ratio=1 << 40))


def test_a_member_that_is_passed_over_counts_as_it_comes_out(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar.gz", "w:gz") as made:
        for number in range(3):
            add(made, f".hidden/{number}", bytes(8 << 20))
    with pytest.raises(UserError, match="more than 200 times its size"):
        extract(tmp_path / "s.tar.gz", tmp_path / "work")


def test_a_zip_whose_name_is_not_the_utf8_that_it_says_is_one_sentence(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as made:
        made.writestr("caf\u00e9.txt", b"x")
    data = (tmp_path / "s.zip").read_bytes().replace("\u00e9".encode(), b"\xe9\xe9")
    (tmp_path / "s.zip").write_bytes(data)
    with pytest.raises(UserError, match="damaged"):
        extract(tmp_path / "s.zip", tmp_path / "work")


def test_what_is_left_out_of_an_archive_is_remembered_with_what_was_unpacked(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w", errors="surrogateescape") as made:
        add(made, "a.txt", b"a")
        add(made, "a.txt/b.txt", b"b")
        add(made, "link", type=tarfile.SYMTYPE, linkname="a.txt/b.txt")
    for _ in range(2):
        source = Source.open(tmp_path / "s.tar", work_dir=tmp_path / "work")
        assert [file.path for file in source.files()] == ["a.txt"]
        assert [(archive, member.name, member.why) for archive, member in source.rejected] == [
            ("s.tar", "a.txt/b.txt", "another member is a file where this one needs a folder"),
            ("s.tar", "link", "it is a link to a member that was left out"),
        ]


def test_too_many_entries_and_a_tail_of_zeros_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="more than 2 entries"):
        extract(make_tar(tmp_path / "s.tar.gz"), tmp_path / "work", Limits(max_files=2))
    with gzip.open(tmp_path / "tail.tar.gz", "wb") as stream:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as made:
            add(made, "a", b"a")
        stream.write(buffer.getvalue())
        stream.write(bytes(64 << 20))
    with pytest.raises(UserError, match="bomb"):
        extract(tmp_path / "tail.tar.gz", tmp_path / "work")


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "s.tgz"])
def test_a_cut_archive_is_refused_wherever_it_is_cut(tmp_path: Path, name: str) -> None:
    archive = MAKERS[name](tmp_path / name)
    data = archive.read_bytes()
    step = max(1, len(data) // 60)
    for end in range(1, len(data), step):
        if name == "s.tar" and end > len(data) - 9000:
            continue  # tar pads with zeros to 10240 bytes
        archive.write_bytes(data[:end])
        with pytest.raises(UserError) as caught:
            extract(archive, tmp_path / "work")
        assert "\n" not in str(caught.value)
        assert list((tmp_path / "work").iterdir()) == [] if (tmp_path / "work").is_dir() else True


def test_a_tar_cut_between_two_members_is_refused(tmp_path: Path) -> None:
    archive = make_tar(tmp_path / "s.tar", "w")
    archive.write_bytes(archive.read_bytes()[:1024])
    with pytest.raises(UserError, match="cut short"):
        extract(archive, tmp_path / "work")


@pytest.mark.parametrize("name", ["s.tar.gz", "s.tar.xz", "s.zip"])
def test_a_damaged_archive_is_refused(tmp_path: Path, name: str) -> None:
    archive = MAKERS[name](tmp_path / name)
    with_noise = bytearray(archive.read_bytes())
    with_noise[-8 if name == "s.tar.gz" else len(with_noise) // 3] ^= 0xFF
    archive.write_bytes(bytes(with_noise))
    with pytest.raises(UserError, match="damaged or cut short"):
        extract(archive, tmp_path / "work")


def test_damage_without_words_is_named_by_its_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """zipfile raises a bare `EOFError` where a member ends too early."""

    def cut(*_: object) -> bytes:
        raise EOFError

    archive = MAKERS["s.zip"](tmp_path / "s.zip")
    monkeypatch.setattr(zipfile.ZipExtFile, "read", cut)
    with pytest.raises(UserError, match=r"damaged or cut short \(EOFError\); download it again"):
        extract(archive, tmp_path / "work")


def test_a_file_that_is_not_an_archive_is_refused_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / "UCF101.rar").write_bytes(b"Rar!\x1a\x07\x00rest")
    with pytest.raises(UserError, match=r"unrar x UCF101\.rar"):
        Source.open(tmp_path / "UCF101.rar", work_dir=tmp_path / "work")
    (tmp_path / "clip.avi").write_bytes(b"RIFF")
    with pytest.raises(UserError, match="neither a tar nor a zip"):
        Source.open(tmp_path / "clip.avi", work_dir=tmp_path / "work")
    with pytest.raises(NotFoundError, match="give a folder, an archive"):
        Source.open(tmp_path / "gone")
    with zipfile.ZipFile(tmp_path / "locked.zip", "w") as zipped:
        zipped.writestr("a", b"a")
    data = bytearray((tmp_path / "locked.zip").read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    (tmp_path / "locked.zip").write_bytes(bytes(data))
    with pytest.raises(UserError, match="encrypted"):
        Source.open(tmp_path / "locked.zip", work_dir=tmp_path / "work")


def test_a_working_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    with pytest.raises(UserError, match="cannot unpack"):
        extract(make_tar(tmp_path / "s.tar.gz"), blocked / "work")


def test_a_folder_is_listed_by_bytes_with_links_followed_but_not_in_circles(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    for path in ("b/x.txt", "B/x.txt", "a-b/x.txt", "a/x.txt", ".hidden/x.txt", "a/._x.txt"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(path)
    elsewhere.mkdir()
    (elsewhere / "y.txt").touch()
    (root / "linked").symlink_to(elsewhere)
    (root / "a" / "circle").symlink_to(root)
    (root / "dangling.avi").symlink_to(tmp_path / "gone")
    paths = [file.path for file in Source.open(root).files()]
    assert paths == ["B/x.txt", "a-b/x.txt", "a/x.txt", "b/x.txt", "dangling.avi", "linked/y.txt"]


def test_a_name_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    os.close(os.open(os.fsencode(tmp_path) + b"/\xff.avi", os.O_CREAT | os.O_WRONLY))
    with pytest.raises(UserError, match="not UTF-8"):
        Source.open(tmp_path).files()


class TestRows:
    """Parquet snapshots and save_to_disk folders."""

    ROWS = tuple({"id": n, "image": {"bytes": bytes([n]), "path": f"{n}.png"}} for n in range(50))

    def test_parquet(self, tmp_path: Path) -> None:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        (tmp_path / "data").mkdir()
        for split in ("validation", "train", "test"):
            for shard, rows in enumerate((self.ROWS[:30], self.ROWS[30:])):
                table = pa.Table.from_pylist(list(rows))
                pq.write_table(
                    table, tmp_path / "data" / f"{split}-0000{shard}-of-00002-ab12.parquet", row_group_size=7
                )
        source = Source.open(tmp_path)
        assert source.kind == "parquet"
        assert source.splits() == {"train": 50, "validation": 50, "test": 50}
        assert list(source.splits()) == ["train", "validation", "test"]
        self._check(source, "train")

    def test_parquet_of_several_configurations(self, tmp_path: Path) -> None:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        for name in ("nlvr2", "docvqa"):
            (tmp_path / name).mkdir()
            pq.write_table(pa.Table.from_pylist(list(self.ROWS)), tmp_path / name / "train-00000-of-00001.parquet")
        assert Source.open(tmp_path).splits() == {"docvqa/train": 50, "nlvr2/train": 50}
        self._check(Source.open(tmp_path), "nlvr2/train")
        alone = Source.open(tmp_path / "nlvr2" / "train-00000-of-00001.parquet")
        assert (alone.kind, alone.splits()) == ("parquet", {"train": 50})

    @pytest.mark.parametrize(("size", "batches"), [(100, 2), (400_000, 20)])
    def test_small_rows_are_read_many_at_a_time_and_large_ones_few(
        self, size: int, batches: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        rows = [{"n": n, "image": os.urandom(size // 2) + bytes(size // 2)} for n in range(320)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
        source = Source.open(tmp_path)
        asked = []
        iter_batches = pq.ParquetFile.iter_batches

        def count(file: pq.ParquetFile, *args: object, **more: object) -> object:
            for batch in iter_batches(file, *args, **more):
                asked.append(len(batch))
                yield batch

        monkeypatch.setattr(pq.ParquetFile, "iter_batches", count)
        assert [place.read()["n"] for place in source.places("train")] == list(range(320))
        assert (len(asked), sum(asked)) == (batches, 320)

    def test_a_damaged_parquet_file_is_one_sentence(self, tmp_path: Path) -> None:
        pytest.importorskip("pyarrow")
        (tmp_path / "train.parquet").write_bytes(b"PAR1 no PAR1")
        with pytest.raises(UserError, match=r"train\.parquet' is damaged"):
            Source.open(tmp_path).splits()

    @pytest.mark.filterwarnings("ignore::ResourceWarning")
    def test_save_to_disk(self, tmp_path: Path) -> None:
        datasets = pytest.importorskip("datasets")
        made = datasets.Dataset.from_list(list(self.ROWS))
        datasets.DatasetDict({"validation": made, "train": made}).save_to_disk(str(tmp_path / "saved"))
        source = Source.open(tmp_path / "saved")
        assert source.kind == "save_to_disk"
        assert list(source.splits().items()) == [("train", 50), ("validation", 50)]
        self._check(source, "train")

    def _check(self, source: Source, split: str) -> None:
        assert list(source.rows(split)) == list(self.ROWS)
        for start, stop in ((0, 5), (3, 33), (29, 31), (31, None), (49, 60), (50, None)):
            assert list(source.rows(split, start, stop)) == list(self.ROWS[start:stop])
        with pytest.raises(NotFoundError, match="no split 'gone'"):
            list(source.rows("gone"))

    def test_a_folder_has_no_rows(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="has no rows"):
            Source.open(tmp_path).splits()


class TestHub:
    """No network here: what a user without one is told."""

    def test_offline(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        hub = pytest.importorskip("huggingface_hub")
        monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(UserError) as caught:
            Source.open("sayakpaul/ucf101-subset")
        assert "cannot reach the Hub" in str(caught.value)
        assert "--source" in str(caught.value)

    def test_a_cached_archive_needs_no_network(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        hub = pytest.importorskip("huggingface_hub")
        commit = "0" * 40
        repo = tmp_path / "datasets--sayakpaul--ucf101-subset"
        for folder in (repo / "refs", repo / "snapshots" / commit):
            folder.mkdir(parents=True)
        (repo / "refs" / "main").write_text(commit)
        make_tar(repo / "snapshots" / commit / "UCF101_subset.tar.gz")
        monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
        source = Source.open("sayakpaul/ucf101-subset", work_dir=tmp_path / "work")
        assert source.describe() == "Hub dataset sayakpaul/ucf101-subset (archive)"
        assert len(source.files()) == len(FILES)

    def test_without_huggingface_hub_the_extra_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "huggingface_hub", None)
        with pytest.raises(UserError, match=r"\[hub\]"):
            Source.open("sayakpaul/ucf101-subset")


def test_the_marker_is_json_and_contains_no_path(tmp_path: Path) -> None:
    extract(make_tar(tmp_path / "s.tar.gz"), tmp_path / "work")
    marker = json.loads((tmp_path / "work" / MARKER).read_text())
    assert set(marker["archive"]) == {"name", "size", "mtime_ns", "ctime_ns"}
    assert marker["rejected"] == []


def test_the_state_of_a_folder_is_that_of_all_files_below_it(tmp_path: Path) -> None:
    for name, size, second in (("a", 1, 30), ("b/c", 20, 90), ("b/d", 300, 60)):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"x" * size)
        os.utime(file, ns=(0, second * 10**9))
    newest = max((tmp_path / name).stat().st_ctime_ns for name in ("a", "b/c", "b/d"))
    before = folder_state(str(tmp_path))
    assert before == f"321:90000000000:{newest}"
    (tmp_path / "a").write_bytes(b"y")
    os.utime(tmp_path / "a", ns=(0, 30 * 10**9))
    assert folder_state(str(tmp_path)) == f"321:90000000000:{(tmp_path / 'a').stat().st_ctime_ns}"
