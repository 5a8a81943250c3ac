"""Writes a new set: staged in the hidden folder of its directory, then published like a conversion.

A killed run leaves either only its stage, which the next run starts over, or a publication that the next run
completes; `dataset.json` comes last.
"""

import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from phi3v_data.choices import ImageMode
from phi3v_data.errors import UserError
from phi3v_data.files import inside, unreadable, write_text
from phi3v_data.media.formats import UnreadableImageError
from phi3v_data.media.images import read_image_file
from phi3v_data.media.packed import pack_above
from phi3v_data.messages import counted, join_words, shown
from phi3v_data.mounts import NO_HARD_LINKS
from phi3v_data.remote.address import refuse_address
from phi3v_data.schema import Manifest, SplitInfo
from phi3v_data.splits import file_name, split_sort_key
from phi3v_data.unfinished import MANIFEST
from phi3v_data.writing.differences import differences
from phi3v_data.writing.output import Output, check_free, open_output
from phi3v_data.writing.publish import SplitFile, publish
from phi3v_data.writing.request import StoreName

if TYPE_CHECKING:
    from phi3v_data.media.store_writer import StoreWriter


@dataclass(frozen=True, slots=True)
class SetResult:
    """Result of a command that writes a set; `notes` are messages for the user."""

    out_dir: Path
    manifest: Manifest
    already_complete: bool = False
    notes: tuple[str, ...] = ()

    @property
    def samples(self) -> int:
        """Rows of the new set."""
        return sum(split.rows for split in self.manifest.splits.values())


@dataclass
class Stage:
    """The staging folder of a new set; `name` is the NAME of its files, `images` says how image files are made."""

    root: Path
    name: str
    images: ImageMode
    store: StoreName = "files"
    notes: list[str] = field(default_factory=list)
    num_linked: int = 0
    num_copied: int = 0
    _num_unpacked: int = 0
    _splits: dict[str, SplitFile] = field(default_factory=dict)
    _folders: set[str] = field(default_factory=set)
    _shards: "StoreWriter | None" = None

    def write(self, split: str, line: bytes, images: Iterable[str]) -> None:
        """Add a row to a split, given as a line without line end."""
        if split not in self._splits:
            name = file_name(self.name, split)
            self._splits[split] = SplitFile(name, inside(self.root, name).open("wb"))
        self._splits[split].write(line + b"\n", images)

    def write_file(self, name: str, content: bytes) -> None:
        """Add a file next to the splits, unless it would be empty."""
        if content:
            inside(self.root, name).write_bytes(content)

    def place(self, source: str, name: str) -> None:
        """Link or copy an image to `images/name`, or into a shard; it is copied if links are not possible."""
        if self.store == "shards":
            self._add(name, read_whole(source))
        elif link_or_copy(source, self._target(name), link=self.images == ImageMode.link):
            self.num_linked += 1
        else:
            self.num_copied += 1
            self._num_unpacked += pack_above(Path(source)) is not None

    def place_bytes(self, content: bytes, name: str) -> None:
        """Write a new image under `images/name`, or into a shard."""
        if self.store == "shards":
            self._add(name, content)
            return
        with open(self._target(name), "wb") as file:
            file.write(content)

    def close(self) -> None:
        """Close all files."""
        for split in self._splits.values():
            split.file.close()
        if self._shards is not None:
            self._shards.close()

    def splits(self, is_labelled: Callable[[str], bool]) -> dict[str, SplitInfo]:
        """Close the files and return the manifest's record of each split, in order."""
        for split in self._splits.values():
            split.file.close()
        return {
            split: self._splits[split].info(labelled=is_labelled(split))
            for split in sorted(self._splits, key=split_sort_key)
        }

    @property
    def format(self) -> Literal[1, 2]:
        """The oldest format that can hold the rows and the images."""
        if self._shards is not None:
            return 2
        return max((split.format for split in self._splits.values()), default=1)

    def note_images(self) -> None:
        """Add a note if images had to be copied although links were requested."""
        if self.images == ImageMode.link and self.num_copied:
            self.notes.append(
                f"{self.num_copied:,} of {counted(self.num_linked + self.num_copied, 'image')} copied, because they "
                "cannot be linked (another disk, files of another owner, or images inside shards)"
                + ("; --store shards keeps them in shards" if self._num_unpacked else "")
            )

    def finish_images(self) -> None:
        """Complete the shards, if there are any. Raises OSError."""
        if self._shards is not None:
            self._shards.finish()

    def _add(self, name: str, content: bytes) -> None:
        from phi3v_data.media.pack_names import name_reason
        from phi3v_data.media.store_writer import StoreWriter

        if reason := name_reason(name):
            raise UserError(
                f"the image {shown(name, 100)} cannot be stored in a shard, as its name {reason}; rename it, or leave "
                "out --store shards"
            )
        if self._shards is None:
            self._shards = StoreWriter(self.root)
        self._shards.add(name, content)

    def _target(self, name: str) -> str:
        target = f"{self.root}/images/{name}"
        folder, _, last = target.rpartition("/")
        if last in ("", ".", ".."):
            raise UserError(f"the image {shown(name, 100)} has a name that leads out of its folder; rename it")
        if folder not in self._folders:
            if folder != f"{self.root}/images":
                inside(self.root / "images", name.rpartition("/")[0])
            os.makedirs(folder, exist_ok=True)
            self._folders.add(folder)
        return target


