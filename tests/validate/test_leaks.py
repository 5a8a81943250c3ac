"""Samples, groups and images that are in more than one split."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from validate_builders import found, row, turn, write
from validate_images import encoded, make_image

from phi3v_data.schema import Report
from phi3v_data.validate import validate
from phi3v_data.validate.near import near_pairs

IMAGES = {f"images/{name}.png": encoded(make_image(seed, (96, 72))) for seed, name in enumerate("abcdefgh")}
COPY = {"images/a2.png": encoded(make_image(0, (96, 72)), compress_level=1)}


def ask(row_id: str, *images: str, text: str = "", **more: object) -> dict[str, object]:
    return row(row_id, turn(text or f"Question {row_id}?", images=tuple(f"{name}.png" for name in images)), **more)


def leaks(report: Report) -> list[tuple[str, str, int | None, str]]:
    codes = ("leak-sample", "leak-group", "leak-image", "leak-near-image", "duplicate-sample")
    return [(item.code, item.file, item.line, item.severity) for item in report.problems if item.code in codes]


def test_a_sample_in_train_and_val(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            **IMAGES,
            **COPY,
            "train.jsonl": [ask("t1", "a", text="same"), ask("t2", "b", text="same"), ask("t3", text="only text")],
            "val.jsonl": [ask("v1", "a2", text="same"), ask("v2", text="only text"), ask("v3", "c", text="same")],
            "test.jsonl": [ask("x1", "c", text="same"), ask("x2", "d")],
        },
    )
    assert leaks(validate(tmp_path)) == [
        ("leak-sample", "test.jsonl", 1, "warning"),
        ("leak-image", "test.jsonl", 1, "warning"),
        ("leak-sample", "val.jsonl", 1, "error"),
        ("leak-image", "val.jsonl", 1, "error"),
        ("leak-sample", "val.jsonl", 2, "error"),
    ]
    quick = leaks(validate(tmp_path, level="quick"))
    assert ("leak-sample", "val.jsonl", 1, "error") not in quick
    assert ("leak-sample", "val.jsonl", 2, "error") in quick


def test_the_same_words_about_other_images_are_other_samples(tmp_path: Path) -> None:
    rows = [ask(f"t{name}", name, text="What is shown?") for name in "abcd"]
    write(tmp_path, {**IMAGES, "train.jsonl": rows, "val.jsonl": [ask("v", "e", text="What is shown?")]})
    assert leaks(validate(tmp_path)) == []


def test_the_same_image_in_another_turn_is_another_sample(tmp_path: Path) -> None:
    def two(row_id: str, first: tuple[str, ...], second: tuple[str, ...]) -> dict[str, object]:
        return row(row_id, turn("What is shown?", images=first), turn("And here?", images=second))

    rows = [two("t", ("a.png",), ()), two("same", ("b.png",), ())]
    write(tmp_path, {**IMAGES, "train.jsonl": rows, "val.jsonl": [two("v", (), ("a.png",)), two("w", ("b.png",), ())]})
    assert [entry for entry in leaks(validate(tmp_path)) if entry[0] == "leak-sample"] == [
        ("leak-sample", "val.jsonl", 2, "error")
    ]


def test_a_sample_is_the_same_wherever_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are compared some at a time, here two; those before it in its block do not matter."""
    monkeypatch.setattr("phi3v_data.validate.table._ROWS_AT_ONCE", 2)
    rows = [ask("1", "a", "b"), ask("2", "c", text="Same?"), ask("3", "d"), ask("4", "c", text="Same?")]
    report = validate(write(tmp_path, {**IMAGES, "train.jsonl": rows}), use_receipt=False)
    assert leaks(report) == [("duplicate-sample", "train.jsonl", 4, "warning")]


def test_order_and_turns_make_a_sample(tmp_path: Path) -> None:
    rows = [
        row("1", turn("p", "x", images=("a.png",)), turn("q", "y")),
        row("2", turn("q", "y", images=("a.png",)), turn("p", "x")),
        row("3", turn("p", "x"), turn("q", "y", images=("a.png",))),
        row("4", turn("p", "x", images=("a.png",)), turn("q", "y"), system="Be short."),
        row("5", turn("p", "x", images=("a.png",)), turn("q", "y"), answers=["y", "why"]),
    ]
    report = validate(write(tmp_path, {**IMAGES, "train.jsonl": rows}))
    assert leaks(report) == [("duplicate-sample", "train.jsonl", 5, "warning")]


