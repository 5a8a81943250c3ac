"""Reports the files of a source that were left out, so that nothing is skipped silently."""

import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from phi3v_data.draft import Draft, DraftImage, Item
from phi3v_data.files import name_hash
from phi3v_data.messages import counted, join_words, shown
from phi3v_data.sources.source import Source
from phi3v_data.splits import shard_faults

MAX_NAMED = 3


@dataclass(slots=True)
class UsedPaths:
    """The paths used by a plan or its drafts, 8 bytes each."""

    hashes: "array[int]" = field(default_factory=lambda: array("Q"))

    def of_items(self, items: Iterable[Item]) -> Iterator[Item]:
        """Yield items and record their paths."""
        for item in items:
            if isinstance(item, Item) and item.path:
                self.hashes.append(_hash(item.path))
            yield item

    def of_drafts(self, drafts: Iterable[Draft]) -> Iterator[Draft]:
        """Yield drafts and record the paths of their images."""
        for draft in drafts:
            if isinstance(draft, Draft):
                for content in _contents(draft):
                    if isinstance(content, str | Path):
                        self.hashes.append(_hash(str(content)))
            yield draft

    def left_out(self, source: Source) -> tuple[str, ...]:
        """Messages about the unused files of the source, and about shards that are missing by the names of others."""
        used = set(self.hashes)
        files = source.left_out(lambda file: _hash(str(file)) in used)
        missing = tuple(shard_faults(source.names()))
        if not files:
            return missing
        endings = Counter(PurePosixPath(file.path).suffix.lower() or "without an extension" for file in files)
        counts = ", ".join(f"{count:,} {ending}" for ending, count in sorted(endings.items()))
        named = join_words(files, MAX_NAMED, each=lambda file: shown(file.where))
        number = counted(len(files), "file")
        return (f"left out {number} of the source, not used by any sample: {counts} ({named})", *missing)


def _contents(draft: Draft) -> Iterator[object]:
    try:
        for turn in draft.all_turns():
            for image in turn.images:
                yield image.content if isinstance(image, DraftImage) else image
    except (AttributeError, TypeError):  # an invalid draft: the writer reports it
        return


def _hash(path: str) -> int:
    return name_hash(os.path.abspath(path))
