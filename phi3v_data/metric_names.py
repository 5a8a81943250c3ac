"""Names of the metrics that `phi3v-train eval` computes, found without importing it."""

from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from pathlib import Path

from phi3v_data.messages import shown

METRICS_GROUP = "phi3v_train.metrics"
"""Entry point group in which other packages name their metrics."""


def built_in_metrics() -> tuple[str, ...]:
    """Names of the modules in `phi3v_train/evaluation/metrics/`, in alphabetical order; one module is one metric."""
    spec = find_spec("phi3v_train")
    folders = (spec.submodule_search_locations if spec is not None else None) or ()
    files = (file for folder in folders for file in (Path(folder) / "evaluation" / "metrics").glob("*.py"))
    return tuple(sorted(file.stem for file in files if not file.stem.startswith("_")))


def installed_metrics() -> tuple[EntryPoint, ...]:
    """Metrics of other packages; a built-in name cannot be taken."""
    built_in = built_in_metrics()
    return tuple(point for point in entry_points(group=METRICS_GROUP) if point.name not in built_in)


def known_metrics() -> tuple[str, ...]:
    """Names that `metrics` of a set may contain: the built-in ones, then those of installed packages."""
    return (*built_in_metrics(), *(point.name for point in installed_metrics()))


def unknown_metric(names: tuple[str, ...]) -> str:
    """A message about the first name that is not a known metric; empty if there is none."""
    known = known_metrics()
    for name in names:
        if name not in known:
            return (
                f"there is no metric {shown(name)}; there are {', '.join(known)}; one of your own is given to "
                "phi3v-train as --metric FILE.py:NAME"
            )
    return ""
