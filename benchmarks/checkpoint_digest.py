"""Measures the time of a checkpoint's digests: `python benchmarks/checkpoint_digest.py`; writes to results/."""

import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from phi3v_train.data.identity import digest

ROUNDS = 5
GIGABYTE = 10**9
RESULT = Path(__file__).parent / "results" / "checkpoint_digest.json"


def main() -> None:
    """Write a file of 1 GB and digest it immediately, as for a checkpoint, while it is in the page cache."""
    tensors = {"weight": torch.zeros(GIGABYTE // 4).uniform_()}
    seconds = []
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        path = Path(folder) / "model.safetensors"
        for _ in range(ROUNDS):
            save_file(tensors, path)
            begin = time.perf_counter()
            digest([path])
            seconds.append(time.perf_counter() - begin)
    result = {"bytes": GIGABYTE, "rounds": ROUNDS, "digest_s": round(statistics.median(seconds), 3)}
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(result)


if __name__ == "__main__":
    main()
