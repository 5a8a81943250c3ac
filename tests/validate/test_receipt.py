"""What a run leaves behind: an unchanged directory is not checked again, a changed one only where it changed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from validate_builders import found, row, turn, write
from validate_pictures import encoded, picture

from phi3v_data.media import integrity
from phi3v_data.validate import fresh_report, validate

RECEIPT = ".phi3v/validate/receipt.json"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Eight rows with a picture each; one picture is damaged, one has a warning."""
    files = {f"images/{n}.png": encoded(picture(n)) for n in range(6)}
    files["images/6.png"] = encoded(picture(6))[:150]
    files["images/7.png"] = encoded(picture(7, mode="CMYK"), "JPEG")
    rows = [row(f"r{n}", turn(f"Question {n}?", images=(f"{n}.png",))) for n in range(8)]
    return write(tmp_path / "dir", {"train.jsonl": rows, **files})


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the pictures that are opened."""
    seen: list[str] = []
    real = integrity.check_image

    def counting(path: str, *, pixels: bool) -> object:
        seen.append(os.path.basename(path))
        return real(path, pixels=pixels)

    monkeypatch.setattr(integrity, "check_image", counting)
    return seen


def changed(path: Path, data: bytes) -> None:
    """Other content, and a time that no earlier write can have had."""
    time = path.stat().st_mtime_ns + 1_000_000_000
    path.write_bytes(data)
    os.utime(path, ns=(time, time))


def test_an_unchanged_directory_gives_the_same_report_and_opens_nothing(directory: Path, looked_at: list[str]) -> None:
    first = validate(directory)
    assert len(looked_at) == 8
    looked_at.clear()
    assert validate(directory) == first
    assert looked_at == []
    assert first.summary.problems == {"image-unreadable": 1, "image-mode": 1, "image-format-mismatch": 1}


def test_only_a_changed_picture_is_looked_at_again(directory: Path, looked_at: list[str]) -> None:
    first = validate(directory)
    looked_at.clear()
    changed(directory / "images/6.png", encoded(picture(6)))
    second = validate(directory)
    assert looked_at == ["6.png"]
    assert found(second, "image-unreadable") == []
    assert found(second, "image-mode") == found(first, "image-mode")


def test_pictures_that_come_and_go_do_not_mix_up_the_others(directory: Path, looked_at: list[str]) -> None:
    first = validate(directory)
    looked_at.clear()
    (directory / "images/0.png").unlink()
    write(directory, {"images/00.png": encoded(picture(40)), "images/a/b.png": encoded(picture(41))})
    second = validate(directory)
    assert looked_at == []
    assert found(second, "image-unreadable") == found(first, "image-unreadable")
    assert len(found(second, "image-missing")) == 1
    assert len(found(second, "image-orphan")) == 2


def test_changed_rows_are_read_and_their_pictures_are_not(directory: Path, looked_at: list[str]) -> None:
    validate(directory)
    looked_at.clear()
    with (directory / "train.jsonl").open("a") as file:
        file.write("not json\n")
    assert found(validate(directory), "json-syntax")[0].line == 9
    assert looked_at == []


@pytest.mark.parametrize("options", [{"num_crops": 4}, {"max_tokens": 50}, {"max_problems": 7}])
def test_other_options_ask_again_but_not_the_pictures(
    directory: Path, looked_at: list[str], options: dict[str, int]
) -> None:
    validate(directory)
    looked_at.clear()
    report = validate(directory, **options)  # type: ignore[arg-type]
    assert looked_at == []
    assert report == validate(directory, **options, use_receipt=False)  # type: ignore[arg-type]
    assert len(looked_at) == 8


def test_quick_after_full_still_says_what_full_found(directory: Path, looked_at: list[str]) -> None:
    report = validate(directory)
    looked_at.clear()
    quick = validate(directory, level="quick")
    assert looked_at == []
    assert quick.level == "quick"
    assert quick.summary.problems == report.summary.problems


def test_after_quick_full_looks_at_pixels(directory: Path, looked_at: list[str]) -> None:
    validate(directory, level="quick")
    looked_at.clear()
    report = validate(directory)
    assert len(looked_at) == 8
    assert "image-unreadable" in report.summary.problems


def test_strict_is_not_part_of_the_receipt(tmp_path: Path) -> None:
    write(tmp_path, {"train.jsonl": json.dumps(row("a")) + "\n\n"})
    assert validate(tmp_path).ok
    assert not validate(tmp_path, strict=True).ok
    assert validate(tmp_path).ok


@pytest.mark.parametrize("damage", ["", "{}", "[]", '{"state": 1, "options": {}}', "\0\0", '{"state": {"files": {}}'])
def test_a_damaged_receipt_is_as_none(directory: Path, damage: str) -> None:
    first = validate(directory)
    (directory / RECEIPT).write_text(damage)
    (directory / RECEIPT).with_name("images.npz").write_bytes(damage.encode())
    assert validate(directory) == first
    assert json.loads((directory / RECEIPT).read_text())["options"]["level"] == "full"


def test_training_takes_a_fresh_receipt_of_level_full(directory: Path) -> None:
    assert fresh_report(directory) is None
    validate(directory, level="quick")
    assert fresh_report(directory) is None
    report = validate(directory, max_tokens=9000)
    assert fresh_report(directory) == report
    assert fresh_report(directory, num_crops=4) is None
    changed(directory / "images/1.png", encoded(picture(9)))
    assert fresh_report(directory) is None


def test_a_copy_elsewhere_is_still_fresh(directory: Path, tmp_path: Path) -> None:
    report = validate(directory)
    subprocess.run(["cp", "-a", str(directory), str(tmp_path / "copy")], check=True)
    again = fresh_report(tmp_path / "copy")
    assert again is not None
    assert again.dir == str(tmp_path / "copy")
    assert again.problems == report.problems


def test_where_no_receipt_can_be_left_it_is_said(directory: Path) -> None:
    (directory / ".phi3v").write_text("in the way")
    report = validate(directory)
    assert report.summary.problems["check-skipped"] == 1
    assert "no receipt" in found(report, "check-skipped")[0].message
    assert found(report, "image-unreadable")


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/usr/bin/setpriv").exists(), reason="root reads everything")
def test_a_directory_that_may_only_be_read(directory: Path) -> None:
    """Run as an ordinary user: nothing can be written, one folder and one file cannot be read."""
    write(directory, {"images/closed/x.png": encoded(picture(1)), "val.jsonl": [row("v")]})
    code = (
        "import sys; from phi3v_data.validate import validate; "
        "print(sorted(validate(sys.argv[1]).summary.problems.items()))"
    )
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    (directory / "images/closed").chmod(0o000)
    (directory / "val.jsonl").chmod(0o000)
    parents = [path for path in directory.parents if path.stat().st_uid == os.geteuid() and path != Path("/")]
    modes = [path.stat().st_mode for path in parents]
    command = [sys.executable, "-c", code, str(directory)]
    if os.geteuid() == 0:
        for path in parents:
            path.chmod(path.stat().st_mode | 0o005)
        as_nobody = ["/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
        command = [*as_nobody, *command]
    try:
        if (
            os.geteuid() == 0
            and subprocess.run([*as_nobody, sys.executable, "-c", "import phi3v_data.validate"]).returncode
        ):
            pytest.skip("another user cannot run the interpreter")
        result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HOME": "/tmp"})
    finally:
        for path, mode in zip(parents, modes, strict=True):
            path.chmod(mode)
        for path in (directory, directory / "images/closed", directory / "images"):
            path.chmod(0o755)
    assert result.returncode == 0, result.stderr
    problems = dict(eval(result.stdout))
    assert problems["check-skipped"] == 2
    assert problems["shard-missing"] == 1
    assert problems["image-unreadable"] == 1
    assert not (directory / ".phi3v").exists()


def test_nothing_half_written_is_left(directory: Path) -> None:
    validate(directory)
    assert sorted(path.name for path in (directory / ".phi3v/validate").iterdir()) == ["images.npz", "receipt.json"]
