"""Divides a set into splits without leaks: by group, by image or by id.

The shares are met exactly if whole groups allow it: groups are taken in the order of the hashes of their names, up to
the quota of each split. Rows of one group, rows that share an image (by its pixels) and rows without images that have
the same text stay together; the first of them provides the name that is hashed.
"""

from itertools import chain
from pathlib import Path
from typing import Any, Unpack

import numpy as np
import numpy.typing as npt
from msgspec import UNSET

from phi3v_data.choices import ImageMode, SplitBy
from phi3v_data.engine.base import Engine, EngineSettings
from phi3v_data.engine.make_engine import FEW, open_engine
from phi3v_data.errors import UserError
from phi3v_data.messages import counted
from phi3v_data.schema import ConverterInfo, Manifest
from phi3v_data.sets.components import Ints, Links, group_links, image_links, join_rows, text_links, value_links
from phi3v_data.sets.place_images import place_images
from phi3v_data.sets.reading import Progress, SourceSet, decode_row, read_set, row_images
from phi3v_data.sets.shares import MAX_LABELS, Splits, divide, note_few_rows, refuse_misfits
from phi3v_data.sets.writing import SetResult, Stage, check_places, make_set
from phi3v_data.validate.collector import paused_collector
from phi3v_data.validate.rowtypes import Row
from phi3v_data.writing.plan import group_point, parse_split_shares
from phi3v_data.writing.publish import REJECTS
from phi3v_data.writing.request import StoreName

VERSION = "2"


def split_set(
    directory: str | Path,
    out_dir: str | Path,
    split: str,
    *,
    by: SplitBy = SplitBy.group,
    stratify: bool = False,
    seed: int = 0,
    images: ImageMode = ImageMode.link,
    store: StoreName = "files",
    pixels: bool = True,
    overwrite: bool = False,
    workers: int | None = 1,
    progress: Progress | None = None,
    **engine: Unpack[EngineSettings],
) -> SetResult:
    """Write the rows of a directory, whatever their splits, into new splits.

    Args:
        split: shares such as `train=0.8,val=0.1,test=0.1`.
        by: the key is the group with `group`, the first image with `image` (also for rows without a group), and the id
            with `id`. Rows that share an image stay together in any case.
        stratify: give each split its share of every label (last answer).
        pixels: compare images by their pixels; False: by their paths, without reading them.
        engine: images are decoded there (`EngineSettings`).

    Raises:
        UserError: a row cannot be read, or the shares cannot be met without dividing rows that belong together.
    """
    shares = parse_split_shares(split)
    source = Path(directory)
    target = check_places(Path(out_dir), [source])
    progress = progress or (lambda stage, done, total: None)
    with paused_collector(), open_engine(workers, few=FEW, **engine) as opened:
        found = read_set(source, progress)
        try:
            work = _Split(found, shares, by, stratify, seed, pixels, opened, progress)
            identity = {"command": "split", "version": VERSION, "options": work.options, "input": found.identity()}
            return make_set(
                target, identity, work.build, name=found.name, images=images, store=store, overwrite=overwrite
            )
        finally:
            found.close()


