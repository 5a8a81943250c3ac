"""Small conversations directories with images of many shapes, and the processor they are encoded with."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from phi3v_data.schema import Sample, Turn
from phi3v_train.models.phi3v.family import PHI3V
from phi3v_train.models.phi3v.image_processing_phi3_v import Phi3VImageProcessor
from phi3v_train.models.phi3v.processing_phi3_v import Phi3VProcessor
from phi3v_train.models.phi3v.tokenization_phi3_v import Phi3VTokenizer
from phi3v_train.models.renderer import Renderer

GOLDEN = Path(__file__).parent.parent / "data" / "golden"
PAD = 429

SHAPES = ((640, 480), (480, 640), (336, 336), (40, 30), (900, 200), (123, 457))


@cache
def processor() -> Phi3VProcessor:
    """The processor with the golden tokenizer, whose special ids are the official ones minus 31571."""
    tokenizer = Phi3VTokenizer.from_pretrained(GOLDEN / "tiny_tokenizer")
    return Phi3VProcessor(Phi3VImageProcessor(num_crops=4), tokenizer)


def renderer() -> Renderer:
    """The renderer that encodes with that processor."""
    return PHI3V.renderer(processor())


def make_image(seed: int, mode: str = "RGB") -> Image.Image:
    """Bands, waves and noise, another shape for another seed."""
    width, height = SHAPES[seed % len(SHAPES)]
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * (seed + 1) // 3, y * 2 + seed * 40, (x * y) >> 5], axis=-1) % 256
    pixels[: height // 3] = rng.integers(0, 256, (height // 3, width, 3))
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def save_image(directory: Path, name: str, seed: int, mode: str = "RGB", **options: Any) -> str:
    """Write an image under DIR/images and return its name."""
    path = directory / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    make_image(seed, mode).save(path, **options)
    return name


def write_rows(directory: Path, samples: list[Sample], split: str = "train") -> Path:
    """Write a split of a bare directory."""
    directory.mkdir(parents=True, exist_ok=True)
    with open(directory / f"set_{split}.jsonl", "w", encoding="utf-8") as file:
        file.writelines(sample.to_json() + "\n" for sample in samples)
    return directory


def write_manifest(directory: Path, **fields: Any) -> None:
    """Write a dataset.json over what is there."""
    splits = {
        path.stem.removeprefix("set_"): {
            "rows": len(path.read_text().splitlines()),
            "images": 0,
            "files": {path.name: ""},
            "labelled": fields.pop("labelled", True),
        }
        for path in directory.glob("set_*.jsonl")
    }
    manifest = {"format": 1, "name": "set", "task": "chat", "splits": splits, **fields}
    (directory / "dataset.json").write_text(json.dumps(manifest), encoding="utf-8")


def mixed_directory(directory: Path, rows: int = 12) -> Path:
    """Rows of every kind: no, one, several images; one to three turns; JPEG and PNG; a system message; answers."""
    words = ["red", "blue", "green", "round", "flat", "tall", "seven", "nine", "old", "new"]
    samples = []
    for n in range(rows):
        images = [
            save_image(directory, f"{n % 3}/p{n}_{k}.{'jpg' if (n + k) % 2 else 'png'}", 7 * n + k)
            for k in range(n % 4)
        ]
        turns = [
            Turn(images=tuple(images), user=f"What is this, {words[n % 10]}?", assistant=f"{words[(n * 3) % 10]} {n}")
        ]
        turns += [
            Turn(user=f"And {words[(n + k) % 10]}?", assistant=" ".join(words[k : k + 1 + n % 4])) for k in range(n % 3)
        ]
        samples.append(
            Sample(
                id=f"train-{n:010d}",
                source="set",
                conversations=tuple(turns),
                system="Be brief." if n % 5 == 0 else "",
                answers=("one", "two", "three", "four") if n % 2 else (),
            )
        )
    return write_rows(directory, samples)
