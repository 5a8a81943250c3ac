"""The five kinds of conversations that chat formats are tried with, as a conversations directory.

One image; two images; several turns with images in the first two; text only; a system message.
"""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from phi3v_data.jsonl import encode_line
from phi3v_data.schema import Sample, Turn

COLOURS = {"cat": (200, 120, 30), "cup": (60, 30, 10), "coins": (190, 170, 60), "rocket": (20, 30, 90)}

FIVE = (
    Sample(
        id="chat-0001",
        source="five",
        conversations=(Turn(images=("cat.jpg",), user="What animal is this?", assistant="A tabby cat."),),
    ),
    Sample(
        id="chat-0002",
        source="five",
        conversations=(
            Turn(images=("cup.jpg", "money/coins.png"), user="Which of the two shows money?", assistant="The second."),
        ),
    ),
    Sample(
        id="chat-0003",
        source="five",
        conversations=(
            Turn(images=("cat.jpg",), user="Describe it.", assistant="A cat that looks to the right."),
            Turn(images=("rocket.jpg",), user="And this one?", assistant="A rocket at dusk."),
            Turn(user="Which of them could fly?", assistant="The rocket."),
        ),
    ),
    Sample(
        id="chat-0004",
        source="five",
        conversations=(Turn(user="Name the first three primes.", assistant="2, 3 and 5."),),
    ),
    Sample(
        id="chat-0005",
        source="five",
        system="You are terse. Answer in one word.",
        conversations=(Turn(images=("cup.jpg",), user="What is in the cup?", assistant="Coffee."),),
    ),
)

FULL = Sample(
    id="full \u2028 é",
    source="five",
    system="Be brief.",
    conversations=(
        Turn(images=("cat.jpg",), user="See this: what?", assistant="A cat <image>.", image_offsets=(10,), weight=0),
        Turn(user="Sure?", assistant='"Yes"\n\t.'),
    ),
    answers=("Yes.", "yes"),
    group="g",
    meta={"score": 1.5, "name": "é", "none": None},
)
"""A sample with every field that a row of format 1 has."""


def write_set(directory: Path, samples: Sequence[Sample] = FIVE, split: str = "train") -> Path:
    """Write rows as a bare directory with the images that they name; each image of one colour."""
    (directory / "images" / "money").mkdir(parents=True, exist_ok=True)
    for name in sorted({name for sample in samples for name in sample.images}):
        stem = Path(name).stem
        colour = COLOURS.get(stem, (len(stem) * 20 % 256, 80, 120))
        path = directory / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (48, 32), colour).save(path)
    with open(directory / f"{split}.jsonl", "wb") as file:
        for sample in samples:
            file.write(encode_line(sample.to_row()))
    return directory


def image_bytes(source: Path, sample: Sample) -> list[bytes]:
    """The bytes of the images of a sample of `write_set`."""
    return [(source / "images" / name).read_bytes() for name in sample.images]
