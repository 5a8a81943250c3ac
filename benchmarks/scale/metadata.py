"""Memory and time of a set's metadata by number of rows: `python benchmarks/scale/metadata.py [PART ...]`.

The structures of the project are driven with made-up keys, names and hashes, without images, one row per image; each
measurement is a process of its own:

plan        `spool_plan`: items as those of `convert table`, spooled and cut into parts
journal     records of finished parts, written, then read as a resume reads them
index       of images in shards: names, places and hashes, written by `StoreWriter`
open        that index, opened and checked as each process of a loader or validator does, and 1,000 names found
list        the images of that index listed by `ImageTree`, then all names found by their hashes
rows        a split's rows indexed for random access (`open_index`), and the order of an epoch
table       `RowTable` of all rows; ids, samples and groups compared
leaks       pixels compared across three splits (`PixelIdentity`, `ImageLeaks.report_same`)
near        the search for near duplicates among random hashes
components  rows joined by group and by image for `split`

peak_bytes_per_row is the peak memory above that of the same process with a hundredth of the rows, cpu_us_per_row the
CPU time above it, and disk_bytes_per_row what is written. A size is not run but extrapolated, marked with `from`, if it
would take more than --gb or --seconds by the size before, in proportion to the rows, or if it ran out of that memory.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import RESULTS, machine, peak_bytes, save

WORDS = 40  # bytes of text in a row's line besides its fixed parts


def name_of(number: int) -> str:
    """The name of an image, 40 bytes as those that `convert table` gives."""
    return f"train/{number * 0x9E3779B97F4A7C15 % (1 << 64):016x}{number:016x}.jpg"


def hashes(count: int, seed: int = 0) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """Random 64-bit numbers."""
    return np.random.default_rng(seed).integers(-(1 << 63), (1 << 63) - 1, count)


def plan(count: int, folder: Path) -> None:
    from phi3v_data.draft import Item
    from phi3v_data.sources.tables import RowLocation
    from phi3v_data.writing.plan import spool_plan

    def items() -> Iterator[Item]:
        for number in range(count):
            place = RowLocation("/data/train-00000.parquet", number // 1000, number % 1000)
            yield Item(
                "train",
                f"train[{number}]",
                "/data",
                f"film/{number // 5}",
                90,
                place.bundle,
                "",
                {"row": place},
                "",
                "",
            )

    spool_plan(items(), folder)


def journal(count: int, folder: Path) -> None:
    from phi3v_data.writing.journal import Journal
    from phi3v_data.writing.plan import part_size
    from phi3v_data.writing.records import ImageRecord, PartRecord, RowRecord, SourceRecord

    made = Journal(folder)
    made.parts.mkdir(parents=True)
    size = part_size(count)
    scratch = folder / "scratch"
    for part, first in enumerate(range(0, count, size)):
        numbers = range(first, min(first + size, count))
        rows = tuple(
            RowRecord(n, "train", f"train[{n}]", line(n).decode(), (ImageRecord(name_of(n), 1000, f"{n:064x}"),))
            for n in numbers
        )
        sources = tuple(SourceRecord(n, f"{n:032x}") for n in numbers)
        made.write_part(part, PartRecord(rows, sources=sources, boot="x"), scratch)
    for part in range(-(-count // size)):
        assert made.read_part(part) is not None


def line(number: int) -> bytes:
    """A row of a JSONL file."""
    turn = f'{{"images": ["{name_of(number)}"], "user": "What is in image {number:010d}?", "assistant": "A tree."}}'
    return f'{{"id": "train-{number:010d}", "source": "s", "conversations": [{turn}]}}'.encode()


def write_index(count: int, folder: Path) -> None:
    """An index of images whose shards are not kept."""
    from phi3v_data.media import store_writer

    class IndexOnly(store_writer.StoreWriter):
        def _next(self) -> None:
            super()._next()
            assert self._file is not None
            (self.root / "shards" / self._name()).unlink()  # its bytes are not looked at
            self._file.close()
            self._file = open(os.devnull, "wb")  # noqa: SIM115 - `_end` closes it

    writer = IndexOnly(folder)
    for number in range(count):
        writer.add(name_of(number), b"")
    writer.finish()


def open_index_of_images(count: int, folder: Path) -> None:
    from phi3v_data.media.packed import open_pack

    pack = open_pack(folder / "images")
    for number in range(0, count, max(1, count // 1000)):
        assert pack.find(name_of(number)) >= 0


def list_images(count: int, folder: Path) -> None:
    from phi3v_data.validate.tree import ImageTree

    tree = ImageTree(folder / "images")
    assert len(tree) == count
    tree.find(hashes(count))


def rows(count: int, folder: Path) -> None:
    from phi3v_data.line_index import open_index
    from phi3v_train.data.order import SampleOrder

    index = open_index(folder, "train", ["x_train.jsonl"])
    assert len(index) == count
    SampleOrder((count,), 8).batch(0)


def write_rows(count: int, folder: Path) -> None:
    with open(folder / "x_train.jsonl", "wb") as file:
        file.writelines(line(number) + b"\n" for number in range(count))


def filled_table(count: int, folder: Path) -> Any:
    """A table of rows with an image each and five rows to a group, in three splits."""
    from phi3v_data.validate.table import RowTable

    table = RowTable(folder)
    step = 1 << 16
    for split, (begin, end) in zip(("train", "val", "test"), shares(count), strict=True):
        table.begin_file(f"x_{split}.jsonl", split)
        for first in range(begin, end, step):
            numbers = np.arange(first, min(first + step, end), dtype=np.int64)
            ids, texts = hashes(len(numbers), first), hashes(len(numbers), first + 1)
            table.append(
                lines=numbers, offsets=numbers * 200, ids=ids, texts=texts, groups=(numbers // 5 + 1) * 977,
                units=numbers % 90, num_turns=np.ones_like(numbers), num_uses=np.ones_like(numbers), uses=numbers,
            )  # fmt: skip
    table.finish()
    return table


def shares(count: int) -> list[tuple[int, int]]:
    """Rows of train, val and test: 80, 10 and 10 %, whole groups of five."""
    cuts = [0, count * 8 // 10 // 5 * 5, count * 9 // 10 // 5 * 5, count]
    return list(pairwise(cuts))


class Names:
    """Stands for an `ImageTree` of which only the number of images is asked."""

    root = Path("/nowhere")

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count


def facts_of(count: int) -> Any:
    """Facts of images whose pixels all differ."""
    from phi3v_data.media.integrity import CHECKED, DECODED, FACTS, JPEG
    from phi3v_data.validate.images import ImageTable

    facts = np.zeros(count, FACTS)
    facts["flags"] = CHECKED | DECODED | JPEG
    facts["dhash"] = hashes(count).view(np.uint64)
    facts["pixels"][:, 0] = hashes(count, 1).view(np.uint64)
    return ImageTable(facts)


def table(count: int, folder: Path) -> None:
    from phi3v_data.engine.local import LocalEngine
    from phi3v_data.validate.findings import Findings
    from phi3v_data.validate.pixels import PixelIdentity
    from phi3v_data.validate.repeats import report_duplicate_ids, report_repeated_samples, report_straddling_groups

    made = filled_table(count, folder)
    findings = Findings(1000)
    report_duplicate_ids(made, findings)
    report_straddling_groups(made, findings)
    names: Any = Names(count)
    report_repeated_samples(made, PixelIdentity(names, facts_of(0), pixels=False, engine=LocalEngine(1)), findings)
    assert not findings.counts


def leaks(count: int, folder: Path) -> None:
    from phi3v_data.engine.local import LocalEngine
    from phi3v_data.validate.findings import Findings
    from phi3v_data.validate.images import ImageReport
    from phi3v_data.validate.leaks import ImageLeaks
    from phi3v_data.validate.pixels import PixelIdentity

    made, images, findings, engine = filled_table(count, folder), facts_of(count), Findings(1000), LocalEngine(1)
    names: Any = Names(count)
    pixels = PixelIdentity(names, images, pixels=True, engine=engine)
    report = ImageReport.__new__(ImageReport)
    report.images = images
    ImageLeaks(made, names, pixels, report, findings, engine).report_same()
    assert not findings.counts


def near(count: int, folder: Path) -> None:
    from phi3v_data.validate.near import near_pairs_within

    near_pairs_within(hashes(count).view(np.uint64))


def components(count: int, folder: Path) -> None:
    from phi3v_data.engine.local import LocalEngine
    from phi3v_data.sets.components import group_links, image_links, join_rows
    from phi3v_data.validate.pixels import PixelIdentity

    made = filled_table(count, folder)
    made.uses = made.uses // 3  # three rows share an image
    names: Any = Names(count)
    pixels = PixelIdentity(names, facts_of(0), pixels=False, engine=LocalEngine(1))
    parents = join_rows(count, chain(group_links(made), image_links(made, pixels)))
    assert int((np.arange(count) - parents).max()) == 14


PARTS: dict[str, tuple[Callable[[int, Path], None], Callable[[int, Path], None] | None]] = {
    "plan": (plan, None),
    "journal": (journal, None),
    "index": (write_index, None),
    "open": (open_index_of_images, write_index),
    "list": (list_images, write_index),
    "rows": (rows, write_rows),
    "table": (table, None),
    "leaks": (leaks, None),
    "near": (near, None),
    "components": (components, None),
}
"""What is measured, and what is made before, in another process."""

HARD_LIMIT = 1.3
"""Of --gb: what the measuring process may take before it runs out of memory."""


def in_process(part: str, which: str, count: int, folder: Path, gb: float) -> dict[str, float] | None:
    """Run one function in a fresh interpreter; None if the memory ended."""
    command = [sys.executable, __file__, "--measure", part, which, str(count), str(folder), str(gb)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode == 3:
        return None
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode} of {' '.join(command)}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


def measure(part: str, which: str, count: str, folder: str, gb: str) -> None:
    """Run one function in this process and print its figures; exit code 3 if the memory ended."""
    limit = int(float(gb) * HARD_LIMIT * 1e9)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    run = PARTS[part][which == "before"]
    assert run is not None
    start = time.process_time()
    try:
        run(int(count), Path(folder))
    except MemoryError:
        sys.exit(3)
    seconds = time.process_time() - start
    disk = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    print(json.dumps({"cpu_s": seconds, "peak": peak_bytes(), "disk": disk}))


def bench(part: str, sizes: list[int], gb: float, seconds: float, work: Path | None) -> list[dict[str, Any]]:
    """Figures of one part by size."""
    found: list[dict[str, Any]] = []
    for count in sizes:
        last = next((each for each in reversed(found) if "from" not in each), None)
        if last is not None:
            times = count / last["rows"]
            fits = last["peak_bytes_per_row"] * count < gb * 1e9 and last["cpu_s"] * times < seconds
        figures = small = None
        if last is None or fits:
            small = one(part, max(1000, count // 100), gb, work)
            figures = one(part, count, gb, work)
        if figures is None or small is None:
            assert last is not None, f"{part}: not even {count:,} rows fit"
            found.append({**last, "rows": count, "cpu_s": round(last["cpu_s"] * times, 1), "from": last["rows"]})
            continue
        more = count - max(1000, count // 100)
        found.append(
            {
                "rows": count,
                "cpu_s": round(figures["cpu_s"], 2),
                "cpu_us_per_row": round((figures["cpu_s"] - small["cpu_s"]) / more * 1e6, 3),
                "peak_bytes_per_row": round((figures["peak"] - small["peak"]) / more, 1),
                "peak_mb": round(figures["peak"] / 1e6),
                "disk_bytes_per_row": round(figures["disk"] / count, 1),
            }
        )
        print(json.dumps({part: found[-1]}), file=sys.stderr, flush=True)
    return found


def one(part: str, count: int, gb: float, work: Path | None) -> dict[str, float] | None:
    """One measurement, with what it needs made before."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        if PARTS[part][1] is not None and in_process(part, "before", count, Path(folder), 100) is None:
            return None
        return in_process(part, "run", count, Path(folder), gb)


def main() -> None:
    if sys.argv[1:2] == ["--measure"]:
        measure(*sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=[])
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000_000, 10_000_000, 100_000_000])
    parser.add_argument("--gb", type=float, default=4, help="most memory that a size may be expected to take")
    parser.add_argument("--seconds", type=float, default=300, help="most CPU time that a size may be expected to take")
    parser.add_argument("--work", type=Path, help="folder for temporary files")
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    results = {part: bench(part, args.sizes, args.gb, args.seconds, args.work) for part in args.parts or PARTS}
    known = RESULTS / "scale_metadata.json"
    before = json.loads(known.read_text()) if args.parts and known.exists() else {}  # other parts are kept
    command = "python benchmarks/scale/metadata.py"
    result = {**before, "command": command, "machine": machine("phi3v", "numpy", "msgspec"), **results}
    if args.no_save:
        print(json.dumps(result, indent=1))
    else:
        save("scale_metadata", result)


if __name__ == "__main__":
    main()
