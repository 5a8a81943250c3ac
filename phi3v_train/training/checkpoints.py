"""Checkpoints that are complete or do not exist.

    OUTPUT/checkpoint-000120/   model files (a model directory or a PEFT adapter), optimizer.pt, state.json, and last of
                                all COMPLETE.json, size and digest of every file
    OUTPUT/.checkpoint-000120   the same while it is being written: files are synced, then the folder is renamed
    OUTPUT/.trash-...           one that is being deleted

Only folders whose COMPLETE.json agrees with their files are ever used, counted or kept. Sizes are compared wherever a
checkpoint is looked for, digests before a run resumes from it: that reads it once, each process its share.
"""

import errno
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.files import (
    inside,
    leads_outside,
    load_json,
    read_json,
    read_stored,
    sync_file,
    sync_folder,
    unsafe_reason,
    write_text,
)
from phi3v_train.data.identity import digest
from phi3v_train.training.own_files import (
    CHECKPOINT,
    COMPLETE,
    STATE,
    finish_removal,
    is_checkpoint,
    is_removed,
    remove,
    trash_of,
)

if TYPE_CHECKING:
    from phi3v_train.distributed.group import Group

STATE_FORMAT = 1
STATE_KEYS = {"samples": int, "line": dict, "identity": dict}
DIGESTS = "xxh3_128"

_OF_RANK = re.compile(r"(?:.*/)?(?:rank|optimizer)-(\d+)-of-\d+.*")
_STAGING = re.compile(r"\.checkpoint-\d+")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class SaveError(Exception):
    """A checkpoint could not be written; nothing of it is left. The message says why."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete checkpoint."""

    path: Path
    step: int

    def state(self) -> dict[str, Any]:
        """The contents of `state.json`.

        Raises:
            UserError: it was written by a newer version, or is not that of a run.
        """
        state = readable_state(self.path)
        if state is not None and state["format"] != STATE_FORMAT:
            raise UserError(
                f"{self.path / STATE}: format {state['format']} is not known to this version, which reads "
                f"format {STATE_FORMAT}; upgrade phi3v"
            )
        if state is None or any(not isinstance(state.get(key), kind) for key, kind in STATE_KEYS.items()):
            raise UserError(
                f"{self.path / STATE}: is damaged; delete {self.path.name}, and an older checkpoint is used"
            )
        return state


def has_ended(state: Mapping[str, Any], total_steps: int, patience: int = 0) -> bool:
    """Whether a run that left this state (of a checkpoint or of `complete.json`) has nothing left of `total_steps`.

    One that ended because no evaluation was an improvement resumes if `patience` (0: unlimited) is greater than the
    number of these.
    """
    if state["step"] >= total_steps:
        return True
    without, planned = state.get("stopped_early"), state.get("total_steps")
    if without:
        return type(without) is int and 0 < patience <= without
    return bool(state.get("ended")) and type(planned) is int and planned >= total_steps


def checkpoint_name(step: int) -> str:
    """Folder name of a step's checkpoint; sorts by name as by step."""
    return f"checkpoint-{step:06d}"


def why_damaged(path: Path) -> str:
    """Why the checkpoint at `path` cannot be used, as far as sizes and small files tell; empty if it can."""
    name = COMPLETE
    try:
        sizes = load_json(path / COMPLETE)["files"]
        for name, size in sizes.items():
            if not unsafe_reason(name) and leads_outside(path, name):
                return f"{name} is a link that leads outside the checkpoint"
            found = inside(path, name).stat().st_size
            if found != size:
                return f"{name} has {found:,} bytes instead of {size:,}"
        name = STATE
        if STATE in sizes and readable_state(path) is None:
            return f"{STATE} is damaged"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror or error})"
    except (UserError, ValueError, KeyError, TypeError, AttributeError):
        return f"{COMPLETE} is damaged"
    return ""


def readable_state(path: Path) -> dict[str, Any] | None:
    """Contents of `state.json` of a checkpoint, complete or not; None if it cannot be read."""
    try:
        state = read_json(path / STATE)
    except OSError:
        return None
    return state if state is not None and {type(state.get(key)) for key in ("format", "step")} == {int} else None


