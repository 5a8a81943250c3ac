"""Images of an export: linked or copied beside the rows, written into them, or named by an address."""

import os
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from phi3v_data.choices import ImageMode, ImageRefs
from phi3v_data.dataset import Dataset
from phi3v_data.errors import UserError
from phi3v_data.files import unreadable
from phi3v_data.media.formats import UnreadableImageError
from phi3v_data.media.images import file_size, identify_readable, read_image_file
from phi3v_data.sets.writing import COPYING, link_or_copy

T = TypeVar("T")

REMEMBERED = 50_000
"""Images of which a process remembers the size and format, or that they are placed: consecutive rows
often have the same."""

MEDIA_TYPES = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
    "PPM": "image/x-portable-anymap",
    "AVIF": "image/avif",
}


@dataclass
class Images:
    """The images of a directory, as one process gives them to rows."""

    dataset: Dataset
    _folders: set[str] = field(default_factory=set)
    _paths: dict[str, Path] = field(default_factory=dict)
    _sizes: dict[str, int] = field(default_factory=dict)
    _kinds: dict[str, str] = field(default_factory=dict)
    _placed: dict[str, None] = field(default_factory=dict)

    def path(self, name: str) -> Path:
        """The path of an image file.

        Raises:
            UserError: its name leads out of the folder of images.
        """
        path = self._paths.get(name)
        if path is None:
            path = self.dataset.image_path(name)
            _remember(self._paths, name, path)
        return path

    def size(self, name: str) -> int:
        """Bytes of an image file.

        Raises:
            UserError: there is no such file, or it is not a regular one.
        """
        size = self._sizes.get(name)
        if size is None:
            path = self.path(name)
            try:
                size = file_size(path)
            except OSError as error:
                raise unreadable(path, error) from None
            _remember(self._sizes, name, size)
        return size

    def read(self, name: str) -> bytes:
        """The bytes of an image, as they are in its file.

        Raises:
            UserError: it cannot be read, or is not an image in a supported format.
        """
        with self._named(name) as path:
            data = read_image_file(path)
            identify_readable(data)
            return data

    def kind(self, name: str) -> str:
        """Format of an image by its content: a key of `MEDIA_TYPES`."""
        kind = self._kinds.get(name)
        if kind is None:
            with self._named(name) as path:
                kind = identify_readable(read_image_file(path, head=True))
            _remember(self._kinds, name, kind)
        return kind

    @contextmanager
    def _named(self, name: str) -> Iterator[Path]:
        """Yield the path of an image; what is wrong with it in the block becomes a UserError that names it."""
        path = self.path(name)
        try:
            yield path
        except UnreadableImageError as error:
            raise UserError(
                f"{path}: {error}; `phi3v-data validate {self.dataset.directory}` lists all such images"
            ) from None
        except OSError as error:
            raise unreadable(path, error) from None

    def data_url(self, name: str) -> str:
        """The image as a data URL."""
        data = self.read(name)
        return f"data:{MEDIA_TYPES[identify_readable(data)]};base64,{b64encode(data).decode('ascii')}"

    def place(self, name: str, folder: Path, mode: ImageMode) -> bool:
        """Link or copy an image to `folder/name`; False if it is there already.

        Raises:
            UserError: it cannot be read.
        """
        target = f"{folder}/{name}"
        if target in self._placed:
            return False
        _remember(self._placed, target, None)
        source = self.dataset.image_path(name)
        where = target.rpartition("/")[0]
        if where not in self._folders:
            os.makedirs(where, exist_ok=True)
            self._folders.add(where)
        if os.path.exists(target):
            return False
        try:
            link_or_copy(source, target, link=mode == ImageMode.link)
        except FileExistsError:  # another process was first
            return False
        except OSError as error:
            if error.filename is not None and os.fspath(error.filename) == os.fspath(source):
                raise unreadable(source, error) from None
            raise
        return True

    def reference(self, name: str, refs: ImageRefs, url_prefix: str) -> str:
        """The reference of an image in a row."""
        if refs == ImageRefs.data:
            return self.data_url(name)
        if refs == ImageRefs.url:
            return url_prefix + (quote(name) if "://" in url_prefix else name)
        return f"images/{name}"


def count_placed(folder: Path) -> int:
    """Images that `place` put in a folder; what a killed process left unfinished there is removed."""
    count, folders = 0, [os.fspath(folder)]
    while folders:
        try:
            entries = list(os.scandir(folders.pop()))
        except FileNotFoundError:  # no row has an image
            continue
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.path)
            elif entry.name.startswith(COPYING):
                os.unlink(entry.path)
            else:
                count += 1
    return count


def _remember(known: dict[str, T], name: str, value: T) -> None:
    """Keep a value; a full memory is emptied, so that it does not grow with the set."""
    if len(known) >= REMEMBERED:
        known.clear()
    known[name] = value
