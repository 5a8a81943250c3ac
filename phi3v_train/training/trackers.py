"""Where curves go besides `metrics.jsonl`: TensorBoard, Weights & Biases, trackio; each imported when it is wanted."""

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from phi3v_data.errors import how_to_install

INSTALL = {"tensorboard": how_to_install("train"), "wandb": "pip install wandb", "trackio": "pip install trackio"}


class Tracker(Protocol):
    """Takes numbers of a step."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...
    def close(self) -> None: ...


class TensorBoard:
    """Event files under OUTPUT/tensorboard; what a killed run wrote beyond `step` is marked as void."""

    def __init__(self, output_dir: Path, config: Mapping[str, Any], step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(output_dir / "tensorboard"), purge_step=step + 1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class RunTracker:
    """Weights & Biases, or trackio, which has the same interface."""

    def __init__(self, module: str, output_dir: Path, config: Mapping[str, Any]) -> None:
        from importlib import import_module

        self._api: Any = import_module(module)
        self._run: Any = self._api.init(project="phi3v", name=output_dir.name, config=dict(config))

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._api.finish()


def open_trackers(
    names: Sequence[str], output_dir: Path, config: Mapping[str, Any], step: int, say: Callable[[str], None]
) -> "Trackers":
    """Open those that `--report_to` names; one that is not installed is reported and left out."""
    opened: list[Tracker] = []
    for name in names:
        if name == "none":
            continue
        if find_spec(name) is None:
            say(f"no {name} curves: the package is not installed ({INSTALL[name]})")
        elif name == "tensorboard":
            opened.append(TensorBoard(output_dir, config, step))
        else:
            opened.append(RunTracker(name, output_dir, config))
    return Trackers(opened, say)


class Trackers:
    """All of a run's trackers; one that fails is logged and dropped, the run continues."""

    def __init__(self, trackers: list[Tracker], say: Callable[[str], None]) -> None:
        self._trackers = trackers
        self._say = say

    def log(self, values: Mapping[str, float | int | None], step: int) -> None:
        """Hand on the numbers among `values`."""
        numbers = {name: float(value) for name, value in values.items() if value is not None and name != "step"}
        for tracker in list(self._trackers):
            self._try(tracker, lambda tracker=tracker: tracker.log(numbers, step))  # type: ignore[misc]  # bound now

    def close(self) -> None:
        """Let them write what they hold."""
        for tracker in list(self._trackers):
            self._try(tracker, tracker.close)

    def _try(self, tracker: Tracker, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # a tracker is another service: whatever it raises must not end a run
            self._trackers.remove(tracker)
            self._say(f"{type(tracker).__name__} failed and gets no more curves: {error}")
