"""Reading a directory: random access, the index, workers, and what is refused."""

import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from phi3v_data import line_reader
from phi3v_data.dataset import Dataset, read_manifest
from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.schema import ConverterInfo, Manifest, Sample, SplitInfo, Turn


def sample(n: int, text: str = "What is it?") -> Sample:
    return Sample(id=f"train-{n:010d}", source="t", conversations=(Turn(user=text, assistant=f"answer {n}"),))


def write(path: Path, samples: Sequence[Sample]) -> None:
    path.write_text("".join(s.to_json() + "\n" for s in samples), encoding="utf-8", newline="\n")


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write(tmp_path / "d_train.jsonl", [sample(n) for n in range(10)])
    write(tmp_path / "d_val.jsonl", [sample(n) for n in range(3)])
    return tmp_path


def index_file(directory: Path, split: str = "train") -> Path:
    return directory / ".phi3v" / "index" / f"{split}.idx"


def test_a_split_is_a_sequence_of_samples(directory: Path) -> None:
    dataset = Dataset(directory)
    train = dataset["train"]
    assert list(dataset) == ["train", "val"]
    assert len(dataset) == 2
    assert "test" not in dataset
    assert len(train) == 10
    assert train[3] == sample(3)
    assert train[-1] == sample(9)
    assert list(train) == [sample(n) for n in range(10)]
    assert train.raw(2) == sample(2).to_json().encode()
    assert train.location(4) == ("d_train.jsonl", 5)
    assert dataset["train"] is train
    with pytest.raises(IndexError, match="row 10 of split 'train', which has 10 rows"):
        train[10]
    with pytest.raises(IndexError):
        train[-11]


def test_slices_are_views(directory: Path) -> None:
    train = Dataset(directory)["train"]
    assert [s.id for s in train[2:5]] == [train[n].id for n in (2, 3, 4)]
    assert train[::-1][0] == train[9]
    assert train[2:8][1:3][-1] == train[4]
    assert train[2:8].location(0) == ("d_train.jsonl", 3)
    assert len(train[5:2]) == 0
    assert list(pickle.loads(pickle.dumps(train[2:4]))) == [train[2], train[3]]


def test_shards_read_as_one_split(tmp_path: Path) -> None:
    write(tmp_path / "d_train-00000-of-00003.jsonl", [sample(0), sample(1)])
    write(tmp_path / "d_train-00001-of-00003.jsonl", [])
    write(tmp_path / "d_train-00002-of-00003.jsonl", [sample(2)])
    train = Dataset(tmp_path)["train"]
    assert list(train) == [sample(0), sample(1), sample(2)]
    assert train.location(2) == ("d_train-00002-of-00003.jsonl", 1)


def test_more_shards_than_stay_open(tmp_path: Path) -> None:
    for n in range(100):
        write(tmp_path / f"train-{n:05d}-of-00100.jsonl", [sample(n)])
    before = len(os.listdir("/proc/self/fd"))
    train = Dataset(tmp_path)["train"]
    assert [s.id for s in train] == [sample(n).id for n in range(100)]
    assert len(os.listdir("/proc/self/fd")) < before + 10


def test_byte_order_mark_blank_lines_crlf_and_a_missing_last_end(tmp_path: Path) -> None:
    lines = [sample(n).to_json().encode() for n in range(4)]
    content = b"\xef\xbb\xbf" + lines[0] + b"\r\n\r\n  \t \n" + lines[1] + b"\n\n\n" + lines[2] + b"\n" + lines[3]
    (tmp_path / "train.jsonl").write_bytes(content)
    train = Dataset(tmp_path)["train"]
    assert list(train) == [sample(n) for n in range(4)]
    assert [train.raw(n) for n in range(4)] == lines
    assert [train.location(n)[1] for n in range(4)] == [1, 4, 7, 8]


@given(
    st.lists(st.tuples(st.sampled_from([b"{}", b"[1]", b"  {} ", b"", b" ", b"\t\r", b"x" * 5000, b" " * 5000]))),
    st.sampled_from([b"\n", b"\r\n"]),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_the_index_finds_what_a_simple_reader_finds(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[bytes]], end: bytes, bom: bool, last_end: bool
) -> None:
    directory = tmp_path_factory.mktemp("d")
    content = end.join(line for (line,) in lines) + (end if last_end else b"")
    (directory / "train.jsonl").write_bytes((b"\xef\xbb\xbf" if bom else b"") + content)
    expected = [(n, line.removesuffix(b"\r")) for n, line in enumerate(content.split(b"\n"), 1) if line.strip()]
    train = Dataset(directory)["train"]
    assert [(train.location(n)[1], train.raw(n)) for n in range(len(train))] == expected


