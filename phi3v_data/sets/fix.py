"""Fixes for images and image paths that are unambiguous.

image-name-mismatch    the path in the row is corrected if exactly one file can be meant
image-format-mismatch  the file gets the extension of its format
image-orientation      the pixels are rotated according to the EXIF orientation, which is removed
image-mode             CMYK is converted to RGB, with the values that the image processor would use
"""

import io
import os
from collections import Counter
from typing import Any

import numpy as np
from PIL import ImageOps

from phi3v_data.files import unsafe_reason
from phi3v_data.media.formats import UnreadableImageError
from phi3v_data.media.images import decoding, load_image, probe
from phi3v_data.media.integrity import MISMATCH, MODE, ORIENTATION, check_content
from phi3v_data.near_names import fold
from phi3v_data.suffixes import STORED_IMAGES
from phi3v_data.validate.badrow import image_fields
from phi3v_data.validate.survey import Survey
from phi3v_data.validate.tree import FILE, ImageTree

_QUALITY = 95
_ENCODED = frozenset({"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"})
"""Formats that can be encoded again."""


class Fixes:
    """The fixes for one directory: paths in rows, names and contents of files; `counts` by problem code."""

    def __init__(self, survey: Survey) -> None:
        self.survey = survey
        self.tree: ImageTree = survey.tree
        self.counts: Counter[str] = Counter()
        self.names: dict[int, str] = {}  # entry -> its new name
        self.contents: set[int] = set()  # entries to be encoded again
        self.rows: set[int] = set()  # rows whose paths were corrected

    def correct_paths(self) -> None:
        """Correct uses of an image with another letter case or Unicode form."""
        table = self.survey.table
        missing = np.flatnonzero(table.uses < 0)
        if not len(missing):
            return
        folded: dict[int, int] = {}
        for entry, path in enumerate(self.tree.paths()):
            key = hash(fold(path))
            folded[key] = -1 if key in folded else entry
        for row in np.unique(np.searchsorted(table.starts, missing, side="right") - 1).tolist():
            start = int(table.starts[row])
            for position, (_, path) in enumerate(image_fields(table.load(row))):
                if position >= table.num_uses[row] or table.uses[start + position] >= 0 or unsafe_reason(path):
                    continue
                entry = folded.get(hash(fold(path)), -1)
                if entry >= 0 and self.tree.kinds[entry] == FILE:
                    table.uses[start + position] = entry
                    self.rows.add(row)
                    self.counts["image-name-mismatch"] += 1

    def plan(self) -> None:
        """Choose the used images that get a new name or new content."""
        flags = self.survey.images.facts["flags"]
        for entry in np.flatnonzero(self.survey.used & (flags & (MISMATCH | MODE | ORIENTATION) != 0)).tolist():
            try:
                info = probe(self.path(entry))
            except (UnreadableImageError, OSError):
                continue
            turned, cmyk = info.orientation != 1, info.mode == "CMYK"
            if (turned or cmyk) and not info.animated and info.format in _ENCODED:
                self.contents.add(entry)
                self.counts["image-orientation"] += turned
                self.counts["image-mode"] += cmyk
            if flags[entry] & MISMATCH:
                suffix = STORED_IMAGES[info.format][0]
                self.names[entry] = self.free_name(os.path.splitext(self.tree.path(entry))[0], suffix)
                self.counts["image-format-mismatch"] += 1
        self.counts = +self.counts

    def path(self, entry: int) -> str:
        """Path of an image."""
        return self.tree.full_path(entry)

    def name(self, entry: int) -> str:
        """Name of an image in the new set."""
        return self.names.get(entry) or self.tree.path(entry)

    def free_name(self, stem: str, suffix: str) -> str:
        """A name that is not in use, neither now nor in the new set."""
        name, count = stem + suffix, 1
        while self.tree.find_folded(name) >= 0 or name in self.names.values():
            count += 1
            name = f"{stem}-{count}{suffix}"
        return name

    def correct_row(self, row: int, value: dict[str, Any]) -> None:
        """Replace the image names of a row by those of the new set."""
        table = self.survey.table
        use = int(table.starts[row])
        for turn in value["conversations"]:
            names = turn.get("images", [])
            for index in range(len(names)):
                names[index] = self.name(int(table.uses[use]))
                use += 1


def fixed_image(path: str) -> bytes:
    """Encode an image with its EXIF orientation applied and, if CMYK, as RGB; a JPEG keeps its quantization if it can.

    Raises:
        UnreadableImageError: it cannot be decoded, or the result is not valid.
        OSError: the file cannot be read.
    """
    buffer = io.BytesIO()
    image = load_image(path)
    kind = str(image.format)
    with decoding():
        cmyk = image.mode == "CMYK"
        options: dict[str, Any] = {}
        if kind == "JPEG":
            options = {"quality": _QUALITY, "subsampling": 0}
            if not cmyk:  # the same quantization; full chroma resolution, so that it is not subsampled again
                options = {"qtables": image.quantization, "subsampling": 0}  # type: ignore[attr-defined]  # of a JPEG
        elif kind == "WEBP":
            options = {"quality": _QUALITY}
        turned = ImageOps.exif_transpose(image)
        if not cmyk and "icc_profile" in image.info:
            options["icc_profile"] = image.info["icc_profile"]
        (turned.convert("RGB") if cmyk else turned).save(buffer, kind, **options)
    content = buffer.getvalue()
    if check_content(content).orientation != 1:
        raise UnreadableImageError("still has an EXIF orientation")
    return content
