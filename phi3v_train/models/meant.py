"""Suggests the model that a user probably meant by an invalid name."""

from difflib import get_close_matches
from pathlib import Path

TINY = "tiny"
"""Name of the small model with random weights, for tests and demos."""

MODEL = "model"
"""Folder of the finished model within a run's folder."""

_MARKS = ("config.json", "adapter_config.json")


def is_model(path: Path) -> bool:
    """Whether a folder looks like a model directory or an adapter."""
    return any((path / name).is_file() for name in _MARKS)


def model_inside(path: Path) -> Path | None:
    """The model in a run's folder: the finished one, else its newest checkpoint; None if there is neither."""
    found = [path / MODEL, *sorted(path.glob("checkpoint-*"), reverse=True)]
    return next((each for each in found if is_model(each)), None)


def similar_path(name: str) -> Path | None:
    """An existing folder whose path differs from `name` in a few letters; None if no folder is that near."""
    path = Path(name)
    known = Path(path.anchor or ".")
    for part in path.parts[1:] if path.anchor else path.parts:
        step = known / part
        if not step.is_dir():
            try:
                folders = [each.name for each in known.iterdir() if each.is_dir()]
            except OSError:
                return None
            near = get_close_matches(part, folders, n=1)
            if not near:
                return None
            step = known / near[0]
        known = step
    return known


def hint(name: str) -> str:
    """`; did you mean runs/a/model?` for what is not a model directory, or `tiny`; empty if nothing is near."""
    path = Path(name)
    found = path if path.is_dir() else similar_path(name)
    meant = None if found is None else found if is_model(found) else model_inside(found)
    if meant is not None and meant != path:
        return f"; did you mean {meant}?"
    return f"; did you mean {TINY}?" if not path.exists() and get_close_matches(name.lower(), [TINY]) else ""
