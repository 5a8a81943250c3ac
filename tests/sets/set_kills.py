"""Kill split, merge or clean before each of its file operations, one after the other; run by test_kill.py.

    python set_kills.py COMMAND WORK_DIR fresh|overwrite

Every attempt is a process of its own that ends itself with SIGKILL right before its n-th operation. After each kill
readers find OUT as before, complete, or refuse it (half_published.py); the same call must then end with the bytes of an
undisturbed run. Prints the number of kill points.
"""

import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from half_published import check_killed
from kills import in_child
from set_builders import png, row, tree, write_set

from phi3v_data.sets.clean import clean_set
from phi3v_data.sets.merge import merge_sets
from phi3v_data.sets.split import split_set


def make_call(command: str, folder: Path, out: Path) -> Callable[[bool], object]:
    """The call under test, given `overwrite`."""
    rows = [row(f"r{n}", f"{n}.png", group=f"g{n}") for n in range(6)]
    images = {f"{n}.png": png(n) for n in range(6)}
    a = write_set(folder / "a", {"a_train.jsonl": [*rows, "{"] if command == "clean" else rows}, images, name="a")
    b = write_set(folder / "b", {"b_train.jsonl": rows[:2]}, {"0.png": png(9), "1.png": png(1)}, name="b")
    calls: dict[str, Callable[[bool], object]] = {
        "split": lambda overwrite: split_set(a, out, "train=0.5,dev=0.5", seed=1, overwrite=overwrite),
        "merge": lambda overwrite: merge_sets([a, b], out, overwrite=overwrite),
        "clean": lambda overwrite: clean_set(a, out, fix=True, overwrite=overwrite),
    }
    return calls[command]


def main(command: str, work: Path, mode: str) -> None:
    out = work / "out"
    call = make_call(command, work, out)
    overwrite = mode == "overwrite"
    assert in_child(lambda: call(False)) == 0
    wanted = tree(out, hidden=True)
    shutil.rmtree(out)
    if overwrite:
        old = write_set(work / "old", {"old_val.jsonl": [row("old", "o.png")]}, {"o.png": png(50)}, name="old")
        assert in_child(lambda: merge_sets([old], out)) == 0
        shutil.copytree(out, work / "before")
    before = tree(out) if overwrite else {}
    visible = {name: digest for name, digest in wanted.items() if not name.startswith(".phi3v")}
    point = moved = 0
    while True:
        point += 1
        shutil.rmtree(out, ignore_errors=True)
        if overwrite:
            shutil.copytree(work / "before", out)
        status = in_child(lambda: call(overwrite), point)
        if status == 0:
            break
        assert status == -signal.SIGKILL, status
        moved += check_killed(out, work, tree, before, visible)
        assert in_child(lambda: call(overwrite)) == 0, f"kill point {point}: cannot be run again"
        ended = tree(out, hidden=True)
        complete = ".phi3v/convert/complete.json"
        assert {**ended, complete: ""} == {**wanted, complete: ""}, f"kill point {point}: {set(ended) ^ set(wanted)}"
    assert moved >= 8, "too few of the kills came while files were moved"
    print(point - 1)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
