"""How a run begins: at step 0, from a checkpoint, or not at all; finding that out changes nothing in its folder."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from phi3v_data.errors import UserError
from phi3v_data.files import load_json
from phi3v_data.messages import counted
from phi3v_data.remote.address import refuse_address
from phi3v_train.config import RunConfig
from phi3v_train.data.identity import data_identity
from phi3v_train.models.content import content_of
from phi3v_train.plan import Plan
from phi3v_train.settings import resolve
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
from phi3v_train.training.identity import find_differences, refuse_other_run, settings_identity
from phi3v_train.training.metrics_log import read_metrics

if TYPE_CHECKING:
    from phi3v_train.distributed.group import Group


@dataclass(frozen=True, slots=True)
class Start:
    """How a run begins: at step 0, from a checkpoint, or not at all because it is complete.

    `ended`: no step is left. `damaged`: newer checkpoints that cannot be used, each with the reason, oldest first.
    `starts_over`: the same run has logged steps, but no checkpoint is left of it. `step`: the last one it has.
    `other_images`: directories whose images are not those of the earlier start. `seen`: what the folder had in it.
    """

    identity: Mapping[str, Any]
    checkpoint: Checkpoint | None
    complete: bool = False
    ended: bool = False
    damaged: tuple[tuple[Path, str], ...] = ()
    starts_over: bool = False
    step: int = 0
    other_images: tuple[Path, ...] = ()
    seen: tuple[str, ...] = ()

    def warnings(self, output_dir: Path, total_steps: int) -> list[str]:
        """Warnings before anything is trained."""
        past = self.past_end(output_dir, total_steps)
        return [
            *([past] if past else []),
            *(
                f"{directory}: its images are others than when the run was started last; the steps that are left are "
                "trained with them as they are now; --overwrite starts over"
                for directory in self.other_images
            ),
        ]

    def past_end(self, output_dir: Path, total_steps: int) -> str:
        """Warning that a run of fewer steps than the directory already has trains nothing; empty if it does train."""
        if self.step <= total_steps:
            return ""
        return (
            f"{output_dir} is already past step {total_steps:,}: nothing is trained, and its model is that of step "
            f"{self.step:,}; --overwrite starts over, another --output_dir keeps it"
        )

    def words(self, total_steps: int) -> str:
        """For the plan."""
        if self.complete:
            return "already complete"
        if self.checkpoint is None:
            return "starts over, with no checkpoint to resume from" if self.starts_over else "begins"
        skipped = "".join(f"; {name_damaged([each])}" for each in self.damaged)
        if self.ended:
            return f"resumes from {self.checkpoint.path.name}, no steps left{skipped}"
        left = counted(total_steps - self.checkpoint.step, "step")
        return f"resumes from {self.checkpoint.path.name}, {left} left{skipped}"


def find_start(plan: Plan, images: Mapping[str, str] = MappingProxyType({})) -> Start:
    """Look into the output directory; nothing is changed there.

    `images`: digest of the images of each directory, as the check of the data has just found them; of others nothing is
    known.

    Raises:
        UserError: it holds a run that this one cannot resume from, or files of others.
    """
    refuse_address(plan.config.output.output_dir, "--output_dir")
    folder.require_own(plan.config.output.output_dir, plan.config.data.data_dir)
    seen = what_is_there(plan.config.output.output_dir)  # before the rest: a run that writes meanwhile makes another
    return replace(_find_start(plan, images), seen=seen)


def what_is_there(output_dir: Path) -> tuple[str, ...]:
    """The checkpoints of a folder, and the state of its `complete.json`."""
    found = [each.path.name for each in checkpoint_folders(output_dir)]
    with suppress(OSError):
        state = (output_dir / folder.DONE).stat()
        found.append(f"{state.st_ino} {state.st_mtime_ns}")
    return tuple(found)


def refuse_changed(start: Start, output_dir: Path) -> None:
    """Refuse to go on if another process has written since the folder was looked at: its run might be undone.

    Raises:
        UserError: it has.
    """
    if start.seen != what_is_there(output_dir):
        raise UserError(
            f"{output_dir}: another run has written there since this one looked; run the same command again to go on "
            "from what it left"
        )


def _find_start(plan: Plan, images: Mapping[str, str]) -> Start:
    output, patience = plan.config.output, plan.config.eval.early_stopping_patience
    settings = settings_identity(plan.config, plan.compute.dtype.value)
    digests = [images.get(source.given, "") for source in plan.sources]
    identity = {
        "settings": settings,
        "data": data_identity(plan.sources),
        "image_digests": digests,
        "model": content_of(plan.files),
    }
    if output.overwrite:
        return Start(identity, None)
    if output.resume == "never" and (checkpoint_folders(output.output_dir) or folder.read_finished(output.output_dir)):
        raise UserError(
            f"--resume never: {output.output_dir} holds a run; --overwrite starts over, another --output_dir keeps it"
        )
    done = folder.read_finished(output.output_dir)
    checkpoint = find_checkpoint(output.resume, output.output_dir)
    if done is not None and (checkpoint is None or done["step"] >= checkpoint.step):
        refuse_other_run(output.output_dir, done["identity"], identity)
        if has_ended(done, plan.total_steps, patience) and output.resume == "auto":
            return Start(identity, checkpoint, complete=True, step=done["step"])
    newer = tuple(
        (each.path, why_damaged(each.path))
        for each in checkpoint_folders(output.output_dir)
        if output.resume == "auto" and each.step > (checkpoint.step if checkpoint is not None else -1)
    )
    if checkpoint is None:
        refuse_damaged(output.output_dir, newer, identity)
        if done is not None and output.resume == "auto":
            raise UserError(
                f"{output.output_dir} holds a finished run of {counted(done['step'], 'step')} and no checkpoint to "
                "resume from; --overwrite starts over, another --output_dir keeps it"
            )
        return Start(identity, None, starts_over=has_logs_of_this_run(output.output_dir, identity))
    state = checkpoint.state()
    refuse_other_run(checkpoint.path, state["identity"], identity)
    earlier = earlier_digests(state["identity"], len(digests))
    return Start(
        {**identity, "image_digests": [new or old for old, new in zip(earlier, digests, strict=True)]},
        checkpoint,
        ended=has_ended(state, plan.total_steps, patience),
        damaged=newer,
        step=checkpoint.step,
        other_images=other_images(plan, earlier, digests),
    )


def earlier_digests(saved: Mapping[str, Any], number: int) -> list[str]:
    """Digests of the images of each source at an earlier start; empty ones where they were not known."""
    earlier = saved.get("image_digests")
    if isinstance(earlier, list) and len(earlier) == number and all(isinstance(each, str) for each in earlier):
        return earlier
    return [""] * number


def other_images(plan: Plan, earlier: Sequence[str], digests: Sequence[str]) -> tuple[Path, ...]:
    """Directories whose images were others at an earlier start, as far as both are known."""
    pairs = zip(plan.sources, earlier, digests, strict=True)
    return tuple(dict.fromkeys(source.directory for source, old, new in pairs if old and new and old != new))


def has_logs_of_this_run(output_dir: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a folder without checkpoints holds logged steps of the run that is started; False if it holds none.

    Such a run starts over, as one does that was killed before its first checkpoint.

    Raises:
        UserError: the steps are those of a run with other settings or data, or their run cannot be identified.
    """
    if not any(line["step"] > 0 for line in read_metrics(output_dir / folder.METRICS)):
        return False
    try:
        earlier = resolve({}, config_file=output_dir / folder.CONFIG).config
        dtype = earlier.model.dtype if earlier.model.dtype != "auto" else identity["settings"]["dtype"]
        data = load_json(output_dir / folder.DATA)
        differences = find_differences({"settings": settings_identity(earlier, dtype), "data": data}, identity)
    except (UserError, OSError, ValueError, TypeError, KeyError):
        differences = ["its config.yaml or data.json cannot be read"]
    if differences:
        raise UserError(
            f"{output_dir} holds an earlier run's logs but no checkpoint to resume from ({'; '.join(differences)}); "
            "--overwrite starts over, or choose another --output_dir"
        )
    return True


