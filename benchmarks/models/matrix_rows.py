"""A small conversations directory with rows of every kind: no image, one, several, inside the text, several turns."""

from pathlib import Path

import numpy as np
from PIL import Image

from phi3v_data.schema import Sample, Turn

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 210)}
SIZES = ((64, 64), (120, 50), (40, 110))


def make_directory(directory: Path, rows: int = 15, held_out: int = 5) -> Path:
    """Write it once; every fifth row is of one kind, in the order of `turns_of`."""
    if (directory / "rows_val.jsonl").exists():
        return directory
    (directory / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for split, count in (("train", rows), ("val", held_out)):
        lines = []
        for number in range(count):
            names, made = [], {}
            for place in range(3):
                colour = list(COLOURS.values())[(number + place) % 3]
                width, height = SIZES[(number // 3 + place) % 3]
                pixels = (np.array(colour) + rng.integers(-20, 20, (height, width, 3))).clip(0, 255)
                names.append(f"{split}{number}-{place}.png")
                made[names[-1]] = Image.fromarray(pixels.astype(np.uint8))
            answer = list(COLOURS)[number % 3]
            turns = turns_of(f"{split} {number}", number % 5, names, answer)
            for name in {name for turn in turns for name in turn.images}:
                made[name].save(directory / "images" / name)
            sample = Sample(id=f"{split}-{number:010d}", source="rows", conversations=turns, answers=(answer,))
            lines.append(sample.to_json() + "\n")
        (directory / f"rows_{split}.jsonl").write_text("".join(lines))
    return directory


def turns_of(label: str, kind: int, names: list[str], answer: str) -> tuple[Turn, ...]:
    """The conversation of a row: text only first, so that some micro-batches have no image."""
    if kind < 1:
        return (Turn(user=f"Say the word of {label}.", assistant=answer),)
    if kind < 2:
        return (Turn(images=(names[0],), user=f"Which colour is {label}?", assistant=answer),)
    if kind < 3:
        return (Turn(images=tuple(names), user=f"Which colour is the first of these ({label})?", assistant=answer),)
    if kind < 4:
        text = f"In {label}, is this like that? Name the first."
        offsets = (text.index("this"), text.index("that"))
        return (Turn(images=tuple(names[:2]), user=text, assistant=answer, image_offsets=offsets),)
    return (
        Turn(images=(names[0],), user=f"Which colour is {label}?", assistant=answer),
        Turn(user="And again?", assistant=f"{answer} {label}"),
        Turn(images=(names[1],), user="And the next one?", assistant=f"not {answer}"),
    )
