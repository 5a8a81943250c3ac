"""The converter of easy-vqa: conversations of one to ten questions to train on, single questions to be scored.

The tokens of an image cost far more than those of a question, so up to ten questions share one image in training. Most
of those after the first can be answered by what was said before, so half of the conversations are short. A question for
yes or no has one answer in up to 89 % of the rows, which is no reason to look at the image: the rarer its answer to
these words is, the earlier a question comes. Each image is in 20 conversations, with questions that depend on image and
conversation alone. A test sample is one question.
"""

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field

import phi3v_data

TURNS = (10, 10, 2, 1) * 5
"""Of each conversation about a training image, at most."""

FIRST_HELD_OUT = 3600
"""Number of the first image of the train split that `held_out` scores."""

Question = tuple[str, str]
"""Its text and its answer."""


class EasyVqaOptions(phi3v_data.Options):
    """Options of the converter."""

    held_out: bool = Field(False, description="Score the last images of the train split instead of the test split.")
    limit: int = Field(0, ge=0, description="Images of each split; 0 for all.")


class EasyVqa(phi3v_data.Converter[EasyVqaOptions]):
    """easy-vqa 1.0 as its package holds it: `train` and `test`, each with `questions.json` and `images/`."""

    name = "easy-vqa"
    version = "1"

    def plan(self, source: phi3v_data.Source, options: EasyVqaOptions) -> Iterable[phi3v_data.Item]:
        """Yield the training conversations, then the single questions of the test split."""
        splits: tuple[Literal["train"], Literal["test"]] = ("train", "test")
        for split in splits:
            folder = source.root / ("train" if options.held_out else split)
            images = by_image(folder)
            if options.held_out:
                images = [found for found in images if (found[0] < FIRST_HELD_OUT) == (split == "train")]
            counts = Counter(question for _, questions in images for question in questions)
            for number, questions in images[: options.limit or None]:
                path = folder / "images" / f"{number}.png"
                rows = conversations(number, questions, counts) if split == "train" else [[each] for each in questions]
                for index, turns in enumerate(rows):
                    yield phi3v_data.Item(
                        split=split,
                        key=f"{folder.name}/{number}/{index}",
                        path=str(path),
                        group=f"{folder.name}/{number}",
                        size=path.stat().st_size,
                        data={"turns": turns},
                    )

    def convert(self, item: phi3v_data.Item, options: EasyVqaOptions) -> phi3v_data.Draft:
        """The image before the first question."""
        image = [phi3v_data.DraftImage(Path(item.path), name=f"{item.group}.png")]
        (question, answer), *others = item.data["turns"]
        turns = [phi3v_data.DraftTurn(question, answer, image), *(phi3v_data.DraftTurn(*turn) for turn in others)]
        return phi3v_data.Draft(turns=turns, group=item.group)

    def describe(self, source: phi3v_data.Source, options: EasyVqaOptions) -> phi3v_data.DatasetInfo:
        """Name, metric, origin and licence."""
        origin = "easy-vqa 1.0, Victor Zhou"
        return phi3v_data.DatasetInfo("easy_vqa", task="vqa", metrics=["accuracy"], source=origin, license="MIT")


def by_image(folder: Path) -> list[tuple[int, list[Question]]]:
    """Number and questions of each image, in the order of the numbers."""
    found: dict[int, list[Question]] = {}
    for question, answer, number in json.loads((folder / "questions.json").read_text(encoding="utf-8")):
        found.setdefault(number, []).append((question, answer))
    return sorted(found.items())


def conversations(number: int, questions: list[Question], counts: Counter[Question]) -> Iterator[list[Question]]:
    """The conversations about a training image: questions drawn by one over their number with this answer."""
    for index, turns in enumerate(TURNS):
        chance = random.Random(f"{number}/{index}")
        # An exponential clock for each: the first to ring is drawn with a chance in proportion to its rate.
        yield sorted(questions, key=lambda question: chance.expovariate(1 / counts[question]))[:turns]
