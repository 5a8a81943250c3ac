"""One reading of a directory: its layout, every row as numbers, the facts of each image.

`validate` reports on it; `split`, `merge`, `clean` and `stats` stand on the same reading.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from phi3v_data.encodings import file_encoding
from phi3v_data.engine.base import Engine
from phi3v_data.files import is_closed, reading_hint
from phi3v_data.messages import escaped
from phi3v_data.shards.view import data_directory
from phi3v_data.tokens.family import TokenFamily
from phi3v_data.validate.batch import text_bytes
from phi3v_data.validate.control import ControlTokens, control_tokens
from phi3v_data.validate.findings import Findings
from phi3v_data.validate.images import ImageReport, ImageTable, check_images, used_images
from phi3v_data.validate.layout import Layout, file_digest, read_layout
from phi3v_data.validate.leaks import ImageLeaks
from phi3v_data.validate.pixels import PixelIdentity
from phi3v_data.validate.receipt import State, read_state
from phi3v_data.validate.repeats import report_duplicate_ids, report_repeated_samples, report_straddling_groups
from phi3v_data.validate.rows import RowScan, Units
from phi3v_data.validate.table import RowTable
from phi3v_data.validate.tokens import ImageCounts, image_tokens, report_aspect
from phi3v_data.validate.tree import ImageTree

Ints = npt.NDArray[np.int64]
Progress = Callable[[str, int, int], None]


class Survey:
    """A directory as it is read step by step: the layout when made, then `read_rows`, then `look`.

    Raises:
        NotFoundError: no such directory.
        UserError: it cannot be listed.
    """

    table: RowTable
    scan: RowScan
    used: npt.NDArray[np.bool_]
    images: ImageTable

    def __init__(self, directory: Path, findings: Findings, progress: Progress | None = None) -> None:
        self.given = directory
        self.directory = data_directory(directory)
        self.findings = findings
        self.progress = progress
        self.layout: Layout = read_layout(self.directory, findings)
        self.tree = ImageTree(self.directory / "images")
        for folder, reason in self.tree.unreadable:
            findings.add(
                "check-skipped",
                f"the folder cannot be read ({reason}), so the images in it are not checked",
                file=f"images/{escaped(folder)}".rstrip("/"),
                hint=reading_hint(reason),
            )
            self.closed.append((f"images/{folder}".rstrip("/"), reason))

    @property
    def closed(self) -> list[tuple[str, str]]:
        """(path in DIR, reason) of what may not be read, as far as the directory has been read."""
        return self.layout.closed

    @property
    def files(self) -> list[tuple[str, str]]:
        """(split, file) of all JSONL files in reading order."""
        return [(split.split, file) for split in self.layout.splits.splits.values() for file in split.files]

    def read_rows(self, units: Units = text_bytes, *, markers: ControlTokens | None = None, workers: int = 1) -> None:
        """Check every row by itself and enter it in the table; the caller closes the table.

        `markers` are those that must not occur in a text; of the default model family if None.

        With more than one worker, large files are read by several processes.
        """
        manifest = self.layout.manifest
        self.table = RowTable(self.directory)
        self.scan = RowScan(
            self.table,
            self.tree,
            self.findings,
            units,
            frozenset(manifest.classes if manifest else ()),
            markers or control_tokens(),
        )
        sizes = {file: _size(self.directory / file) for _, file in self.files}
        total, done = sum(sizes.values()), 0
        bytes(8 << 20)  # freed at once: from then on glibc keeps blocks of this size instead of mapping each again

        def observe(position: int) -> None:
            if self.progress is not None:
                self.progress("rows", done + position, total)

        for split, file in self.files:
            try:
                if kind := file_encoding(self.directory / file):
                    self.layout.unread.add(split)
                    self.findings.add(
                        "file-encoding",
                        f"the file is {kind}, not UTF-8 text, so none of its rows is read",
                        file=file,
                        hint="unpack it, or save it again as UTF-8",
                    )
                else:
                    labelled = self.layout.is_labelled(split)
                    self.scan.scan(file, split, labelled=labelled, workers=workers, observe=observe)
                if self.layout.wants_digest(split, file):
                    self.layout.digests[file] = file_digest(self.directory / file)
            except OSError as error:
                self.layout.unread.add(split)
                reason = error.strerror or str(error)
                if is_closed(error):
                    self.closed.append((file, reason))
                self.findings.add(
                    "shard-missing", f"the file cannot be read: {reason}", file=file, hint=reading_hint(reason)
                )
            done += sizes[file]
        self.table.finish()

    def look(
        self, known: ImageTable, *, pixels: bool, engine: Engine, keep: Callable[[ImageTable], None] | None = None
    ) -> None:
        """Check the images that rows use and `known` has no facts of; their facts are entered there.

        `keep` is called now and then with the facts so far.
        """
        self.images = known
        self.used = used_images(self.table, self.tree)
        check_images(self.tree, self.used, known, pixels=pixels, engine=engine, progress=self.progress, keep=keep)

    def report_images(self, family: TokenFamily, budget: int | None) -> ImageCounts:
        """Report on each image by itself; returns the image tokens of each entry, as `image_tokens` does."""
        report = ImageReport(self.table, self.tree, self.images, self.findings)
        report.report()
        per_image = image_tokens(self.images, family, budget)
        report_aspect(report, self.tree, self.table, per_image, family, budget)
        return per_image

    def state(self) -> State:
        """Identity of everything that was, or will be, read."""
        return read_state(self.directory, [file for _, file in self.files], self.layout.splits.unnamed, self.tree)


def report_repeats(
    table: RowTable, tree: ImageTree, images: ImageTable, findings: Findings, *, pixels: bool, engine: Engine
) -> None:
    """Report what only shows between rows: equal ids, equal samples, groups and images in several splits."""
    report_duplicate_ids(table, findings)
    identity = PixelIdentity(tree, images, pixels=pixels, engine=engine)
    report_repeated_samples(table, identity, findings)
    report_straddling_groups(table, findings)
    leaks = ImageLeaks(table, tree, identity, ImageReport(table, tree, images, findings), findings, engine)
    leaks.report_same()
    if pixels:
        leaks.report_near()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
