"""Share of the journal in the CPU time of a conversion: `python benchmarks/scale/journal_share.py SOURCE [--no-save]`.

SOURCE is the folder `source` that `run.py` made. It is converted in this process with `--store shards`, the functions
of the journal timed:

records   records of finished parts, written and read again for the merge
origins   what a resume compares: digests of items and rows, states of the files that were read
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import machine, save

from phi3v_data.conversion import convert
from phi3v_data.registry import find
from phi3v_data.sources import tables
from phi3v_data.sources.reads import Reads
from phi3v_data.writing import plan
from phi3v_data.writing.journal import Journal
from phi3v_data.writing.writer import PartWriter

TIMED = {
    "records": ((Journal, "write_part"), (Journal, "_decoded"), (Journal, "write_identity")),
    "origins": ((tables, "fingerprint"), (plan, "item_fingerprint"), (Reads, "records"), (PartWriter, "made_from")),
}


def timed(call: Callable[..., Any], spent: "Counter[str]", name: str) -> Callable[..., Any]:
    """The function, with its CPU time added to `spent`."""

    def run(*args: Any, **more: Any) -> Any:
        start = time.thread_time_ns()
        try:
            return call(*args, **more)
        finally:
            spent[name] += time.thread_time_ns() - start

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    spent: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        convert(find("table"), args.source, f"{folder}/first", workers=0, store="shards", limit=500)  # imports
        for name, functions in TIMED.items():
            for owner, function in functions:
                setattr(owner, function, timed(getattr(owner, function), spent, name))
        start = time.process_time()
        rows = convert(find("table"), args.source, f"{folder}/out", workers=0, store="shards").samples
        seconds = time.process_time() - start
    shares = {name: round(spent[name] / 1e9 / seconds, 4) for name in TIMED}
    result = {
        "command": "python benchmarks/scale/journal_share.py SOURCE",
        "machine": machine("phi3v", "msgspec", "xxhash"),
        "rows": rows,
        "cpu_us_per_row": round(seconds / rows * 1e6, 1),
        "shares": shares,
    }
    if args.no_save:
        print(json.dumps(result, indent=2))
    else:
        save("scale_journal", result)


if __name__ == "__main__":
    main()