def test_rows_across_the_read_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("phi3v_data.line_index._CHUNK", 7)
    samples = [sample(n, "x" * n) for n in range(30)]
    (tmp_path / "train.jsonl").write_text("\n \n".join(s.to_json() for s in samples), encoding="utf-8")
    assert list(Dataset(tmp_path)["train"]) == samples


def test_the_index_is_cached_and_rebuilt_when_the_file_changes(directory: Path) -> None:
    Dataset(directory)["train"]
    first = index_file(directory).stat()
    Dataset(directory)["train"]
    assert index_file(directory).stat().st_mtime_ns == first.st_mtime_ns
    write(directory / "d_train.jsonl", [sample(n) for n in range(12)])
    assert len(Dataset(directory)["train"]) == 12
    assert index_file(directory).stat().st_ino != first.st_ino
    assert not list(index_file(directory).parent.glob(".*"))


def test_same_size_and_time_but_another_file_is_seen(directory: Path) -> None:
    path = directory / "d_val.jsonl"
    Dataset(directory)["val"]
    status = path.stat()
    one, two, three = path.read_text().splitlines()
    aside = directory / "aside"
    aside.write_text(f"{one}\n\n{two}{three}\n")
    os.utime(aside, ns=(status.st_atime_ns, status.st_mtime_ns))
    aside.replace(path)
    assert path.stat().st_size == status.st_size
    assert len(Dataset(directory)["val"]) == 2


@pytest.mark.parametrize("damage", [b"", b"phi3vix1" + b"\xff" * 400, b"x" * 200])
def test_an_index_that_phi3v_did_not_write_is_built_again(directory: Path, damage: bytes) -> None:
    Dataset(directory)["train"]
    index_file(directory).write_bytes(damage)
    assert len(Dataset(directory)["train"]) == 10


def test_a_flipped_bit_anywhere_in_an_index_is_noticed_and_healed(directory: Path) -> None:
    Dataset(directory)["train"]
    whole = index_file(directory).read_bytes()
    for position in range(8, len(whole), 5):
        index_file(directory).write_bytes(whole[:position] + bytes([whole[position] ^ 16]) + whole[position + 1 :])
        with pytest.warns(RuntimeWarning, match=r"train\.idx: its checksum does not match its content; it is rebuilt"):
            train = Dataset(directory)["train"]
        assert [train[n] for n in range(10)] == [sample(n) for n in range(10)]
        assert index_file(directory).read_bytes() == whole


READ_BY_A_COMMAND = """
import sys
from phi3v_data.cli.base import run
from phi3v_data.dataset import Dataset
class Program:
    name = "phi3v-data"
    def main(self, args, prog_name):
        Dataset(sys.argv[1])["train"]
run(Program())
"""


def test_a_damaged_index_is_one_sentence_of_a_command(directory: Path) -> None:
    Dataset(directory)["train"]
    index_file(directory).write_bytes(index_file(directory).read_bytes()[:-1] + b"x")
    ran = subprocess.run([sys.executable, "-c", READ_BY_A_COMMAND, directory], capture_output=True, text=True)
    said = f"warning: {index_file(directory)}: its checksum does not match its content; it is rebuilt\n"
    assert (ran.returncode, ran.stderr) == (0, said)


def test_an_index_of_another_size_than_it_can_have_is_not_read(directory: Path) -> None:
    Dataset(directory)["train"]
    os.truncate(index_file(directory), 1 << 40)  # a hole: it takes no space
    with pytest.warns(RuntimeWarning, match="is larger than possible; it is rebuilt"):
        assert Dataset(directory)["train"][9] == sample(9)
    assert index_file(directory).stat().st_size < 2000


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_an_index_that_is_not_a_regular_file_is_not_used(directory: Path, kind: str) -> None:
    Dataset(directory)["train"]
    index_file(directory).rename(directory / "aside")
    before = (directory / "aside").read_bytes()
    if kind == "link":
        index_file(directory).symlink_to(directory / "aside")
    else:
        os.mkfifo(index_file(directory))
    write(directory / "d_train.jsonl", [sample(n) for n in range(12)])
    assert Dataset(directory)["train"][11] == sample(11)
    assert index_file(directory).is_file()  # the link as it was, or an index in the place of the FIFO
    assert (directory / "aside").read_bytes() == before


