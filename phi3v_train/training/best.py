"""The best evaluation of a run: which step it belongs to, and whether the run ends because none has been better since.

Evaluations after a step count, the one before training does not. `state.json` of every checkpoint contains what is
known when it is written, so that a resumed run counts on; the session adds the evaluation of the checkpoint's own step,
which follows it.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from phi3v_data.messages import counted

LOSS = "loss"
"""Name of the mean loss over the supervised tokens of the evaluated split, among the metrics of an evaluation."""

Mode: TypeAlias = Literal["max", "min"]


@dataclass(frozen=True, slots=True)
class Criterion:
    """How the evaluations of a run are compared: a metric, which values are better, and what is evaluated."""

    metric: str
    mode: Mode
    split: str
    num_samples: int
    eval_turns: str
    max_new_tokens: int

    def is_better(self, value: float, than: float | None, min_delta: float = 0.0) -> bool:
        """Whether a value is better by more than `min_delta`; any is better than None."""
        if than is None:
            return True
        return value - than > min_delta if self.mode == "max" else than - value > min_delta

    def words(self) -> str:
        """`accuracy on val`."""
        return f"{self.metric} on {self.split}"


@dataclass(frozen=True, slots=True)
class Best:
    """The best evaluation so far: after which step, the value of the criterion, and all its finite metrics."""

    step: int
    value: float
    metrics: Mapping[str, float]


class BestTracker:
    """Counts the evaluations of a run.

    `reference` is the value that an evaluation must exceed by `min_delta` to count as an improvement, `without` the
    number of evaluations since then; `best` is the best one by any margin, `last` the step of the last one counted.

    Args:
        criterion: how evaluations are compared.
        patience: so many evaluations without an improvement end the run; 0: never.
        min_delta: smallest improvement.
    """

    def __init__(self, criterion: Criterion, *, patience: int = 0, min_delta: float = 0.0) -> None:
        self.criterion = criterion
        self.patience = patience
        self.min_delta = min_delta
        self.last = 0
        self.reference: float | None = None
        self.without = 0
        self.best: Best | None = None

    def count(self, step: int, metrics: Mapping[str, Any]) -> Best | None:
        """Count the evaluation after a step, once; returns it if it is the best so far.

        A value that is undefined or not finite is not an improvement.
        """
        if step <= self.last:
            return None
        self.last = step
        finite = {name: float(value) for name, value in metrics.items() if value is not None and math.isfinite(value)}
        value = finite.get(self.criterion.metric)
        if value is None or not self.criterion.is_better(value, self.reference, self.min_delta):
            self.without += 1
        else:
            self.reference, self.without = value, 0
        than = self.best.value if self.best is not None else None
        if value is None or not self.criterion.is_better(value, than):
            return None
        return Best(step, value, finite)

    def is_exhausted(self, step: int) -> bool:
        """Whether the evaluation after `step` is the one that ends the run."""
        return step == self.last and 0 < self.patience <= self.without

    def reason(self) -> str:
        """Why the run ended: `accuracy on val has not improved for 2 evaluations`."""
        more = f" by more than {self.min_delta:g}" if self.min_delta else ""
        return f"{self.criterion.words()} has not improved{more} for {counted(self.without, 'evaluation')}"

    def described(self) -> dict[str, Any] | None:
        """The best evaluation for people and programs: step, metric, value, split and all metrics."""
        if self.best is None:
            return None
        return {
            "step": self.best.step,
            "metric": self.criterion.metric,
            "value": self.best.value,
            "split": self.criterion.split,
            "num_samples": self.criterion.num_samples,
            "metrics": dict(self.best.metrics),
        }

    def to_json(self) -> dict[str, Any]:
        """Contents for `state.json`."""
        return {
            "criterion": asdict(self.criterion),
            "last": self.last,
            "reference": self.reference,
            "without": self.without,
            "best": asdict(self.best) if self.best is not None else None,
        }

    def restore(self, saved: Mapping[str, Any]) -> bool:
        """Take over what `to_json` gave; False, and nothing is taken over, if evaluations were compared otherwise."""
        if saved["criterion"] != asdict(self.criterion):
            return False
        self.last, self.reference, self.without = saved["last"], saved["reference"], saved["without"]
        self.best = Best(**saved["best"]) if saved["best"] is not None else None
        return True
