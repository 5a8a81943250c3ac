"""The frame of all HTML pages: one self-contained file with styles, a script and data, and where it may be written.

The data are embedded as JSON in a block that browsers do not execute, with `<` escaped, and the page's script inserts
them as text only; a content security policy allows that one script, by its hash, and no requests. So no content of a
row can run as code.
"""

import base64
import codecs
import hashlib
import html
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from phi3v_data.dataset import list_directory
from phi3v_data.errors import UserError
from phi3v_data.files import HIDDEN, open_regular, write_bytes
from phi3v_data.remote.address import refuse_address
from phi3v_data.unfinished import MANIFEST

_START_OF_PAGE = 1024
"""Bytes of a file that say whether it is a page."""


@dataclass(frozen=True, slots=True)
class PageParts:
    """Parts that one kind of page adds to the frame.

    `sections`: names and ids of its sections, the first of which is `overview`. An element with the id `nav-ID` is
    behind each name but the first, for a count. `body`, `style` and `script` follow those of the frame; the script
    finds the data as `data`, which has a `name` and a `footer`.
    """

    sections: Sequence[tuple[str, str]]
    body: str
    script: str
    style: str = ""


def make_page(payload: Mapping[str, Any], parts: PageParts, *, title: str) -> bytes:
    """The page as a file."""
    style = _read("base.css") + parts.style
    script = f'"use strict";\n(() => {{\n{_read("base.js")}{parts.script}}})();\n'
    fields = {
        "title": html.escape(title),
        "style": style,
        "style_hash": _digest(style),
        "script": script,
        "script_hash": _digest(script),
        "nav": "".join(_nav(name, anchor) for name, anchor in parts.sections),
        "body": parts.body,
        "data": to_script_json(payload),
    }
    pieces = _read("frame.html").split("{{")
    text = pieces[0] + "".join(fields[name] + rest for name, rest in (piece.split("}}", 1) for piece in pieces[1:]))
    return text.encode("utf-8", "backslashreplace")


def to_script_json(value: object) -> str:
    """JSON that is safe inside a `<script>` element: without `<`, so that nothing in it ends the element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def write_page(path: Path, page: bytes) -> None:
    """Write a page, atomically.

    Raises:
        UserError: it cannot be written.
    """
    try:
        write_bytes(path, page)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from None


def check_target(path: Path, subject: Path) -> None:
    """Create the folder of a page about a set or a file, so that a wrong path is reported before the work.

    Raises:
        NotFoundError: the directory that the page is about does not exist.
        UserError: the page cannot be written, or would replace a file of the set or any other file that is not a page.
    """
    directory = subject.parent if subject.is_file() else subject
    refuse_address(path, "--html")
    if subject.is_file() and path.exists() and path.samefile(subject):
        raise UserError(
            f"{path}: is the file that is checked, which the page would replace; name another file, such as "
            f"{directory / 'report.html'}"
        )
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
    if path.exists() and not _is_page(path):
        raise UserError(f"{path}: is a file and no HTML page, so it is not replaced; name another one, or remove it")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"{path}: cannot be written (no permission in {path.parent})")


def _is_page(path: Path) -> bool:
    """Whether a file may be replaced by a page: it is an HTML page, or empty.

    Raises:
        UserError: it cannot be read.
    """
    try:
        with open_regular(path) as file:
            start = file.read(_START_OF_PAGE).removeprefix(codecs.BOM_UTF8).lstrip().lower()
            return start.startswith((b"<!doctype html", b"<html")) or os.fstat(file.fileno()).st_size == 0
    except OSError as error:
        raise UserError(f"{path}: exists and cannot be read ({error.strerror}); name another file") from None


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


def _nav(name: str, anchor: str) -> str:
    count = "" if anchor == "overview" else f' <span class="count" id="nav-{anchor}"></span>'
    return f'<a href="#{anchor}">{name}{count}</a>'


def _read(name: str) -> str:
    return files("phi3v_data.report").joinpath("page", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
