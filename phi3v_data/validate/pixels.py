"""Identifies image files with the same content.

At level quick an image is identified by its path, at level full by the digest of its pixels. The digest of a JPEG is
that of its reduced grey version, so equal JPEG digests are only very likely equal images; `exact` verifies this by
decoding in colour, once per file, and only for files whose digest is not unique.
"""

import os
from collections.abc import Iterable
from contextlib import closing
from functools import partial

import numpy as np
import numpy.typing as npt

from phi3v_data.engine.base import Engine, FunctionWork, Shared
from phi3v_data.media.integrity import DECODED, JPEG, rgb_digest, rgb_digests
from phi3v_data.validate.images import ImageTable
from phi3v_data.validate.tree import ImageTree

Ints = npt.NDArray[np.int64]

_BATCH = 64


class PixelIdentity:
    """Identity of each entry of the tree: the first entry with the same digest, or the entry itself."""

    def __init__(self, tree: ImageTree, images: ImageTable, *, pixels: bool, engine: Engine) -> None:
        self._tree = tree
        self._engine = engine
        self._flags = images.facts["flags"]
        self.identities: Ints = np.arange(len(tree), dtype=np.int64)
        decoded = np.flatnonzero(self._flags & DECODED) if pixels else np.empty(0, np.int64)
        self._shared = np.zeros(len(tree), np.bool_)
        if len(decoded):
            digests = np.ascontiguousarray(images.facts["pixels"][decoded])
            order = np.lexsort((decoded, digests[:, 0], digests[:, 1]))
            same = np.concatenate(([False], (digests[order][1:] == digests[order][:-1]).all(axis=1)))
            first = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
            self.identities[decoded[order]] = decoded[order][first]
            shared = same | np.concatenate((same[1:], [False]))
            self._shared[decoded[order][shared]] = True
        self._rgb: dict[int, bytes] = {}

    def of_uses(self, uses: npt.NDArray[np.int32]) -> Ints:
        """Identity of each use; -1 if the file does not exist."""
        if not len(self.identities):
            return np.full(len(uses), -1, np.int64)
        return np.where(uses >= 0, self.identities[uses], -1)

    def exact(self, index: int) -> tuple[int, bytes]:
        """A value that equals that of another entry only if all pixels are equal."""
        return int(self.identities[index]), self.rgb(index) if self._needs_rgb(index) else b""

    def rgb(self, index: int) -> bytes:
        """Digest of an entry's pixels in colour."""
        if index not in self._rgb:
            self._rgb[index] = rgb_digest(self._tree.full_path(index))
        return self._rgb[index]

    def decode_exact(self, entries: Iterable[int]) -> None:
        """Decode at once, on the engine, what `exact` of all these entries needs."""
        self.decode_rgb(filter(self._needs_rgb, entries))

    def decode_rgb(self, entries: Iterable[int]) -> None:
        """Decode at once, on the engine, what `rgb` of all these entries needs."""
        wanted = [index for index in dict.fromkeys(entries) if index not in self._rgb]
        root = self._tree.root
        tasks = [wanted[start : start + _BATCH] for start in range(0, len(wanted), _BATCH)]
        paths = (list(map(self._tree.path, task)) for task in tasks)
        work = FunctionWork(partial(rgb_digests, os.fspath(root)))
        shared = Shared(read=tuple(root / self._tree.path(index) for index in wanted[:1]))
        with closing(self._engine.run(work, paths, shared=shared)) as results:
            for task, (_, digests) in zip(tasks, results, strict=True):
                self._rgb.update(zip(task, digests, strict=True))

    def _needs_rgb(self, index: int) -> bool:
        return bool(self._shared[index] and self._flags[index] & JPEG)
