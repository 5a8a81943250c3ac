"""Area under the ROC curve of yes-or-no questions."""

import math
from collections.abc import Sequence

from phi3v_data.errors import UserError
from phi3v_train.evaluation.answers import answers_of, name_of, normalise, yes_share
from phi3v_train.evaluation.metric import Records, Undefined
from phi3v_train.evaluation.records import Prediction


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


def _is_yes(record: Prediction) -> bool:
    answers = {normalise(answer) for answer in answers_of(record)}
    if answers not in ({"yes"}, {"no"}):
        raise UserError(f"{name_of(record)} has an answer other than 'yes' or 'no', which auroc cannot take")
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
