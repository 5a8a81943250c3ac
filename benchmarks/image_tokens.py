"""Image tokens of 100,000 images from their headers: `python benchmarks/image_tokens.py [--images N] [--no-save]`.

The images are PNG files of random sizes from 28 to 4,000 pixels, of which the headers alone are read, as
`phi3v-data validate --level quick` does it. CPU time of one process: of reading once, and for each family of counting.
"""

import argparse
import random
import struct
import tempfile
import time
import zlib
from pathlib import Path

from common import machine, save

from phi3v_data.media.integrity import check_images
from phi3v_data.tokens.registry import family_names, get_family

LIMIT_SECONDS = 10.0


def png(width: int, height: int) -> bytes:
    """A PNG whose header is whole, and its pixels are not."""
    chunks = (b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT" + bytes(64), b"IEND")
    packed = (struct.pack(">I", len(each) - 4) + each + struct.pack(">I", zlib.crc32(each)) for each in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def main() -> None:
    """Make the files, read and count."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    rng = random.Random(0)
    sizes = [(rng.randint(28, 4000), rng.randint(28, 4000)) for _ in range(args.images)]
    with tempfile.TemporaryDirectory() as folder:
        names = [f"{number}.png" for number in range(args.images)]
        for name, size in zip(names, sizes, strict=True):
            (Path(folder) / name).write_bytes(png(*size))
        start = time.process_time()
        facts, _ = check_images(folder, names, pixels=False)
        reading = time.process_time() - start
    found = list(zip(facts["width"].tolist(), facts["height"].tolist(), strict=True))
    assert found == sizes
    counting = {}
    for name in family_names():
        family = get_family(name)
        budget = family.choose_budget(None, None)
        start = time.process_time()
        total = sum(family.image_tokens(width, height, budget) for width, height in found)
        seconds = time.process_time() - start
        if not total:  # a family that cannot count by size alone
            continue
        counting[name] = {"seconds": round(seconds, 2), "with_reading": round(reading + seconds, 2), "tokens": total}
    result = {
        "command": f"python benchmarks/image_tokens.py --images {args.images}",
        "machine": machine("phi3v", "numpy", "pillow"),
        "images": args.images,
        "limit_seconds": LIMIT_SECONDS,
        "reading_seconds": round(reading, 2),
        "families": counting,
    }
    if args.no_save:
        print(result)
    else:
        save("image_tokens", result)


if __name__ == "__main__":
    main()