class _Split:
    """Divides one set."""

    def __init__(
        self,
        source: SourceSet,
        shares: dict[str, float],
        by: SplitBy,
        stratify: bool,
        seed: int,
        pixels: bool,
        engine: Engine,
        progress: Progress,
    ) -> None:
        self.source = source
        self.shares = shares
        self.by = by
        self.stratify = stratify
        self.seed = seed
        self.pixels = pixels
        self.engine = engine
        self.progress = progress
        self.names = list(shares)
        self.notes: list[str] = []

    @property
    def options(self) -> dict[str, Any]:
        """The options that determine the split of each row."""
        return {
            "split": dict(self.shares),
            "by": self.by.value,
            "stratify": self.stratify,
            "seed": self.seed,
            "level": "full" if self.pixels else "quick",
        }

    def build(self, stage: Stage) -> Manifest:
        """Divide the rows, check the result, and write it."""
        table = self.source.table
        self.mixed_labels()
        roots = join_rows(len(table), self.links())
        sizes = np.bincount(roots, minlength=len(table))
        splits = self.assign(roots, sizes)
        refuse_misfits(sizes, splits, self.shares, name=lambda row: self.describe(row, roots))
        self.note_groups(roots, splits)
        self.write(stage, splits)
        self.place(stage)
        counts = np.bincount(splits, minlength=len(self.names)).tolist()
        self.notes += note_few_rows(dict(zip(self.names, counts, strict=True)))
        stage.notes.extend(self.notes)
        return self.manifest(stage)

    def links(self) -> "chain[Links]":
        """All pairs of rows that must stay together."""
        table = self.source.table
        identity = self.source.pixel_identity(pixels=self.pixels, engine=self.engine)
        links = [image_links(table, identity), text_links(table), self.missing_links()]
        if self.by == SplitBy.group:
            links.append(group_links(table))
        return chain(*links)

    def missing_links(self) -> "list[Links]":
        """Pairs of rows with the same missing image."""
        table = self.source.table
        missing = np.unique(np.searchsorted(table.starts, np.flatnonzero(table.uses < 0), side="right") - 1)
        if not len(missing):
            return []
        self.notes.append(
            f"{counted(len(missing), 'row')} with images that are missing under images/ (first: "
            f"{table.name(int(missing[0]))})"
        )
        wanted = np.zeros(len(table), np.bool_)
        wanted[missing] = True
        rows: list[npt.NDArray[np.int64]] = []
        paths: list[npt.NDArray[np.int64]] = []
        for number, line in self.source.rows():
            if wanted[number]:
                hashes = np.fromiter(map(hash, row_images(decode_row(line))), np.int64)
                paths.append(hashes)
                rows.append(np.full(len(hashes), number, np.int64))
        return list(value_links(np.concatenate(rows), np.concatenate(paths)))

    def mixed_labels(self) -> None:
        """Raise UserError if the set has rows with and without answers."""
        labelled = {self.source.is_labelled(split) for split, _ in self.source.survey.files}
        if len(labelled) > 1:
            raise UserError(
                f"{self.source.directory}: some of its splits have no answers (labelled: false in dataset.json), and "
                "rows with and without answers cannot be in the same split; copy the files of one kind to a separate "
                "directory first"
            )

    def assign(self, roots: Ints, sizes: Ints) -> Splits:
        """The split (by number) of every row."""
        table = self.source.table
        first = roots == np.arange(len(roots))
        points = np.zeros(len(roots), np.float64)
        labels = np.zeros(len(roots), np.int64)
        known: dict[str, int] = {}
        for number, line in self.source.rows():
            if not first[number]:
                continue
            row = decode_row(line)
            points[number] = group_point(self.key(row), self.seed)
            if self.stratify:
                labels[number] = known.setdefault(row.conversations[-1].assistant, len(known))
                if len(known) > MAX_LABELS:
                    raise UserError(
                        f"--stratify: there are more than {MAX_LABELS:,} different last answers, so they are free text "
                        "and not labels; split without --stratify"
                    )
            if number % 4096 == 0:
                self.progress("choose", number, len(table))
        splits = np.zeros(len(roots), np.uint8)
        splits[first] = divide(sizes[first], points[first], labels[first], list(self.shares.values()))
        chosen: Splits = splits[roots]
        return chosen

    def key(self, row: Row) -> str:
        """The key of a row: the text whose hash determines its split."""
        if self.by == SplitBy.group and row.group is not UNSET and row.group:
            return row.group
        images = row_images(row) if self.by != SplitBy.id else []
        return images[0] if images else row.id

    def describe(self, root: int, roots: Ints) -> str:
        """A description of rows that belong together."""
        table = self.source.table
        row = table.load(root)
        members = np.flatnonzero(roots == root)
        groups = len(np.unique(table.groups[members]))
        name = row.get("group") if self.by == SplitBy.group else None
        words = f"group {name!r}" if name else f"the rows with {row.get('id')!r}"
        if self.by == SplitBy.group and groups > 1:
            words += f" and {counted(groups - 1, 'more group')}" if name else ""
        if shared := self.shared_image(members):
            words += f" (they share images, such as {shared!r})"
        return words

    def shared_image(self, members: Ints) -> str:
        """The image used by most of the rows; empty if none is used twice."""
        table = self.source.table
        use = np.concatenate([table.uses[table.starts[row] : table.starts[row + 1]] for row in members.tolist()])
        use = use[use >= 0]
        found, counts = np.unique(use, return_counts=True)
        if not len(found) or counts.max() < 2:
            return ""
        return self.source.survey.tree.path(int(found[counts.argmax()]))

    def note_groups(self, roots: Ints, splits: npt.NDArray[np.uint8]) -> None:
        """Add a note if groups are in several splits, because rows were not divided by group."""
        groups = self.source.table.groups
        if self.by == SplitBy.group or not groups.any():
            return
        pairs = np.unique(np.stack([groups[groups != 0], splits[groups != 0].astype(np.int64)]), axis=1)
        num_straddling = int((np.unique(pairs[0], return_counts=True)[1] > 1).sum())
        if num_straddling:
            self.notes.append(
                f"{counted(num_straddling, 'group')} in several splits, which validate reports as leak-group; "
                "--by group keeps them whole"
            )

    def write(self, stage: Stage, splits: npt.NDArray[np.uint8]) -> None:
        """Write every row, unchanged, to its split."""
        total = len(splits)
        for number, line in self.source.rows():
            stage.write(self.names[splits[number]], line, row_images(decode_row(line)))
            if number % 4096 == 0:
                self.progress("write", number, total)
        stage.write_file(REJECTS, self.source.rejects())

    def place(self, stage: Stage) -> None:
        """Link or copy the images that rows use."""
        place_images(stage, self.source, self.progress)

    def manifest(self, stage: Stage) -> Manifest:
        """The manifest of the set with its new splits."""
        labelled = self.source.is_labelled(self.source.survey.files[0][0])
        old = self.source.manifest or Manifest(name=self.source.name, task="chat", splits={})
        step = ConverterInfo(name="split", version=VERSION, options=self.options)
        splits = stage.splits(lambda split: labelled)
        return old.model_copy(update={"format": stage.format, "splits": splits, "history": (*old.history, step)})
