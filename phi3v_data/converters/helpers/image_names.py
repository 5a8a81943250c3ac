"""Finds the image that an annotation names, even in another folder or with another spelling."""

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from phi3v_data.errors import Reject
from phi3v_data.media.formats import HEIC, UnreadableImageError, identify
from phi3v_data.media.images import read_image_file
from phi3v_data.messages import shown
from phi3v_data.sources.source import SourceFile
from phi3v_data.suffixes import SOURCE_IMAGE_SUFFIXES, STORED_IMAGES

SUFFIX_FIXED = "image-suffix-mended"
"""Note: an image is stored with the extension of its format instead of the one in the source."""


class ImageFiles:
    """The images of a source by path, by name, and by name without letter case and extension."""

    def __init__(self, files: Iterable[SourceFile]) -> None:
        self._by_path: dict[str, SourceFile] = {}
        self._by_name: dict[str, list[SourceFile]] = {}
        self._by_stem: dict[str, list[SourceFile]] = {}
        for file in files:
            name = file.path.rpartition("/")[2]
            self._by_path[file.path] = file
            self._by_name.setdefault(name, []).append(file)
            self._by_stem.setdefault(_stem(name), []).append(file)

    def find(self, reference: str, folder: str = "") -> SourceFile:
        """Find the image named `reference` in an annotation file in `folder`.

        Tried in this order: the path below `folder`, the path from the root, the file name anywhere, the name without
        letter case and extension.

        Raises:
            Reject: `image-missing`, or `image-ambiguous` if several files match equally well.
        """
        parts = [part for part in reference.replace("\\", "/").split("/") if part not in ("", ".")]
        if not parts or ".." in parts:
            raise Reject("image-missing", f"{shown(reference)} is not an image")
        path, name = "/".join(parts), parts[-1]
        for wanted in (f"{folder}/{path}" if folder else path, path):
            if wanted in self._by_path:
                return self._by_path[wanted]
        found = self._by_name.get(name) or self._by_stem.get(_stem(name)) or []
        if len(found) > 1:
            found = [file for file in found if file.path.endswith(f"/{path}")] or found
        if len(found) > 1 and folder:
            found = [file for file in found if file.path.startswith(f"{folder}/")] or found
        if not found:
            raise Reject("image-missing", f"the source has no image {shown(path)}")
        if len(found) > 1:
            raise Reject("image-ambiguous", f"{shown(path)} could be '{found[0].where}' or '{found[1].where}'")
        return found[0]


def stored_format(head: bytes) -> str:
    """Pillow's name of the format in which an image with this `head` is stored; empty if it is not an image."""
    try:
        kind = identify(head)
    except UnreadableImageError:
        return ""
    return "JPEG" if kind == HEIC else kind


def stored_name(name: str, file: str | Path) -> tuple[str, tuple[str, ...]]:
    """`name` with the extension of the stored format, and notes about the change."""
    try:
        head = read_image_file(file, head=True)
    except (OSError, UnreadableImageError):
        return name, ()  # the writer reports the problem
    suffixes = STORED_IMAGES.get(stored_format(head), ())
    path = PurePosixPath(name)
    if not suffixes or path.suffix.lower() in suffixes:
        return name, ()
    stem = path.stem if path.suffix.lower() in SOURCE_IMAGE_SUFFIXES else path.name
    return str(path.with_name(f"{stem}{suffixes[0]}")), (SUFFIX_FIXED,)


def _stem(name: str) -> str:
    stem, dot, ending = name.rpartition(".")
    return (stem if dot and f".{ending.lower()}" in SOURCE_IMAGE_SUFFIXES else name).lower()
