"""Small sources in the layouts of the public data sets; every image, text and name is made up here."""

import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import phi3v_data


def pixels(seed: int, size: tuple[int, int] = (24, 16)) -> Image.Image:
    """An image that only its seed decides."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size)


def encoded(seed: int, kind: str = "png") -> bytes:
    """An image's file."""
    buffer = io.BytesIO()
    pixels(seed).save(buffer, kind)
    return buffer.getvalue()


def put(path: Path, content: bytes | str) -> Path:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def embedded(seed: int, kind: str = "png") -> dict[str, Any]:
    """An image as `datasets` stores it."""
    return {"bytes": encoded(seed, kind), "path": None}


def write_parquet(path: Path, rows: Sequence[Mapping[str, Any]], row_group: int = 4) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path, row_group_size=row_group)
    return path


def run(name: str, source: Path | str, out: Path, **settings: Any) -> phi3v_data.ConvertResult:
    """Convert in this process."""
    return phi3v_data.convert(name, source, out, workers=0, **settings)


def rows(out: Path, file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / file).read_text(encoding="utf-8").splitlines()]


def turn(row: Mapping[str, Any], number: int = 0) -> tuple[str, str]:
    """Question and answer of a row."""
    return row["conversations"][number]["user"], row["conversations"][number]["assistant"]


def images(row: Mapping[str, Any]) -> list[str]:
    found: list[str] = row["conversations"][0]["images"]
    return found


def stored(out: Path) -> list[str]:
    """Names of the images."""
    root = out / "images"
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def findings(out: Path) -> dict[str, int]:
    """Counts of the validator's findings by code."""
    from phi3v_data.validate import validate

    return dict(validate(out).summary.problems)


# DocVQA


def question(number: int, page: str, answers: Sequence[str] | None = ("Seven", "7")) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "questionId": number,
        "question": f"How many are in line {number}?",
        "image": f"documents/{page}.png",
        "docId": int(page[1:]),
        "data_split": "x",
    }
    return entry if answers is None else {**entry, "answers": list(answers), "question_types": ["table/list"]}


DOCVQA = {
    "train": [
        question(11, "p1"),
        question(12, "p1", ["north", "North", "north"]),
        question(13, "p2", ["a b"]),
        question(14, "p1"),
    ],
    "val": [question(21, "p3"), question(22, "p3")],
    "test": [question(31, "p4", None), question(32, "p4", None)],
}


def annotation(split: str, entries: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps({"dataset_name": "SP-DocVQA", "dataset_split": split, "data": list(entries)})


def docvqa_official(root: Path, splits: Mapping[str, Sequence[Mapping[str, Any]]] = DOCVQA) -> Path:
    names = {"train": "train_v1.0_withQT", "val": "val_v1.0_withQT", "test": "test_v1.0"}
    for split, entries in splits.items():
        put(root / "spdocvqa_qas" / f"{names[split]}.json", annotation(split, entries))
    for number in range(1, 5):
        put(root / "spdocvqa_images" / f"p{number}.png", encoded(number))
    return root


def docvqa_older(root: Path) -> Path:
    for split, entries in DOCVQA.items():
        put(root / split / f"{split}_v1.0.json", annotation(split, entries))
        for page in {entry["image"] for entry in entries}:
            put(root / split / page, encoded(int(Path(page).stem[1:])))
    return root


# Hateful memes


MEMES = {
    "train": [(1235, 0), (42953, 1), (613, 0)],
    "dev_seen": [(97432, 0), (73014, 1)],
    "dev_unseen": [(73014, 1), (45, 0)],
    "test_seen": [(16395, 0)],
    "test_unseen": [(38705, 1), (26419, 0)],
}
MISSING_MEME = "26419"
SECRET = "words that no message repeats"


def meme(number: int, label: int | None) -> dict[str, Any]:
    row: dict[str, Any] = {"id": number, "img": f"img/{number:05d}.png", "text": f"{SECRET} {number}"}
    return row if label is None else {**row, "label": label}


def memes_official(root: Path) -> Path:
    for split, entries in MEMES.items():
        put(root / f"{split}.jsonl", json_lines(meme(*entry) for entry in entries))
        for number, _ in entries:
            if f"{number}" != MISSING_MEME:
                put(root / "img" / f"{number:05d}.png", encoded(number))
    return root


# NLVR2


def statement(identifier: str, label: str | None = "True", directory: int | None = None) -> dict[str, Any]:
    row: dict[str, Any] = {"identifier": identifier, "sentence": f'There is "one" in {identifier[-1]}.', "synset": "x"}
    if label is not None:
        row["label"] = label
    return row if directory is None else {**row, "directory": directory}


NLVR2 = {
    "train": [
        statement("train-7-0-0", "True", 3),
        statement("train-7-1-0", "False", 3),
        statement("train-7-0-1", "False", 3),
        statement("train-90-0-0", "True", 4),
    ],
    "dev": [statement("dev-5-0-0"), statement("dev-5-1-0", "False"), statement("dev-8-0-0")],
    "test1": [statement("test1-2-0-0", "False")],
}


def pair_of(identifier: str) -> str:
    return identifier.rpartition("-")[0]


def nlvr2_official(root: Path, *, flat: bool = False) -> Path:
    for split, entries in NLVR2.items():
        put(root / f"{split}.json", json_lines(entries))
        for entry in entries:
            folder = root / "images" / "train" / str(entry["directory"]) if "directory" in entry else root / split
            for side in (0, 1):
                name = f"{pair_of(entry['identifier'])}-img{side}.png"
                path = (root / "all" if flat else folder) / name
                seed = sum(name.encode()) * 7 + side
                put(path, encoded(seed, "jpeg" if name == "dev-5-0-img1.png" else "png"))
    return root


# The Cauldron


def cauldron_row(seeds: Sequence[int], texts: int, kind: str = "jpeg") -> dict[str, Any]:
    return {
        "images": [embedded(seed, kind) for seed in seeds],
        "texts": [
            {"user": f"Question {n} of {seeds[0]}?", "assistant": f"Answer {n}.", "source": "SRC"} for n in range(texts)
        ],
    }


CAULDRON = [
    cauldron_row([1, 2], 2),
    cauldron_row([3, 4], 1),
    cauldron_row([5, 6], 3),
    cauldron_row([1, 2], 1),
    cauldron_row([7, 8], 1),
    cauldron_row([9, 10], 1),
]


def cauldron(root: Path, configs: Sequence[str] = ("nlvr2", "docvqa")) -> Path:
    for config in configs:
        write_parquet(root / config / "train-00000-of-00001-ab12.parquet", CAULDRON)
    return root


ANIMALS = ("train/cat/1.png", "train/cat/2.jpg", "train/dog/1.png", "validation/dog/2.png")


def class_folders(root: Path, files: Sequence[str] = ANIMALS) -> Path:
    """Images in class folders."""
    for number, file in enumerate(files):
        put(root / file, encoded(number, "jpeg" if file.endswith(".jpg") else "png"))
    return root
