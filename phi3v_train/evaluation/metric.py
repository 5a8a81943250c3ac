"""The interface of a metric: a plain function from prediction records to a number. Nothing here needs torch.

    def mean_length(records):
        return sum(len(record["prediction"]) for record in records) / len(records)

A metric that the records do not determine raises `Undefined` with the reason, which is printed in its place; records
that it cannot take are a `UserError`. Where metrics are found: `choose_metrics`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from phi3v_train.evaluation.records import Prediction

Records: TypeAlias = Sequence[Prediction]
MetricFunction: TypeAlias = Callable[[Records], float]


class Undefined(Exception):  # noqa: N818 - an outcome that is reported, not a failure
    """The records do not determine the metric; the message says why."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric under its name.

    `is_built_in`: it takes the records of any dataset that has what it needs, so it can be tried before predicting.
    """

    name: str
    function: MetricFunction
    is_built_in: bool = False


@dataclass(frozen=True, slots=True)
class Scores:
    """Value of each metric, None if undefined; `notes` then says why."""

    values: dict[str, float | None]
    notes: dict[str, str]


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
