"""A run that is resumed says that its images were replaced, if they were; each start is a process of its own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from colour_sets import colour_directory
from PIL import Image
from processes import run_data
from run_dirs import arguments, command, settings_for

from phi3v_data.validate import validate

SAID = "its images are others than when the run was started last"

CUT_SHORT = """
import os, sys
from phi3v_data.validate import images, validate
images.KEEP_SECONDS, images._BATCH = 0, 2
calls = []
def progress(stage, done, total):
    calls.extend([stage] * (stage == "images"))
    if len(calls) == 2:  # after the first was saved
        os._exit(9)
validate(sys.argv[1], fresh=True, progress=progress)
"""
"""A validation that is killed after it has saved what it knows of the first images."""

VALIDATED = """
import sys
from phi3v_data.validate import validate
print(validate(sys.argv[1]).stats["image_digests"])
"""


@pytest.fixture(scope="module")
def first_step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data`, and a run of one step in `out`."""
    work = tmp_path_factory.mktemp("begun")
    colour_directory(work / "data", rows=12)
    resume(work, 1)
    return work


@pytest.fixture
def work(first_step: Path, tmp_path: Path) -> Path:
    shutil.copytree(first_step, tmp_path, dirs_exist_ok=True, copy_function=shutil.copy2)
    validate(tmp_path / "data")
    return tmp_path


def resume(work: Path, steps: int, data: str = "data", **changes: object) -> str:
    """Train up to this step; the lines on stderr."""
    options = settings_for(work / data, work / "out", max_steps=steps, save_steps=1, **changes)
    ran = command("run", *arguments(options))
    assert ran.returncode == 0, ran.stderr
    return ran.stderr


def replace(image: Path) -> None:
    """Another image, unlike those under other names."""
    Image.new("RGB", (28, 28), tuple(image.name.encode()[:2] + image.name.encode()[-5:-4])).save(image)


def test_a_file_that_no_row_uses_is_not_counted(work: Path) -> None:
    (work / "data" / "images" / ".DS_Store").touch()
    shutil.copy(work / "data" / "images" / "train0.png", work / "data" / "images" / "unused.png")
    assert SAID not in resume(work, 2)
    replace(work / "data" / "images" / "val0.png")  # of a split that is not trained on
    assert SAID not in resume(work, 3)
    replace(work / "data" / "images" / "train0.png")
    assert SAID in resume(work, 4)
    assert SAID not in resume(work, 5)


def test_images_in_shards_are_the_same_images(work: Path) -> None:
    shutil.copy(work / "data" / "images" / "train0.png", work / "data" / "images" / "unused.png")
    stored = run_data("store", work / "data", work / "stored", "--store", "shards")
    assert stored.returncode == 0, stored.stderr
    assert SAID not in resume(work, 2, data="stored")


@pytest.mark.parametrize("keeps_report", [True, False])
def test_a_validation_that_was_cut_short_changes_nothing(work: Path, keeps_report: bool) -> None:
    resume(work, 1)  # is complete, and leaves the receipt of its own check
    cut = subprocess.run([sys.executable, "-c", CUT_SHORT, work / "data"])
    assert cut.returncode == 9
    if not keeps_report:
        (work / "data" / ".phi3v" / "validate" / "receipt.json").unlink()
    assert SAID not in resume(work, 2)
    assert SAID not in resume(work, 3)
    replace(work / "data" / "images" / "train0.png")
    assert SAID in resume(work, 4)


def test_images_of_a_directory_that_the_trainer_cannot_write_to(work: Path) -> None:
    hidden = work / "data" / ".phi3v"
    (hidden / "validate").rename(work / "kept")
    (hidden / "validate").symlink_to(work / "kept")  # so that no receipt is read or left, whoever runs it
    assert SAID not in resume(work, 2)
    replace(work / "data" / "images" / "train0.png")
    assert SAID in resume(work, 3)
    assert SAID not in resume(work, 4)


@pytest.mark.slow
def test_the_processes_of_a_launcher_know_what_it_found(work: Path) -> None:
    several = {"num_processes": 2, "batch_size_per_gpu": 1}
    assert SAID not in resume(work, 2, **several)
    replace(work / "data" / "images" / "train0.png")
    assert SAID in resume(work, 3, **several)
    assert SAID not in resume(work, 4)


def test_a_start_that_knows_nothing_of_the_images_keeps_the_record(work: Path) -> None:
    settings = arguments(settings_for(work / "data", work / "out", max_steps=2, save_steps=1))
    replace(work / "data" / "images" / "train0.png")
    ran = command("run", *settings, "--skip_validation")
    assert (ran.returncode, SAID in ran.stderr) == (0, False)
    assert SAID in resume(work, 3)


def test_digests_are_the_same_in_every_process(work: Path) -> None:
    data = work / "data"
    shutil.rmtree(data / ".phi3v")
    digests = []
    for _ in range(2):
        digests.append(subprocess.run([sys.executable, "-c", VALIDATED, data], capture_output=True, text=True).stdout)
        shutil.rmtree(data / ".phi3v")
    assert digests == [f"{validate(data).stats['image_digests']}\n"] * 2
    assert validate(data).stats["image_digests"].keys() == {"train", "val"}
    assert validate(data, level="quick", fresh=True).stats["image_digests"] == {}


def test_digests_are_the_same_in_files_and_in_shards(work: Path) -> None:
    """A folder has another place among files of its parent in the one than in the other."""
    rows, images = work / "data/colours_train.jsonl", work / "data/images"
    (images / "train").mkdir()
    (images / "train1.png").rename(images / "train/1.png")
    rows.write_text(rows.read_text().replace('"train1.png"', '"train/1.png"'))
    first = validate(work / "data").stats["image_digests"]
    assert first.keys() == {"train", "val"}
    done = run_data("store", work / "data", work / "packed", "--store", "shards")
    assert done.returncode == 0, done.stderr
    assert validate(work / "packed").stats["image_digests"] == first


def test_a_split_that_lacks_an_image_has_no_digest(work: Path) -> None:
    first = validate(work / "data").stats["image_digests"]
    (work / "data/images/train0.png").unlink()
    assert validate(work / "data").stats["image_digests"] == {"val": first["val"]}
