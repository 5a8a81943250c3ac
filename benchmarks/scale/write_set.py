"""Write the rows of the source as a set with its images in shards, without the checks of a conversion.

    python benchmarks/scale/write_set.py SOURCE DIR

With `run.py --direct` it takes the place of `convert shards`, where a conversion of so many rows would take too long:
the stages that follow read a set of the same kind.
"""

import hashlib
import sys
from pathlib import Path

import msgspec
import pyarrow.parquet as pq

from phi3v_data.media.store_writer import StoreWriter
from phi3v_data.schema import Manifest, SplitInfo


def main(source: str, directory: str) -> None:
    folder = Path(directory)
    folder.mkdir(parents=True)
    writer = StoreWriter(folder)
    splits = ("train", "val", "test")
    files = {split: (folder / f"source_{split}.jsonl").open("wb") for split in splits}
    digests = {split: hashlib.sha256() for split in splits}
    counts = dict.fromkeys(splits, 0)
    names: dict[str, set[str]] = {split: set() for split in splits}
    for path in sorted(Path(source).glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            split, data = row["split"], row["image"]["bytes"]
            name = f"{split}/{hashlib.sha256(data).hexdigest()[:32]}.jpg"
            if name not in names[split]:
                names[split].add(name)
                writer.add(name, data)
            turn = {"images": [name], "user": row["question"], "assistant": row["answer"]}
            value = {"id": row["id"], "source": "source", "conversations": [turn], "group": row["group"]}
            line = msgspec.json.encode(value) + b"\n"
            files[split].write(line)
            digests[split].update(line)
            counts[split] += 1
    writer.finish()
    for file in files.values():
        file.close()
    manifest = Manifest(
        format=2,
        name="source",
        task="vqa",
        splits={
            split: SplitInfo(
                rows=counts[split],
                images=len(names[split]),
                files={f"source_{split}.jsonl": f"sha256:{digests[split].hexdigest()}"},
            )
            for split in splits
        },
    )
    (folder / "dataset.json").write_text(manifest.to_json())


if __name__ == "__main__":
    main(*sys.argv[1:])
