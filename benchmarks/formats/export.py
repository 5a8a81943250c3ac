"""Rows per CPU second of an export, against writers of others on the same rows: `datasets` and `webdataset`.

    python benchmarks/formats/export.py [--rows 20000] [--big 1000000]

Each measurement is a process of its own: imports are not counted, threads are. An export checks every row before it
writes one; the writers of others check nothing, and get rows by `json.loads` of each line and images by their path.
`--big` is the number of rows of a set whose export's peak memory is measured; 0 for none.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import machine, peak_bytes, save

from phi3v_data.dataset import Dataset
from phi3v_data.exporting import export_set

FORMATS = ("sharegpt", "openai", "hub", "webdataset")
PEERS = {"hub": "datasets", "webdataset": "webdataset"}


def make_set(directory: Path, rows: int) -> Path:
    """Two turns and an image of 1 KB in each row; 200 images."""
    (directory / "images").mkdir(parents=True)
    for number in range(200):
        Image.new("RGB", (64, 48), (number, 255 - number, 90)).save(directory / "images" / f"{number}.jpg")
    with open(directory / "train.jsonl", "w", encoding="utf-8") as file:
        for number in range(rows):
            turn = {
                "images": [f"{number % 200}.jpg"],
                "user": f"What is shown in image {number}? Describe the scene in detail, please.",
                "assistant": "A red square on a table, next to a lamp and a book. " * 3,
            }
            turns = [turn, {"images": [], "user": "Sure?", "assistant": "Yes."}]
            json.dump({"id": f"row-{number}", "source": "made", "conversations": turns}, file)
            file.write("\n")
    return directory


def plain_rows(directory: Path) -> Iterator[dict[str, Any]]:
    """The rows as a user's script would write them: blocks, and images as bytes."""
    with open(directory / "train.jsonl", encoding="utf-8") as file:
        for line in file:
            row = json.loads(line)
            images = []
            messages = []
            for turn in row["conversations"]:
                content = [{"type": "image"} for _ in turn["images"]]
                messages.append({"role": "user", "content": [*content, {"type": "text", "text": turn["user"]}]})
                answer = {"type": "text", "text": turn["assistant"]}
                messages.append({"role": "assistant", "content": [answer]})
                for name in turn["images"]:
                    with open(f"{directory}/images/{name}", "rb") as image:
                        images.append({"bytes": image.read(), "path": name})
            yield {"id": row["id"], "images": images, "messages": messages}


def by_datasets(directory: Path, out: Path) -> None:
    import datasets

    text = datasets.Value("string")
    features = datasets.Features(
        {
            "id": text,
            "images": datasets.List(datasets.Image()),
            "messages": datasets.List({"role": text, "content": datasets.List(datasets.Json())}),
        }
    )
    rows = datasets.Dataset.from_generator(
        plain_rows, gen_kwargs={"directory": directory}, features=features, cache_dir=str(out / "cache")
    )
    rows.to_parquet(str(out / "train.parquet"))


def by_webdataset(directory: Path, out: Path) -> None:
    import webdataset

    with webdataset.TarWriter(str(out / "train.tar")) as writer:
        for number, row in enumerate(plain_rows(directory)):
            images = {f"{at}.jpg": image["bytes"] for at, image in enumerate(row["images"])}
            row["images"] = list(images)
            writer.write({"__key__": f"{number:09}", "json": row, **images})


def measure(what: str, directory: Path, out: Path) -> dict[str, float]:
    """CPU seconds and peak memory of one export, in this process."""
    calls: dict[str, Callable[[], object]] = {
        "datasets": lambda: by_datasets(directory, out),
        "webdataset's": lambda: by_webdataset(directory, out),
    }
    if what in calls:
        out.mkdir()
    call = calls.get(what, lambda: export_set(what, directory, out))
    packages = {"hub": "pyarrow.parquet", "datasets": "datasets", "webdataset's": "webdataset"}
    if what in packages:
        __import__(packages[what])
    Dataset(directory)["train"]  # the index is there
    before = time.process_time()
    call()
    return {"cpu_s": time.process_time() - before, "peak_mb": peak_bytes() / 1e6}


def run(what: str, directory: Path, work: Path) -> dict[str, float] | None:
    """The measurement in a new process; None if the peer is not installed."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        command = [sys.executable, __file__, "--one", what, str(directory), f"{folder}/out"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(what, done.stderr.strip().splitlines()[-1], file=sys.stderr)
        return None
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--big", type=int, default=1_000_000)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(args.one[0], Path(args.one[1]), Path(args.one[2]))))
        return
    result: dict[str, Any] = {
        "machine": machine("datasets", "pyarrow", "webdataset"),
        "load_average": os.getloadavg()[1],  # of other work, which slows each program
        "rows": args.rows,
        "formats": {},
    }
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        directory = make_set(work / "set", args.rows)
        for name in FORMATS:
            ours = run(name, directory, work)
            assert ours is not None
            entry: dict[str, Any] = {"rows_per_cpu_s": round(args.rows / ours["cpu_s"])}
            if name in PEERS:
                peer = run(PEERS[name] if name == "hub" else "webdataset's", directory, work)
                if peer is not None:
                    entry["peer"] = PEERS[name]
                    entry["peer_rows_per_cpu_s"] = round(args.rows / peer["cpu_s"])
                    entry["ratio"] = round(peer["cpu_s"] / ours["cpu_s"], 2)
            result["formats"][name] = entry
        if args.big:
            big = run("sharegpt", make_set(work / "big", args.big), work)
            assert big is not None
            result["big"] = {"rows": args.big, "peak_mb": round(big["peak_mb"]), "cpu_s": round(big["cpu_s"], 1)}
    save("export", result)


if __name__ == "__main__":
    main()
