"""Loads the images of a foreign row: paths below a folder, data URLs, base64, bytes, and URLs if that is allowed."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

from phi3v_data.converters.helpers.cell_images import cell_image, is_inline
from phi3v_data.draft import DraftImage
from phi3v_data.errors import Reject
from phi3v_data.formats.chat import ImageRef
from phi3v_data.messages import shown, shown_path
from phi3v_data.near_names import near_name
from phi3v_data.remote.address import is_remote, spelled
from phi3v_data.sources.bucket import is_lone_copy

_URL = ("http://", "https://")
_FILE_URL = "file://"

FOLDER_OF_BOTH = "give the folder that has data and images, with --data FILE"
OUTSIDE_HINT = f"as SRC, {FOLDER_OF_BOTH}; --images_root will do for absolute paths"
"""How images are reached that are not below the folder of the data file."""


@dataclass(frozen=True, slots=True)
class ImagePlaces:
    """Where the images of a row are looked for.

    Attributes:
        root: absolute folder, or address, that no path leads out of.
        folder: folder below it that paths are relative to; the root itself is tried next.
        files: other locations of some paths, such as in an unpacked archive.
        downloads: folder for downloads.
        fetch: whether URLs are fetched.
    """

    root: str
    folder: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    downloads: Path = Path()
    fetch: bool = False

    def load(self, ref: ImageRef, where: str) -> tuple[DraftImage, tuple[str, ...]]:
        """The image of a reference, its bytes unchanged, and notes on how it is stored.

        Raises:
            Reject: `image-missing`, `image-path-unsafe`, `image-unreadable`, `image-too-large`.
        """
        what = f"{where}, {ref.field}" if ref.field else where
        value = ref.value
        if isinstance(value, bytes):
            return DraftImage(value, where=what), ()
        if value.lower().startswith(_URL):
            if not self.fetch:
                raise Reject("image-missing", f"{what}: the image is a URL; import with --fetch, or download it first")
            from phi3v_data.formats.fetch import fetch_image  # with TLS, which few imports need

            return DraftImage(fetch_image(value, what, self.downloads), where=what), ()
        if is_inline(value):
            return cell_image(value, what, ())
        path = self.relative(value)
        if is_remote(path):
            said = f"{what}: {shown(value, 160)} is an object of a store; only those below --images_root are read"
            raise Reject("image-missing", f"{said}: give an address there")
        places = (f"{self.folder}/{path}", path) if self.folder and not path.startswith("/") else (path,)
        inside = dict.fromkeys(
            straightened(place) for place in places if not self.root or not leads_out(self.root, place)
        )
        if not inside:
            said = f"{what}: {shown(value, 160)} leads out of {shown_path(self.root)}"
            raise Reject("image-path-unsafe", f"{said}, the folder of images; {OUTSIDE_HINT}")
        missing: Reject | None = None
        for wanted in inside:
            try:
                return _named(*cell_image(wanted, what, (self.root,), self._files_of(wanted, what)))
            except Reject as reject:
                if reject.code != "image-missing":
                    raise
                missing = reject
        assert missing is not None
        for wanted in inside if self.root and not is_remote(self.root) else ():
            if meant := near_name(self.root, wanted):
                raise Reject(missing.code, f"{missing.message}; did you mean {shown(meant, 160)}?")
        if not self.root or path.startswith("/") or "://" in path[:10]:
            raise missing
        if is_lone_copy(self.root):
            said = f"{missing.message}, as of the store only the file itself was copied"
            raise Reject(missing.code, f"{said}: as SRC, {FOLDER_OF_BOTH}, or --images_root s3://...")
        folder = os.path.join(self.root, self.folder).rstrip("/")
        place = spelled(folder) if is_remote(folder) else shown_path(folder)
        said = f"{missing.message} in {place}, where paths begin; --images_root sets another"
        raise Reject(missing.code, said)

    def _files_of(self, path: str, what: str) -> Mapping[str, str]:
        """Where a path is, if it is not below the root on this machine."""
        if not is_remote(self.root):
            return self.files
        from phi3v_data.formats.stored_images import copy_image  # with a store, which few imports need

        return copy_image(self.root, path, self.downloads, what)

    def relative(self, path: str) -> str:
        """A path relative to the root, if it is absolute and below it; others unchanged."""
        if path.lower().startswith(_FILE_URL):
            path = unquote(path[len(_FILE_URL) :])
        for root in dict.fromkeys((self.root, os.path.realpath(self.root))):
            if path.startswith(f"{root.rstrip('/')}/"):
                return path[len(root.rstrip("/")) + 1 :]
        return path.removeprefix("./")


def leads_out(root: str, path: str) -> bool:
    """Whether a path leads out of a folder, by its words."""
    if not path.startswith("/") and ".." not in path:
        return False
    roots = _spellings(root)
    inner = os.path.normpath(os.path.join(roots[0], path))
    return not any(inner.startswith(f"{each.rstrip('/')}/") for each in roots)


@lru_cache(maxsize=16)
def _spellings(root: str) -> tuple[str, str]:
    """The absolute path of a folder, and that without links."""
    return os.path.abspath(root), os.path.realpath(root)


def straightened(path: str) -> str:
    """A path without the `..` that do not lead out of its first folder."""
    return os.path.normpath(path) if "/../" in path else path


def _named(image: DraftImage, notes: tuple[str, ...]) -> tuple[DraftImage, tuple[str, ...]]:
    """The image without the folder `images` in front of its name, as a directory has such a folder itself."""
    return replace(image, name=image.name.removeprefix("images/")), notes