def test_the_whole_set_in_train_is_an_error_a_part_a_warning(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            **IMAGES,
            **COPY,
            "train.jsonl": [ask("t1", "a", "b"), ask("t2", "c", "d"), ask("t3", "e", "f", "g")],
            "val.jsonl": [
                ask("pair", "b", "a2"),
                ask("one of a pair", "a2"),
                ask("subset", "e", "g"),
                ask("crossed", "a", "c"),
                ask("half new", "a", "h"),
                ask("new"),
            ],
        },
    )
    report = validate(tmp_path)
    assert [(item.line, item.severity) for item in found(report, "leak-image")] == [
        (1, "error"),
        (2, "error"),
        (3, "error"),
        (4, "warning"),
        (5, "warning"),
    ]
    assert "train.jsonl:1" in found(report, "leak-image")[0].message


def test_jpegs_with_the_same_grey_and_other_colours_are_two_images(tmp_path: Path) -> None:
    """The fast look is at grey only; colour settles it."""
    from PIL import Image

    image = make_image(3, (96, 72)).convert("YCbCr")
    luma, blue, red = image.split()
    other = Image.merge("YCbCr", (luma, red, blue))
    files = {"images/x.jpg": encoded(image, "JPEG"), "images/y.jpg": encoded(other, "JPEG")}
    rows = {
        "train.jsonl": [row("t", turn("q", images=("x.jpg",)))],
        "val.jsonl": [row("v", turn("r", images=("y.jpg",)))],
    }
    report = validate(write(tmp_path, {**files, **rows}))
    assert "leak-image" not in report.summary.problems
    files["images/y.jpg"] = files["images/x.jpg"][:2] + b"\xff\xfe\x00\x07hello" + files["images/x.jpg"][2:]
    assert validate(write(tmp_path, files)).summary.problems == {"leak-image": 1}


def test_groups(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "train.jsonl": [ask("t1", group="g1"), ask("t2", group="g1"), ask("t3", group="g2"), ask("t4")],
            "val.jsonl": [ask("v1", group="g3"), ask("v2", group="g1"), ask("v3", group="g1"), ask("v4")],
            "test.jsonl": [ask("x1", group="g3"), ask("x2", group="g4"), ask("x3", group="g1")],
        },
    )
    report = validate(tmp_path)
    assert leaks(report) == [
        ("leak-group", "test.jsonl", 1, "warning"),
        ("leak-group", "test.jsonl", 3, "error"),
        ("leak-group", "val.jsonl", 2, "error"),
    ]
    assert "2 rows" in found(report, "leak-group")[2].message


def test_nearly_the_same_image(tmp_path: Path) -> None:
    image = make_image(0, (320, 240))
    files = {
        "images/a.png": encoded(image),
        "images/b.jpg": encoded(image, "JPEG", quality=80),
        "images/c.png": encoded(image.resize((280, 210))),
        "images/d.png": encoded(make_image(1, (320, 240))),
    }
    rows = {
        "train.jsonl": [row("t", turn("q", images=("a.png",)))],
        "val.jsonl": [
            row(f"v{n}", turn(f"r{n}", images=(name,))) for n, name in enumerate(["b.jpg", "c.png", "d.png"])
        ],
    }
    report = validate(write(tmp_path, {**files, **rows}))
    assert leaks(report) == [
        ("leak-near-image", "val.jsonl", 1, "warning"),
        ("leak-near-image", "val.jsonl", 2, "warning"),
    ]
    assert validate(tmp_path, level="quick").problems == ()


def test_the_pixels_of_a_jpeg_in_a_png_are_the_same_image(tmp_path: Path) -> None:
    import io

    from PIL import Image

    data = encoded(make_image(0, (320, 240)), "JPEG")
    decoded = Image.open(io.BytesIO(data)).convert("RGB")
    files = {"images/a.jpg": data, "images/b.png": encoded(decoded)}
    rows = {
        "train.jsonl": [row("t", turn("q", images=("a.jpg",)))],
        "val.jsonl": [row("v", turn("r", images=("b.png",)))],
    }
    report = validate(write(tmp_path, {**files, **rows}))
    assert leaks(report) == [("leak-image", "val.jsonl", 1, "error")]


