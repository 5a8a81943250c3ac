"""The journal of a directory that is being written, under `DIR/.phi3v/convert/`.

    identity.json     what is being written; another identity is refused
    parts/000012.json receipt of one finished part: its rows, its images, its rejects
    stage/            the finished files wait here; nothing of an unfinished run is seen in DIR
    collisions/       pictures whose name another row had taken with different content
    publishing.json   all parts are done, the files are being moved into DIR
    marker.json       on its way to DIR/dataset.json, which it is until all files are moved
    complete.json     identity of what stands in DIR, and digests of the files it was planned from
    source/           what the source unpacked        run/  scratch of the running process

Everything is written aside and renamed, so a file that is there is whole. What a power cut may leave is caught when a
run is resumed: a receipt counts only if it reads and its images have the sizes it names.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec

from phi3v_data.errors import UserError
from phi3v_data.files import HIDDEN, hidden_path, write_json
from phi3v_data.sources.reads import ReadRecord

FORMAT = 2
"""Of the journal: 2 since it keeps what was read; an older one cannot be resumed."""

# What becomes a path is checked where it is read: these files may have come with the directory from elsewhere.
SafePath: TypeAlias = Annotated[
    str, msgspec.Meta(pattern=r"\A(?![A-Za-z]:)(?!.*(?:^|/)\.{0,2}(?:/|$))[^\\\x00-\x1f\x7f]+\Z")
]
Digest: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
SplitName: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9][A-Za-z0-9._-]*\Z")]


class ImageRecord(msgspec.Struct, frozen=True, array_like=True):
    """One picture of a row: POSIX path under `images/`, bytes, sha256."""

    name: SafePath
    size: int
    digest: Digest


class RowRecord(msgspec.Struct, frozen=True):
    """One converted sample; `row` is its line without the line end."""

    number: int
    split: SplitName
    item: str
    row: str
    images: tuple[ImageRecord, ...] = ()
    notes: tuple[str, ...] = ()


class RejectRecord(msgspec.Struct, frozen=True):
    """One planned sample that could not be made."""

    number: int
    split: str
    item: str
    reason: str
    message: str


class SourceRecord(msgspec.Struct, frozen=True, array_like=True):
    """What one planned sample was made from: a digest of its item or draft, and what was read to convert it."""

    number: int
    digest: str
    reads: tuple[ReadRecord, ...] = ()


class Receipt(msgspec.Struct, frozen=True):
    """What one part made.

    `collided` names images that lie under `collisions/` because the name was taken; `sources` is in the order of
    numbers; `boot` is the boot of the machine that wrote the part.
    """

    rows: tuple[RowRecord, ...] = ()
    rejects: tuple[RejectRecord, ...] = ()
    collided: tuple[SafePath, ...] = ()
    sources: tuple[SourceRecord, ...] = ()
    boot: str = ""

    @property
    def num_items(self) -> int:
        """Planned samples of the part."""
        return len(self.rows) + len(self.rejects)


class Begun(msgspec.Struct, frozen=True):
    """What is being written, or stands there: `identity.json`, or `complete.json` with the identity and `planned`.

    `planned`: the files that the plan was made from, in `complete.json` one record a file; `format` is 1 in journals
    that do not say.
    """

    identity: dict[str, Any]
    overwrite: bool = False
    format: int = 1
    planned: tuple[ReadRecord, ...] = ()


_decode_begun = msgspec.json.Decoder(Begun).decode
_decode_receipt = msgspec.json.Decoder(Receipt).decode


@dataclass(frozen=True, slots=True)
class Journal:
    """Paths and files of one directory's journal; holds no state of its own.

    `scratch` is where a run's temporary files go, when the directory itself is not to be touched.
    """

    out_dir: Path
    scratch: Path | None = None

    @property
    def hidden(self) -> Path:
        return self.out_dir / HIDDEN

    @property
    def root(self) -> Path:
        return self.hidden / "convert"

    @property
    def parts(self) -> Path:
        return self.root / "parts"

    @property
    def stage(self) -> Path:
        return self.root / "stage"

    @property
    def images(self) -> Path:
        return self.stage / "images"

    @property
    def collisions(self) -> Path:
        return self.root / "collisions"

    @property
    def run(self) -> Path:
        return (self.scratch or self.root) / "run"

    @property
    def claims(self) -> Path:
        return self.run / "claims"

    @property
    def source(self) -> Path:
        return (self.scratch or self.root) / "source"

    @property
    def old(self) -> Path:
        return self.root / "old"

    @property
    def lock(self) -> Path:
        return self.hidden / "convert.lock"

    @property
    def workers_lock(self) -> Path:
        return self.hidden / "workers.lock"

    @property
    def identity(self) -> Path:
        return self.root / "identity.json"

    @property
    def complete(self) -> Path:
        return self.root / "complete.json"

    @property
    def publishing(self) -> Path:
        return self.root / "publishing.json"

    @property
    def marker(self) -> Path:
        return self.root / "marker.json"

    def start(self, identity: Mapping[str, Any], *, overwrite: bool, planned: Sequence[ReadRecord] = ()) -> None:
        """Begin a new journal; whatever an earlier, other run left is gone first.

        `planned`: the files that the plan was made from.
        """
        self.discard()
        for folder in (self.parts, self.stage, self.collisions):
            folder.mkdir(parents=True, exist_ok=True)
        self.write_identity(identity, overwrite=overwrite, planned=planned)

    def write_identity(self, identity: Mapping[str, Any], *, overwrite: bool, planned: Sequence[ReadRecord]) -> None:
        """Say what is being written, and from which files it was planned."""
        begun = Begun(dict(identity), overwrite, FORMAT, tuple(planned))
        write_json(self.identity, msgspec.to_builtins(begun))

    def begun(self, path: Path) -> Begun | None:
        """What `self.identity` or `self.complete` says; None if absent, or cut short.

        Raises:
            UserError: it says what phi3v never writes.
        """
        try:
            return _decode_begun(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (msgspec.ValidationError, RecursionError) as error:
            raise self._foreign(path, error) from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None

    def _foreign(self, path: Path, error: Exception) -> UserError:
        return UserError(
            f"{path}: is not what phi3v writes ({error}); nothing was changed: remove {self.root} if it came with the "
            "directory from elsewhere"
        )

    def discard(self) -> None:
        """Remove the journal of an unfinished run: its identity first, so that no half of it is ever resumed."""
        self.identity.unlink(missing_ok=True)
        for folder in (self.parts, self.stage, self.collisions):
            remove_tree(folder)

    def receipt_path(self, part: int) -> Path:
        return self.parts / f"{part:06d}.json"

    def write_receipt(self, part: int, receipt: Receipt, scratch: Path) -> None:
        """Make a part count as done."""
        scratch.write_bytes(msgspec.json.encode(receipt))
        os.replace(scratch, self.receipt_path(part))

    def check(self) -> None:
        """Refuse a journal in which anything is a link, or that says what phi3v never writes; nothing is changed.

        Raises:
            UserError: what is wrong, and where.
        """
        for name in ("run", "source", "old"):
            self._refuse_link("convert", name)
        for path in (self.identity, self.complete, self.publishing, self.marker):
            self._refuse_link("convert", path.name)
            if path.exists() and not path.is_file():
                raise UserError(f"{path}: is not a file that phi3v made; nothing was changed: remove it")
        self._refuse_link(self.lock.name)
        self._refuse_link(self.workers_lock.name)
        for name in ("parts", "collisions", "stage"):
            for entry in _entries(self._refuse_link("convert", name), nested=name == "stage"):
                if not entry.is_file(follow_symlinks=False) and os.path.lexists(entry.path):
                    raise UserError(f"{entry.path}: is not a file that phi3v made; nothing was changed: remove it")
        for path in (self.identity, self.complete):
            self.begun(path)

    def _refuse_link(self, *names: str) -> Path:
        path = hidden_path(self.out_dir, *names)
        if path is None:
            where = "/".join((HIDDEN, *names))
            raise UserError(
                f"{self.out_dir}: {where} is a link or behind one, and nothing there is followed through a link; "
                "remove it"
            )
        return path

    def read_receipt(self, part: int) -> Receipt | None:
        """The receipt of a finished part; None if the part is not done.

        Raises:
            UserError: it says what phi3v never writes, such as a name that leads out of `images/`.
        """
        path = self.receipt_path(part)
        try:
            return _decode_receipt(path.read_bytes())
        except FileNotFoundError:
            return None
        except (msgspec.ValidationError, RecursionError) as error:
            raise self._foreign(path, error) from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None

    def receipts(self, num_parts: int) -> Iterator[Receipt]:
        """All receipts in the order of numbering."""
        for part in range(num_parts):
            receipt = self.read_receipt(part)
            if receipt is None:
                raise UserError(
                    f"{self.receipt_path(part)} vanished or was damaged during the run; run the same command again"
                )
            yield receipt

    def receipts_there(self) -> Iterator[Receipt]:
        """The receipts of whatever parts are done, in order."""
        for path in sorted(self.parts.glob("*.json")):
            receipt = self.read_receipt(int(path.stem)) if path.stem.isdecimal() else None
            if receipt is not None:
                yield receipt

    def has_receipts(self) -> bool:
        """Whether at least one part is done."""
        try:
            with os.scandir(self.parts) as entries:
                return any(entry.name.endswith(".json") for entry in entries)
        except FileNotFoundError:
            return False


def _entries(folder: Path, *, nested: bool) -> Iterator["os.DirEntry[str]"]:
    """What is in a folder; with `nested`, what is in its folders instead of these."""
    folders: list[str | Path] = [folder]
    while folders:
        try:
            with os.scandir(folders.pop()) as listing:
                for entry in listing:
                    if nested and entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        yield entry
        except FileNotFoundError:
            continue


def remove_tree(path: Path) -> None:
    """Remove a folder of ours; one that is not there is fine."""
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


_IN_WORDS = {"converter_file": "the converter's own file"}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two identities, in words: `options.quality 90 -> 95`."""
    result = []
    for key in [*old, *(key for key in new if key not in old)]:
        before, after = old.get(key), new.get(key)
        if before == after:
            continue
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            result += differences(before, after, f"{prefix}{key}.")
        elif key in _IN_WORDS:
            result.append(_IN_WORDS[key])
        else:
            result.append(f"{prefix}{key} {_short(before)} -> {_short(after)}")
    return result


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def join_words(words: Sequence[str], limit: int = 6) -> str:
    """`a, b and 3 more`."""
    shown = list(words[:limit])
    if len(words) > limit:
        return f"{', '.join(shown)} and {len(words) - limit} more"
    return ", ".join(shown)
