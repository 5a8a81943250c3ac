"""`datasets` on the shards that `validate` reads: load, decode every image, `map` in so many processes.

    python benchmarks/scale/peer.py FOLDER CACHE WORKERS

Loaded is the parquet export of `phi3v-data export hub`; `map` keeps only the size of each image.
"""

import sys
from pathlib import Path
from typing import Any


def sizes(row: dict[str, Any]) -> dict[str, Any]:
    """Width and height of the images of a row, after all pixels were decoded."""
    found = []
    for image in row["images"]:
        image.load()
        found.append(image.width * image.height)
    return {"pixels": found}


def main(folder: str, cache: str, workers: str) -> None:
    import datasets

    datasets.disable_progress_bars()
    files: dict[str, list[str]] = {}
    for path in sorted(Path(folder).rglob("*.parquet")):
        files.setdefault(path.name.partition("-")[0], []).append(str(path))
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=cache)
    count = 0
    for split in loaded.values():
        done = split.map(sizes, num_proc=int(workers), remove_columns=split.column_names)
        count += len(done)
    print(count)


if __name__ == "__main__":
    main(*sys.argv[1:])
