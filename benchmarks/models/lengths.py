"""Makes `lengths.json`: words of question and answer, and the image's size, of 512 rows. Run once; the file is kept."""

import json
from pathlib import Path

import numpy as np

ROWS = 512
SIZES = ((320, 240), (640, 480), (480, 640), (800, 600), (1024, 256), (200, 200))


def main() -> None:
    """Lengths as in captions and documents: most answers are short, a few are long."""
    rng = np.random.default_rng(20261128)
    rows = []
    for _ in range(ROWS):
        question = int(np.clip(rng.lognormal(2.3, 0.5), 3, 60))
        answer = int(np.clip(rng.lognormal(2.6, 1.0), 1, 200))
        width, height = SIZES[int(rng.integers(len(SIZES)))]
        rows.append([question, answer, width, height])
    path = Path(__file__).with_name("lengths.json")
    path.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
