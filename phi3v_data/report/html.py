"""A report as one self-contained HTML file: images, styles and the script are embedded.

The data are embedded as JSON in a block that browsers do not execute, with `<` escaped, and the page's script inserts
them as text only; a content security policy allows that one script, by its hash, and no requests. So no content of a
row can run as code.
"""

import base64
import hashlib
import html
import os
from importlib.resources import files
from pathlib import Path

from phi3v_data.dataset import Dataset, list_directory
from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.files import HIDDEN, write_bytes
from phi3v_data.report.gallery import Collected, collect
from phi3v_data.report.payload import PagePayload, Progress, to_script_json
from phi3v_data.schema import Report
from phi3v_data.unfinished import MANIFEST


def write_html(report: Report, directory: str | Path, target: str | Path, *, progress: Progress | None = None) -> None:
    """Write the page to `target`, atomically; rows and images are read from `directory`.

    Raises:
        UserError: `target` cannot be written, or is a file of the set.
    """
    path = Path(target)
    check_target(path, Path(directory))
    page = make_html(report, directory, progress=progress)
    try:
        write_bytes(path, page)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def check_target(path: Path, directory: Path) -> None:
    """Create the folder of a page, so that a wrong path is reported before the work and not after it.

    Raises:
        NotFoundError: the directory that the page is about does not exist.
        UserError: the page cannot be written, or would replace a file of the set.
    """
    if _belongs_to_set(path, directory):
        raise UserError(
            f"{path}: belongs to the set in {directory}, and a page must not replace or be among its files; name "
            f"another file, such as {directory / 'report.html'}"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None
    if path.is_dir():
        raise UserError(f"{path}: is a folder; name a file for the page")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{path}: cannot be written (no permission in {path.parent})")


def _belongs_to_set(path: Path, directory: Path) -> bool:
    """Whether a path, also through links, is `dataset.json`, a JSONL file or below `images/` or `.phi3v/`."""
    own = {(directory / name).resolve() for name in list_directory(directory) if _is_own(name)}
    folders = [(directory / name).resolve() for name in ("images", HIDDEN)]
    for real in (path.parent.resolve() / path.name, path.resolve()):
        if real in own or any(real.is_relative_to(folder) for folder in folders):
            return True
        if real.parent == directory.resolve() and _is_own(real.name):
            return True
    return False


def _is_own(name: str) -> bool:
    return name.lower() == MANIFEST or name.lower().endswith(".jsonl")


def make_html(report: Report, directory: str | Path, *, progress: Progress | None = None) -> bytes:
    """The HTML page of a report."""
    dataset = _open(Path(directory))
    found = collect(dataset, report) if dataset else Collected()
    payload = PagePayload(report, dataset, found, progress).make()
    parts = files("phi3v_data.report").joinpath("page")
    style = parts.joinpath("page.css").read_text(encoding="utf-8")
    script = parts.joinpath("page.js").read_text(encoding="utf-8")
    fields = {
        "title": html.escape(f"{payload['name']}: validation report"),
        "style": style,
        "style_hash": _digest(style),
        "script": script,
        "script_hash": _digest(script),
        "data": to_script_json(payload),
    }
    page = parts.joinpath("page.html").read_text(encoding="utf-8")
    pieces = page.split("{{")
    text = pieces[0] + "".join(fields[name] + rest for name, rest in (piece.split("}}", 1) for piece in pieces[1:]))
    return text.encode("utf-8", "backslashreplace")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _open(directory: Path) -> Dataset | None:
    try:
        return Dataset(directory, strict=False)
    except NotFoundError:
        return None
