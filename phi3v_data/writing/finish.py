"""Completes a directory by hand, without its source (`convert --finish DIR`)."""

from pathlib import Path

from phi3v_data.dataset import list_directory, read_manifest
from phi3v_data.errors import UserError
from phi3v_data.schema import Manifest
from phi3v_data.writing.journal import Journal
from phi3v_data.writing.output import open_output, told_obstacles
from phi3v_data.writing.sliced import finish_slices


def finish(out_dir: Path) -> tuple[Manifest, bool]:
    """Complete a set whose slices are done, or whose files were being moved into place when its run was killed.

    Returns its manifest, and whether there was anything left to do.

    Raises:
        UserError: there is no such set, parts of it are missing, or another process is writing to it.
    """
    with told_obstacles(out_dir):
        return _finish(Journal(out_dir))


def _finish(journal: Journal) -> tuple[Manifest, bool]:
    out_dir = journal.out_dir
    list_directory(out_dir)
    journal.check()
    if journal.sliced.exists() and not journal.is_finished():
        return finish_slices(out_dir)
    if not journal.publishing.exists():
        manifest = read_manifest(out_dir)
        if manifest is None:
            reason = (
                "no files are being moved there yet; run the interrupted command again"
                if journal.root.exists() and not journal.complete.exists()
                else "it contains no interrupted run of phi3v"
            )
            raise UserError(f"{out_dir}: there is nothing to finish, {reason}")
        return manifest, False
    with open_output(out_dir, overwrite=False) as output:
        if output.manifest is None:
            raise UserError(f"{out_dir}: another process has removed the set meanwhile")
        return output.manifest, True
