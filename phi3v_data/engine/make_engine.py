"""The engine that a user names."""

from phi3v_data.engine.base import Engine, EngineName
from phi3v_data.errors import UserError


def make_engine(name: EngineName, workers: int) -> Engine:
    """An engine by name, with at most `workers` tasks at once; 0 runs them in this process.

    Raises:
        UserError: no such engine, or it cannot run here.
    """
    if name == "local":
        from phi3v_data.engine.local import LocalEngine

        return LocalEngine(workers)
    if name == "ray":
        from phi3v_data.engine.ray import RayEngine

        return RayEngine(workers)
    raise UserError(f"engine is {name!r}; it can be local or ray")
