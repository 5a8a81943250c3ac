"""Macro F1: the mean over the classes."""

from collections import Counter
from statistics import fmean

from phi3v_train.evaluation.confusion import confusion
from phi3v_train.evaluation.metric import Records


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
