"""Images per second of the loader from a bucket: `python benchmarks/bucket_loader.py [--images N] [--latency_ms N]`.

JPEGs in WebDataset shards, read by a loader with two workers in the order of a run: from the local disk; from a store
on this machine that waits before each answer, with an empty local cache, without and with fetching ahead; and again,
with the images in the cache. Each measurement is a process of its own that makes no model; they take turns, best of the
rounds. The store, a process of its own, needs the same cores, so rates from it are lower than from one elsewhere.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import machine, save

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests/remote"), str(ROOT / "tests")]

BATCH = 16
KINDS = ("local", "bucket_one_by_one", "bucket_ahead", "bucket_cached")


def write_shards(scratch: Path, images: int) -> None:
    """An image folder, converted and exported to shards."""
    import numpy as np
    from PIL import Image

    for number in range(images):
        path = scratch / f"source/train/class{number % 10}/{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = np.random.default_rng(number).integers(0, 256, (30, 40, 3)).astype(np.uint8)
        Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
    code = "from phi3v_data.cli.app import main; main()"
    for line in (
        f"convert image_folder --source {scratch}/source --out_dir {scratch}/set",
        f"export webdataset {scratch}/set --out {scratch}/objects/set --shard_mb 20",
    ):
        subprocess.run([sys.executable, "-c", code, *line.split(), "--quiet"], check=True, stdout=subprocess.DEVNULL)


def serve(folder: Path, latency: float) -> None:
    """Run the store until stdin ends; prints its address."""
    from stub_store import Stub, running_stub

    with running_stub(Stub(folder, latency=latency)) as stub:
        print(stub.endpoint, flush=True)
        sys.stdin.read()


def measure_loader(data_dir: str, kind: str) -> float:
    """Images per second of one epoch, from the first step on."""
    from phi3v_data.remote.cache_folders import cache_home
    from phi3v_train.data import fetch_ahead
    from phi3v_train.data.encode import Encoder
    from phi3v_train.data.loader import TrainLoader
    from phi3v_train.data.order import SampleOrder
    from phi3v_train.data.reader import Reader
    from phi3v_train.data.sources import open_source
    from phi3v_train.models.phi3v.family import PHI3V
    from phi3v_train.models.phi3v.tiny import tiny_processor

    source = open_source(data_dir, "train", num_crops=1)
    if kind in ("bucket_one_by_one", "bucket_ahead"):
        shutil.rmtree(cache_home() / "ranges", ignore_errors=True)
    if kind == "bucket_one_by_one":
        fetch_ahead.FetchAhead.want = lambda self, refs: None  # type: ignore[method-assign]
    order = SampleOrder((len(source),), BATCH)
    with TrainLoader(
        Reader([source], Encoder(PHI3V.renderer(tiny_processor()))), order, micro_batch_size=4, num_workers=2
    ) as loader:
        loader.start()
        time.sleep(8)  # workers import their modules
        start = time.perf_counter()
        for batch in loader.steps(0, order.epoch_steps):
            for _ in batch:
                pass
        return len(source) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1200)
    parser.add_argument("--latency_ms", type=float, default=40.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--serve", nargs=2)
    parser.add_argument("--measure", nargs=2)
    args = parser.parse_args()
    if args.serve:
        serve(Path(args.serve[0]), float(args.serve[1]))
        return
    if args.measure:
        print(json.dumps(measure_loader(*args.measure)))
        return
    with tempfile.TemporaryDirectory(prefix="bucket-") as work:
        scratch = Path(work)
        write_shards(scratch, args.images)
        command = [sys.executable, __file__, "--serve", str(scratch / "objects"), str(args.latency_ms / 1000)]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert server.stdout is not None
        endpoint = server.stdout.readline().strip()
        assert endpoint, "the store did not start; without its address, that of Amazon would be asked"
        environment = {
            **os.environ,
            "AWS_ACCESS_KEY_ID": "id",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": endpoint,
            "XDG_CACHE_HOME": str(scratch / "cache"),
            "OMP_NUM_THREADS": "1",
        }
        rates: dict[str, float] = {}
        try:
            for _ in range(args.rounds):
                for kind in KINDS:
                    where = str(scratch / "objects/set") if kind == "local" else "s3://bucket/set"
                    done = subprocess.run(
                        [sys.executable, __file__, "--measure", where, kind],
                        check=True,
                        stdout=subprocess.PIPE,
                        text=True,
                        env=environment,
                    )
                    rates[kind] = max(rates.get(kind, 0.0), round(json.loads(done.stdout), 1))
        finally:
            assert server.stdin is not None
            server.stdin.close()
            server.wait()
    result: dict[str, Any] = {
        "command": f"python benchmarks/bucket_loader.py --images {args.images} --latency_ms {args.latency_ms:g}",
        "machine": machine("phi3v", "s3fs", "fsspec"),
        "images": args.images,
        "latency_ms": args.latency_ms,
        "load_average": round(os.getloadavg()[0], 1),
        "images_per_s": rates,
        "of_local": {kind: round(rate / rates["local"], 2) for kind, rate in rates.items()},
    }
    if args.no_save:
        print(json.dumps(result, indent=2))
    else:
        save("bucket_loader", result)


if __name__ == "__main__":
    main()
