"""Identifies image files with the same content.

At level quick an image is identified by its path, at level full by the digest of its pixels. The digest of a JPEG is
that of its reduced grey version, so equal JPEG digests are only very likely equal images; `exact` verifies this by
decoding in colour, once per file, and only for files whose digest is not unique.
"""

import os

import numpy as np
import numpy.typing as npt

from phi3v_data.media.integrity import DECODED, JPEG, rgb_digest
from phi3v_data.validate.images import ImageTable
from phi3v_data.validate.tree import ImageTree

Ints = npt.NDArray[np.int64]


class PixelIdentity:
    """Identity of each entry of the tree: the first entry with the same digest, or the entry itself."""

    def __init__(self, tree: ImageTree, images: ImageTable, *, pixels: bool) -> None:
        self._tree = tree
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
        self._exact: dict[int, tuple[int, bytes]] = {}

    def of_uses(self, uses: npt.NDArray[np.int32]) -> Ints:
        """Identity of each use; -1 if the file does not exist."""
        if not len(self.identities):
            return np.full(len(uses), -1, np.int64)
        return np.where(uses >= 0, self.identities[uses], -1)

    def exact(self, index: int) -> tuple[int, bytes]:
        """A value that equals that of another entry only if all pixels are equal."""
        identity = int(self.identities[index])
        if not self._shared[index] or not self._flags[index] & JPEG:
            return identity, b""
        if index not in self._exact:
            digest = self.rgb(index)
            self._exact[index] = (identity, digest)
        return self._exact[index]

    def rgb(self, index: int) -> bytes:
        """Digest of an entry's pixels in colour."""
        return rgb_digest(os.path.join(self._tree.root, self._tree.path(index)))
