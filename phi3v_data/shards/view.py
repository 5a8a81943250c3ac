"""A parquet or WebDataset export as a conversations directory, without a copy of its images.

    data_directory("EXPORT")   ->   EXPORT/.phi3v/view/DIGEST/    train-00000-of-00002.jsonl, ..., images, dataset.json

The view has the rows of each shard in a JSONL file of the same number, and in place of the folder `images/` an index of
the images inside the shards (`phi3v_data.media.packed`). Whatever reads a directory reads a view. It is made once, and
named after the state of every shard (size, times, inode), so that a view of other shards is never used, nor one that
came along with a copied export. Where the export cannot be written to, or is in a store (`s3://BUCKET/PREFIX`), the
view is in the user's cache; of an object, size and etag are its state.

An export is a folder with shards in it or in `data/`; `phi3v.json` beside them, if any, gives what `dataset.json` gives
of a directory.
"""

import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import msgspec

from phi3v_data.dataset import Dataset, list_directory, parse_manifest
from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.files import HIDDEN, MAX_JSON, hidden_path, read_regular
from phi3v_data.media.export_pack import Kind, PackedImage, write_pack
from phi3v_data.media.pack import RepeatedNameError, ShardState
from phi3v_data.messages import shown
from phi3v_data.remote.address import is_remote, parse_address, spelled
from phi3v_data.remote.cache_folders import VIEWS, cache_home, held, hold, make_private, remove_old, remove_unused
from phi3v_data.schema import Manifest, SplitInfo
from phi3v_data.shards.files import LocalShard, ShardFile
from phi3v_data.shards.parquet import IMAGES, read_parquet
from phi3v_data.shards.plain import plain_line
from phi3v_data.shards.remote import RemoteFolder, list_folder
from phi3v_data.shards.rows import BadRowError, ShardReader, line_of
from phi3v_data.shards.tar import read_tar
from phi3v_data.splits import (
    MAX_NAME_BYTES,
    NOT_SPLITS,
    canonical_split,
    file_name,
    is_split_name,
    lone_split,
    shard_faults,
    split_sort_key,
)
from phi3v_data.unfinished import MANIFEST

MANIFEST_OF_EXPORT = "phi3v.json"
VIEW_FORMAT = 3

_SIZES = "sizes.json"
"""In the hidden folder of a view: the bytes of each of its files, so that one that was cut is noticed."""

_KEPT_SECONDS = 86400.0
"""How long a view of another state of the shards is kept after its last use: it may be of the same shards under another
path, or of another version of phi3v."""

_READERS: Mapping[Kind, ShardReader] = {"tar": read_tar, "parquet": read_parquet}
_NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
"""Errors of one folder after which the next one is tried."""

_NUMBER = re.compile(r"[-_.]?\d+([-_]of[-_]\d+)?$")


@dataclass(frozen=True, slots=True)
class Export:
    """A folder of shards: their kind, and the paths of each split's shards relative to it, in order.

    `remote` has the objects if the folder is in a store.
    """

    root: Path
    kind: Kind
    splits: Mapping[str, Sequence[str]]
    remote: RemoteFolder | None = None

    def __str__(self) -> str:
        return str(self.remote or self.root)

    @property
    def shards(self) -> list[str]:
        """All shards, split by split."""
        return [shard for shards in self.splits.values() for shard in shards]

    def file(self, name: str) -> ShardFile:
        """One of its shards."""
        return self.remote.file(name) if self.remote else LocalShard(self.root / name)


def data_directory(path: str | Path) -> Path:
    """The conversations directory of a path: the path itself, or the view of an export, made if there is none yet.

    Raises:
        NotFoundError: no such directory.
        UserError: the export cannot be read, a shard is missing, or a row is not a sample; the message names shard and
            row.
    """
    export = find_export(Path(path))
    if export is None:
        return Path(path)
    if faults := shard_faults(export.shards):
        raise UserError(f"{export}: {faults[0]}; copy the shards again, or take what is there with `phi3v-data import`")
    digest = _digest(export)
    obstacle = ""
    for folder, is_cache in _folders(export):
        try:
            if is_cache:
                hold(folder)
            hold(folder / digest)
            if _is_whole(folder / digest):
                return folder / digest
            make_private(folder) if is_cache else folder.mkdir(parents=True, exist_ok=True)
            made = _make(export, folder, digest, is_cache=is_cache)
            if is_cache:
                remove_old(folder.parent)
                hold(folder)
            hold(made)
            return made
        except OSError as error:
            if error.errno not in _NO_PLACE:
                raise UserError(f"{folder}: the view of {export} cannot be written: {error.strerror}") from None
            obstacle = f"{folder}: {error.strerror}"
    raise UserError(
        f"{export}: no place for the view: {obstacle}; set XDG_CACHE_HOME to a folder that can be written and has room"
    )


