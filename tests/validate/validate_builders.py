"""Small directories for the validator's tests."""

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from phi3v_data.schema import Diagnostic, Report


def turn(
    user: str = "What is it?", assistant: str = "A shape.", images: tuple[str, ...] = (), **more: Any
) -> dict[str, Any]:
    return {"images": list(images), "user": user, "assistant": assistant, **more}


def row(row_id: str, *turns: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A row with a question of its own, so that no two are the same sample."""
    return {"id": row_id, "source": "test", "conversations": list(turns) or [turn(f"What is {row_id}?")], **more}


def line(value: object) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def write(directory: Path, files: Mapping[str, str | bytes | list[Any]]) -> Path:
    """Files by name; a list is written as JSONL."""
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, list):
            content = "".join(map(line, content))
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return directory


def found(report: Report, code: str) -> list[Diagnostic]:
    return [item for item in report.problems if item.code == code]


def places(report: Report, code: str) -> list[tuple[str, int | None, str | None]]:
    return [(item.file, item.line, item.field) for item in found(report, code)]


def settled(directory: Path) -> Path:
    """The directory, once the clock of its file system has moved on from the last change in it."""
    newest = max(path.lstat().st_ctime_ns for path in (directory, *directory.rglob("*")))
    while True:
        with tempfile.TemporaryFile(dir=directory.parent) as file:
            if os.fstat(file.fileno()).st_ctime_ns > newest:
                return directory
