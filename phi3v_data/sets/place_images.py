"""Links or copies the images of one set into another."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from phi3v_data.messages import counted
from phi3v_data.sets.reading import Progress, SourceSet
from phi3v_data.sets.writing import Stage
from phi3v_data.validate.tree import FILE, UNSAFE


def place_images(
    stage: Stage, source: SourceSet, progress: Progress, *, rename: Callable[[int], str | None] | None = None
) -> None:
    """Link or copy all images that rows use, or put them into shards, in the order in which rows use them.

    `rename` returns the new name of an entry, or None to leave it out. Notes count the files that are left out: unused
    ones, and links that lead outside or nowhere.
    """
    survey = source.survey
    kinds = np.frombuffer(bytes(survey.tree.kinds), np.uint8)
    is_file = (kinds == FILE) | (kinds == UNSAFE)
    wanted = np.flatnonzero(survey.used & is_file)
    if stage.store == "shards":
        wanted = wanted[np.argsort(_first_uses(source)[wanted], kind="stable")]
    for done, entry in enumerate(wanted.tolist()):
        name = rename(entry) if rename else survey.tree.path(entry)
        if name is not None:
            stage.place(source.image_path(entry), name)
        if done % 256 == 0:
            progress("images", done, len(wanted))
    progress("images", len(wanted), len(wanted))
    if others := int((survey.used & ~is_file).sum()):
        stage.notes.append(
            f"{source.directory}: left out {counted(others, 'link')} under images/ that lead nowhere or outside"
        )
    if orphans := int((~survey.used).sum()):
        stage.notes.append(
            f"{source.directory}: left out {counted(orphans, 'file')} under images/ that no row of the new set uses"
        )


def _first_uses(source: SourceSet) -> npt.NDArray[np.int64]:
    """The number of the first use of each entry of the tree, in the order of the rows."""
    uses = source.table.uses
    result = np.full(len(source.survey.tree), len(uses), np.int64)
    np.minimum.at(result, uses[uses >= 0], np.flatnonzero(uses >= 0))
    return result
