"""Converters against simple loops: `python benchmarks/converters.py [--runs N] [--no-save]`.

For each converter the same rows, made here, go through the whole of `phi3v_data.convert` (plan, check of every
image, journal, rows, `dataset.json`; in this process) and two loops over the same rows:

    plain      `datasets` streams the rows and decodes the images, Pillow saves each image once, one JSON line per row
    by_bytes   the same with undecoded images: Pillow loads each to verify it, and the bytes are written unchanged

The official folder of DocVQA has no `datasets` loader: there the loops read the JSON and open the files with Pillow.
CPU time of the process, variants measured alternately, median of the runs. The pixels of ours and by_bytes must be
the same; those of plain differ if it encodes a JPEG again.
"""

import argparse
import io
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import machine, save
from PIL import Image, ImageDraw

import phi3v_data
import phi3v_data.writing.images

Way = Callable[[Path], None]


@dataclass(frozen=True)
class Case:
    """One converter, its source and the two equivalent loops."""

    converter: str
    source: Path
    rows: int
    plain: Way
    by_bytes: Way
    options: dict[str, Any]


def photo(seed: int, width: int, height: int) -> Image.Image:
    """A synthetic photo of smooth colours with grain, which compresses like a photograph."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    soft = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = random.normal(0, 4, (height, width, 1)).astype(np.int16)
    return Image.fromarray(np.clip(soft + grain, 0, 255).astype(np.uint8))


def page(seed: int, width: int = 1240, height: int = 1754) -> Image.Image:
    """A page of text in grey, A4 at 150 dots an inch, with the speckle of a scanner."""
    random = np.random.default_rng(seed)
    image = Image.new("L", (width, height), 250)
    draw = ImageDraw.Draw(image)
    for line in range(60):
        words = " ".join("".join(random.choice(list("etaoinshrdlu"), 7)) for _ in range(14))
        draw.text((90, 80 + line * 26), words, fill=20, font_size=20)
    pixels = np.asarray(image, dtype=np.int16) + random.integers(-3, 4, (height, width), dtype=np.int16)
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str) -> bytes:
    """An image's file."""
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def write_parquet(path: Path, rows: list[dict[str, Any]], features: Any) -> None:
    """A parquet file as `datasets` writes one: row groups of 100."""
    import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows, features=features).to_parquet(path, batch_size=100)


def streamed(source: Path, columns: Iterable[str], *, decode: bool) -> Iterator[dict[str, Any]]:
    """Rows as `datasets` gives them."""
    import datasets

    files = sorted(str(path) for path in source.rglob("*.parquet"))
    rows = datasets.load_dataset("parquet", data_files=files, split="train", streaming=True)
    for column in columns:
        feature = datasets.Image(decode=decode)
        rows = rows.cast_column(column, datasets.List(feature) if column == "images" else feature)
    yield from rows


def pixels_saved(out: Path, image: Image.Image, name: str) -> str:
    """Decode and encode again with Pillow; once per name."""
    target = out / "images" / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        image.save(target)
    return name


def bytes_saved(out: Path, data: bytes, name: str) -> str:
    """Verify the image and write its bytes; once per name."""
    target = out / "images" / name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with Image.open(io.BytesIO(data)) as image:
            image.load()
        target.write_bytes(data)
    return name


def write_rows(out: Path, rows: Iterable[tuple[list[str], str, str]]) -> None:
    """Write one JSON line per row, in the format of the Phi-3.5-vision sample."""
    out.mkdir(parents=True)
    with (out / "plain_train.jsonl").open("w", encoding="utf-8") as lines:
        for number, (images, user, assistant) in enumerate(rows):
            turn = {"images": images, "user": user, "assistant": assistant}
            row = {"id": f"train-{number:010d}", "source": "plain", "conversations": [turn]}
            lines.write(json.dumps(row, ensure_ascii=False) + "\n")


def docvqa_official(root: Path, size: int) -> Case:
    """Pages as files, eight questions each."""
    (root / "spdocvqa_qas").mkdir(parents=True)
    (root / "spdocvqa_images").mkdir()
    rows = []
    for number in range(size):
        page(number).save(root / "spdocvqa_images" / f"p{number}_1.png")
        for question in range(8):
            rows.append(
                {
                    "questionId": number * 8 + question,
                    "question": f"What is written in line {question}?",
                    "image": f"documents/p{number}_1.png",
                    "docId": number,
                    "answers": [f"answer {question}", f"Answer {question}"],
                }
            )
    file = root / "spdocvqa_qas" / "train_v1.0_withQT.json"
    file.write_text(json.dumps({"dataset_name": "SP-DocVQA", "dataset_split": "train", "data": rows}))

    def loop(out: Path, keep: bool) -> None:
        def made() -> Iterator[tuple[list[str], str, str]]:
            for row in json.loads(file.read_text())["data"]:
                name = row["image"].partition("/")[2]
                path = root / "spdocvqa_images" / name
                if keep:
                    bytes_saved(out, path.read_bytes(), name)
                else:
                    with Image.open(path) as image:
                        pixels_saved(out, image, name)
                yield [name], row["question"] + "\nAnswer briefly.", row["answers"][0]

        write_rows(out, made())

    return Case("docvqa", root, len(rows), lambda out: loop(out, False), lambda out: loop(out, True), {})


