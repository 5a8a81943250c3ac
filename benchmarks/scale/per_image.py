"""The check of images of a small and a large set in turn: `python benchmarks/scale/per_image.py SMALL LARGE`.

Runs of `validate` on sets of other sizes are minutes apart, in which a busy machine changes its speed. Here 1,000
images from the middle of each set are read and checked in one process, the sets in turn; the best round counts.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import machine, save

from phi3v_data.dataset import Dataset
from phi3v_data.media.images import read_image_file
from phi3v_data.media.integrity import check_images

IMAGES, ROUNDS = 1000, 16


def names_of(directory: Path) -> list[str]:
    """Names of images from the middle of split train, sorted as `validate` reads them."""
    split = Dataset(directory)["train"]
    first = max(0, (len(split) - IMAGES) // 2)
    return sorted(name for row in range(first, min(first + IMAGES, len(split))) for name in split[row].images)


def per_image(call: Callable[[], object], count: int) -> float:
    """CPU time of a call in µs per image."""
    start = time.process_time()
    call()
    return round((time.process_time() - start) / count * 1e6, 1)


def read_all(paths: list[Path]) -> None:
    """Read the bytes of each image."""
    for path in paths:
        read_image_file(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("small", type=Path)
    parser.add_argument("large", type=Path)
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    sets = {name: (path / "images", names_of(path)) for name, path in (("small", args.small), ("large", args.large))}
    found: dict[str, dict[str, Any]] = {name: {"read_us": [], "check_us": []} for name in sets}
    for _ in range(ROUNDS):
        for name, (root, names) in sets.items():
            paths = [root / each for each in names]
            found[name]["read_us"].append(per_image(partial(read_all, paths), len(names)))
            check = per_image(partial(check_images, os.fspath(root), names, pixels=True), len(names))
            found[name]["check_us"].append(check)
    for name, path in (("small", args.small), ("large", args.large)):
        data = Dataset(path)
        found[name]["rows"] = sum(len(data[split]) for split in data)
    ratio = min(found["large"]["check_us"]) / min(found["small"]["check_us"])
    result = {
        "command": "python benchmarks/scale/per_image.py SMALL LARGE",
        "machine": machine("phi3v", "pillow", "simplejpeg"),
        **found,
        "ratio_of_the_best": round(ratio, 3),
        "load": round(os.getloadavg()[0], 1),
    }
    if args.no_save:
        print(json.dumps(result, indent=2))
    else:
        save("scale_per_image", result)


if __name__ == "__main__":
    main()
