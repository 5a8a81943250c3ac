"""Which metrics an evaluation computes: those asked for, else dataset.json's, else accuracy; the user's own by file."""

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.schema import Manifest
from phi3v_train.evaluation.metrics import METRICS, Metric, MetricFunction, Records, Undefined

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
        UserError: no such metric (the nearest is named), or a file of the user's that does not hold one.
    """
    if wanted:
        return Choice(tuple(find_metric(name) for name in dict.fromkeys(wanted)), "option")
    if manifest is not None and manifest.metrics:
        unknown = [name for name in manifest.metrics if name not in METRICS]
        if unknown:
            raise UserError(
                f"dataset.json asks for the metric {unknown[0]!r}, which this version does not know; choose with "
                f"--metric: {', '.join(METRICS)}, or file.py:function"
            )
        return Choice(tuple(METRICS[name] for name in manifest.metrics), "dataset.json")
    return Choice((METRICS[DEFAULT_METRIC],), "default")


def find_metric(name: str) -> Metric:
    """A metric by name, or a user's own by `file.py:function`.

    Raises:
        UserError: see `choose_metrics`.
    """
    if name in METRICS:
        return METRICS[name]
    path, colon, function = name.rpartition(":")
    if colon and path.endswith(".py"):
        return load_metric(Path(path), function)
    if name.endswith(".py"):
        raise UserError(f"--metric {name}: name the function in it as well, {name}:FUNCTION")
    near = get_close_matches(name, METRICS, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    raise UserError(
        f"--metric {name}: no such metric{hint} there are {', '.join(METRICS)}, or FILE.py:FUNCTION of yours"
    )


def load_metric(path: Path, name: str) -> Metric:
    """A function of a file as a metric under the function's name.

    Raises:
        UserError: no such file, it cannot be imported, or it has no such function.
    """
    module = _import_file(path)
    function = getattr(module, name, None)
    if not callable(function):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(
            f"--metric {path}:{name}: the file has no function {name!r}; it has {', '.join(names) or 'none at all'}"
        )
    text = (function.__doc__ or "").strip().partition("\n")[0]
    return Metric(name, _checked(function, f"--metric {path}:{name}"), text)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise NotFoundError(f"--metric {path}: there is no such file")
    spec = importlib.util.spec_from_file_location(f"phi3v_metric_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's own code: whatever it raises is said with its place
        raise UserError(f"--metric {path}: cannot be imported: {_said(error, path)}") from error
    return module


def _checked(function: Any, where: str) -> MetricFunction:
    """The user's function, with what goes wrong in it said in one sentence."""

    def metric(records: Records) -> float:
        try:
            value = function(records)
        except (Undefined, UserError):
            raise
        except Exception as error:  # the user's own code: whatever it raises is said with its place
            raise UserError(f"{where}: {_said(error, Path(function.__code__.co_filename))}") from error
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{where}: must return a finite number, got {value!r}")
        return float(value)

    return metric


def _said(error: Exception, path: Path) -> str:
    """`KeyError: 'x' (line 3)`: the last line of the user's file that the error passed through."""
    line = None
    trace = error.__traceback__
    while trace is not None:
        if Path(trace.tb_frame.f_code.co_filename) == path:
            line = trace.tb_lineno
        trace = trace.tb_next
    if line is None and isinstance(error, SyntaxError):
        line = error.lineno
    return f"{type(error).__name__}: {error}" + (f" (line {line})" if line else "")
