"""Runs a reader: `python READER.py [MODEL] OUT EXPORT...` writes a line of JSON per export.

A line has the `rows` that the consumer makes of the export, or why it `stopped`.
"""

import json
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def run(read: Callable[[Path], Iterator[Row]], out: str, exports: list[str]) -> None:
    """Read each export and write what comes of it."""
    with open(out, "w", encoding="utf-8") as file:
        for export in exports:
            line: Row
            try:
                line = {"rows": list(read(Path(export).absolute()))}
            except (Exception, SystemExit) as error:
                line = {"stopped": f"{type(error).__name__}: {error}"}
                print(line["stopped"], file=sys.stderr)
            file.write(json.dumps(line) + "\n")


def digest(path: str | Path) -> str:
    """Digest of a file; empty if it is not there."""
    return sha256(Path(path).read_bytes()).hexdigest() if Path(path).is_file() else ""
