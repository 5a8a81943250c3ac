"""Copies a set with its images stored in the other way: as files, or in shards. Rows stay as they are, byte by byte."""

from pathlib import Path

from phi3v_data.choices import ImageMode
from phi3v_data.errors import UserError
from phi3v_data.media.stored import StoredPack
from phi3v_data.schema import Manifest
from phi3v_data.sets.place_images import place_images
from phi3v_data.sets.reading import Progress, SourceSet, decode_row, read_set, row_images
from phi3v_data.sets.writing import SetResult, Stage, check_places, make_set
from phi3v_data.validate.collector import paused_collector
from phi3v_data.validate.images import used_images
from phi3v_data.writing.publish import IMAGES, REJECTS, REMOVED
from phi3v_data.writing.request import StoreName

VERSION = "1"


def change_store(
    directory: str | Path,
    out_dir: str | Path,
    store: StoreName,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> SetResult:
    """Write a copy of a directory that has its images as files, or in shards.

    Raises:
        UserError: a row or an image cannot be read, or the images are stored in that way already.
    """
    source = Path(directory)
    target = check_places(Path(out_dir), [source])
    progress = progress or (lambda stage, done, total: None)
    with paused_collector():
        found = read_set(source, progress)
        try:
            if store == store_of(found.directory):
                raise UserError(
                    f"{source}: its images are stored as {store} already; copy it with cp -r, or use it as it is"
                )
            work = _Copy(found, progress)
            identity = {"command": "store", "version": VERSION, "input": found.identity()}
            name = found.name
            return make_set(
                target, identity, work.build, name=name, images=ImageMode.copy, store=store, overwrite=overwrite
            )
        finally:
            found.close()


def store_of(directory: Path) -> StoreName | None:
    """How a directory stores its images; None for the view of an export, which has them in shards of its own kind."""
    images = directory / IMAGES
    if not images.is_file():
        return "files"
    return "shards" if StoredPack.open(images) is not None else None


class _Copy:
    """Copies one set."""

    def __init__(self, source: SourceSet, progress: Progress) -> None:
        self.source = source
        self.progress = progress

    def build(self, stage: Stage) -> Manifest:
        """Write rows, images and the files beside them."""
        source = self.source
        table = source.table
        source.survey.used = used_images(table, source.survey.tree)
        splits = table.split_of_rows()
        for row, line in source.rows():
            stage.write(table.splits[splits[row]], line, row_images(decode_row(line)))
            if row % 4096 == 0:
                self.progress("write", row, len(table))
        for name in (REJECTS, REMOVED):
            stage.write_file(name, source.beside(name))
        place_images(stage, source, self.progress)
        old = source.manifest or Manifest(name=source.name, task="chat", splits={})
        return old.model_copy(update={"format": stage.format, "splits": stage.splits(source.is_labelled)})
