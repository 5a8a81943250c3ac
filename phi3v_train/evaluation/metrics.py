"""Metrics: plain functions from prediction records to a number. Nothing here needs a model, or torch.

A metric of one's own has the same shape (`--metric file.py:function`):

    def mean_length(records):
        return sum(len(record["prediction"]) for record in records) / len(records)

A metric that the records do not determine raises `Undefined` with the reason, which is printed in its place; records
that it cannot take are a `UserError`.
"""

import math
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, TypeAlias

from phi3v_data.errors import UserError
from phi3v_train.evaluation.distance import levenshtein
from phi3v_train.evaluation.records import Prediction

Records: TypeAlias = Sequence[Prediction]
MetricFunction: TypeAlias = Callable[[Records], float]

STRIPPED = string.whitespace + "."
ANLS_THRESHOLD = 0.5


class Undefined(Exception):  # noqa: N818 - an outcome that is reported, not a failure
    """The records do not determine the metric; the message says why."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric under its name; `help` is one line for lists."""

    name: str
    function: MetricFunction
    help: str


@dataclass(frozen=True, slots=True)
class Scores:
    """Value of each metric, None where it is undefined; `notes` then says why."""

    values: dict[str, float | None]
    notes: dict[str, str]


def normalise(text: str) -> str:
    """Without spaces and full stops at both ends, in lower case: how the reference compares answers."""
    return text.strip(STRIPPED).lower()


def is_right(record: Prediction) -> bool:
    """Whether the prediction is one of the accepted answers, both normalised."""
    prediction = normalise(record["prediction"])
    return any(prediction == normalise(answer) for answer in answers_of(record))


def answers_of(record: Prediction) -> list[str]:
    """The accepted answers.

    Raises:
        UserError: there are none.
    """
    if not record["answers"]:
        raise UserError(f"{place_of(record)} has no answers: it can be predicted, not scored")
    return record["answers"]


def place_of(record: Prediction) -> str:
    """Names a record in errors, without any of its text."""
    return f"{record['split'] or 'prediction'} {record['id']!r} (turn {record['turn']})"


def accuracy(records: Records) -> float:
    """Share of predictions that are one of the accepted answers, spaces and full stops at the ends and case aside."""
    return fmean(is_right(record) for record in records)


def exact_match(records: Records) -> float:
    """Share of predictions that are one of the accepted answers to the letter; only white space at the ends is free."""
    return fmean(
        record["prediction"].strip() in {answer.strip() for answer in answers_of(record)} for record in records
    )


def anls(records: Records) -> float:
    """Average normalised Levenshtein similarity as the official DocVQA script computes it.

    Both texts are lower-cased, stripped, and their white space is collapsed; the distance is divided by the greater
    length of the two texts as given, in upper case; a similarity below 0.5 counts as 0, exactly 0.5 stays. The best
    accepted answer counts.
    """
    return fmean(_best(record, anls_similarity) for record in records)


def anls_paper(records: Records) -> float:
    """ANLS with the paper's threshold: the normalised distance must be below 0.5, so exactly 0.5 counts as 0."""
    return fmean(_best(record, _paper_similarity) for record in records)


def anls_sample(records: Records) -> float:
    """ANLS as the public fine-tuning sample computes it: the texts as they are, case and spaces count; 0.5 is 0."""
    return fmean(_best(record, _sample_similarity) for record in records)


def anls_similarity(prediction: str, answer: str) -> float:
    """The official similarity of two texts, 0 or at least 0.5."""
    similarity = 1 - _official_distance(prediction, answer)
    return similarity if similarity >= ANLS_THRESHOLD else 0.0


def _paper_similarity(prediction: str, answer: str) -> float:
    distance = _official_distance(prediction, answer)
    return 1 - distance if distance < ANLS_THRESHOLD else 0.0


def _sample_similarity(prediction: str, answer: str) -> float:
    distance = _distance(prediction, answer, max(len(prediction), len(answer)))
    return 1 - distance if distance < ANLS_THRESHOLD else 0.0


def _official_distance(prediction: str, answer: str) -> float:
    """Normalised distance as the official script divides it: upper case may be longer than the text ("ß" is "SS")."""
    length = max(len(prediction.upper()), len(answer.upper()))
    return _distance(_collapse(prediction), _collapse(answer), length)


def _collapse(text: str) -> str:
    return " ".join(text.lower().split())


