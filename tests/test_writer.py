"""Drafts as they are written: names, contents, texts, rejects, and images that share a name."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from toy_converter import Toy, encoded, make_source, noise, rows, tree

import phi3v_data
from phi3v_data.errors import UserError
from phi3v_data.sources.fingerprint import fingerprint
from phi3v_data.sources.item_fingerprint import draft_fingerprint
from phi3v_data.sources.reads import Roots
from phi3v_data.validate import validate
from phi3v_data.writing.images import check_name
from phi3v_data.writing.writer import hide_roots


def convert(tmp_path: Path, files: dict[str, str], workers: int = 0, **kwargs: Any) -> phi3v_data.ConvertResult:
    source = make_source(tmp_path / "source", files)
    return phi3v_data.convert(Toy, source, tmp_path / "out", workers=workers, **kwargs)


def one(tmp_path: Path, directives: str, **kwargs: Any) -> phi3v_data.ConvertResult:
    """Convert one sample in question beside one that is fine."""
    return convert(tmp_path, {"train/g/a.txt": directives, "train/g/b.txt": "image 1 train/b.png"}, **kwargs)


def test_a_row_is_what_the_format_says(tmp_path: Path) -> None:
    one(tmp_path, "image 7 train/cat/a.png\ndraft {'meta': {'k': 1}, 'answers': ['x', 'y'], 'system': 's'}")
    first = (tmp_path / "out/toy_train.jsonl").read_text(encoding="utf-8").splitlines()[0]
    assert first == (
        '{"id": "train-0000000000", "source": "toy", "conversations": [{"images": ["train/cat/a.png"], '
        '"user": "What is it?", "assistant": "answer train/g/a.txt"}], "system": "s", "answers": ["x", "y"], '
        '"group": "g", "meta": {"k": 1}}'
    )
    with Image.open(tmp_path / "out/images/train/cat/a.png") as image:
        assert image.tobytes() == noise(7, 8, "colour").tobytes()
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.name[0] != ".") == [
        "dataset.json",
        "images",
        "toy_train.jsonl",
    ]  # no rejects.jsonl where nothing was rejected


def test_plain_rows_have_three_keys(tmp_path: Path) -> None:
    result = one(
        tmp_path,
        "image 7\ndraft {'turns': [], 'meta': {'k': 1}}",
        plain=True,
    )
    assert [list(row) for row in rows(result.out_dir, "toy_train.jsonl")] == [["id", "source", "conversations"]] * 2


@pytest.mark.parametrize(("kind", "suffix"), [("jpeg", ".jpg"), ("png", ".png"), ("webp", ".webp"), ("gif", ".gif")])
def test_bytes_are_stored_as_they_are_and_named_by_content(tmp_path: Path, kind: str, suffix: str) -> None:
    result = one(tmp_path, f"bytes {kind}")
    name = rows(result.out_dir, "toy_train.jsonl")[0]["conversations"][0]["images"][0]
    assert name.startswith("train/")
    assert name.endswith(suffix)
    assert (result.out_dir / "images" / name).read_bytes() == encoded(kind)


def test_a_path_is_copied(tmp_path: Path) -> None:
    image = tmp_path / "source/train/g/x.png"
    image.parent.mkdir(parents=True)
    Image.fromarray(noise(3, 9, "grey")).save(image)
    result = one(tmp_path, "path x.png")
    name = rows(result.out_dir, "toy_train.jsonl")[0]["conversations"][0]["images"][0]
    assert (result.out_dir / "images" / name).read_bytes() == image.read_bytes()


@pytest.mark.parametrize(
    ("directives", "reason"),
    [
        ("bytes cut", "image-unreadable"),
        ("bytes junk", "image-unreadable"),
        ("bytes empty", "image-unreadable"),
        ("bytes ico", "image-unreadable"),
        ("path nowhere.png", "image-missing"),
        ("path .", "image-unreadable"),
        ("image 1 ../x.png", "image-path-unsafe"),
        ("image 1 /x.png", "image-path-unsafe"),
        ("image 1 a\\x.png", "image-path-unsafe"),
        ("image 1 a//x.png", "image-path-unsafe"),
        ("image 1 a/.x.png", "image-path-unsafe"),
        ("image 1 a/x", "image-path-unsafe"),
        ("image 1 a.png/x.png", "image-path-unsafe"),
        (f"image 1 {'a' * 250}.png", "image-path-unsafe"),
        ("image 1 a.png\nimage 2 a.png", "image-name-collision"),
        ("content", "draft-invalid"),
        ("none", "draft-invalid"),
        ("draft {'images': 'a.png'}", "draft-invalid"),
        ("draft {'images': None}", "draft-invalid"),
        ("draft {'turns': [{'user': 'x'}]}", "draft-invalid"),
        ("draft {'answers': 'abc'}", "draft-invalid"),
        ("draft {'meta': ['a']}", "draft-invalid"),
        ("draft {'notes': ['Not a code']}", "draft-invalid"),
        ("draft {'group': 3}", "draft-invalid"),
        ("draft {'answers': [3]}", "draft-invalid"),
        ("lazy cut", "image-unreadable"),
        ("float", "image-unreadable"),
        ("quality 500", "draft-invalid"),
        ("draft {'assistant': 3}", "draft-invalid"),
        ("draft {'meta': {'a': [1]}}", "draft-invalid"),
        ("draft {'meta': {'a': nan}}", "draft-invalid"),
        ("draft {'user': surrogate}", "invalid-text"),
        ("draft {'user': 'a\\0b'}", "invalid-text"),
        ("draft {'meta': {'a\\0': 'b'}}", "invalid-text"),
        ("draft {'assistant': ' '}", "empty-text"),
        ("draft {'user': ''}", "empty-text"),
        ("reject", "toy-reject"),
        ("raise", "converter-error"),
        ("quit", "converter-error"),
    ],
)
def test_what_cannot_be_a_sample_is_a_reject(tmp_path: Path, directives: str, reason: str) -> None:
    result = one(tmp_path, directives)
    assert dict(result.manifest.rejects) == {reason: 1}
    assert result.rejects == 1
    [reject] = rows(result.out_dir, "rejects.jsonl")
    assert reject["id"] == "train-0000000000"
    assert reject["item"] == "train/g/a.txt"
    assert reject["reason"] == reason
    assert str(tmp_path) not in reject["message"]
    assert [row["id"] for row in rows(result.out_dir, "toy_train.jsonl")] == ["train-0000000001"]
    assert [name for name in tree(result.out_dir / "images") if name.endswith("png")] == ["train/b.png"]


def test_an_error_of_the_users_code_is_told_with_its_line(tmp_path: Path) -> None:
    result = one(tmp_path, "raise")
    [reject] = rows(result.out_dir, "rejects.jsonl")
    source = Path(__file__).with_name("toy_converter.py").read_text().splitlines()
    line = 1 + next(n for n, text in enumerate(source) if 'raise ValueError(f"no sense' in text)
    assert reject["message"] == f"ValueError: no sense in train/g/a.txt (toy_converter.py:{line})"


def test_images_with_one_content_and_no_name_are_stored_once(tmp_path: Path) -> None:
    files = {f"train/g/{n}.txt": "image 5\nimage 6" for n in range(9)}
    result = convert(tmp_path, files, workers=2)
    assert result.samples == 9
    assert result.images == 2
    assert len([name for name in tree(result.out_dir / "images") if name.endswith(".png")]) == 2


@pytest.mark.parametrize("workers", [0, 1, 2, 7])
def test_a_name_that_two_contents_want_goes_to_the_first_row(tmp_path: Path, workers: int) -> None:
    files = {
        "train/g/00.txt": "image 0 train/x.png",
        "train/g/01.txt": "image 0 train/x.png\nimage 1 train/y.png",
        "train/g/02.txt": "image 2 train/x.png\nimage 2 train/z.png\nimage 5 train/only-here/w.png",
        "train/g/03.txt": "image 3 train/z.png",
        "train/g/04.txt": "image 0 train/x.png",
        "train/g/05.txt": "image 2 train/z.png",
        "train/g/06.txt": "image 9 train/x.png",
        "val/g/07.txt": "image 8 train/x.png",
    }
    result = convert(tmp_path, files, workers=workers)
    assert [row["id"][-1] for row in rows(result.out_dir, "toy_train.jsonl")] == ["0", "1", "3", "4"]
    assert [(row["id"][-1], row["reason"]) for row in rows(result.out_dir, "rejects.jsonl")] == [
        (n, "image-name-collision") for n in "2567"
    ]
    images = {"x": 0, "y": 1, "z": 3}
    for name, seed in images.items():
        with Image.open(result.out_dir / f"images/train/{name}.png") as image:
            assert image.tobytes() == noise(seed, 8, "colour").tobytes()
    assert sorted(tree(result.out_dir / "images")) == ["train", "train/x.png", "train/y.png", "train/z.png"]


def test_offsets_are_kept_and_checked(tmp_path: Path) -> None:
    class Offsets(phi3v_data.Converter[phi3v_data.Options]):
        name = "offsets"

        def plan(self, source: phi3v_data.Source, options: phi3v_data.Options) -> list[phi3v_data.Item]:
            return [phi3v_data.Item("train", str(n)) for n in range(4)]

        def convert(self, item: phi3v_data.Item, options: phi3v_data.Options) -> phi3v_data.Draft:
            offsets = [(0, 4), (4, 0), (0, 9), (0,)][int(item.key)]
            turn = phi3v_data.DraftTurn("ab cd", "yes", [noise(1, 8, "grey"), noise(2, 8, "grey")], offsets)
            return phi3v_data.Draft(turns=[turn])

    (tmp_path / "source").mkdir()
    result = phi3v_data.convert(Offsets, tmp_path / "source", tmp_path / "out", workers=0)
    assert dict(result.manifest.rejects) == {"draft-invalid": 3}
    [row] = rows(result.out_dir, "offsets_train.jsonl")
    assert row["conversations"][0]["image_offsets"] == [0, 4]
    result = phi3v_data.convert(Offsets, tmp_path / "source", tmp_path / "plain", workers=0, plain=True)
    assert dict(result.manifest.notes) == {"offsets-dropped": 1}


class Weighted(phi3v_data.Converter[phi3v_data.Options]):
    """Five samples of two turns, with every pair of weights and one that is none."""

    name = "weighted"

    def plan(self, source: phi3v_data.Source, options: phi3v_data.Options) -> list[phi3v_data.Item]:
        return [phi3v_data.Item("train", str(n)) for n in range(5)]

    def convert(self, item: phi3v_data.Item, options: phi3v_data.Options) -> phi3v_data.Draft:
        weights: Any = [(0, 1), (1, 0), (1, 1), (0, 0), (0.0, 1)][int(item.key)]
        turns = [phi3v_data.DraftTurn(f"q{item.key}{n}", "yes", weight=weight) for n, weight in enumerate(weights)]
        return phi3v_data.Draft(turns=turns, system="Be brief." if item.key == "2" else "")


def weights_in(directory: Path) -> list[list[int | None]]:
    return [[turn.get("weight") for turn in row["conversations"]] for row in rows(directory, "weighted_train.jsonl")]


def test_weights_are_kept_and_checked(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    result = phi3v_data.convert(Weighted, tmp_path / "source", tmp_path / "out", workers=0)
    assert weights_in(result.out_dir) == [[0, None], [None, 0], [None, None]]
    assert dict(result.manifest.rejects) == {"draft-invalid": 1, "nothing-trained": 1}
    assert dict(result.manifest.notes) == {}
    assert validate(result.out_dir).ok


def test_plain_rows_have_no_weights_and_only_lossy_drops_them(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"^2 rows with turns of weight 0, which --plain cannot write: .* --lossy to"):
        phi3v_data.convert(Weighted, tmp_path / "source", out, workers=0, plain=True)
    assert not (out / "dataset.json").exists()
    result = phi3v_data.convert(Weighted, tmp_path / "source", out, workers=0, plain=True, lossy=True)
    assert result.resumed == 5, "nothing is converted again"
    assert weights_in(out) == [[None, None]] * 3
    assert dict(result.manifest.notes) == {"system-dropped": 1, "weights-dropped": 2}
    with pytest.raises(UserError, match="--lossy needs --plain"):
        phi3v_data.convert(Weighted, tmp_path / "source", out, workers=0, lossy=True)
    kept = phi3v_data.convert(Weighted, tmp_path / "source", out, workers=0, overwrite=True)
    assert weights_in(kept.out_dir) == [[0, None], [None, 0], [None, None]]


def test_a_changed_weight_is_a_changed_draft() -> None:
    """And a weight of 1 has the fingerprint that journals recorded before there were weights."""
    roots = Roots({})

    def digest(weight: int) -> str:
        draft = phi3v_data.Draft(turns=[phi3v_data.DraftTurn("q", "a", weight=weight)])
        return draft_fingerprint(draft, "train", roots, images=True)

    assert digest(0) != digest(1) == fingerprint(("train", [("q", "a", [], [])], ("", (), "", {}, ())), roots)


def test_without_labels_the_last_answers_are_empty(tmp_path: Path) -> None:
    result = one(tmp_path, "image 3\ndraft {'assistant': '', 'answers': ['a']}", unlabelled=True)
    assert result.manifest.splits["train"].labelled is False
    found = rows(result.out_dir, "toy_train.jsonl")
    assert [row["conversations"][0]["assistant"] for row in found] == ["", ""]
    assert "answers" not in found[0]


@pytest.mark.parametrize("letter", ["a", "\u00e4"])
def test_a_component_of_200_bytes_is_the_longest(letter: str) -> None:
    """Counted in bytes of UTF-8; file systems take 255, and names may grow by a prefix."""
    longest = letter * (196 // len(letter.encode()))
    check_name(f"train/{longest}.png")
    with pytest.raises(phi3v_data.Reject, match="more than 200 bytes"):
        check_name(f"train/b{longest}.png")


@given(st.text(max_size=30))
@settings(max_examples=300, deadline=None)
def test_an_accepted_name_stays_inside(name: str) -> None:
    try:
        check_name(name)
    except phi3v_data.Reject:
        return
    path = Path("/images") / name
    assert path.as_posix() == f"/images/{name}"
    assert ".." not in path.parts


@pytest.mark.parametrize(
    ("message", "hidden"),
    [
        ("/tmp/x/cat/z.jpg is not an image", "cat/z.jpg is not an image"),
        ("cannot read '/tmp/x/cat/z.jpg'", "cannot read 'cat/z.jpg'"),
        ("cannot list '/tmp/x': it is empty", "cannot list '.': it is empty"),
        (
            "/tmp/x.tar.gz and /tmp/xy/z.jpg and /data/tmp/x/z.jpg",
            "/tmp/x.tar.gz and /tmp/xy/z.jpg and /data/tmp/x/z.jpg",
        ),
        ("../x/cat/z.jpg, not train/../x/z.jpg or ../x", "cat/z.jpg, not train/../x/z.jpg or ../x"),
        ("file:///tmp/x/z.jpg", "file://z.jpg"),
    ],
)
def test_folders_of_this_machine_are_taken_out_at_the_bounds_of_a_path(message: str, hidden: str) -> None:
    assert hide_roots(message, ("/tmp/x", "../x")) == hidden


@pytest.mark.parametrize("number", [1, 1e16, 0.1, 2**70, True, None])
def test_a_line_is_spelled_as_the_json_module_does(tmp_path: Path, number: object) -> None:
    text = "".join(map(chr, [*range(1, 0x2100), *range(0xD7F0, 0xD800), *range(0xE000, 0xE010), 0xFFFD, 0x1F600]))
    meta = {"k": number, text: text}
    one(tmp_path, f"draft {{'user': {text!a}, 'meta': {meta!a}}}")
    line = (tmp_path / "out/toy_train.jsonl").read_text(encoding="utf-8").split("\n")[0]
    turn = {"images": [], "user": text, "assistant": "answer train/g/a.txt"}
    row = {"id": "train-0000000000", "source": "toy", "conversations": [turn], "group": "g", "meta": meta}
    assert line == json.dumps(row, ensure_ascii=False)
