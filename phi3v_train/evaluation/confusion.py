"""The confusion matrix: which class was taken for which."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from phi3v_train.evaluation.answers import STRIPPED, answers_of, normalise
from phi3v_train.evaluation.metric import Records

MAX_CLASSES = 200


@dataclass(frozen=True, slots=True)
class Confusion:
    """Counts of predictions by true class: `counts[true][predicted]`.

    `classes` are the normalised answers, sorted, and `names` their first spelling; a prediction that is none of them
    counts under `OTHER`.
    """

    classes: tuple[str, ...]
    names: Mapping[str, str]
    counts: Mapping[str, Mapping[str, int]]

    OTHER = "(other)"

    def columns(self) -> tuple[str, ...]:
        """The classes, and `OTHER` where a prediction is none of them."""
        strange = any(self.OTHER in row for row in self.counts.values())
        return (*self.classes, self.OTHER) if strange else self.classes


def confusion(records: Records) -> Confusion:
    """Which class was taken for which. Of several accepted answers the one that was given is the true class."""
    truth = []
    names: dict[str, str] = {}
    for record in records:
        accepted = [normalise(answer) for answer in answers_of(record)]
        for name, answer in zip(accepted, record["answers"], strict=True):
            names.setdefault(name, answer.strip(STRIPPED))
        prediction = normalise(record["prediction"])
        truth.append((prediction if prediction in accepted else accepted[0], prediction))
    classes = sorted({true for true, _ in truth})
    known = set(classes)
    counts: dict[str, Counter[str]] = {name: Counter() for name in classes}
    for true, prediction in truth:
        counts[true][prediction if prediction in known else Confusion.OTHER] += 1
    return Confusion(tuple(classes), {name: names[name] for name in classes}, counts)


def confusion_of(records: Records) -> Confusion | None:
    """The matrix where the answers are classes: few, each of them several times; None for free answers."""
    if not records or not all(record["answers"] for record in records):
        return None
    matrix = confusion(records)
    few = 2 <= len(matrix.classes) <= MAX_CLASSES and 2 * len(matrix.classes) <= len(records)
    return matrix if few else None