def read_whole(source: str | Path) -> bytes:
    """The bytes of an image that is copied, whatever they are.

    Raises:
        UserError: they cannot be read.
    """
    try:
        return read_image_file(source)
    except OSError as error:
        raise unreadable(Path(source), error) from None
    except UnreadableImageError as error:
        raise UserError(f"{source}: {error}") from None


COPYING = ".phi3v-copy-"
"""Start of the name of an image that is being copied, and stays if the process is killed."""


def link_or_copy(source: str | Path, target: str, *, link: bool) -> bool:
    """Hard-link an image, or the file that a link leads to; copy it if that is not possible. True if it was linked.

    Raises:
        UserError: it is in a shard that cannot be read.
        OSError: it cannot be read or written.
        FileExistsError: with `link`, there is a file at `target`.
    """
    aside = os.path.join(os.path.dirname(target), f"{COPYING}{uuid.uuid4().hex}")
    if pack_above(Path(source)) is not None:
        Path(aside).write_bytes(read_whole(source))
        os.replace(aside, target)
        return False
    if link:
        try:
            os.link(os.path.realpath(source) if os.path.islink(source) else source, target)
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
        else:
            return True
    shutil.copyfile(source, aside)
    with suppress(OSError):  # SMB and exFAT do not store modes
        shutil.copystat(source, aside)
    os.replace(aside, target)
    return False


def make_set(
    out_dir: Path,
    identity: Mapping[str, Any],
    build: Callable[[Stage], Manifest],
    *,
    name: str,
    images: ImageMode = ImageMode.link,
    store: StoreName = "files",
    overwrite: bool = False,
) -> SetResult:
    """Write a set to `out_dir`: `build` fills the stage and returns the manifest.

    Raises:
        UserError: the directory contains something else, or another process is writing to it.
    """
    if store != "files":
        identity = {**identity, "store": store}
    with open_output(out_dir, overwrite=overwrite) as output:
        known = _finished_before(output, identity, overwrite)
        if known is not None:
            return SetResult(out_dir, known, already_complete=True)
        output.journal.start(identity, overwrite=overwrite)
        stage = Stage(output.journal.stage, name, images, store)
        try:
            manifest = build(stage)
            stage.finish_images()
        finally:
            stage.close()
        stage.note_images()
        write_text(stage.root / MANIFEST, manifest.to_json())
        for path in sorted(stage.root.iterdir()):
            if path.name != MANIFEST:
                check_free(output, path.name)
        publish(output.journal, output.owned)
        return SetResult(out_dir, manifest, notes=tuple(stage.notes))


def _finished_before(output: Output, identity: Mapping[str, Any], overwrite: bool) -> Manifest | None:
    saved = output.journal.begun(output.journal.complete)
    if overwrite or output.manifest is None or saved is None:
        return None
    if changed := differences(saved.identity, identity):
        raise UserError(
            f"{output.journal.out_dir} was written from other input or with other settings: {join_words(changed)}; "
            "--overwrite replaces it, or choose another folder"
        )
    return output.manifest


def check_places(out_dir: Path, sources: Sequence[Path]) -> Path:
    """The absolute path of OUT, which must not be inside a source or contain one.

    Raises:
        UserError: one contains the other.
    """
    refuse_address(out_dir, "OUT")
    target = out_dir.expanduser().resolve()
    for source in sources:
        other = source.expanduser().resolve()
        if target.is_relative_to(other) or other.is_relative_to(target):
            raise UserError(f"OUT {out_dir} and {source} must not be inside each other; choose another folder for OUT")
    return Path(os.path.abspath(out_dir.expanduser()))
