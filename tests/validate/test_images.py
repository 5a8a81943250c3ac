"""Images of a directory: paths, links, names, damage; each file looked at once, reported at every use."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from validate_builders import found, places, row, turn, write
from validate_images import encoded, make_image

from phi3v_data.media import integrity
from phi3v_data.validate import validate

A, B = encoded(make_image(1)), encoded(make_image(2))


def uses(*paths: str) -> list[dict[str, object]]:
    """A row a path."""
    return [row(f"r{n}", turn(f"Question {n}?", images=(path,))) for n, path in enumerate(paths)]


@pytest.mark.parametrize("level", ["quick", "full"])
def test_valid_images_have_no_findings(tmp_path: Path, level: str) -> None:
    rows = [row("a", turn(images=("a.png", "deep/er/b.jpg")), turn("And?", images=("ü ñ/名.png",)))]
    files = {
        "images/a.png": A,
        "images/deep/er/b.jpg": encoded(make_image(2), "JPEG"),
        "images/ü ñ/名.png": encoded(make_image(3)),
        "images/.hidden": b"x",
    }
    report = validate(write(tmp_path, {"train.jsonl": rows, **files}), level=level, num_crops=4)
    assert report.problems == ()
    assert report.summary.images == 3
    assert report.stats["image_sizes"] == {"64x48": 3}


def test_a_missing_image_is_named_at_each_use_with_the_file_meant(tmp_path: Path) -> None:
    write(tmp_path, {"images/train/photo_0001.jpg": A, "images/100% sure.png": A, "images/x/only.png": A})
    wanted = {
        "train/photo_0010.jpg": "",  # another picture
        "train/foto_0001.jpg": "'train/photo_0001.jpg'",
        "images/train/photo_0001.jpg": "'train/photo_0001.jpg'",
        "100%25%20sure.png": "'100% sure.png'",
        "only.png": "'x/only.png'",
        "nothing/like/it.gif": "",
    }
    write(tmp_path, {"train.jsonl": uses(*wanted)})
    report = validate(tmp_path)
    missing = found(report, "image-missing")
    assert [(item.line, item.field) for item in missing] == [(n, "conversations[0].images[0]") for n in range(1, 7)]
    for item, meant in zip(missing, wanted.values(), strict=True):
        assert meant in item.hint
        assert bool(item.hint) is bool(meant)


def test_no_images_folder_at_all(tmp_path: Path) -> None:
    report = validate(write(tmp_path, {"train.jsonl": uses("a.png", "b.png")}))
    assert report.summary.problems == {"image-missing": 2}


@pytest.mark.parametrize(
    "path",
    [
        "/etc/hostname",
        "../a.png",
        "x/../../a.png",
        "x\\a.png",
        "C:/a.png",
        "",
        "./a.png",
        "x//a.png",
        "a\0.png",
        "a\n.png",
    ],
)
def test_unsafe_paths(tmp_path: Path, path: str) -> None:
    write(tmp_path, {"train.jsonl": uses(path), "a.png": A, "images/keep/a.png": A})
    report = validate(tmp_path)
    assert places(report, "image-path-unsafe") == [("train.jsonl", 1, "conversations[0].images[0]")]
    assert "image-missing" not in report.summary.problems


def test_an_unsafe_name_is_unsafe_even_where_the_file_is_there(tmp_path: Path) -> None:
    write(tmp_path, {"train.jsonl": uses("x\\a.png", "con.png"), "images/x\\a.png": A, "images/con.png": B})
    assert validate(tmp_path).summary.problems == {"image-path-unsafe": 2}


def test_links(tmp_path: Path) -> None:
    write(tmp_path, {"secret/a.png": A, "images/real/a.png": A, "images/real/b.png": B})
    images = tmp_path / "images"
    (images / "out.png").symlink_to(tmp_path / "secret/a.png")
    (images / "outdir").symlink_to(tmp_path / "secret")
    (images / "in.png").symlink_to("real/a.png")
    (images / "indir").symlink_to("real")
    (images / "loop.png").symlink_to("loop.png")
    (images / "real" / "up").symlink_to("..")
    (images / "dead.png").symlink_to("nothing.png")
    rows = uses(
        "out.png",
        "outdir/a.png",
        "in.png",
        "indir/b.png",
        "loop.png",
        "real/up/real/a.png",
        "dead.png",
        "real",
        "real/a.png",
    )
    report = validate(write(tmp_path, {"train.jsonl": rows}))
    assert {(item.line, item.code) for item in report.problems if item.code != "image-orphan"} == {
        (1, "image-path-unsafe"),
        (2, "image-path-unsafe"),
        (5, "image-unreadable"),
        (6, "image-unreadable"),
        (7, "image-missing"),
        (8, "image-unreadable"),
    }


def test_images_may_be_a_link_itself(tmp_path: Path) -> None:
    write(tmp_path, {"store/a.png": A, "dir/train.jsonl": uses("a.png")})
    (tmp_path / "dir/images").symlink_to(tmp_path / "store")
    assert validate(tmp_path / "dir").problems == ()


def test_letter_case_and_unicode_form(tmp_path: Path) -> None:
    write(
        tmp_path, {"images/Train/A.PNG": A, "images/e\u0301.png": B, "train.jsonl": uses("train/a.png", "\u00e9.png")}
    )
    report = validate(tmp_path)
    command = "`phi3v-data clean DIR OUT --fix` corrects the path in a copy if one file only can be meant"
    assert [(item.line, item.hint) for item in found(report, "image-name-mismatch")] == [
        (1, f"did you mean 'Train/A.PNG'? {command}"),
        (2, f"did you mean 'e\u0301.png'? {command}"),
    ]
    assert "image-missing" not in report.summary.problems


def test_findings_are_at_every_use_and_the_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    for name in ("read_image_file", "probe"):
        real = getattr(integrity, name)

        def counting(path: str, real: Callable[[str], object] = real) -> object:
            seen.append(os.path.basename(path))
            return real(path)

        monkeypatch.setattr(integrity, name, counting)
    rows = [
        row("a", turn(images=("bad.png", "good.png"))),
        row("b", turn("Second?"), turn("Third?", images=("good.png", "bad.png"))),
    ]
    write(
        tmp_path, {"train.jsonl": rows, "images/bad.png": A[:200], "images/good.png": B, "images/unused.png": A[:200]}
    )
    report = validate(tmp_path)
    assert places(report, "image-unreadable") == [
        ("train.jsonl", 1, "conversations[0].images[0]"),
        ("train.jsonl", 2, "conversations[1].images[1]"),
    ]
    assert sorted(seen) == ["bad.png", "good.png"]
    assert report.summary.problems == {"image-unreadable": 2, "image-orphan": 1}


def test_quick_sees_headers_and_full_sees_pixels(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    files = {
        "cut.png": A[:-40],
        "turned.jpg": encoded(make_image(4), "JPEG", exif=exif),
        "thin.png": encoded(Image.new("L", (6000, 1))),
        "named.jpg": encoded(make_image(5)),
    }
    write(tmp_path, {"train.jsonl": uses(*files), **{f"images/{name}": data for name, data in files.items()}})
    quick = {"image-orientation": 1, "image-aspect": 1, "image-format-mismatch": 1}
    assert validate(tmp_path, level="quick").summary.problems == quick
    assert validate(tmp_path, level="full").summary.problems == {**quick, "image-unreadable": 1}


def test_aspect_depends_on_num_crops(tmp_path: Path) -> None:
    write(tmp_path, {"train.jsonl": uses("a.png"), "images/a.png": encoded(Image.new("L", (1, 2000), 9))})
    assert "image-aspect" not in validate(tmp_path).summary.problems
    report = validate(tmp_path, num_crops=4)
    assert report.summary.problems == {"image-aspect": 1}
    assert "num_crops 4" in report.problems[0].message


def test_fields_are_right_on_rows_with_other_mistakes(tmp_path: Path) -> None:
    value = row("a", turn(images=("none.png",)))
    value["conversations"] = [7, {"images": [3, "none.png"], "user": "q", "assistant": "a"}]
    report = validate(write(tmp_path, {"train.jsonl": [value], "images/other.txt": "x"}))
    assert places(report, "image-missing") == [("train.jsonl", 1, "conversations[1].images[1]")]


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_says_the_same(tmp_path: Path, workers: int) -> None:
    names = [f"{n:04d}.png" for n in range(900)]
    files = {f"images/{name}": A if n % 100 else A[: 100 + n // 10] for n, name in enumerate(names)}
    write(tmp_path, {"train.jsonl": uses(*names), **files})
    report = validate(tmp_path, workers=workers)
    assert [item.line for item in found(report, "image-unreadable")] == list(range(1, 901, 100))
    assert set(report.summary.problems) == {"image-unreadable"}


def test_a_decoder_that_dies_costs_one_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is killed by a signal in the middle of an image, as a defect in a C decoder would."""
    (tmp_path / "dying.py").write_text(
        "import os, signal\n"
        "from phi3v_data.media import integrity\n"
        "real = integrity.read_image_file\n"
        "def read_image_file(path):\n"
        "    if 'deadly' in path:\n"
        "        os.kill(os.getpid(), signal.SIGSEGV)\n"
        "    return real(path)\n"
        "def check_images(root, paths, *, pixels):\n"
        "    integrity.read_image_file = read_image_file\n"
        "    return original(root, paths, pixels=pixels)\n"
        "original = integrity.check_images\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import dying

    monkeypatch.setattr(integrity, "check_images", dying.check_images)
    names = [f"{n:04d}.png" for n in range(600)] + ["deadly.png"]
    directory = write(tmp_path / "dir", {"train.jsonl": uses(*names), **{f"images/{name}": A for name in names}})
    report = validate(directory, workers=2)
    assert [(item.line, item.message) for item in found(report, "image-unreadable")] == [
        (601, "'deadly.png' crashes its decoder")
    ]


@pytest.mark.parametrize("folder", ["images-old", "images2", "imagesx/deep"])
def test_a_folder_whose_name_begins_with_images_is_outside(tmp_path: Path, folder: str) -> None:
    write(tmp_path, {"images/real.png": A, f"{folder}/a.png": B, "train.jsonl": uses("x.png", "real.png")})
    (tmp_path / "images/x.png").symlink_to(tmp_path / folder / "a.png")
    report = validate(tmp_path)
    assert [(each.code, each.line) for each in report.problems if each.severity == "error"] == [
        ("image-path-unsafe", 1)
    ]


def test_an_image_in_the_folder_of_another_set_is_not_what_was_meant(tmp_path: Path) -> None:
    write(tmp_path, {"train.jsonl": uses("a/p.png", "b/q.png"), "images/p.png": A, "images/b/more/q.png": A})
    hints = [item.hint for item in found(validate(tmp_path), "image-missing")]
    assert hints == ["", "did you mean 'b/more/q.png'?"]