def docvqa_table(root: Path, size: int) -> Case:
    """Pages embedded, eight questions each, every row with its page."""
    import datasets

    rows = [
        {
            "questionId": str(number * 8 + question),
            "question": f"What is written in line {question}?",
            "image": {"bytes": data, "path": None},
            "docId": number,
            "answers": [f"answer {question}", f"Answer {question}"],
        }
        for number in range(size)
        for data in [encoded(page(number), "png")]
        for question in range(8)
    ]
    text = datasets.Value("string")
    features = datasets.Features(
        {
            "questionId": text,
            "question": text,
            "image": datasets.Image(),
            "docId": datasets.Value("int64"),
            "answers": datasets.List(text),
        }
    )
    write_parquet(root / "data" / "train-00000-of-00001.parquet", rows, features)

    def loop(out: Path, keep: bool) -> None:
        def made() -> Iterator[tuple[list[str], str, str]]:
            for row in streamed(root, ["image"], decode=not keep):
                name = f"{row['docId']}.png"
                if keep:
                    bytes_saved(out, row["image"]["bytes"], name)
                else:
                    pixels_saved(out, row["image"], name)
                yield [name], row["question"] + "\nAnswer briefly.", row["answers"][0]

        write_rows(out, made())

    return Case("docvqa", root, len(rows), lambda out: loop(out, False), lambda out: loop(out, True), {})


def hateful_memes(root: Path, size: int) -> Case:
    """One meme per row, PNG, 550x400."""
    import datasets

    rows = [
        {
            "id": number,
            "img": f"img/{number:05d}.png",
            "image": {"bytes": encoded(photo(number, 550, 400), "png"), "path": f"{number:05d}.png"},
            "label": number % 2,
            "text": f"words {number}",
        }
        for number in range(size)
    ]
    whole, text = datasets.Value("int64"), datasets.Value("string")
    features = datasets.Features({"id": whole, "img": text, "image": datasets.Image(), "label": whole, "text": text})
    write_parquet(root / "data" / "train-00000-of-00001.parquet", rows, features)

    def loop(out: Path, keep: bool) -> None:
        def made() -> Iterator[tuple[list[str], str, str]]:
            for row in streamed(root, ["image"], decode=not keep):
                name = Path(row["img"]).name
                if keep:
                    bytes_saved(out, row["image"]["bytes"], name)
                else:
                    pixels_saved(out, row["image"], name)
                yield [name], "Is this an offensive meme?\nAnswer yes or no.", ("No", "Yes")[row["label"]]

        write_rows(out, made())

    return Case("hateful_memes", root, len(rows), lambda out: loop(out, False), lambda out: loop(out, True), {})


def nlvr2(root: Path, size: int) -> Case:
    """Two PNG images of 512x384 per row; two sentences for each pair."""
    import datasets

    pairs = [[encoded(photo(number * 2 + side, 512, 384), "png") for side in (0, 1)] for number in range(size)]
    rows = [
        {
            "identifier": f"train-{number}-0-{sentence}",
            "sentence": f"There are {sentence} dogs.",
            "label": "True" if sentence else "False",
            "left_image": {"bytes": pairs[number][0], "path": None},
            "right_image": {"bytes": pairs[number][1], "path": None},
        }
        for number in range(size)
        for sentence in (0, 1)
    ]
    text, image = datasets.Value("string"), datasets.Image()
    features = datasets.Features(
        {"identifier": text, "sentence": text, "label": text, "left_image": image, "right_image": image}
    )
    write_parquet(root / "data" / "train-00000-of-00001.parquet", rows, features)

    def loop(out: Path, keep: bool) -> None:
        def made() -> Iterator[tuple[list[str], str, str]]:
            for row in streamed(root, ["left_image", "right_image"], decode=not keep):
                pair = row["identifier"].rpartition("-")[0]
                names = [f"{pair}-img{side}.png" for side in (0, 1)]
                for name, value in zip(names, (row["left_image"], row["right_image"]), strict=True):
                    if keep:
                        bytes_saved(out, value["bytes"], name)
                    else:
                        pixels_saved(out, value, name)
                yield names, row["sentence"] + "\nAnswer yes or no.", row["label"]

        write_rows(out, made())

    return Case("nlvr2", root, len(rows), lambda out: loop(out, False), lambda out: loop(out, True), {})