def name_damaged(damaged: Sequence[tuple[Path, str]]) -> str:
    """`checkpoint-000002, checkpoint-000003 cannot be used: REASON; ...`: those with the same reason together."""
    by_reason: dict[str, list[str]] = {}
    for path, reason in damaged:
        by_reason.setdefault(reason, []).append(path.name)
    return "; ".join(f"{', '.join(names)} cannot be used: {reason}" for reason, names in by_reason.items())


def refuse_damaged(output_dir: Path, damaged: Sequence[tuple[Path, str]], identity: Mapping[str, Any]) -> None:
    """Refuse to start over if damaged checkpoints of a run exist; a difference in settings is reported first.

    Raises:
        UserError: there are damaged checkpoints; each is named with its reason.
    """
    if not damaged:
        return
    for path, _ in reversed(damaged):
        state = readable_state(path)
        if state is not None and isinstance(state.get("identity"), dict):
            refuse_other_run(path, state["identity"], identity)
            break
    raise UserError(
        f"{output_dir}: {name_damaged(damaged)}; there is no other checkpoint; --overwrite starts over, another "
        "--output_dir keeps it"
    )


def verified_start(group: "Group", start: Start, config: RunConfig) -> Start:
    """The same start, or one from an older checkpoint where the content of the newest is damaged; of all processes.

    Raises:
        UserError: no checkpoint is complete.
    """
    checkpoint, main = start.checkpoint, group.is_main
    output = config.output
    if checkpoint is None:
        if start.starts_over and main:
            print(
                f"warning: {output.output_dir} holds logs of this run but no checkpoint to resume from: it starts "
                "over, and its logs are replaced",
                file=sys.stderr,
            )
        return start
    damaged = list(start.damaged)
    older = [each for each in list_checkpoints(output.output_dir) if each.step < checkpoint.step] if main else []
    older = group.broadcast(older) if output.resume == "auto" else []
    while reason := verify(group, checkpoint):
        damaged.insert(0, (checkpoint.path, reason))
        if output.resume != "auto":
            raise UserError(
                f"--resume {output.resume}: {name_damaged(damaged)}; give another checkpoint, or leave out --resume"
            )
        if not older:
            refuse_damaged(output.output_dir, damaged, start.identity)
        checkpoint = older.pop()
        refuse_other_run(checkpoint.path, checkpoint.state()["identity"], start.identity)
    if main:
        for each in damaged:
            print(f"warning: {name_damaged([each])}", file=sys.stderr)
        if checkpoint != start.checkpoint:
            print(f"resuming from {checkpoint.path.name}", file=sys.stderr)
    return replace(start, checkpoint=checkpoint)


def refuse_other_start(group: "Group", start: Start) -> None:
    """Make sure that every process found the same checkpoint.

    Raises:
        UserError: the output directory is not the same one on every machine.
    """
    found = group.all_gather(start.checkpoint.path.name if start.checkpoint is not None else "nothing")
    other = next((rank for rank, name in enumerate(found) if name != found[0]), None)
    if other is not None:
        raise UserError(
            f"--output_dir must be one directory that all machines share: rank 0 found {found[0]} in it, rank {other} "
            f"found {found[other]}"
        )


def resume_hint(output_dir: Path) -> str:
    """One sentence on where a run that was stopped or has failed resumes."""
    checkpoints = list_checkpoints(output_dir)
    where = f"resumes from {checkpoints[-1].path}" if checkpoints else "starts over: there is no checkpoint yet"
    return f"The same command {where}."
