"""How a run begins: anew, from a checkpoint, or not at all; nothing in its folder is changed to find that out."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3v_data.errors import UserError
from phi3v_data.files import read_json
from phi3v_train.config import RunConfig
from phi3v_train.plan import Plan
from phi3v_train.training import folder
from phi3v_train.training.checkpoints import (
    Checkpoint,
    checkpoint_folders,
    find_checkpoint,
    has_ended,
    list_checkpoints,
    readable_state,
    verify,
    why_damaged,
)
from phi3v_train.training.identity import data_identity, refuse_other_run, settings_identity

if TYPE_CHECKING:
    from phi3v_train.training.parallel.group import Group


@dataclass(frozen=True, slots=True)
class Start:
    """How a run begins: anew, from a checkpoint, or not at all because it is complete.

    `ended`: no step is left. `damaged`: newer checkpoints that cannot be used, each with the reason.
    """

    identity: Mapping[str, Any]
    checkpoint: Checkpoint | None
    complete: bool = False
    ended: bool = False
    damaged: tuple[str, ...] = ()

    def words(self, total_steps: int) -> str:
        """For the plan."""
        if self.complete:
            return "already complete"
        if self.checkpoint is None:
            return "begins"
        skipped = "".join(f"; {each}" for each in self.damaged)
        if self.ended:
            return f"resumes from {self.checkpoint.path.name}, no step to go{skipped}"
        return f"goes on from {self.checkpoint.path.name}, {total_steps - self.checkpoint.step:,} steps to go{skipped}"


def find_start(plan: Plan) -> Start:
    """Look into the output directory; nothing is changed there.

    Raises:
        UserError: it holds a run that this one cannot go on from.
    """
    output = plan.config.output
    settings = settings_identity(plan.config, plan.compute.dtype.value)
    identity = {"settings": settings, "data": data_identity(plan.sources)}
    if output.overwrite:
        return Start(identity, None)
    if output.resume == "never" and (list_checkpoints(output.output_dir) or read_finished(output.output_dir)):
        raise UserError(
            f"--resume never: {output.output_dir} holds a run; --overwrite starts over, another --output_dir keeps it"
        )
    done = read_finished(output.output_dir)
    checkpoint = find_checkpoint(output.resume, output.output_dir)
    if done is not None and (checkpoint is None or done["step"] >= checkpoint.step):
        refuse_other_run(output.output_dir, done["identity"], identity)
        if has_ended(done, plan.total_steps) and output.resume == "auto":
            return Start(identity, checkpoint, complete=True)
    newer = [
        (each.path, why_damaged(each.path))
        for each in checkpoint_folders(output.output_dir)
        if output.resume == "auto" and each.step > (checkpoint.step if checkpoint is not None else -1)
    ]
    if checkpoint is None:
        refuse_damaged(output.output_dir, newer, identity)
        if done is not None and output.resume == "auto":
            raise UserError(
                f"{output.output_dir} holds a finished run of {done['step']} steps and no checkpoint to resume from; "
                "--overwrite starts over, another --output_dir keeps it"
            )
        return Start(identity, None)
    state = checkpoint.state()
    refuse_other_run(checkpoint.path, state["identity"], identity)
    damaged = tuple(f"{path.name} cannot be used: {reason}" for path, reason in newer)
    return Start(identity, checkpoint, ended=has_ended(state, plan.total_steps), damaged=damaged)


def refuse_damaged(output_dir: Path, damaged: Sequence[tuple[Path, str]], identity: Mapping[str, Any]) -> None:
    """Never start over where something of a run is left; other settings are named first, as far as it says them.

    Raises:
        UserError: there are damaged checkpoints.
    """
    if not damaged:
        return
    for path, _ in reversed(damaged):
        state = readable_state(path)
        if state is not None and isinstance(state.get("identity"), dict):
            refuse_other_run(path, state["identity"], identity)
            break
    path, reason = damaged[-1]
    raise UserError(
        f"{path} cannot be used: {reason}; {output_dir} holds no other complete checkpoint; --overwrite starts over, "
        "another --output_dir keeps it"
    )


def verified_start(group: "Group", start: Start, config: RunConfig) -> Start:
    """The same start, or one from an older checkpoint where the content of the newest is damaged; of all processes.

    Raises:
        UserError: no checkpoint is whole.
    """
    checkpoint, main = start.checkpoint, group.place.is_main
    if main:
        for sentence in start.damaged:
            print(f"warning: {sentence}", file=sys.stderr)
    if checkpoint is None:
        return start
    output = config.output
    damaged = []
    older = [each for each in list_checkpoints(output.output_dir) if each.step < checkpoint.step] if main else []
    older = group.share(older) if output.resume == "auto" else []
    while reason := verify(group, checkpoint):
        damaged.append((checkpoint.path, reason))
        if not older:
            refuse_damaged(output.output_dir, damaged[::-1], start.identity)
        if main:
            print(f"warning: {checkpoint.path.name} cannot be used: {reason}", file=sys.stderr)
        checkpoint = older.pop()
        refuse_other_run(checkpoint.path, checkpoint.state()["identity"], start.identity)
    if damaged and main:
        print(f"resuming from {checkpoint.path.name}", file=sys.stderr)
    return replace(start, checkpoint=checkpoint)


def read_finished(output_dir: Path) -> dict[str, Any] | None:
    """What a finished run left in `complete.json`; None if there is none, or not one of a run."""
    done = read_json(output_dir / folder.DONE)
    whole = done is not None and type(done.get("step")) is int and isinstance(done.get("identity"), dict)
    return done if whole else None


def refuse_other_start(group: "Group", start: Start) -> None:
    """See that every process found the same checkpoint.

    Raises:
        UserError: the output directory is not the same one on every machine.
    """
    found = group.gather(start.checkpoint.path.name if start.checkpoint is not None else "nothing")
    other = next((rank for rank, name in enumerate(found) if name != found[0]), None)
    if other is not None:
        raise UserError(
            f"--output_dir must be one directory that all machines share: rank 0 found {found[0]} in it, rank {other} "
            f"found {found[other]}"
        )


def way_on(output_dir: Path) -> str:
    """Where a run that was stopped or has failed resumes."""
    checkpoints = list_checkpoints(output_dir)
    where = f"goes on from {checkpoints[-1].path}" if checkpoints else "begins anew: there is no checkpoint yet"
    return f"The same command {where}."