def cauldron(root: Path, size: int) -> Case:
    """One JPEG of 640x480 and three texts per row."""
    import datasets

    rows = [
        {
            "images": [{"bytes": encoded(photo(number, 640, 480), "jpeg"), "path": None}],
            "texts": [{"user": f"Question {k}?", "assistant": f"Answer {k}.", "source": "vqa"} for k in range(3)],
        }
        for number in range(size)
    ]
    text = datasets.Value("string")
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "texts": datasets.List({"user": text, "assistant": text, "source": text}),
        }
    )
    write_parquet(root / "vqav2" / "train-00000-of-00001.parquet", rows, features)

    def loop(out: Path, keep: bool) -> None:
        def made() -> Iterator[tuple[list[str], str, str]]:
            for number, row in enumerate(streamed(root, ["images"], decode=not keep)):
                name = f"{number}.jpg"
                if keep:
                    bytes_saved(out, row["images"][0]["bytes"], name)
                else:
                    pixels_saved(out, row["images"][0], name)
                yield [name], row["texts"][0]["user"], row["texts"][0]["assistant"]

        write_rows(out, made())

    return Case("cauldron", root, len(rows), lambda out: loop(out, False), lambda out: loop(out, True), {})


def table(root: Path, size: int) -> Case:
    """A CSV file and PNG files of 320x240 next to it."""
    (root / "images").mkdir(parents=True)
    lines = ["image,question,answer"]
    for number in range(size):
        photo(number, 320, 240).save(root / "images" / f"{number}.png")
        lines.append(f"images/{number}.png,What is shown in {number}?,thing {number}")
    (root / "rows.csv").write_text("\n".join(lines) + "\n")
    mapping = {"images": ["image"], "user": "{question}", "assistant": "{answer}"}

    def loop(out: Path, keep: bool) -> None:
        import datasets

        def made() -> Iterator[tuple[list[str], str, str]]:
            rows = datasets.load_dataset("csv", data_files=[str(root / "rows.csv")], split="train", streaming=True)
            for row in rows:
                path = root / row["image"]
                if keep:
                    bytes_saved(out, path.read_bytes(), path.name)
                else:
                    with Image.open(path) as image:
                        pixels_saved(out, image, path.name)
                yield [path.name], row["question"], row["answer"]

        write_rows(out, made())

    return Case(
        "table",
        root / "rows.csv",
        size,
        lambda out: loop(out, False),
        lambda out: loop(out, True),
        {"map": json.dumps(mapping)},
    )


def image_digests(out: Path) -> set[bytes]:
    """Pixels of every distinct image."""
    found = set()
    for path in (out / "images").rglob("*.*"):
        with Image.open(path) as image:
            found.add(image.convert("RGB").tobytes())
    return found


def measure(case: Case, work: Path, runs: int) -> dict[str, Any]:
    """Rows per CPU second of the three variants."""

    def ours(out: Path) -> None:
        result = phi3v_data.convert(case.converter, case.source, out, options=case.options, workers=0)
        assert result.samples == case.rows, result
        assert not result.rejects

    ways: dict[str, Way] = {"plain": case.plain, "by_bytes": case.by_bytes, "ours": ours}
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(runs + 1):  # the first only warms the caches
        for name, way in ways.items():
            out = work / name
            shutil.rmtree(out, ignore_errors=True)
            phi3v_data.writing.images.forget_verified()  # what the run before has verified does not count
            start = time.process_time()
            way(out)
            if run:
                spent[name].append(time.process_time() - start)
    digests = {name: image_digests(work / name) for name in ways}
    assert digests["by_bytes"] == digests["ours"], case.converter
    assert len(digests["plain"]) == len(digests["ours"]), case.converter
    medians = {name: statistics.median(times) for name, times in spent.items()}

    def ratios(name: str) -> list[float]:
        return [a / b for a, b in zip(spent[name], spent["ours"], strict=True)]

    return {
        "rows": case.rows,
        "pictures": len(digests["ours"]),
        **{f"{name}_rows_a_cpu_second": round(case.rows / medians[name], 1) for name in ways},
        "ratio_to_plain": round(statistics.median(ratios("plain")), 2),
        "ratio_to_plain_lowest_run": round(min(ratios("plain")), 2),
        "ratio_to_by_bytes": round(statistics.median(ratios("by_bytes")), 2),
    }


MAKERS: dict[str, tuple[Callable[[Path, int], Case], int]] = {
    "docvqa_official": (docvqa_official, 40),
    "docvqa_parquet": (docvqa_table, 40),
    "hateful_memes_parquet": (hateful_memes, 200),
    "nlvr2_parquet": (nlvr2, 100),
    "cauldron_parquet": (cauldron, 200),
    "table_csv": (table, 300),
}


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", choices=sorted(MAKERS))
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    for name, (make, size) in MAKERS.items():
        if args.only in (None, name):
            with tempfile.TemporaryDirectory() as folder:
                work = Path(folder)
                results[name] = measure(make(work / "source", size), work, args.runs)
    result = {
        "command": f"python benchmarks/converters.py --runs {args.runs}",
        "machine": machine("datasets", "pillow", "pyarrow", "numpy", "simplejpeg"),
        "runs": args.runs,
        "limit_ratio_to_plain": 1.5,
        "converters": results,
    }
    if args.no_save or args.only:
        print(json.dumps(result, indent=2))
    else:
        save("converters", result)


if __name__ == "__main__":
    main()
