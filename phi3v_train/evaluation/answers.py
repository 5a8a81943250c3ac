"""Comparison of a prediction with the accepted answers, as several metrics and submission formats need it."""

import string

from phi3v_data.errors import UserError
from phi3v_train.evaluation.records import Prediction

STRIPPED = string.whitespace + "."


def normalise(text: str) -> str:
    """Without spaces and full stops at both ends, in lower case, as the Phi-3.5-vision sample compares answers."""
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
        raise UserError(f"{name_of(record)} has no answers: it can be predicted, not scored")
    return record["answers"]


def name_of(record: Prediction) -> str:
    """Names a record in errors, without any of its text."""
    return f"{record['split'] or 'prediction'} {record['id']!r} (turn {record['turn']})"


def yes_share(record: Prediction) -> float:
    """P(yes) / (P(yes) + P(no)); one half where both are 0.

    Raises:
        UserError: the record has no such scores.
    """
    scores = record["scores"]
    if "yes" not in scores or "no" not in scores:
        raise UserError(
            f"{name_of(record)} has no scores of 'yes' and 'no' at the first answer token, which auroc needs"
        )
    total = scores["yes"] + scores["no"]
    return scores["yes"] / total if total > 0 else 0.5
