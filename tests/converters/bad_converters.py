"""Converters that are wrong in one way each; `check_converter` must say which."""

import csv
import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image, ImageFile

import phi3v_data

ANSWERS = frozenset({"one", "two", "three", "four", "five", "six", "seven"})


class Good(phi3v_data.Converter[phi3v_data.Options]):
    """An image, and its name as the answer."""

    name = "good"

    def plan(self, source: phi3v_data.Source, options: phi3v_data.Options) -> Iterable[phi3v_data.Item]:
        for file in source.files([".png"]):
            yield phi3v_data.Item("train", file.path, str(file.file), size=file.size)

    def convert(self, item: phi3v_data.Item, options: phi3v_data.Options) -> phi3v_data.Draft:
        return phi3v_data.Draft(user=self.ask(item), assistant=item.key, images=self.images(item))

    def ask(self, item: phi3v_data.Item) -> str:
        return "Which?"

    def images(self, item: phi3v_data.Item) -> list[Any]:
        return [Path(item.path)]


class UnstablePlan(Good):
    """Lists in an order that changes within one process."""

    name = "unstable-plan"

    def plan(self, source: phi3v_data.Source, options: phi3v_data.Options) -> Iterable[phi3v_data.Item]:
        items = list(super().plan(source, options))
        return random.SystemRandom().sample(items, len(items))


class SetOrder(Good):
    """Depends on the order of a set, which another process has otherwise."""

    name = "set-order"

    def ask(self, item: phi3v_data.Item) -> str:
        return f"Which of {', '.join(ANSWERS)}?"


class Clock(Good):
    """Writes the time."""

    name = "clock"

    def ask(self, item: phi3v_data.Item) -> str:
        return f"Which at {time.time_ns()}?"


class Place(Good):
    """Writes the path of the source."""

    name = "place"

    def ask(self, item: phi3v_data.Item) -> str:
        return f"Which is {item.path}?"


class Counting(Good):
    """Numbers the samples as they come: wrong after an interruption, and on two workers."""

    name = "counting"

    def __init__(self) -> None:
        self.count = 0

    def ask(self, item: phi3v_data.Item) -> str:
        self.count += 1
        return f"Which is number {self.count}?"


class Remembering(Good):
    """Uses what an earlier sample left behind in the class."""

    name = "remembering"
    last: ClassVar[str] = ""

    def ask(self, item: phi3v_data.Item) -> str:
        before, Remembering.last = Remembering.last, item.key
        return f"Which comes after {before}?"


class Crashing(Good):
    """Raises whatever comes where it should reject."""

    name = "crashing"

    def ask(self, item: phi3v_data.Item) -> str:
        return {"a.png": "Which?", "b.png": "What?", "c.png": "Who?"}[item.key]


class Blank(Good):
    """Puts a black image in the place of a damaged one."""

    name = "blank"

    def images(self, item: phi3v_data.Item) -> list[Any]:
        try:
            with Image.open(item.path) as image:
                image.load()
                return [image.copy()]
        except OSError:
            return [Image.new("RGB", (8, 8))]


class Half(Good):
    """Takes what decodes of a damaged image."""

    name = "half"

    def images(self, item: phi3v_data.Item) -> list[Any]:
        before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
        try:
            with Image.open(item.path) as image:
                return [image.convert("RGB")]
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


class Dropping(Good):
    """Leaves damaged images out of the plan, so that nobody hears of them."""

    name = "dropping"

    def plan(self, source: phi3v_data.Source, options: phi3v_data.Options) -> Iterable[phi3v_data.Item]:
        return [item for item in super().plan(source, options) if _is_whole(item.path)]


@phi3v_data.converter("skipping")
def skipping(source: phi3v_data.Source) -> Iterator[phi3v_data.Draft]:
    """A generator that passes over what it cannot open."""
    for file in source.files([".png"]):
        if _is_whole(file.file):
            yield phi3v_data.Draft(user="Which?", assistant=file.path, images=[file.file])


@phi3v_data.converter("shuffled")
def shuffled(source: phi3v_data.Source) -> Iterator[phi3v_data.Draft]:
    """A generator whose order is chance."""
    files = list(source.files([".png"]))
    random.SystemRandom().shuffle(files)
    for file in files:
        yield phi3v_data.Draft(user="Which?", assistant=file.path, images=[file.file])


@phi3v_data.converter("fine")
def fine(source: phi3v_data.Source) -> Iterator[phi3v_data.Draft]:
    """A generator with nothing wrong."""
    with (source.root / "rows.csv").open(encoding="utf-8", newline="") as lines:
        for row in csv.DictReader(lines):
            yield phi3v_data.Draft(user="Which?", assistant=row["answer"], images=[source.root / row["picture"]])


def _is_whole(path: str | Path) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
    except OSError:
        return False
    return True
