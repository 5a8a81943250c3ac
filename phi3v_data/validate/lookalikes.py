"""Compares images with near difference hashes by their small grey versions."""

import os
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from PIL import Image

from phi3v_data.media.formats import UnreadableImageError
from phi3v_data.media.images import load_image
from phi3v_data.validate.tree import ImageTree

_THUMBNAIL = 32
_NEAR_CORRELATION = 0.985
_KEPT = 4096

Thumbnail = npt.NDArray[np.float32]


class Looks:
    """Compares images of a tree; caches some thousand small versions, 4 KB each."""

    def __init__(self, tree: ImageTree) -> None:
        self._tree = tree
        self._thumbnails: dict[int, Thumbnail | None] = {}

    def most_alike(self, entry: int, candidates: Iterable[int]) -> int | None:
        """The first candidate that looks almost like the entry."""
        own = self._of(entry)
        if own is None:
            return None
        for candidate in candidates:
            other = self._of(candidate)
            if other is not None and float((own * other).mean()) >= _NEAR_CORRELATION:
                return candidate
        return None

    def _of(self, entry: int) -> Thumbnail | None:
        if entry not in self._thumbnails:
            if len(self._thumbnails) > _KEPT:
                self._thumbnails.clear()
            self._thumbnails[entry] = self._shrink(entry)
        return self._thumbnails[entry]

    def _shrink(self, entry: int) -> Thumbnail | None:
        """Grey levels of an image at 32 x 32, with mean 0 and standard deviation 1; None if it cannot be read."""
        try:
            path = os.path.join(self._tree.root, self._tree.path(entry))
            image = load_image(path, draft=("L", (2 * _THUMBNAIL, 2 * _THUMBNAIL)))
        except (UnreadableImageError, OSError):
            return None
        small = image.convert("RGB").convert("L").resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
        grey = np.asarray(small, np.float32)
        deviation = float(grey.std())
        return None if deviation < 2 else (grey - grey.mean()) / np.float32(deviation)