def test_an_index_folder_that_is_a_link_is_not_followed(
    directory: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (directory / ".phi3v").symlink_to(elsewhere)
    assert Dataset(directory)["train"][9] == sample(9)
    assert list(elsewhere.iterdir()) == []


def test_a_cut_index_is_built_again(directory: Path) -> None:
    Dataset(directory)["train"]
    whole = index_file(directory).read_bytes()
    index_file(directory).write_bytes(whole[:-8])
    with pytest.warns(RuntimeWarning, match="rebuilt"):
        Dataset(directory)["train"]
    assert Dataset(directory)["train"][9] == sample(9)
    assert index_file(directory).read_bytes() == whole


def test_a_directory_that_takes_no_index(directory: Path) -> None:
    (directory / ".phi3v").write_text("a file stands where the folder should be")
    train = Dataset(directory)["train"]
    assert train[5] == sample(5)
    assert pickle.loads(pickle.dumps(train))[5] == sample(5)


def test_a_file_changed_under_an_open_split(directory: Path) -> None:
    train = Dataset(directory)["train"]
    content = (directory / "d_train.jsonl").read_bytes()
    (directory / "d_train.jsonl").write_bytes(b"\n" * 3 + content)
    with pytest.raises(UserError, match=r"d_train\.jsonl: changed since it was opened; open the directory again"):
        train[5]


@pytest.mark.parametrize("chunk", [1, 300, 1 << 18])
def test_rows_that_are_read_together_are_those_that_are_read_one_by_one(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_reader, "_CHUNK", chunk)
    texts = [sample(n, "é" * n).to_json() for n in range(9)]
    first = "\ufeff" + texts[0] + "\r\n\n \t\n" + "\n".join(texts[1:5])
    (tmp_path / "d_train-00000-of-00002.jsonl").write_text(first, encoding="utf-8", newline="")
    (tmp_path / "d_train-00001-of-00002.jsonl").write_text("\n" + "\n\n".join(texts[5:]) + "\n", encoding="utf-8")
    train = Dataset(tmp_path)["train"]
    assert list(train) == [sample(n, "é" * n) for n in range(9)]
    assert [row.id for row in train[2:8]] == [sample(n).id for n in range(2, 8)]
    assert [row.id for row in train[7:1:-2]] == [sample(n).id for n in (7, 5, 3)]
    assert list(train[4:4]) == []


def test_a_file_changed_while_its_rows_are_read_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_reader, "_CHUNK", 300)
    rows = iter(Dataset(directory)["train"])
    assert next(rows) == sample(0)
    content = (directory / "d_train.jsonl").read_bytes()
    (directory / "d_train.jsonl").write_bytes(content.replace(b"answer", b"ANSWER"))
    found = []
    with pytest.raises(UserError, match=r"d_train\.jsonl: changed since it was opened; open the directory again"):
        found.extend(rows)
    assert len(found) < 5
    assert found == [sample(n) for n in range(1, len(found) + 1)]


def test_a_bad_row_names_file_line_and_field(directory: Path) -> None:
    lines = (directory / "d_train.jsonl").read_text().splitlines()
    lines[4] = lines[4].replace('"user": ', '"usr": ')
    lines[6] = lines[6][:20]
    lines[7] = lines[7].replace("answer", "\\ud800")
    (directory / "d_train.jsonl").write_text("\n".join(lines))
    train = Dataset(directory)["train"]
    with pytest.raises(UserError, match=r"d_train\.jsonl:5: not a sample \(conversations\[0\]\.user is missing\)"):
        train[4]
    with pytest.raises(UserError, match=r"d_train\.jsonl:7: not a sample \(Invalid JSON"):
        train[6]
    with pytest.raises(UserError, match=r"d_train\.jsonl:8: not a sample"):
        train[7]
    assert train[5] == sample(5)
    with pytest.raises(UserError, match=r"d_train\.jsonl:5: not a sample"):
        list(train[2:])


