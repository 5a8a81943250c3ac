"""Which metrics an evaluation computes, and where they are found.

Asked for by `--metric`, else named by `dataset.json`, else accuracy. A name means the module of `evaluation/metrics/`
with that name, or an entry point of another package in the group `phi3v_train.metrics` (`name = "module:function"`);
`FILE.py:FUNCTION` means a function in a file of the user's.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from phi3v_data.errors import UserError
from phi3v_data.metric_names import built_in_metrics, installed_metrics, known_metrics
from phi3v_data.schema import Manifest
from phi3v_data.user_code import describe_error, load_file, load_object, loading
from phi3v_train.evaluation import metrics
from phi3v_train.evaluation.metric import Metric, MetricFunction, Records, Undefined

DEFAULT_METRIC = "accuracy"


@dataclass(frozen=True, slots=True)
class Choice:
    """Metrics, and what chose them: `option`, `dataset.json` or `default`."""

    metrics: tuple[Metric, ...]
    origin: str

    def words(self) -> str:
        """`accuracy, auroc (dataset.json)`."""
        return f"{', '.join(metric.name for metric in self.metrics)} ({self.origin})"


def choose_metrics(wanted: Sequence[str], manifest: Manifest | None = None) -> Choice:
    """The metrics named, in order; the first is the headline.

    Raises:
        UserError: no such metric (the nearest is named), or a file of the user's that does not contain one.
    """
    if wanted:
        return Choice(tuple(find_metric(name) for name in dict.fromkeys(wanted)), "option")
    if manifest is not None and manifest.metrics:
        unknown = [name for name in manifest.metrics if name not in known_metrics()]
        if unknown:
            raise UserError(
                f"dataset.json asks for the metric {unknown[0]!r}, which this version does not know; choose with "
                f"--metric: {', '.join(known_metrics())}, or file.py:function"
            )
        return Choice(tuple(find_metric(name) for name in manifest.metrics), "dataset.json")
    return Choice((find_metric(DEFAULT_METRIC),), "default")


def find_metric(name: str) -> Metric:
    """A metric by name, or a user's own by `file.py:function`.

    Raises:
        UserError: see `choose_metrics`.
    """
    if name in built_in_metrics():
        with loading(f"the metric {name!r}"):
            module = import_module(f"{metrics.__name__}.{name}")
        return Metric(name, getattr(module, name), is_built_in=True)
    for point in installed_metrics():
        if point.name == name:
            return load_installed(point)
    path, colon, function = name.rpartition(":")
    if colon and path.endswith(".py"):
        return load_metric(Path(path), function)
    if name.endswith(".py"):
        raise UserError(f"--metric {name}: name the function in it as well, {name}:FUNCTION")
    near = get_close_matches(name, known_metrics(), n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    raise UserError(
        f"--metric {name}: no such metric{hint} there are {', '.join(known_metrics())}, or your own as FILE.py:FUNCTION"
    )


def load_installed(point: EntryPoint) -> Metric:
    """The metric of an entry point.

    Raises:
        UserError: it cannot be loaded.
    """
    where = f"the installed metric {point.name!r}"
    function = load_object(point, where)
    if not callable(function):
        raise UserError(f"{where} cannot be used: {point.value} is not a function")
    return Metric(point.name, checked(function, where))


def load_metric(path: Path, name: str) -> Metric:
    """A function of a file as a metric under the function's name.

    Raises:
        UserError: no such file, it cannot be loaded, or it has no such function.
    """
    module = load_file(path, option="--metric")
    function = getattr(module, name, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(
            f"--metric {path}:{name}: the file has no function {name!r}; it has {', '.join(names) or 'none'}"
        )
    return Metric(name, checked(function, f"--metric {path}:{name}"))


def checked(function: Callable[..., Any], where: str) -> MetricFunction:
    """A function that is not ours, whose errors become one sentence that begins with `where`."""

    def metric(records: Records) -> float:
        try:
            value = function(records)
        except (Undefined, UserError):
            raise
        except (Exception, SystemExit) as error:  # the user's own code: whatever it raises is reported with its line
            file = getattr(getattr(function, "__code__", None), "co_filename", "")
            raise UserError(f"{where}: {describe_error(error, file)}") from error
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{where}: must return a finite number, got {value!r}")
        return float(value)

    return metric