def _distance(left: str, right: str, length: int) -> float:
    return levenshtein(left, right) / length if length else 0.0


def _best(record: Prediction, similarity: Callable[[str, str], float]) -> float:
    return max(similarity(record["prediction"], answer) for answer in answers_of(record))


def auroc(records: Records) -> float:
    """Area under the ROC curve of P(yes) / (P(yes) + P(no)) at the first answer token; `yes` is the positive class.

    The chance that a random positive scores above a random negative, a tie being half a win (Mann-Whitney U).
    """
    positive = [_is_yes(record) for record in records]
    scores = [yes_share(record) for record in records]
    num_positive = sum(positive)
    num_negative = len(records) - num_positive
    if not num_positive or not num_negative:
        only = "yes" if num_positive else "no"
        raise Undefined(f"it needs samples of both classes, and all {len(records)} answers are {only!r}")
    ranks = _mean_ranks(scores)
    wins = math.fsum(rank for rank, is_positive in zip(ranks, positive, strict=True) if is_positive)
    return (wins - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)


def yes_share(record: Prediction) -> float:
    """P(yes) / (P(yes) + P(no)); one half where both are 0.

    Raises:
        UserError: the record has no such scores.
    """
    scores = record["scores"]
    if "yes" not in scores or "no" not in scores:
        raise UserError(
            f"{place_of(record)} has no scores of 'yes' and 'no' at the first answer token, which auroc needs"
        )
    total = scores["yes"] + scores["no"]
    return scores["yes"] / total if total > 0 else 0.5


def _is_yes(record: Prediction) -> bool:
    answers = {normalise(answer) for answer in answers_of(record)}
    if answers not in ({"yes"}, {"no"}):
        raise UserError(f"{place_of(record)} has an answer other than 'yes' or 'no', which auroc cannot take")
    return answers == {"yes"}


def _mean_ranks(values: Sequence[float]) -> list[float]:
    """Rank of each value from 1, equal values sharing the mean of theirs."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end < len(order) and values[order[end]] == values[order[start]]:
            end += 1
        for index in order[start:end]:
            ranks[index] = (start + 1 + end) / 2
        start = end
    return ranks


def consistency(records: Records) -> float:
    """Share of NLVR2's sentences that are right on all their image pairs; `meta.sentence_id` names the sentence."""
    sentences: dict[Any, bool] = defaultdict(lambda: True)
    for record in records:
        if record["meta"].get("sentence_id") is None:
            raise UserError(f"{place_of(record)} has no meta.sentence_id, by which consistency groups image pairs")
        sentences[record["meta"]["sentence_id"]] &= is_right(record)
    return fmean(sentences.values())


def macro_f1(records: Records) -> float:
    """Mean F1 over the classes that occur among the answers; any other text predicted is a miss, not a class."""
    matrix = confusion(records)
    predicted = Counter[str]()
    for row in matrix.counts.values():
        predicted.update(row)
    scores = []
    for name in matrix.classes:
        hits = matrix.counts[name].get(name, 0)
        total = sum(matrix.counts[name].values()) + predicted[name]
        scores.append(2 * hits / total)
    return fmean(scores)


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


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", accuracy, "right answers; case, and spaces and full stops at the ends, do not count"),
        Metric("exact_match", exact_match, "answers right to the letter"),
        Metric("anls", anls, "DocVQA's similarity, as its official script computes it"),
        Metric("anls_paper", anls_paper, "the same, but exactly 0.5 counts as 0, as the paper writes"),
        Metric("anls_sample", anls_sample, "the same as the public fine-tuning sample computes it: case counts"),
        Metric("auroc", auroc, "area under the ROC curve of P(yes) against P(no) at the first answer token"),
        Metric("consistency", consistency, "NLVR2: sentences right on all their image pairs"),
        Metric("macro_f1", macro_f1, "mean F1 over the classes"),
    )
}
"""The metrics known by name."""


def score(records: Records, metrics: Sequence[Metric]) -> Scores:
    """Compute each metric, in order.

    Raises:
        UserError: a metric cannot take the records, or one of the user's own gives no number.
    """
    values: dict[str, float | None] = {}
    notes: dict[str, str] = {}
    for metric in metrics:
        try:
            values[metric.name] = float(metric.function(records))
        except Undefined as reason:
            values[metric.name] = None
            notes[metric.name] = str(reason)
    return Scores(values, notes)