def open_dataset(path: str | Path) -> Dataset:
    """The rows and images of a conversations directory, or of an export: a folder or address with shards.

    Raises:
        NotFoundError: no such directory, or no rows in it.
        UserError: it cannot be read, as for `data_directory` and `Dataset`.
    """
    return Dataset(data_directory(path))


def find_export(path: Path) -> Export | None:
    """The shards in a folder, or in its `data/`; None if it is a conversations directory or has no shards.

    Raises:
        UserError: it has both tar and parquet files, or is an address without shards.
    """
    if is_remote(path):
        return _find_remote(path)
    if not path.is_dir():
        return None
    names = list_directory(path)
    if MANIFEST in names or any(name.endswith(".jsonl") and name not in NOT_SPLITS for name in names):
        return None
    for folder in (path, path / "data"):
        found = (
            {
                kind: sorted(
                    name for name in os.listdir(folder) if name.endswith(f".{kind}") and not name.startswith(".")
                )
                for kind in _READERS
            }
            if folder.is_dir()
            else {}
        )
        kinds = [kind for kind, shards in found.items() if shards]
        if len(kinds) > 1:
            raise UserError(f"{folder} has both .tar and .parquet files; give a folder with shards of one kind")
        if kinds:
            prefix = "" if folder == path else "data/"
            return Export(path, kinds[0], shards_by_split([prefix + name for name in found[kinds[0]]]))
    return None


def _find_remote(path: Path) -> Export:
    """The shards below an address. Raises UserError."""
    remote = list_folder(parse_address(path), tuple(_READERS))
    for prefix in ("", "data/"):
        found = {
            kind: [name for name in remote.shards if re.fullmatch(rf"{prefix}[^/.][^/]*\.{kind}", name)]
            for kind in _READERS
        }
        kinds = [kind for kind, shards in found.items() if shards]
        if len(kinds) > 1:
            raise UserError(
                f"{remote}/{prefix} has both .tar and .parquet files; give a folder with shards of one kind"
            )
        if kinds:
            return Export(path, kinds[0], shards_by_split(sorted(found[kinds[0]])), remote)
    raise NotFoundError(
        f"{remote}: no shards (.tar, .parquet) there or in its data/; `phi3v-data export webdataset DIR --out "
        f"{remote}` writes some"
    )


def shards_by_split(shards: Sequence[str]) -> dict[str, list[str]]:
    """Shards by the split that their names give.

    Raises:
        UserError: a name gives none.
    """
    found: dict[str, list[str]] = {}
    for shard in shards:
        found.setdefault(_NUMBER.sub("", Path(shard).stem) or "train", []).append(shard)
    if len(found) == 1:
        found = {lone_split(name): value for name, value in found.items()}
    names = {name: canonical_split(name) for name in found}
    for given, name in names.items():
        if given != name and name in found:
            raise UserError(f"shards of {shown(given)} and of {shown(name)}, which are one split; keep or rename one")
        if not is_split_name(name):
            raise UserError(f"{shown(name)} cannot be the name of a split; name the shards SPLIT-00000-of-00001")
    return {names[name]: found[name] for name in sorted(found, key=lambda name: split_sort_key(names[name]))}


def _folders(export: Export) -> Iterator[tuple[Path, bool]]:
    """Where a view may be, beside the shards, else in the user's cache, and whether it is the cache."""
    if export.remote is None and (beside := hidden_path(export.root, VIEWS)) is not None:
        yield beside, False
    yield cache_home() / VIEWS / sha256(os.fsencode(_place(export))).hexdigest()[:16], True


def _place(export: Export) -> str:
    """The absolute path or the address of an export."""
    return str(export.remote) if export.remote else os.path.abspath(export.root)


def _digest(export: Export) -> str:
    """Digest of the state of every shard and of the version that reads them."""
    hasher = sha256(f"{VIEW_FORMAT} {version('phi3v')} {_place(export)}".encode())
    for name in export.shards:
        hasher.update(f"{name}\0{export.file(name).state}\0".encode())
    if (state := _state_of_manifest(export)) is not None:
        hasher.update(f"{MANIFEST_OF_EXPORT}\0{state}\0".encode())
    return hasher.hexdigest()[:16]


def _state_of_manifest(export: Export) -> ShardState | None:
    if export.remote is not None:
        return export.remote.file(MANIFEST_OF_EXPORT).state if export.remote.has(MANIFEST_OF_EXPORT) else None
    try:
        return LocalShard(export.root / MANIFEST_OF_EXPORT).state
    except NotFoundError:
        return None


def _is_whole(view: Path) -> bool:
    """Whether a view has all its files as they were written: whatever cleans caches may have taken one."""
    try:
        sizes = msgspec.json.decode(read_regular(view / HIDDEN / _SIZES), type=dict[str, int])
        return MANIFEST in sizes and all(_size(view / name) == size for name, size in sizes.items())
    except (OSError, UserError, msgspec.MsgspecError, UnicodeDecodeError):
        return False