def open_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint at `path`, or None if absent or not complete."""
    match = CHECKPOINT.fullmatch(path.name)
    return Checkpoint(path, int(match[1])) if match and not why_damaged(path) else None


def checkpoint_folders(output_dir: Path) -> list[Checkpoint]:
    """Everything named like a checkpoint, complete or not, oldest first."""
    try:
        names = os.listdir(output_dir)
    except FileNotFoundError:
        return []
    found = [Checkpoint(output_dir / name, int(match[1])) for name in names if (match := CHECKPOINT.fullmatch(name))]
    return sorted((each for each in found if is_checkpoint(each.path)), key=lambda each: each.step)


def list_checkpoints(output_dir: Path) -> list[Checkpoint]:
    """The complete checkpoints of a run, oldest first."""
    return [each for each in checkpoint_folders(output_dir) if not why_damaged(each.path)]


def find_checkpoint(resume: str, output_dir: Path) -> Checkpoint | None:
    """The checkpoint that `--resume` means: the newest complete one for `auto`, none for `never`, else that of a path.

    Raises:
        NotFoundError: a path without a complete checkpoint.
    """
    if resume == "never":
        return None
    if resume == "auto":
        return next(reversed(list_checkpoints(output_dir)), None)
    found = open_checkpoint(Path(resume))
    if found is None:
        there = [each.path.name for each in list_checkpoints(output_dir)]
        hint = f"complete ones: {', '.join(there)}" if there else f"{output_dir} contains none either"
        reason = f" ({why_damaged(Path(resume))})" if Path(resume).is_dir() else ""
        raise NotFoundError(f"--resume {resume}: no complete checkpoint there{reason}; {hint}")
    return found


def verify(group: "Group", checkpoint: Checkpoint) -> str:
    """Why a checkpoint whose sizes are right cannot be used, empty if it can; called by all processes.

    Each reads some of the files and compares their content with the digests of COMPLETE.json.
    """
    listed = (read_stored(checkpoint.path / COMPLETE) or {}).get(DIGESTS)
    digests = listed if isinstance(listed, dict) else {}  # none: an earlier version wrote it
    place, reason = group.rank_info, ""
    for name in sorted(digests)[place.rank :: place.world_size]:
        try:
            if digest([inside(checkpoint.path, name)]) != digests[name]:
                reason = reason or f"{name} is not what was written"
        except (UserError, OSError) as error:
            reason = reason or f"{name} cannot be read ({getattr(error, 'strerror', None) or error})"
    return next((each for each in group.all_gather(reason) if each), "")


def sweep(output_dir: Path) -> None:
    """Remove what killed runs left half written or half deleted; the caller holds the run's lock."""
    for entry in list(output_dir.iterdir()):
        if _STAGING.fullmatch(entry.name):
            shutil.rmtree(entry, ignore_errors=True)
        elif is_removed(entry.name):
            finish_removal(entry)


def write_checkpoint(
    group: "Group",
    output_dir: Path,
    step: int,
    state: Mapping[str, Any],
    *,
    write: Callable[[Path], None],
    keep: int,
    spare: Collection[int] = (),
) -> Checkpoint:
    """Write a checkpoint aside, put it in place complete, then `prune` the others; a collective call.

    `write(folder)` writes the model and the optimizer: what of them this process writes. Checkpoints of later steps,
    left by a run that was resumed further back, are deleted too.

    Raises:
        SaveError: the disk of any process is full or fails; what was written is gone, older checkpoints are untouched.
    """
    target = output_dir / checkpoint_name(step)

    def write_own(folder: Path) -> dict[str, str]:
        """Digests of what this process wrote, while the system still holds it in memory."""
        write(folder)
        return {name: digest([folder / name]) for name in file_names(folder) if owner(name) == group.rank}

    def complete(folder: Path, digests: list[dict[str, str]]) -> None:
        content = {"format": STATE_FORMAT, "step": step, **state}
        write_text(folder / STATE, json.dumps(content, indent=1, allow_nan=False) + "\n")
        listed = {
            "files": {name: (folder / name).stat().st_size for name in file_names(folder)},
            DIGESTS: {name: each for part in digests for name, each in part.items()}
            | {STATE: digest([folder / STATE])},
        }
        write_text(folder / COMPLETE, json.dumps(listed, indent=1) + "\n")

    write_folder(group, output_dir / f".{target.name}", target, write_own, complete, keep_others=True)
    if group.is_main:
        for late in [each for each in checkpoint_folders(output_dir) if each.step > step]:
            remove(late.path)
        prune(output_dir, keep=keep, spare=spare)
    return Checkpoint(target, step)


