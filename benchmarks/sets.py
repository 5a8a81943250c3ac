"""Split, merge and duplicate search on large sets: `python benchmarks/sets.py [--rows N] [--images N] [--no-save]`.

split   a million rows, five questions per image, by group with shared images joined (pixels of every image read)
merge   two sets of half a million rows each: all ids collide, half of the images' names do, with other content
near    near duplicates among a million hashes

Each runs in a process of its own; memory is the peak of its resident set, the interpreter and all imports included.
"""

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import machine, peak_bytes, save

PER_IMAGE = 5


def peak_mb() -> float:
    """Peak resident set of this process so far."""
    return peak_bytes() / 1e6


def timed(function: Callable[[], Any]) -> dict[str, float]:
    """Wall and CPU seconds of a call, and the peak after it."""
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return {
        "wall_s": round(time.perf_counter() - wall, 1),
        "cpu_s": round(time.process_time() - cpu, 1),
        "peak_mb": round(peak_mb(), 1),
    }


def in_process(*args: str) -> dict[str, Any]:
    """Run one measurement of this script in a fresh interpreter."""
    done = subprocess.run([sys.executable, __file__, "--measure", *args], check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def write_set(folder: Path, name: str, num_rows: int, num_images: int, shift: int) -> None:
    """Write rows that use the images in turn; with another `shift` the second half of the images differs."""
    from PIL import Image

    for n in range(num_images):
        path = folder / f"images/train/{n % 100:02d}/{n:06d}.png"
        if n < 100:
            path.parent.mkdir(parents=True, exist_ok=True)
        seed = n if n < num_images // 2 else n + shift
        pixels = hashlib.shake_128(str(seed).encode()).digest(24 * 24)
        stream = io.BytesIO()
        Image.frombytes("L", (24, 24), pixels).save(stream, "PNG", compress_level=1)
        path.write_bytes(stream.getvalue())
    with open(folder / f"{name}_train.jsonl", "w", encoding="utf-8") as file:
        for n in range(num_rows):
            k = n // PER_IMAGE % num_images
            turn = {
                "images": [f"train/{k % 100:02d}/{k:06d}.png"],
                "user": f"What is the name of the person in chapter {n}, and in which year was the document signed?",
                "assistant": f"It is person {n * 7919 % 100003}, in {1900 + n % 120}.",
            }
            row = {"id": f"train-{n:010d}", "source": name, "conversations": [turn], "group": f"document/{k // 3}"}
            file.write(json.dumps(row) + "\n")


def measure_split(directory: str, out: str, workers: str) -> dict[str, Any]:
    """Run `split`."""
    from phi3v_data.sets.split import split_set

    return timed(lambda: split_set(directory, out, "train=0.8,val=0.1,test=0.1", workers=int(workers)))


def measure_merge(left: str, right: str, out: str) -> dict[str, Any]:
    """Run `merge`."""
    from phi3v_data.sets.merge import merge_sets

    return timed(lambda: merge_sets([left, right], out))


def measure_near(num_hashes: str) -> dict[str, Any]:
    """Random hashes, a thousand of them near another; memory is told a hash, that of the hashes included."""
    import numpy as np

    from phi3v_data.validate.near import near_pairs_within

    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64 - 1, int(num_hashes), dtype=np.uint64)
    hashes[:1000] = hashes[1000:2000] ^ np.uint64(1 << 40 | 1 << 3)
    hashes = np.unique(hashes)
    pairs: list[Any] = []
    result = timed(lambda: pairs.append(near_pairs_within(hashes)))
    tracemalloc.start()  # knows numpy's arrays; a second run, since it takes time
    near_pairs_within(hashes)
    peak = tracemalloc.get_traced_memory()[1]
    return {
        **result,
        "pairs": len(pairs[0].left),
        "bytes_per_hash": round(peak / len(hashes) + hashes.itemsize, 1),
    }


MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "split": measure_split,
    "merge": measure_merge,
    "near": measure_near,
}


def bench_sets(num_rows: int, num_images: int) -> dict[str, Any]:
    """`split` and `merge`, the results checked for completeness."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_set(folder / "a", "a", num_rows, num_images, 0)
        split = in_process("split", str(folder / "a"), str(folder / "split"), str(len(os.sched_getaffinity(0))))
        manifest = json.loads((folder / "split/dataset.json").read_text())
        split |= {"rows": num_rows, "pictures": num_images}
        split["shares"] = {key: round(info["rows"] / num_rows, 4) for key, info in manifest["splits"].items()}
        assert sum(info["rows"] for info in manifest["splits"].values()) == num_rows
        for part in ("a", "split"):
            shutil.rmtree(folder / part)
        for number, part in enumerate("ab"):
            write_set(folder / part, part, num_rows // 2, num_images // 2, number * 10**7)
        merge = in_process("merge", str(folder / "a"), str(folder / "b"), str(folder / "merged"))
        manifest = json.loads((folder / "merged/dataset.json").read_text())
        merge |= {"rows": num_rows, "pictures": num_images, "pictures_kept": manifest["splits"]["train"]["images"]}
        assert manifest["splits"]["train"]["rows"] == num_rows // 2 * 2
    return {"split": split, "merge": merge}


def main() -> None:
    """Measure, print and save."""
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(MEASURES[sys.argv[2]](*sys.argv[3:])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--hashes", type=int, default=1_000_000)
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    result: dict[str, Any] = {
        "command": " ".join(["python benchmarks/sets.py", *sys.argv[1:]]),
        "machine": machine("phi3v", "numpy", "msgspec", "pillow"),
        "limits": {"split.peak_mb": 400, "merge.peak_mb": 400, "near.wall_s": 60, "near.bytes_per_hash": 100},
        "near": {"hashes": args.hashes, **in_process("near", str(args.hashes))},
        **bench_sets(args.rows, args.images),
    }
    if args.no_save:
        print(json.dumps(result, indent=2))
    else:
        save("sets", result)


if __name__ == "__main__":
    main()
