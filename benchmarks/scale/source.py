"""Small JPEGs in parquet shards, each one of its own: the source of `benchmarks/scale/run.py`.

An image is a crop of a large texture with the spectrum of photographs (amplitude 1/f), at a random place and scale,
with coarse random colours mixed in, 32 to 64 pixels wide and high, saved as JPEG of some 1,100 bytes. One row in 500
has the image of the row five before it, another one has it in another quality: duplicates to find. Rows come in groups
of five; the split is that of the group.
"""

from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

ROWS_PER_FILE, ROWS_PER_GROUP = 10_000, 1_000
SIDE = 1024
TEXTS = ("question", "answer", "group", "split", "id")
NAMES = ("a lamp", "a tree", "a boat", "a wall", "a road", "a hand", "a page", "a bird", "a hill", "a door")
PLACES = ("left", "right", "top", "bottom")


@lru_cache(maxsize=1)
def textures() -> "list[Any]":
    """Four images of 1/f noise in colour, each in three sizes, as arrays (height, width, 3)."""
    from PIL import Image

    found = []
    for seed in range(4):
        random = np.random.default_rng(seed)
        y, x = np.fft.fftfreq(SIDE)[:, None], np.fft.rfftfreq(SIDE)[None, :]
        scale = 1 / np.maximum(np.hypot(y, x), 1 / SIDE)
        planes = []
        shared = random.normal(size=(SIDE, SIDE))
        for _ in range(3):
            plane = np.fft.irfft2(np.fft.rfft2(shared + 0.5 * random.normal(size=(SIDE, SIDE))) * scale)
            planes.append(128 + 45 * plane / plane.std())
        image = Image.fromarray(np.clip(np.stack(planes, -1), 0, 255).astype(np.uint8))
        found += [np.asarray(image.reduce(factor)) for factor in (1, 2, 4)]
    return found


def make_jpeg(number: int) -> bytes:
    """The image of a row."""
    import simplejpeg
    from PIL import Image

    quality = 60
    if number % 500 in (7, 257):
        quality = 60 if number % 500 == 7 else 40
        number -= 5
    random = Random(number)
    width, height = random.randrange(32, 65), random.randrange(32, 65)
    texture = textures()[random.randrange(12)]
    top, left = random.randrange(len(texture) - height), random.randrange(len(texture) - width)
    coarse = Image.frombytes("RGB", (6, 6), random.randbytes(6 * 6 * 3)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    pixels = (texture[top : top + height, left : left + width] >> 1) + (np.asarray(coarse) >> 1)
    return bytes(simplejpeg.encode_jpeg(pixels, quality=quality, colorsubsampling="420"))


def make_row(number: int) -> dict[str, Any]:
    """A row: image, question, answer, group, split."""
    group = number // 5
    name, place = NAMES[group // 10 % 10], PLACES[number % 4]
    return {
        "image": {"bytes": make_jpeg(number), "path": None},
        "question": f"What is at the {place} of photograph {number}?",
        "answer": f"It is {name}.",
        "group": f"film/{group}",
        "split": ("train", "train", "train", "val", "train", "train", "train", "train", "test", "train")[group % 10],
        "id": f"photo-{number:09d}",
    }


def write_file(folder: str, first: int, rows: int) -> None:
    """Write one shard under its final name, unless it is there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(folder, f"train-{first // ROWS_PER_FILE:05d}.parquet")
    if path.exists():
        return
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", image), *((name, pa.string()) for name in TEXTS)])
    table = pa.Table.from_pylist([make_row(number) for number in range(first, first + rows)], schema)
    aside = path.with_suffix(".aside")
    pq.write_table(table, aside, row_group_size=ROWS_PER_GROUP)
    aside.rename(path)


def write_source(folder: Path, rows: int, workers: int) -> None:
    """Write the shards of `rows` rows; those that are there are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(workers) as pool:
        tasks = [
            pool.submit(write_file, str(folder), first, min(ROWS_PER_FILE, rows - first))
            for first in range(0, rows, ROWS_PER_FILE)
        ]
        for task in tasks:
            task.result()


if __name__ == "__main__":
    import sys

    write_source(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
