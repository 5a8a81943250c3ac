"""Images that rows of a file refer to: each distinct one is checked once, findings are reported at every use."""

import base64
import binascii
import os
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeAlias
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt
import xxhash

from phi3v_data.converters.helpers.cell_images import DATA_URL, WRITE_BASE64, is_data_url, is_inline, lacks_base64
from phi3v_data.engine.base import FunctionWork, Work
from phi3v_data.engine.local import LocalEngine
from phi3v_data.files import unsafe_reason
from phi3v_data.formats.images import leads_out
from phi3v_data.lint.seen import SeenHashes
from phi3v_data.media import integrity
from phi3v_data.media.formats import HEAD_BYTES, UnreadableImageError, identify
from phi3v_data.messages import shown, shown_path
from phi3v_data.near_names import fold, near_name
from phi3v_data.validate.findings import Findings
from phi3v_data.validate.hashes import hash_texts
from phi3v_data.validate.images import IMAGE_CODES, hint_for

Ints = npt.NDArray[np.int64]

BATCH = 128
"""Images of one task."""

URL = "url"
"""In place of a code: the image is a URL, and is not fetched."""

OUTSIDE = "outside"
"""In place of a code: the path leads out of the folder of images; message is the path."""

SIZE = "size"
"""In place of a code: message and hint are the width and height of the image."""

_URL = ("http://", "https://")
_AS_FILE = "save the image as a file, and give its path"
_AS_RELATIVE = "put the image into that folder, and give its path from there"
_MAX_KEPT = 100_000  # images whose messages are kept for their other uses


class Verdict(NamedTuple):
    """A finding about an image; `position` is its place in the task."""

    position: int
    code: str
    message: str
    hint: str


Judge: TypeAlias = Callable[[Verdict], tuple[str, str]]
"""Message and hint of a verdict, with what the consumer does."""


def check_refs(
    root: str, refs: list[str | bytes], *, pixels: bool, sizes: bool = False, opener: str = "", below: bool = False
) -> list[Verdict]:
    """Check images as rows refer to them; nothing is reported of good ones but, if wanted, their sizes.

    `opener`: title of a tool that opens nothing but files; with `below`, only those below the folder.
    """
    found = []
    for position, ref in enumerate(refs):
        verdicts = _check(root, ref, pixels, opener, below=below)
        found += [Verdict(position, *words) for words in verdicts if sizes or words[0] != SIZE]
    return found


def _check(
    root: str, ref: str | bytes, pixels: bool, opener: str, *, below: bool = False
) -> Iterator[tuple[str, str, str]]:
    if isinstance(ref, bytes):
        yield from _look(ref, "the image", pixels)
        return
    if ref.lower().startswith(_URL):
        if opener:
            yield "image-source", f"{opener} opens files only, not the URL {shown(ref, 160)}", _AS_FILE
        yield URL, "", ""
        return
    if is_inline(ref):
        if opener:
            what = "a data URL" if is_data_url(ref) else "base64 text"
            yield "image-source", f"{opener} opens files only, not {what}", _AS_FILE
        yield from _check_encoded(ref, pixels)
        return
    path = unquote(ref[7:]) if ref.lower().startswith("file://") else ref
    name = shown(ref, 160)
    if "\0" in path or "\n" in path:
        yield "image-path-unsafe", f"the path {name} has a control character", ""
        return
    if below and (os.path.isabs(path) or os.path.normpath(path).startswith("..") or "://" in path):
        yield "image-path-unsafe", f"{name} is not below the folder of the file: {opener} refuses it", _AS_RELATIVE
        return
    full = os.path.join(root, path)
    if not os.path.exists(full):
        yield _missing(root, path, name)
    else:
        if leads_out(root, path):
            yield OUTSIDE, name, ""
        yield from _look(full, name, pixels)


def _check_encoded(ref: str, pixels: bool) -> Iterator[tuple[str, str, str]]:
    if lacks_base64(ref):
        yield "image-unreadable", f"the data URL {shown(ref, 40)} is not base64", WRITE_BASE64
        return
    data_url = DATA_URL.match(ref)
    name = "the data URL" if data_url else "the base64 text"
    encoded = ref[data_url.end() :] if data_url else ref
    try:
        data = base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError):
        yield "image-unreadable", f"{name} is not valid base64", "was it cut off?"
        return
    yield from _look(data, name, pixels)
    named = data_url[1].lower().removeprefix("image/").replace("jpg", "jpeg") if data_url else ""
    if named:
        try:
            kind = identify(data[:HEAD_BYTES])
        except UnreadableImageError:
            return
        if kind and named != kind.lower():
            words = f"the data URL says {shown(data_url[1] if data_url else '')}, and holds a {kind}"
            yield "image-format-mismatch", words, "name the type that it holds"


def _look(source: str | bytes, name: str, pixels: bool) -> Iterator[tuple[str, str, str]]:
    facts, findings = integrity.check_image(source, pixels=pixels)
    for flag, words in findings:
        code, hint = IMAGE_CODES[flag]
        yield code, f"{name} {words}", hint_for(words, hint)
    width, height, flags = (int(facts[field]) for field in ("width", "height", "flags"))
    if width and height and not flags & (integrity.TOO_LARGE | integrity.UNREADABLE):
        yield SIZE, str(width), str(height)


