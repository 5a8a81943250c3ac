"""Loads the images of a foreign row: paths below a folder, data URLs, base64, bytes, and URLs if that is allowed."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote

from phi3v_data.converters.helpers.cell_images import cell_image, is_base64
from phi3v_data.draft import DraftImage
from phi3v_data.errors import Reject
from phi3v_data.formats.chat import ImageRef

_URL = ("http://", "https://")
_FILE_URL = "file://"


@dataclass(frozen=True, slots=True)
class ImagePlaces:
    """Where the images of a row are looked for.

    Attributes:
        root: absolute folder that no path leads out of.
        folder: folder below it that paths are relative to; the root itself is tried next.
        files: other locations of some paths, such as in an unpacked archive.
        downloads: folder for downloads; None: URLs are refused.
    """

    root: str
    folder: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    downloads: Path | None = None

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
            if self.downloads is None:
                raise Reject("image-missing", f"{what}: the image is a URL; import with --fetch, or download it first")
            from phi3v_data.formats.fetch import fetch_image  # with TLS, which few imports need

            return DraftImage(fetch_image(value, what, self.downloads), where=what), ()
        if is_base64(value):
            return cell_image(value, what, ())
        path = self.relative(value)
        for wanted in dict.fromkeys((f"{self.folder}/{path}" if self.folder else path, path)):
            try:
                return _named(*cell_image(wanted, what, (self.root,), self.files))
            except Reject as reject:
                if reject.code != "image-missing" or wanted == path:
                    raise
        raise AssertionError("the last path raises")

    def relative(self, path: str) -> str:
        """A path relative to the root, if it is absolute and below it; others unchanged."""
        if path.lower().startswith(_FILE_URL):
            path = unquote(path[len(_FILE_URL) :])
        for root in dict.fromkeys((self.root, os.path.realpath(self.root))):
            if path.startswith(f"{root.rstrip('/')}/"):
                return path[len(root.rstrip("/")) + 1 :]
        return path.removeprefix("./")


def _named(image: DraftImage, notes: tuple[str, ...]) -> tuple[DraftImage, tuple[str, ...]]:
    """The image without the folder `images` in front of its name, as a directory has such a folder itself."""
    return replace(image, name=image.name.removeprefix("images/")), notes
