"""Options and outcomes that all checks share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


class SkippedCheck(Exception):  # noqa: N818 - no failure
    """A check needs something that is not here."""


class FailedCheck(Exception):  # noqa: N818 - the outcome of a check
    """A check's result is wrong; `figures` are those found."""

    def __init__(self, text: str, figures: dict[str, Any] | None = None) -> None:
        super().__init__(text)
        self.figures = figures


@dataclass(frozen=True)
class Options:
    """What the command line says; `work` is a folder for files of the checks."""

    device: str
    work: Path
    data: Path | None
    data_seconds: float
    decoder: Path | None
    peak: float
    deadline: float
    """When the script is stopped, by `time.monotonic`."""

    @property
    def on_gpu(self) -> bool:
        """Whether the checks are at their real size; on a CPU they are tiny."""
        return self.device == "cuda"

    @property
    def torch_device(self) -> torch.device:
        """The device with its index."""
        return torch.device("cuda", 0) if self.on_gpu else torch.device("cpu")


def require(condition: bool, text: str, figures: dict[str, Any] | None = None) -> None:
    """Fail the check unless the condition is true."""
    if not condition:
        raise FailedCheck(text, figures)
