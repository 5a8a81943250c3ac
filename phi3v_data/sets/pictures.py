"""The pictures of one set on their way into another."""

from collections.abc import Callable

import numpy as np

from phi3v_data.messages import counted
from phi3v_data.sets.reading import Progress, SourceSet
from phi3v_data.sets.writing import Stage
from phi3v_data.validate.tree import FILE, UNSAFE


def place_pictures(
    stage: Stage, source: SourceSet, progress: Progress, *, rename: Callable[[int], str | None] | None = None
) -> None:
    """Bring in all pictures that rows use, each under its own name.

    `rename` gives another name for an entry, or None for one that is not to be brought in. Notes say which files stay
    behind: those that no row uses, and those that are no files (links to outside or to nothing).
    """
    survey = source.survey
    kinds = np.frombuffer(bytes(survey.tree.kinds), np.uint8)
    is_file = (kinds == FILE) | (kinds == UNSAFE)
    wanted = np.flatnonzero(survey.used & is_file)
    for done, entry in enumerate(wanted.tolist()):
        name = rename(entry) if rename else survey.tree.path(entry)
        if name is not None:
            stage.place(source.picture_path(entry), name)
        if done % 256 == 0:
            progress("pictures", done, len(wanted))
    progress("pictures", len(wanted), len(wanted))
    if others := int((survey.used & ~is_file).sum()):
        stage.notes.append(
            f"{source.directory}: left out {counted(others, 'link')} under images/ that lead nowhere or outside"
        )
    if orphans := int((~survey.used).sum()):
        stage.notes.append(f"{source.directory}: left out {counted(orphans, 'file')} under images/ that no row uses")
