"""Which image an annotation means, where layouts put it elsewhere or spell it otherwise."""

from pathlib import Path

import pytest

from phi3v_data.converters.helpers.image_names import ImageFiles
from phi3v_data.errors import Reject
from phi3v_data.sources.source import SourceFile

FILES = ("data/img/a/x.png", "data/img/b/x.png", "data/y.JPG", "other/b/z.png", "more/z.png", "x2/b/x.png")


def find(reference: str, folder: str = "") -> str:
    return ImageFiles(SourceFile(path, Path("/source") / path, 1) for path in FILES).find(reference, folder).path


@pytest.mark.parametrize(
    ("reference", "folder", "expected"),
    [
        ("img/a/x.png", "data", "data/img/a/x.png"),
        ("data/img/b/x.png", "", "data/img/b/x.png"),
        ("a/x.png", "", "data/img/a/x.png"),  # two more are called x.png, one ends in the whole path
        ("./img\\b\\x.png", "", "data/img/b/x.png"),
        ("b/x.png", "data", "data/img/b/x.png"),  # two end in it, one is beside the annotations
        ("y.png", "", "data/y.JPG"),
        ("elsewhere/y", "", "data/y.JPG"),
        ("z.png", "more", "more/z.png"),
    ],
)
def test_the_file_that_fits_best(reference: str, folder: str, expected: str) -> None:
    assert find(reference, folder) == expected


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("b/x.png", "image-ambiguous"),
        ("x.png", "image-ambiguous"),
        ("w.png", "image-missing"),
        ("../data/y.JPG", "image-missing"),
        ("", "image-missing"),
    ],
)
def test_what_is_not_one_file_is_a_reject(reference: str, reason: str) -> None:
    with pytest.raises(Reject) as caught:
        find(reference)
    assert caught.value.code == reason
