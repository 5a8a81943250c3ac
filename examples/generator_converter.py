"""A converter in ten lines.

phi3v-data convert --converter examples/generator_converter.py --source examples/data/scenes --out_dir out
"""

import csv
from collections.abc import Iterator

import phi3v_data


@phi3v_data.converter("scenes-short")
def scenes(source: phi3v_data.Source) -> Iterator[phi3v_data.Draft]:
    """Yield images with a question and an answer from rows.csv."""
    with (source.root / "rows.csv").open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            images = [source.root / row["picture"]]
            yield phi3v_data.Draft(user=row["question"], assistant=row["answer"], images=images, split=row["part"])
