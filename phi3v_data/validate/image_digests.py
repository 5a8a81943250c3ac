"""Identity of the images that the rows of each split use, by which a training run notices that they were replaced."""

from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from phi3v_data.media.integrity import DECODED
from phi3v_data.validate.images import ImageTable
from phi3v_data.validate.table import RowTable
from phi3v_data.validate.tree import ImageTree


def image_digests(table: RowTable, tree: ImageTree, images: ImageTable) -> dict[str, str]:
    """Digest of the names and pixels of the images that the rows of each split use.

    A split with an image that is missing or was not decoded has none. A digest is the same in every process and
    however the images are stored, as a tree has one order whatever lists it.
    """
    used: dict[str, list[npt.NDArray[Any]]] = {}
    ends = np.cumsum(table.num_uses, dtype=np.int64)
    for split, first, end in table.split_rows():
        begin = int(ends[first - 1]) if first else 0
        stop = int(ends[end - 1]) if end else 0
        used.setdefault(table.splits[split], []).append(table.uses[begin:stop])
    whole = {}
    for name, uses in used.items():
        entries = np.unique(np.concatenate(uses))
        if np.any(entries < 0):  # one is missing
            continue
        facts = images.facts[entries]
        if not np.all(facts["flags"] & DECODED):
            continue
        whole[name] = entries, facts["pixels"]
    if not whole:
        return {}
    names = tree.hashes(seed=0)
    result = {}
    for name, (entries, pixels) in whole.items():
        hasher = xxhash.xxh3_128(names[entries].tobytes())
        hasher.update(pixels.tobytes())
        result[name] = hasher.hexdigest()
    return result
