"""Accuracy: predictions that are an accepted answer, normalised."""

from statistics import fmean

from phi3v_train.evaluation.answers import is_right
from phi3v_train.evaluation.metric import Records


def accuracy(records: Records) -> float:
    """Share of predictions that are one of the accepted answers, spaces and full stops at the ends and case aside."""
    return fmean(is_right(record) for record in records)
