"""Checks that readers take a directory whose run was killed for incomplete; used by the kill scripts."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from kills import in_child

import phi3v_data
from phi3v_data.conversion import finish
from phi3v_data.errors import NotFoundError
from phi3v_data.unfinished import UnfinishedError

Tree = Mapping[str, str]
SOURCE = {
    "train/g0/a.txt": "image 1 train/a.png",
    "train/g1/b.txt": "image 2 train/b.png",
    "val/g2/c.txt": "image 3 val/c.png",
}
"""Of a small set; see `toy_converter`."""


def convert(source: Path, out: Path, *, overwrite: bool = False, suffix: str = "") -> None:
    """Convert such a source in this process."""
    from toy_converter import Toy

    phi3v_data.convert(Toy, source, out, workers=0, overwrite=overwrite, options={"suffix": suffix})


def can_be_read(directory: Path) -> bool:
    """Whether a reader takes the directory for a set; otherwise it says that it is unfinished, or contains no set."""
    try:
        phi3v_data.Dataset(directory)
    except (UnfinishedError, NotFoundError):
        return False
    return True


def check_killed(out: Path, work: Path, tree: Callable[..., Tree], old: Tree, new: Tree) -> bool:
    """Check a directory after a kill; `old` and `new` are its visible files before and after the undisturbed run.

    Readers take it for a set only when it is the old or the new one, here and in a copy without `.phi3v`. Where files
    were being moved, completing a copy needs nothing else and gives the new set. Returns whether files were moved.
    """
    if not out.exists():
        return False
    bare = work / "bare"
    shutil.copytree(out, bare, ignore=shutil.ignore_patterns(".phi3v"))
    for directory in (out, bare):
        if can_be_read(directory):
            assert tree(directory) in (old, new), f"{directory.name}: a mixture is read as a set"
    shutil.rmtree(bare)
    unfinished = (out / ".phi3v/convert/publishing.json").exists()
    assert unfinished or not old or can_be_read(out), "a set that nobody touched is refused"
    if unfinished:
        copy = work / "copy"
        shutil.copytree(out, copy)
        assert in_child(lambda: finish(copy)) == 0, "cannot be completed"
        assert tree(copy) == new
        assert sorted(path.name for path in (copy / ".phi3v/convert").iterdir()) == ["complete.json"]
        assert can_be_read(copy)
        shutil.rmtree(copy)
    return unfinished
