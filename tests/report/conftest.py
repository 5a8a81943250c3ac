"""A small directory with everything a report may meet, and a report on it."""

from pathlib import Path

import pytest
from report_samples import EVIL, make_image, make_report, make_sample

from phi3v_data.schema import Report


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """20 train rows, 6 val rows; val line 7 is not JSON, val line 2 names an image that does not exist."""
    root = tmp_path / "tiny"
    for split, count in (("train", 20), ("val", 6)):
        lines = []
        for n in range(count):
            if not (split == "val" and n == 1):
                make_image(root / "images" / split / f"{n}.png", n)
            lines.append(make_sample(split, n).to_json())
        if split == "val":
            lines.append('{"id": "broken", ' + EVIL)
        (root / f"tiny_{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


@pytest.fixture
def report(directory: Path) -> Report:
    """A report on `directory`."""
    return make_report(directory)
