"""What can be mended of pictures and of the paths to them without guessing.

image-name-mismatch    the row names the file as it is spelled, where only one file can be meant
image-format-mismatch  the file gets the ending of what it holds
image-orientation      the pixels are turned as the mark says, and the mark goes
image-mode             CMYK becomes RGB, with the values that the image processor would see
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
from phi3v_data.suffixes import STORED_IMAGES
from phi3v_data.validate.badrow import image_fields
from phi3v_data.validate.survey import Survey
from phi3v_data.validate.tree import FILE, ImageTree, fold

_QUALITY = 95
_ENCODED = frozenset({"JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"})
"""Formats in which an image is stored again."""


class Mends:
    """What is mended in one directory: uses of pictures, names, contents; `counts` by problem code."""

    def __init__(self, survey: Survey) -> None:
        self.survey = survey
        self.tree: ImageTree = survey.tree
        self.counts: Counter[str] = Counter()
        self.names: dict[int, str] = {}  # entry -> its new name
        self.contents: set[int] = set()  # entries to be encoded again
        self.rows: set[int] = set()  # rows whose paths were corrected

    def correct_paths(self) -> None:
        """Point uses that are spelled in another letter case or Unicode form at the file that is meant."""
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
        """Choose new names and contents for the pictures that are used."""
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
        """Where a picture lies."""
        return os.path.join(self.tree.root, self.tree.path(entry))

    def name(self, entry: int) -> str:
        """What a picture is called in the new set."""
        return self.names.get(entry) or self.tree.path(entry)

    def free_name(self, stem: str, suffix: str) -> str:
        """A name that no file has and that none is to have."""
        name, count = stem + suffix, 1
        while self.tree.find_folded(name) >= 0 or name in self.names.values():
            count += 1
            name = f"{stem}-{count}{suffix}"
        return name

    def correct_row(self, row: int, value: dict[str, Any]) -> None:
        """Write the names of the new set into a row."""
        table = self.survey.table
        use = int(table.starts[row])
        for turn in value["conversations"]:
            names = turn.get("images", [])
            for index in range(len(names)):
                names[index] = self.name(int(table.uses[use]))
                use += 1


def mended_picture(path: str) -> bytes:
    """A picture turned as its EXIF mark says and, if CMYK, in RGB; a JPEG keeps its quantization where it can.

    Raises:
        UnreadableImageError: it cannot be read, or does not come out whole.
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
            if not cmyk:  # as fine as before; colours at full size, so that they are not thinned out once more
                options = {"qtables": image.quantization, "subsampling": 0}  # type: ignore[attr-defined]  # of a JPEG
        elif kind == "WEBP":
            options = {"quality": _QUALITY}
        turned = ImageOps.exif_transpose(image)
        if not cmyk and "icc_profile" in image.info:
            options["icc_profile"] = image.info["icc_profile"]
        (turned.convert("RGB") if cmyk else turned).save(buffer, kind, **options)
    content = buffer.getvalue()
    if check_content(content).orientation != 1:
        raise UnreadableImageError("still carries an EXIF turn")
    return content
