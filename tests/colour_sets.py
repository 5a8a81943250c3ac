"""A small conversations directory of images in one colour each."""

from pathlib import Path

import numpy as np
from PIL import Image

from phi3v_data.schema import Sample, Turn

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 210)}


def colour_directory(directory: Path, rows: int = 8, held_out: int = 3) -> Path:
    """Single-coloured images to name, every fourth row without an image, every third with two turns."""
    (directory / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for split, count in (("train", rows), ("val", held_out)):
        samples = []
        for n in range(count):
            colour = list(COLOURS)[n % 3]
            name = f"{split}{n}.png"
            noise = rng.integers(-20, 20, (28, 28, 3))
            pixels = (np.array(COLOURS[colour]) + noise).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(directory / "images" / name)
            images = () if n % 4 == 3 else (name,)
            turns = [Turn(images=images, user=f"Which colour is {split} number {n}?", assistant=colour)]
            if n % 3 == 2:
                turns.append(Turn(user="And again?", assistant=f"{colour} {n}"))
            samples.append(
                Sample(
                    id=f"{split}-{n:010d}",
                    source="colours",
                    conversations=tuple(turns),
                    answers=(colour, f"it is {colour}", colour.upper()) if n % 2 else (),
                )
            )
        with (directory / f"colours_{split}.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(sample.to_json() + "\n" for sample in samples)
    return directory