def _missing(root: str, path: str, name: str) -> tuple[str, str, str]:
    """Code, message and hint for a file that is not there."""
    if meant := near_name(root, path):
        hint = f"did you mean {shown(meant, 160)}?"
        if fold(meant) == fold(path):
            how = "in another letter case"
            if unicodedata.normalize("NFC", meant) == unicodedata.normalize("NFC", path):
                how = "in another Unicode form (as macOS writes it)"
            return "image-name-mismatch", f"{name} exists {how}, as {shown(meant, 160)}", hint
        return "image-missing", f"{name} is not a file", hint
    reason = unsafe_reason(path)
    if reason and "absolute" not in reason and "'..'" not in reason:
        return "image-missing", f"{name} is not a file: the path {reason}", ""
    if os.path.isabs(path):
        return "image-missing", f"{name} is not a file", ""
    return (
        "image-missing",
        f"{name} is not in {shown_path(root)}",
        "paths start there; --images_root gives another folder",
    )


@dataclass(slots=True)
class Uses:
    """Images that a block of rows uses, by their hashes.

    `ref` gives the reference of a use, `place` its file, line, id and field for a finding.
    """

    hashes: Ints
    ref: Callable[[int], str | bytes]
    place: Callable[[int], dict[str, object]]


@dataclass(slots=True)
class _Waiting:
    """A block whose images are being checked; `batches` are those without a result."""

    uses: Uses
    batches: deque[list[int]]


class ImageChecks:
    """Checks the images of a file as its rows are read."""

    def __init__(
        self,
        findings: Findings,
        root: str,
        *,
        pixels: bool,
        workers: int,
        judge: Judge,
        sizes: bool = False,
        opener: str = "",
        below: bool = False,
    ) -> None:
        self._findings = findings
        self._check = partial(check_refs, root, pixels=pixels, sizes=sizes, opener=opener, below=below)
        self._workers = workers
        self._seen = SeenHashes()
        self._bad: dict[int, list[Verdict]] = {}
        self.num_images = 0
        self.num_urls = 0
        self.num_outside = 0
        self.outside = ""  # the first of these paths, for messages
        self.sizes: dict[int, tuple[int, int]] = {}  # by hash of what a row refers to, if wanted
        self._judge = judge

    def run(self, blocks: Iterator[Uses]) -> None:
        """Check all images, block after block, and report on each use."""
        waiting: deque[_Waiting] = deque()

        def tasks() -> Iterator[list[str | bytes]]:
            for uses in blocks:
                new = np.flatnonzero(self._seen.add(uses.hashes)).tolist()
                self.num_images += len(new)
                batches = [new[start : start + BATCH] for start in range(0, len(new), BATCH)]
                waiting.append(_Waiting(uses, deque(batches)))
                self._flush(waiting)  # a block without new images waits for none
                for batch in batches:
                    yield [uses.ref(position) for position in batch]

        for refs, verdicts in self._results(tasks(), self._workers if self._workers > 1 else 0):
            self._flush(waiting)
            batch = waiting[0].batches.popleft()
            for verdict in self._one_by_one(refs) if verdicts is None else verdicts:
                self._enter(int(waiting[0].uses.hashes[batch[verdict.position]]), verdict)
            self._flush(waiting)
        self._flush(waiting)

    def _results(
        self, tasks: Iterator[list[str | bytes]], workers: int
    ) -> Iterator[tuple[list[str | bytes], list[Verdict] | None]]:
        """Each task with its verdicts, None if a decoder brought its process down."""
        work: Work[list[str | bytes], list[Verdict] | None] = FunctionWork(self._check)
        with closing(LocalEngine(workers).run(work, tasks, on_death=lambda death: None)) as results:
            yield from results

    def _flush(self, waiting: "deque[_Waiting]") -> None:
        """Report on the blocks at the front whose images have all been checked."""
        while waiting and not waiting[0].batches:
            self._report(waiting.popleft().uses)

    def _one_by_one(self, refs: list[str | bytes]) -> list[Verdict]:
        """Verdicts on a task in which a decoder brought its process down: each image in a process that may die."""
        found: list[Verdict] = []
        for position, (_, verdicts) in enumerate(self._results(([ref] for ref in refs), 1)):
            if verdicts is None:
                found.append(Verdict(position, "image-unreadable", "the image crashes its decoder", ""))
            else:
                found += [verdict._replace(position=position) for verdict in verdicts]
        return found

    def _enter(self, key: int, verdict: Verdict) -> None:
        if verdict.code == URL:
            self.num_urls += 1
            return
        if verdict.code == OUTSIDE:
            self.num_outside += 1
            self.outside = self.outside or verdict.message
            return
        if verdict.code == SIZE:
            self.sizes[key] = int(verdict.message), int(verdict.hint)
            return
        if len(self._bad) > _MAX_KEPT and not self._findings.has_room(verdict.code):
            verdict = Verdict(0, verdict.code, "", "")
        self._bad.setdefault(key, []).append(verdict)

    def _report(self, uses: Uses) -> None:
        if not self._bad:
            return
        for position, key in enumerate(uses.hashes.tolist()):
            for verdict in self._bad.get(key, ()):
                if self._findings.has_room(verdict.code):
                    message, hint = self._judge(verdict)
                    self._findings.add(verdict.code, message, hint=hint, **uses.place(position))  # type: ignore[arg-type]
                else:
                    self._findings.count(verdict.code)


def ref_hashes(refs: list[str | bytes]) -> Ints:
    """The hash of each reference."""
    texts = [ref if isinstance(ref, str) else xxhash.xxh3_128_hexdigest(ref) for ref in refs]
    return hash_texts(texts)
