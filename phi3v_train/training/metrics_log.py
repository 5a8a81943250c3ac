"""`metrics.jsonl`: one JSON object per logged step, each step once, whatever was killed and resumed in between."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from phi3v_data.files import write_text

SOURCE_LOSS = "loss/"
"""Begins the keys of the losses by data source, `loss/NAME`, in the lines of a run that has several."""


class MetricsLog:
    """Appends lines; opening it at step S drops what a killed run wrote beyond S.

    A full disk does not end the run: lines wait in memory until they fit.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        self.path = path
        self.failed = ""
        kept = "".join(json.dumps(line) + "\n" for line in read_metrics(path) if line["step"] <= step)
        write_text(path, kept)
        self._good = len(kept.encode())
        self._waiting: list[str] = []

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one line; values that are None are left out."""
        line = {name: value for name, value in values.items() if value is not None}
        self._waiting.append(json.dumps(line, allow_nan=False) + "\n")
        self.flush()

    def flush(self) -> None:
        """Write the lines that wait; `failed` is the reason if they still do."""
        data = "".join(self._waiting).encode()
        try:
            with self.path.open("r+b") as file:
                file.truncate(self._good)
                file.seek(self._good)
                file.write(data)
        except OSError as error:
            self.failed = str(error.strerror)
            return
        self._good += len(data)
        self._waiting, self.failed = [], ""


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a metrics file; a last line cut by a kill is dropped."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return
    for line in data.split(b"\n")[:-1]:
        yield json.loads(line)
