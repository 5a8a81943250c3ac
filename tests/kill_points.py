"""Kill a conversion at each of its file operations, one after the other, and resume it: run by test_convert_kill.py.

    python kill_points.py SOURCE WORK_DIR fresh|overwrite|shards

Every attempt is a process of its own that ends itself with SIGKILL right before its n-th file operation. After each
kill readers must find the directory as before, complete, or refuse it (half_published.py); the same call must then end
with the bytes of an undisturbed run. Prints the number of kill points.
With `shards` a set of files is overwritten by one of shards.
"""

import shutil
import signal
import sys
from pathlib import Path

from half_published import check_killed
from kills import in_child
from toy_converter import Toy, tree

import phi3v_data
from phi3v_data import conversion  # noqa: F401 - loaded once, before the forks
from phi3v_data.media import store_writer  # noqa: F401 - as above
from phi3v_data.writing import images  # noqa: F401 - as above


def main(source: Path, work: Path, mode: str) -> None:
    out = work / "out"

    def new() -> object:
        return phi3v_data.convert(
            Toy,
            source,
            out,
            workers=0,
            overwrite=mode != "fresh",
            store="shards" if mode == "shards" else "files",
            options={"suffix": "!"},
            split="train=0.5,dev=0.5",
        )

    def old() -> object:
        return phi3v_data.convert(Toy, source, out, workers=0)

    assert in_child(new) == 0
    wanted = tree(out, hidden=True)
    before: dict[str, str] = {}
    if mode != "fresh":
        shutil.rmtree(out)
        assert in_child(old) == 0
        before = tree(out)
    shutil.copytree(out, work / "before") if before else None
    point = moved = 0
    while True:
        point += 1
        shutil.rmtree(out)
        if before:
            shutil.copytree(work / "before", out)
        status = in_child(new, point)
        if status == 0:
            break
        assert status == -signal.SIGKILL, status
        moved += check_killed(out, work, tree, before, visible(wanted))
        assert in_child(new) == 0, f"kill point {point}: cannot be resumed"
        ended = tree(out, hidden=True)
        assert ended == wanted, f"kill point {point}: {sorted(set(ended.items()) ^ set(wanted.items()))}"
    assert moved >= 8, "too few of the kills came while files were moved"
    print(point - 1)


def visible(files: dict[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in files.items() if not name.startswith(".phi3v")}


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
