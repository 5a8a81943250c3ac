"""Consistency: NLVR2's sentences that are right on all their image pairs."""

from collections import defaultdict
from statistics import fmean
from typing import Any

from phi3v_data.errors import UserError
from phi3v_train.evaluation.answers import is_right, name_of
from phi3v_train.evaluation.metric import Records


def consistency(records: Records) -> float:
    """Share of NLVR2's sentences that are right on all their image pairs; `meta.sentence_id` names the sentence."""
    sentences: dict[Any, bool] = defaultdict(lambda: True)
    for record in records:
        if record["meta"].get("sentence_id") is None:
            raise UserError(f"{name_of(record)} has no meta.sentence_id, by which consistency groups image pairs")
        sentences[record["meta"]["sentence_id"]] &= is_right(record)
    return fmean(sentences.values())
