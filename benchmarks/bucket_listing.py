"""Time and memory to list many keys of a bucket: `python benchmarks/bucket_listing.py [--keys N]`.

The keys come from a small server of ListObjectsV2, a process of its own, in pages of 1,000. Growth is the peak memory
of the process that lists, above that after its first page.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import machine, peak_bytes, save

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/remote"))


def serve(count: int) -> None:
    """Run the server until stdin ends; prints its address."""
    from stub_store import Stub, running_stub

    with tempfile.TemporaryDirectory() as folder, running_stub(Stub(Path(folder), count=count)) as stub:
        print(stub.endpoint, flush=True)
        sys.stdin.read()


def measure(endpoint: str, count: int) -> dict[str, float]:
    """CPU seconds and growth in MiB of a listing."""
    from phi3v_data.remote.store import open_store

    os.environ.update(AWS_ENDPOINT_URL=endpoint, AWS_ACCESS_KEY_ID="a", AWS_SECRET_ACCESS_KEY="b")
    store = open_store("s3://b/set")
    next(store.objects())
    before, begin = peak_bytes(), time.process_time()
    found = sum(1 for _ in store.objects())
    seconds = time.process_time() - begin
    if found != count:
        sys.exit(f"{found:,} of {count:,} keys were listed")
    grown = (peak_bytes() - before) / 2**20
    return {"keys": count, "cpu_seconds": round(seconds, 1), "grown_mib": round(grown, 1)}


def main() -> None:
    """Measure and write benchmarks/results/bucket_listing.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.keys)
    command = [sys.executable, __file__, "--serve", "--keys", str(args.keys)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        result = measure(server.stdout.readline().strip(), args.keys)
        server.communicate()
    made = {
        "command": f"python benchmarks/bucket_listing.py --keys {args.keys}",
        "machine": machine("s3fs", "botocore"),
    }
    save("bucket_listing", {**made, **result})
    return None


if __name__ == "__main__":
    main()
