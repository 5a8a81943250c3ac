"""Images as files and in shards: `python benchmarks/store.py [--images N] [--no-save]`.

Small JPEGs of an image folder are converted with `--store files` and `--store shards`, validated in full, read
in random order as a loader worker reads them (bytes, then also decoded), copied and removed. Each measurement is a
process of its own, the two kinds in turn; the page cache is warm. CPU is of the process and its children; rates are per
CPU second, as other work may run on the machine.
"""

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from common import machine, save

KINDS = ("files", "shards")
CLASSES = 50


def write_source(folder: Path, images: int) -> None:
    """Write an image folder: `train/CLASS/NUMBER.jpg`, each image of its own."""
    import numpy as np
    from PIL import Image

    for number in range(images):
        path = folder / f"train/class{number % CLASSES:02d}/{number:06d}.jpg"
        if number < CLASSES:
            path.parent.mkdir(parents=True)
        coarse = np.random.default_rng(number).integers(0, 256, (6, 8, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC).save(path, quality=85)


def run_cli(*args: object) -> None:
    """Run `phi3v-data` with its start-up; a warning about the set is no failure."""
    command = [sys.executable, "-c", "from phi3v_data.cli.app import main; main()", *map(str, args)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode not in (0, 1):
        raise RuntimeError(done.stderr)


def timed(call: Callable[[], object]) -> dict[str, float]:
    """Wall seconds of a call, and CPU seconds of the processes that it starts and waits for."""
    before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    call()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall_s": round(time.perf_counter() - wall, 2), "cpu_s": round(cpu, 2)}


def measure_reading(directory: Path) -> dict[str, float]:
    """Images per CPU second of one process in random order: bytes, and decoded. Runs in a process of its own."""
    from phi3v_data.dataset import Dataset
    from phi3v_data.media.images import load_image, read_image_file

    split = Dataset(directory)["train"]
    names = [name for sample in split for name in sample.images]
    random.Random(0).shuffle(names)
    result: dict[str, float] = {}
    ways: dict[str, Callable[[Path], object]] = {"bytes": read_image_file, "decoded": load_image}
    for what, read in ways.items():
        some = names if what == "bytes" else names[:5000]
        start = time.process_time()
        for name in some:
            read(split.image_path(name))
        result[f"{what}_per_cpu_s"] = round(len(some) / (time.process_time() - start))
    return result


def in_process(directory: Path) -> dict[str, float]:
    """`measure_reading` in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, __file__, "--read", str(directory)], check=True, capture_output=True, text=True
    )
    result: dict[str, float] = json.loads(done.stdout)
    return result


def count(directory: Path) -> dict[str, int]:
    """Number of files and their bytes, the hidden folder left out."""
    found = [path for path in directory.rglob("*") if path.is_file() and ".phi3v" not in path.parts]
    return {"files": len(found), "bytes": sum(path.stat().st_size for path in found)}


def measure(images: int, rounds: int) -> dict[str, Any]:
    """All figures of both kinds, best of the rounds."""
    result: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    with tempfile.TemporaryDirectory(prefix="store-") as work:
        source = Path(work, "source")
        write_source(source, images)
        for number in range(rounds):
            for kind in KINDS if number % 2 == 0 else KINDS[::-1]:
                out, copy = Path(work, kind), Path(work, "copy")
                shutil.rmtree(out, ignore_errors=True)
                args = ("convert", "image_folder", "--source", source, "--out_dir", out, "--store", kind, "--quiet")
                found: dict[str, Any] = {"convert": timed(partial(run_cli, *args))}
                found["validate"] = timed(partial(run_cli, "validate", out, "--quiet"))
                found["reading"] = in_process(out)
                found["copy"] = timed(partial(subprocess.run, ["cp", "-r", out, copy], check=True))
                found["remove"] = timed(partial(subprocess.run, ["rm", "-r", copy], check=True))
                found["size"] = count(out)
                best(result[kind], found)
    return result


def best(known: dict[str, Any], found: dict[str, Any]) -> None:
    """Keep the better value of each figure: the least time, the highest rate."""
    for name, values in found.items():
        for key, value in values.items():
            old = known.setdefault(name, {}).get(key, value)
            known[name][key] = max(old, value) if key.endswith("_per_cpu_s") else min(old, value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--read", type=Path)
    args = parser.parse_args()
    if args.read:
        print(json.dumps(measure_reading(args.read)))
        return
    figures = measure(args.images, args.rounds)
    result = {
        "command": f"python benchmarks/store.py --images {args.images} --rounds {args.rounds}",
        "machine": machine("phi3v", "Pillow"),
        "images": args.images,
        "load_average": round(os.getloadavg()[0], 1),
        **figures,
    }
    if args.no_save:
        print(json.dumps(result, indent=2))
    else:
        save("store", result)


if __name__ == "__main__":
    main()