def file_names(folder: Path) -> list[str]:
    """Names of all files in a folder, in order, without hidden ones: safetensors writes under such names, then renames.

    Other processes may be writing into the folder meanwhile.
    """
    found = (path.relative_to(folder) for path in folder.rglob("*") if not path.name.startswith("."))
    return sorted(str(name) for name in found if (folder / name).is_file())


def owner(name: str) -> int:
    """Rank of the process that writes a file of a checkpoint: by its name, else the main one."""
    match = _OF_RANK.fullmatch(name)
    return int(match[1]) if match else 0


def prune(output_dir: Path, *, keep: int, spare: Collection[int] = ()) -> None:
    """Delete the oldest complete checkpoints beyond `keep`, but never those of the steps in `spare`."""
    for old in list_checkpoints(output_dir)[:-keep]:
        if old.step not in spare:
            remove(old.path)


def write_folder(
    group: "Group",
    staging: Path,
    target: Path,
    write: Callable[[Path], Any],
    complete: Callable[[Path, list[Any]], None] = lambda folder, results: None,
    *,
    keep_others: bool = False,
) -> None:
    """Fill a folder that appears at `target` synced and complete, or not at all; called by all processes.

    `write(staging)` is called by each of them, then `complete(staging, results)` by the main one with what `write`
    returned in each, when all have written. All return after the folder is in place. With `keep_others`, files in an
    earlier folder at `target` that no run wrote stay there.

    Raises:
        SaveError: the disk of any process is full or fails; raised by all of them.
    """

    def prepare() -> None:
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir(parents=True)

    def put_in_place() -> None:
        complete(staging, results)
        give_usual_modes(staging)
        sync_tree(staging)
        replaced = trash_of(target)
        if target.is_dir() and not target.is_symlink():
            empty(replaced)
            os.replace(target, replaced)
        os.rename(staging, target)
        sync_folder(target.parent)
        empty(replaced)

    def empty(replaced: Path) -> None:
        if keep_others:
            finish_removal(replaced)
        else:
            shutil.rmtree(replaced, ignore_errors=True)

    def nothing() -> None:
        pass

    main = group.is_main
    results: list[Any] = []
    for work in (prepare if main else nothing, lambda: write(staging), put_in_place if main else nothing):
        outcomes = group.all_gather(attempt(work))
        results = [result for _, result in outcomes]
        failed = [(rank, reason) for rank, (reason, _) in enumerate(outcomes) if reason is not None]
        if failed:
            if main:
                shutil.rmtree(staging, ignore_errors=True)
            rank, reason = failed[0]
            where = f" (rank {rank})" if group.world_size > 1 else ""
            raise SaveError(f"{target} could not be written: {reason}{where}")


def give_usual_modes(folder: Path) -> None:
    """Give all files in a folder the mode that new files have, by the folder's own, which follows the umask.

    safetensors writes files that only their owner can read, whatever the umask is.
    """
    mode = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        found = path.lstat().st_mode
        if stat.S_ISREG(found) and found & 0o777 != mode:
            with suppress(PermissionError):  # a file system without modes
                path.chmod(mode)


def attempt(work: Callable[[], Any]) -> tuple[str | None, Any]:
    """Run a disk operation: the reason if the disk failed, else None; and its result."""
    try:
        return None, work()
    except Exception as error:
        reason = why_not_written(error)
        if reason is None:
            raise
        return reason, None


def why_not_written(error: Exception) -> str | None:
    """In words why writing failed; None for an error that has nothing to do with the disk.

    torch and safetensors wrap the system's error in their own types, which keep nothing of it but the text.
    """
    linked: BaseException | None = error
    while linked is not None:
        if isinstance(linked, OSError) and linked.errno is not None:
            return "the disk is full" if linked.errno in _FULL else str(linked.strerror)
        linked = linked.__cause__ or linked.__context__
    text = str(error)
    if "No space left" in text or "StorageFull" in text or "os error 28" in text:
        return "the disk is full"
    if type(error).__name__ == "SafetensorError" and "I/O" in text:
        return text
    return None


def sync_tree(folder: Path) -> None:
    """Let a folder and all in it reach the disk."""
    for path in sorted(folder.rglob("*"), reverse=True):
        sync_file(path)
    sync_file(folder)
