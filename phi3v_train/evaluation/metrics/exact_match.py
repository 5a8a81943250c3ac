"""Exact match: predictions that are an accepted answer to the letter."""

from statistics import fmean

from phi3v_train.evaluation.answers import answers_of
from phi3v_train.evaluation.metric import Records


def exact_match(records: Records) -> float:
    """Share of predictions that are one of the accepted answers to the letter; only white space at the ends is free."""
    return fmean(
        record["prediction"].strip() in {answer.strip() for answer in answers_of(record)} for record in records
    )