def _size(path: Path) -> int:
    """Bytes of a regular file, -1 for anything else. Raises OSError."""
    found = os.lstat(path)
    return found.st_size if stat.S_ISREG(found.st_mode) else -1


def _make(export: Export, folder: Path, digest: str, *, is_cache: bool) -> Path:
    """Make the view aside, then rename it; another process may have been faster."""
    for old in folder.iterdir():  # of shards that have changed since, or left by a killed process
        if old.name != digest:
            remove_unused(old, 60.0 if "." in old.name else _KEPT_SECONDS)  # another process may be about to lock it
    aside = Path(tempfile.mkdtemp(prefix=f"{digest}.", dir=folder))
    try:
        with held(aside):
            (aside / HIDDEN).mkdir()
            if not is_cache:  # others may read the export, too
                aside.chmod(stat.S_IMODE((aside / HIDDEN).stat().st_mode))
            _write(export, aside)
            sizes = {entry.name: entry.stat().st_size for entry in os.scandir(aside) if entry.is_file()}
            (aside / HIDDEN / _SIZES).write_bytes(msgspec.json.encode(sizes))
            if _digest(export) != digest:
                raise UserError(f"{export}: a shard was changed while it was read; run the command again")
            try:
                os.rename(aside, folder / digest)
            except OSError:
                if not (folder / digest).is_dir():
                    raise
                if not _is_whole(folder / digest):
                    shutil.rmtree(folder / digest)
                    os.rename(aside, folder / digest)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder / digest


def _write(export: Export, view: Path) -> None:
    given = manifest_of(export)
    name = given.name if given and given.name else name_of_export(export)
    splits: dict[str, SplitInfo] = {}
    formats: set[int] = {1}  # of the rows

    def rows_written() -> Iterator[PackedImage]:
        """Write the rows of all shards; their images are yielded, as they may be millions."""
        numbers = {shard: number for number, shard in enumerate(export.shards)}
        for split, shards in export.splits.items():
            files: dict[str, str] = {}
            rows = num_images = 0
            for index, shard in enumerate(shards):
                file = file_name("", split, index, len(shards)) if len(shards) > 1 else file_name("", split)
                hasher = sha256()
                with open(view / file, "wb") as out:
                    stem = re.sub(r"\.(tar|parquet)$", "", shard)
                    for row in _READERS[export.kind](export.file(shard), numbers[shard], stem):
                        number = f"{split}-{rows:010d}"
                        line, used, row_format = plain_line(row, name, number) or line_of(row, name, number)
                        if row.images and not used:
                            raise BadRowError(row.where, "the row names none of the images that come with it")
                        hasher.update(line)
                        out.write(line)
                        formats.add(row_format)
                        rows += 1
                        num_images += len(used)
                        yield from used
                    out.flush()
                    os.fsync(out.fileno())
                files[file] = f"sha256:{hasher.hexdigest()}"
            labelled = given.splits[split].labelled if given and split in given.splits else True
            splits[split] = SplitInfo(rows=rows, images=num_images, files=files, labelled=labelled)

    remote = export.remote.states_of(export.shards) if export.remote else None
    try:
        write_pack(view / IMAGES, export.kind, export.root, export.shards, rows_written(), column=IMAGES, remote=remote)
    except BadRowError as error:
        raise UserError(
            f"{export}: {error}; correct the export, or import it with `phi3v-data import`, which lists such rows"
        ) from None
    except RepeatedNameError as error:
        raise UserError(f"{export}: two images have the name {shown(str(error))}; give each its own") from None
    manifest = given or Manifest(name=name, task="chat", splits={})
    manifest = manifest.model_copy(update={"format": max(formats), "name": name, "splits": splits})
    (view / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")


def manifest_of(export: Export) -> Manifest | None:
    """Manifest of an export (name, task, license of its set); None if it has none.

    Raises:
        UserError: that file cannot be read.
    """
    path = export.root / MANIFEST_OF_EXPORT
    if export.remote is not None:
        if not export.remote.has(MANIFEST_OF_EXPORT):
            return None
        text = export.remote.read(MANIFEST_OF_EXPORT, MAX_JSON)
        if text is None:
            raise UserError(f"{spelled(path)}: is over the limit of {MAX_JSON:,} bytes")
        return parse_manifest(text, path)
    try:
        return parse_manifest(read_regular(path), path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def name_of_export(export: Export | Path) -> str:
    """Name of a set from that of its folder."""
    if isinstance(export, Export):
        folder = export.remote.address.name if export.remote else export.root.resolve().name
    else:
        folder = export.resolve().name
    name = re.sub(r"[^A-Za-z0-9_-]+", "_", folder).strip("_")[:MAX_NAME_BYTES] or "export"
    return name if is_split_name(name) else "export"