def test_blank_pages_are_not_near_each_other(tmp_path: Path) -> None:
    from PIL import Image

    files = {f"images/{n}.png": encoded(Image.new("RGB", (100 + n, 100), "white")) for n in range(4)}
    rows = {
        "train.jsonl": [row(f"t{n}", turn(f"q{n}", images=(f"{n}.png",))) for n in range(2)],
        "val.jsonl": [row(f"v{n}", turn(f"r{n}", images=(f"{n}.png",))) for n in range(2, 4)],
    }
    assert validate(write(tmp_path, {**files, **rows})).problems == ()


def test_a_split_alone_is_not_compared_with_itself(tmp_path: Path) -> None:
    rows = [ask("1", "a"), ask("2", "a"), ask("3", "a2")]
    assert validate(write(tmp_path, {**IMAGES, **COPY, "train.jsonl": rows})).summary.problems == {"image-orphan": 7}


def test_many_splits(tmp_path: Path) -> None:
    files = {f"x_part{n:03d}.jsonl": [ask(f"r{n}", text="the same")] for n in range(100)}
    report = validate(write(tmp_path, files))
    assert report.summary.problems == {"leak-sample": 99}


words = st.integers(0, 2**64 - 1)


def test_a_near_copy_is_found_across_a_split_in_between(tmp_path: Path) -> None:
    image = make_image(0, (320, 240))
    files = {
        "images/a.png": encoded(image),
        "images/other.png": encoded(make_image(1, (320, 240))),
        "images/copy.jpg": encoded(image, "JPEG", quality=80),
        "train.jsonl": [row("t", turn("q", images=("a.png",)))],
        "val.jsonl": [row("v", turn("r", images=("other.png",)))],
        "test.jsonl": [row("e", turn("s", images=("copy.jpg",)))],
    }
    assert leaks(validate(write(tmp_path, files))) == [("leak-near-image", "test.jsonl", 1, "warning")]


@pytest.mark.parametrize(("bits", "pairs"), [(0b1111, 1), (0b11111, 0), (1 << 63 | 1 << 40 | 1 << 20 | 1, 1)])
def test_four_bits_apart_are_near_and_five_are_not(bits: int, pairs: int) -> None:
    left = np.array([0x0123456789ABCDEF], np.uint64)
    i, j, complete = near_pairs(left, left ^ np.uint64(bits))
    assert (i.tolist(), j.tolist(), complete) == ([0] * pairs, [0] * pairs, True)


@given(st.lists(words, unique=True, max_size=20), st.lists(st.tuples(words, st.sets(st.integers(0, 63), max_size=6))))
@settings(max_examples=200, deadline=None)
def test_near_pairs_are_all_pairs_that_are_near(left: list[int], changes: list[tuple[int, set[int]]]) -> None:
    right = []
    for number, bits in changes:
        base = left[number % len(left)] if left else number
        right.append(base ^ sum(1 << bit for bit in bits))
    right = list(dict.fromkeys(right))
    i, j, _ = near_pairs(np.array(left, np.uint64), np.array(right, np.uint64))
    expected = {(a, b) for a, x in enumerate(left) for b, y in enumerate(right) if (x ^ y).bit_count() <= 4}
    assert set(zip(i.tolist(), j.tolist(), strict=True)) == expected
    assert len(i) == len(expected)


@pytest.mark.slow
def test_a_million_hashes_in_a_minute_and_bounded_memory() -> None:
    """Not a timing assertion: a quadratic search would not come back at all."""
    random = np.random.default_rng(0)
    left = random.integers(0, 2**64 - 1, 1_000_000, dtype=np.uint64)
    right = np.unique(np.concatenate((left[:1000] ^ np.uint64(0b1001), left[-1000:])))
    right = np.unique(np.concatenate((right, random.integers(0, 2**64 - 1, 1_000_000, dtype=np.uint64))))
    i, j, _ = near_pairs(np.unique(left), right)
    assert len(i) >= 2000
    assert (np.bitwise_count(np.unique(left)[i] ^ right[j]) <= 4).all()
