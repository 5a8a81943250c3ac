"""Compares images with near difference hashes by their small grey versions."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from phi3v_data.engine.base import Engine, Shared, Tick
from phi3v_data.media.formats import UnreadableImageError
from phi3v_data.media.images import load_image
from phi3v_data.validate.tree import ImageTree

BATCH = 64
"""Comparisons of one task."""

_THUMBNAIL = 32
_NEAR_CORRELATION = 0.985
_KEPT = 4096

Thumbnail = npt.NDArray[np.float32]
Question = tuple[str, Sequence[str]]
"""The path of an image, and those of its candidates, relative to the root."""


def find_alike(tree: ImageTree, questions: Sequence[tuple[int, Sequence[int]]], engine: Engine) -> Iterator[int | None]:
    """For each (entry, candidates) the first candidate that looks almost like the entry, else None."""
    batches = [questions[start : start + BATCH] for start in range(0, len(questions), BATCH)]
    tasks = ([(tree.path(entry), list(map(tree.path, others))) for entry, others in batch] for batch in batches)
    shared = Shared(read=tuple(tree.root / tree.path(entry) for entry, _ in questions[:1]))
    with closing(engine.run(CompareLooks(os.fspath(tree.root)), tasks, shared=shared)) as results:
        for batch, (_, answers) in zip(batches, results, strict=True):
            for (_, candidates), answer in zip(batch, answers, strict=True):
                yield None if answer is None else candidates[answer]


@dataclass(frozen=True, slots=True)
class CompareLooks:
    """Work of an engine: for each question the position of the first candidate that looks almost like the image."""

    root: str

    @contextmanager
    def open(self) -> Iterator[Callable[[list[Question], Tick], list[int | None]]]:
        """Keep some thousand small versions for following tasks, 4 KB each."""
        looks = _Looks(self.root)
        yield lambda task, tick: [looks.first_alike(path, candidates) for path, candidates in task]


class _Looks:
    """Compares images in one process."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._thumbnails: dict[str, Thumbnail | None] = {}

    def first_alike(self, path: str, candidates: Sequence[str]) -> int | None:
        own = self._of(path)
        if own is None:
            return None
        for position, candidate in enumerate(candidates):
            other = self._of(candidate)
            if other is not None and float((own * other).mean()) >= _NEAR_CORRELATION:
                return position
        return None

    def _of(self, path: str) -> Thumbnail | None:
        if path not in self._thumbnails:
            if len(self._thumbnails) > _KEPT:
                self._thumbnails.clear()
            self._thumbnails[path] = self._shrink(path)
        return self._thumbnails[path]

    def _shrink(self, path: str) -> Thumbnail | None:
        """Grey levels of an image at 32 x 32, with mean 0 and standard deviation 1; None if it cannot be read."""
        try:
            image = load_image(os.path.join(self._root, path), draft=("L", (2 * _THUMBNAIL, 2 * _THUMBNAIL)))
        except (UnreadableImageError, OSError):
            return None
        small = image.convert("RGB").convert("L").resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.BOX)
        grey = np.asarray(small, np.float32)
        deviation = float(grey.std())
        return None if deviation < 2 else (grey - grey.mean()) / np.float32(deviation)
