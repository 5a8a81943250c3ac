"""The engine that a user names."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from typing import Unpack

from phi3v_data.engine.base import Engine, EngineSettings
from phi3v_data.engine.cores import num_cores
from phi3v_data.errors import UserError
from phi3v_data.messages import shown

FEW = 3
"""Fewer short tasks are run in this process: to start workers would take longer."""

_BYTES = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@contextmanager
def open_engine(workers: int | None, *, few: int = 0, **settings: Unpack[EngineSettings]) -> Iterator[Engine]:
    """An engine for all that is done in the block, where it is stopped; it starts with its first task.

    Args:
        workers: most tasks at once; None: one per core (of the cluster, under Ray).
        few: fewer tasks than this, or all if `workers` is 1, are run in this process; 0: each is run by a worker, but
            in this process if `workers` is 0. Ray runs all of them.

    Raises:
        UserError: no such engine, or it cannot run here.
    """
    check_engine(**settings)
    if settings.get("engine", "local") == "local":
        from phi3v_data.engine.local import LocalEngine

        workers = num_cores() if workers is None else workers
        yield LocalEngine(0 if few and workers < 2 else workers, few=few)
        return
    from phi3v_data.engine.ray import RayEngine

    ray = RayEngine(workers, settings.get("ray_address"), parse_resources(settings.get("ray_resources")))
    try:
        yield ray
    finally:
        ray.close()


def check_engine(**settings: Unpack[EngineSettings]) -> None:
    """Check what can be checked before anything is opened.

    Raises:
        UserError: an argument that cannot be.
    """
    name = settings.get("engine", "local")
    if name not in ("local", "ray"):
        raise UserError(f"engine is {name!r}; it can be local or ray")
    for setting in ("ray_address", "ray_resources"):
        if name != "ray" and settings.get(setting) is not None:
            raise UserError(f"--{setting} needs --engine ray")
    parse_resources(settings.get("ray_resources"))


def parse_resources(text: str | None) -> Mapping[str, float]:
    """Amount of each resource that a task needs, from `CPU=2,memory=4GB`; memory is in bytes.

    Raises:
        UserError: not of this form.
    """
    wanted: dict[str, float] = {"CPU": 1.0}
    for piece in (text or "").split(",") if text is not None else ():
        name, _, amount = (part.strip() for part in piece.partition("="))
        unit = amount.upper().lstrip("0123456789.") if name == "memory" else ""
        try:
            number = float(amount[: len(amount) - len(unit)]) * _BYTES[unit]
        except (ValueError, KeyError):
            number = -1.0
        if not name or not isfinite(number) or number < 0 or (number > 1 and number % 1):
            raise UserError(
                f"--ray_resources {shown(text or '')}: {shown(piece)} is not NAME=AMOUNT; expected a list such as "
                "CPU=2,memory=4GB, with amounts up to 1 or whole"
            )
        wanted[name] = number
    if not any(wanted.values()):
        raise UserError("--ray_resources: a task that needs nothing has no bound on its number; give CPU an amount")
    return wanted


def local_workers(workers: int | None, **settings: Unpack[EngineSettings]) -> int:
    """Processes of this machine for work that never leaves it: `workers`, under Ray at most one per core."""
    if settings.get("engine", "local") == "local" and workers is not None:
        return workers
    return min(num_cores(), workers or num_cores())