def test_what_is_not_there_is_named(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(NotFoundError, match="no split 'tran'; it has train, val; did you mean 'train'"):
        Dataset(directory)["tran"]
    with pytest.raises(NotFoundError, match="no such directory"):
        Dataset(directory / "nowhere")
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(NotFoundError, match=r"no split found; it contains no NAME_SPLIT\.jsonl file"):
        Dataset(empty)
    (empty / "data.jsonl").touch()
    with pytest.raises(NotFoundError, match=r"data\.jsonl do not end in the name of a split"):
        Dataset(empty)
    with pytest.raises(NotFoundError, match=r"d_train\.jsonl: is a file; give the directory that contains it"):
        Dataset(directory / "d_train.jsonl")
    (empty / "UCF101_subset.tar.gz").touch()
    with pytest.raises(NotFoundError) as caught:
        Dataset(empty / "UCF101_subset.tar.gz")
    assert str(caught.value) == (
        f"{empty}/UCF101_subset.tar.gz: is a file, not a conversations directory; `phi3v-data convert` makes one, see "
        "`phi3v-data convert --help`"
    )


def test_files_that_do_not_go_together_are_refused_unless_asked(tmp_path: Path) -> None:
    write(tmp_path / "d_train-00000-of-00002.jsonl", [sample(0)])
    write(tmp_path / "d_val.jsonl", [sample(1)])
    write(tmp_path / "e_val.jsonl", [sample(2)])
    with pytest.raises(UserError, match=r"lacks d_train-00001-of-00002\.jsonl"):
        Dataset(tmp_path)["train"]
    with pytest.raises(UserError, match="several names"):
        Dataset(tmp_path)["val"]
    assert len(Dataset(tmp_path, strict=False)["train"]) == 1
    assert len(Dataset(tmp_path, strict=False)["val"]) == 2


def manifest(**changes: object) -> Manifest:
    splits = {"train": SplitInfo(rows=10, images=0, files={"d_train.jsonl": "sha256:0"})}
    return Manifest(name="d", task="chat", splits=splits, converter=ConverterInfo(name="c", version="1")).model_copy(
        update=changes
    )


def test_the_manifest_is_read_and_names_the_splits(directory: Path) -> None:
    assert Dataset(directory).manifest is None
    (directory / "odd.jsonl").write_bytes((directory / "d_val.jsonl").read_bytes())
    splits = {"holdout": SplitInfo(rows=3, images=0, files={"odd.jsonl": "sha256:0"})}
    (directory / "dataset.json").write_text(manifest(splits=splits).to_json())
    dataset = Dataset(directory)
    assert dataset.manifest == read_manifest(directory)
    assert dataset["holdout"][0] == sample(0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"format": 3}', "format 3 was written by a newer phi3v than this one, which reads format 2; upgrade phi3v"),
        ("{", "not JSON"),
        ("[]", "object"),
        ('{"format": 1, "name": 3}', r"name must be a string, not 3"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_refused(directory: Path, text: str, message: str) -> None:
    (directory / "dataset.json").write_text(text)
    with pytest.raises(UserError, match=message):
        Dataset(directory)
    assert Dataset(directory, strict=False).manifest is None


def test_image_paths_stay_inside(directory: Path) -> None:
    dataset = Dataset(directory)
    assert dataset.image_path("train/a b.jpg") == directory / "images" / "train" / "a b.jpg"
    assert dataset["train"].image_path("a.jpg") == directory / "images" / "a.jpg"
    for name in ["../x", "/etc/passwd", "a/../b", "a\\b", "", "a//b", "./a", "a\0b"]:
        with pytest.raises(UserError, match=r"image path .* lists all such rows"):
            dataset.image_path(name)
        with pytest.raises(UserError, match=r"image path .* lists all such rows"):
            dataset.image_bytes(name)


def test_an_image_is_read_as_it_was_stored_or_named_in_an_error(directory: Path) -> None:
    (directory / "images" / "train").mkdir(parents=True, exist_ok=True)
    (directory / "images" / "train" / "a b.jpg").write_bytes(b"\xff\xd8 bytes")
    split = Dataset(directory)["train"]
    assert split.image_bytes("train/a b.jpg") == b"\xff\xd8 bytes"
    with pytest.raises(UserError, match=r"images/train/none\.jpg: cannot be read \(No such file"):
        split.image_bytes("train/none.jpg")
    with pytest.raises(UserError, match=r"images/train: is a folder, not a file"):
        split.image_bytes("train")


def test_pickles_stay_small_whatever_the_number_of_rows(tmp_path: Path) -> None:
    sizes = []
    for rows in (10, 5000):
        directory = tmp_path / f"{rows:05d}"
        directory.mkdir()
        write(directory / "train.jsonl", [sample(n) for n in range(rows)])
        dataset = Dataset(directory)
        assert len(pickle.dumps(dataset)) < 1000
        sizes.append(len(pickle.dumps(dataset["train"])))
        assert pickle.loads(pickle.dumps(dataset))["train"][rows - 1] == sample(rows - 1)
    assert sizes[1] - sizes[0] < 20


def test_a_pickle_of_a_split_that_changed_is_refused(directory: Path) -> None:
    packed = pickle.dumps(Dataset(directory)["train"])
    write(directory / "d_train.jsonl", [sample(0)])
    with pytest.raises(UserError, match=r"d_train\.jsonl: changed since it was opened; open the directory again"):
        pickle.loads(packed)


@pytest.mark.parametrize("read_before", [True, False])
@pytest.mark.parametrize("what", ["split", "slice", "dataset"])
def test_a_file_replaced_by_rename_is_refused_by_parent_and_pickled_copy_alike(
    directory: Path, read_before: bool, what: str
) -> None:
    """The new file has as many rows, the same size and the same times."""
    dataset = Dataset(directory)
    train = dataset["train"]
    if read_before:
        assert train[3] == sample(3)
    path = directory / "d_train.jsonl"
    before = path.stat()
    (directory / "aside").write_bytes(path.read_bytes().replace(b"answer", b"ANSWER"))
    os.utime(directory / "aside", ns=(before.st_atime_ns, before.st_mtime_ns))
    (directory / "aside").replace(path)
    with pytest.raises(UserError, match=r"d_train\.jsonl: changed since it was opened; open the directory again"):
        train[3]
    packed = pickle.dumps({"split": train, "slice": train[2:], "dataset": dataset}[what])
    with pytest.raises(UserError, match=r"d_train\.jsonl: changed since it was opened; open the directory again"):
        pickle.loads(packed)["train"][3]
    assert Dataset(directory)["train"][3].conversations[0].assistant == "ANSWER 3"


def test_a_split_that_was_not_open_is_read_as_it_is_now_by_parent_and_copy(directory: Path) -> None:
    dataset = Dataset(directory)
    assert dataset["val"][0] == sample(0)
    write(directory / "d_train.jsonl", [sample(7)])
    copy = pickle.loads(pickle.dumps(dataset))
    assert dataset["train"][0] == copy["train"][0] == sample(7)
    assert copy["val"][0] == sample(0)


def test_other_rights_and_links_do_not_make_a_file_another(directory: Path) -> None:
    train = Dataset(directory)["train"]
    assert train[0] == sample(0)
    (directory / "d_train.jsonl").chmod(0o640)
    os.link(directory / "d_train.jsonl", directory / "linked")
    assert train[1] == sample(1)
    assert pickle.loads(pickle.dumps(train))[1] == sample(1)


def read_ids(task: tuple[Sequence[Sample], int]) -> list[str]:
    split, worker = task
    return [split[n].id for n in range(worker, len(split), 2)] * 20


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_the_same_rows(directory: Path, method: str) -> None:
    train = Dataset(directory)["train"]
    assert train[0] == sample(0)
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.map(read_ids, [(train, 0), (train, 1)])
    expected = [s.id for s in train]
    assert found == [expected[0::2] * 20, expected[1::2] * 20]


class Inherited(multiprocessing.get_context("fork").Process):  # type: ignore[name-defined,misc]  # a dynamic base
    """Reads with the descriptors its parent opened."""

    def __init__(self, split: Sequence[Sample]) -> None:
        super().__init__()
        self.split = split

    def run(self) -> None:
        for _ in range(200):
            for n in range(len(self.split)):
                assert self.split[n] == sample(n)


def test_forked_workers_share_open_files_safely(directory: Path) -> None:
    train = Dataset(directory)["train"]
    assert train[0] == sample(0)
    workers = [Inherited(train) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0]


def test_several_processes_may_build_the_index_at_once(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [sample(n) for n in range(20000)])
    code = (
        f"from phi3v_data.dataset import Dataset; s = Dataset({str(tmp_path)!r})['train']; print(len(s), s[19999].id)"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    answers = {process.communicate()[0].strip() for process in processes}
    assert answers == {f"20000 {sample(19999).id}"}
    assert os.listdir(index_file(tmp_path).parent) == ["train.idx"]


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
turns = st.builds(
    Turn,
    images=st.lists(text, max_size=2),
    user=text,
    assistant=text,
    image_offsets=st.just(()),
)
scalars = (
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | text
)
samples = st.builds(
    Sample,
    id=text.filter(bool),
    source=text,
    conversations=st.lists(turns, min_size=1, max_size=3),
    system=text,
    answers=st.lists(text, max_size=2),
    group=text,
    meta=st.dictionaries(text, scalars, max_size=3),
)


@given(st.lists(samples, max_size=5))
@settings(max_examples=60, deadline=None)
def test_write_then_read_is_the_identity(tmp_path_factory: pytest.TempPathFactory, written: list[Sample]) -> None:
    directory = tmp_path_factory.mktemp("d")
    write(directory / "train.jsonl", written)
    train = Dataset(directory)["train"]
    assert list(train) == written
    assert [json.loads(train.raw(n)) for n in range(len(train))] == [s.to_row() for s in written]
    assert "".join(s.to_json() + "\n" for s in train).encode() == (directory / "train.jsonl").read_bytes()
