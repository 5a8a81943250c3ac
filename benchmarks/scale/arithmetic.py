"""Files, inodes, shards and money of a set, from its size and stated prices: `python benchmarks/scale/arithmetic.py`.

    python benchmarks/scale/arithmetic.py --images 100000000 --image_bytes 40000 --months 6 --epochs 3

The prices are inputs in one unit of money; their defaults are round numbers to calculate with, nobody's price list.
"""

import argparse
import json
from math import ceil
from typing import NamedTuple

BLOCK, INODE = 4096, 256
"""Bytes of a block and of an inode of a usual file system (ext4)."""

DIRECTORY_ENTRY = 16
"""Bytes of a name in its folder besides the name itself, about."""

TAR_BLOCK = 512
SHARD = 256 << 20
INDEX_ENTRY = 64
"""Bytes of an image in the index besides its name: eight numbers."""


class Prices(NamedTuple):
    """Per GB and month, per million of written and of read objects, per GB that leaves the store."""

    storage: float = 0.02
    million_puts: float = 5.0
    million_gets: float = 0.4
    egress: float = 0.0


class Store(NamedTuple):
    """What a set takes: objects are files or keys of a bucket.

    `gets` are those of one epoch that reads each image by itself, `gets_in_order` of one that reads whole objects.
    """

    objects: int
    disk_bytes: int
    bucket_bytes: int
    puts: int
    gets: int
    gets_in_order: int


def up(size: int, unit: int) -> int:
    """`size` as whole units."""
    return -(-size // unit) * unit


def files(images: int, image_bytes: int, name_bytes: int) -> Store:
    """An image is a file: a whole number of blocks, an inode, a name in a folder."""
    disk = images * (up(image_bytes, BLOCK) + INODE + DIRECTORY_ENTRY + name_bytes)
    return Store(images, disk, images * image_bytes, images, images, images)


def shards(images: int, image_bytes: int, name_bytes: int) -> Store:
    """An image is a member of a tar file, and an entry of the index; an epoch reads it by its range of bytes."""
    member = TAR_BLOCK + up(image_bytes, TAR_BLOCK)
    size = images * (member + INDEX_ENTRY + name_bytes)
    count = ceil(images / max(1, SHARD // member)) + 1
    return Store(count, size, size, count, images, count)


def money(store: Store, months: float, epochs: float, prices: Prices) -> dict[str, float]:
    """Money for storage, for writing once, and for reading every image once per epoch."""
    gb = store.bucket_bytes / 1e9
    found = {
        "money_storage": gb * months * prices.storage,
        "money_puts": store.puts / 1e6 * prices.million_puts,
        "money_gets": store.gets * epochs / 1e6 * prices.million_gets,
        "money_gets_in_order": store.gets_in_order * epochs / 1e6 * prices.million_gets,
        "money_egress": gb * epochs * prices.egress,
    }
    return {name: round(value, 2) for name, value in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000_000)
    parser.add_argument("--image_bytes", type=int, default=40_000)
    parser.add_argument("--name_bytes", type=int, default=42)
    parser.add_argument("--months", type=float, default=6)
    parser.add_argument("--epochs", type=float, default=3)
    for name, value in Prices()._asdict().items():
        parser.add_argument(f"--{name}", type=float, default=value)
    args = parser.parse_args()
    prices = Prices(*(getattr(args, name) for name in Prices._fields))
    for name, store in (("files", files), ("shards", shards)):
        found = store(args.images, args.image_bytes, args.name_bytes)
        print(json.dumps({name: {**found._asdict(), **money(found, args.months, args.epochs, prices)}}))


if __name__ == "__main__":
    main()
