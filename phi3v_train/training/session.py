"""Everything around the steps of a run: log, evaluate, save, and finish; the same after a kill at any moment.

After step S, in this order: a checkpoint if one is due, an evaluation if one is due, then the line of S in
`metrics.jsonl`. A checkpoint holds the line of its step, so whatever a kill cut off after it is made up for on resume.
With `--keep_best`, an evaluation that is the best so far writes the checkpoint of its step, unless there is one.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi3v_data.errors import UserError, how_to_install
from phi3v_data.files import read_stored, write_json, write_text
from phi3v_data.messages import counted
from phi3v_train.config import RunConfig
from phi3v_train.device import memory_used
from phi3v_train.distributed.stopping import Interrupted, StopRequest
from phi3v_train.training import folder
from phi3v_train.training.best import BestTracker
from phi3v_train.training.checkpoints import (
    Checkpoint,
    SaveError,
    checkpoint_name,
    has_ended,
    write_checkpoint,
    write_folder,
)
from phi3v_train.training.keep_best import BestKeeper
from phi3v_train.training.loop import StepResult, TrainLoop
from phi3v_train.training.metrics_log import MetricsLog, make_line, read_metrics, scores_of, with_scores
from phi3v_train.training.plot import draw_loss
from phi3v_train.training.progress import ProgressLine
from phi3v_train.training.trackers import Trackers, open_trackers

Evaluate = Callable[[int], Mapping[str, Any]]
"""Evaluates the model as it is after a step, on every process: `split, num_samples, metrics, model, step`."""

Hook = Callable[[Mapping[str, Any]], bool]
"""Given the line of a step, with its scores if it was evaluated; True ends the run after this step, as if it had been
the last. All processes must decide the same.
"""


PLOT_SECONDS = 60.0
"""A plot takes longer to draw than a step of a small model: after a checkpoint, only if the last one is so old."""


class UnsavedError(UserError):
    """All steps are done, and the model could not be written."""


@dataclass(frozen=True)
class RunIdentity:
    """Settings and data that a run is begun with; see `identity`.

    `image_digests`: one for each source, or empty; `model`: of the files of the model, or empty.
    """

    settings: Mapping[str, Any]
    data: list[dict[str, Any]]
    image_digests: list[str]
    model: str

    def to_json(self) -> dict[str, Any]:
        """Contents for `state.json` and `complete.json`."""
        return {
            "settings": dict(self.settings),
            "data": self.data,
            "image_digests": self.image_digests,
            "model": self.model,
        }


class Session:
    """One start of a run, from a checkpoint or from the beginning, on one of its processes.

    `stopped` is the signal that ended it early, 0 otherwise; `has_ended`: no step is left, because all are done, or
    a hook or early stopping ended the run; `best`: what is known of its evaluations.
    """

    def __init__(
        self,
        loop: TrainLoop,
        processor: Any,
        *,
        identity: RunIdentity,
        title: str,
        epoch_steps: int,
        evaluate: Evaluate | None,
        progress: ProgressLine,
        request: StopRequest,
        hooks: Sequence[Hook] = (),
        tracker: BestTracker | None = None,
    ) -> None:
        self.loop = loop
        self.engine = loop.engine
        self.processor = processor
        self.config: RunConfig = loop.config
        self.identity = identity
        self.title = title
        self.epoch_steps = epoch_steps
        self.evaluate = evaluate
        self.progress = progress
        self.request = request
        self.hooks = tuple(hooks)
        self.best = BestKeeper(loop.group, self.config, tracker, say=progress.say)
        self.stopped = 0
        self.saved: int | None = None
        self.unsaved = False
        self.is_main = loop.group.is_main
        self.output_dir: Path = self.config.output.output_dir
        self.step = 0
        self.samples = 0
        self._log: MetricsLog | None = None
        self._trackers: Trackers | None = None
        self._warned = ""
        self._was_ended = False
        self._clock = self._drawn = time.monotonic()
        self._line: dict[str, Any] | None = None

    def restore(self, checkpoint: Checkpoint) -> None:
        """Load weights, optimizer and counters."""
        state = checkpoint.state()
        self.engine.read(checkpoint.path)
        self.step, self.samples = checkpoint.step, int(state["samples"])
        self._line = state["line"]
        self._was_ended = has_ended(state, self.loop.total_steps, self.config.eval.early_stopping_patience)
        self.best.restore(state, ended=self._was_ended)
        self.saved = self.step
        self.request.saves = True

    def open(self) -> None:
        """Open logs at the current step, and make up for what a kill cut off after a checkpoint."""
        line = self._line
        logged: dict[str, Any] | None = None
        if self.is_main:
            path = self.output_dir / folder.METRICS
            logged = next((each for each in read_metrics(path) if each["step"] == self.step), None)
            self._log = MetricsLog(path, step=self.step)
            if self._log.damaged:
                lines = counted(self._log.damaged, "damaged line")
                self.progress.say(f"warning: {path} had {lines}, left out now; the run continues")
            self._trackers = open_trackers(
                self.config.output.report_to, self.output_dir, self.config.flat(), self.step, self.progress.say
            )
        logged = self.loop.group.broadcast(logged)
        try:
            if self.step == 0 and self.config.eval.eval_before and self.evaluate is not None:
                self._finish_line({"step": 0, "epoch": 0.0}, self._evaluate(folder.EVAL_BEFORE))
            elif line is not None and logged is None:
                self._close_step(line)
            elif line is not None and logged is not None:
                self._count_logged(line, scores_of(logged))
        except Interrupted:
            pass  # the request, which is asked next, knows the signal
        else:
            self.best.settle(self.step)
        self.stopped = self.request.agree(self.loop.group)
        self.request.saves = True

    @property
    def has_ended(self) -> bool:
        """Whether no step is left."""
        return self._was_ended or self.step >= self.loop.total_steps

    def flags(self) -> tuple[float, ...]:
        """Numbers that all processes need after a step: signals, and by the main one's clock whether to save."""
        minutes = self.config.output.save_minutes
        is_time = minutes is not None and time.monotonic() - self._clock >= minutes * 60
        return (*self.request.flags(), float(self.is_main and is_time))

    def after_step(self, result: StepResult) -> bool:
        """Log, evaluate, save: what is due after a step; True where the run ends here."""
        self.step = result.step
        self.samples += result.num_samples
        *flags, is_time = result.flags
        stop = self.request.signal_of(tuple(flags))
        line = make_line(result, self.step / self.epoch_steps)
        self.progress(result, memory_used(self.loop.group.device))
        if stop or is_time or self._is_due(self.config.output.save_steps or self.epoch_steps):
            self.save(line)
        if stop and self._evaluates_now:
            self.stopped = stop  # on resume, this step is closed first
            return True
        try:
            self._close_step(line)
        except Interrupted:
            stop = self.request.agree(self.loop.group)
            if self.saved != self.step:
                self.save(line)
        self.stopped = stop
        return bool(stop) or self.has_ended

    def save(self, line: Mapping[str, Any]) -> None:
        """Write a checkpoint; a full disk is reported, and the run continues."""
        state = {
            "samples": self.samples,
            "total_steps": self.loop.total_steps,
            "ended": self.has_ended,
            "line": dict(line),
            **self.best.state(),
            "identity": self.identity.to_json(),
            "parallel": {"kind": self.engine.strategy, "world_size": self.loop.group.world_size},
            "config": self.config.model_dump(mode="json"),
        }
        try:
            write_checkpoint(
                self.loop.group,
                self.output_dir,
                self.step,
                state,
                write=lambda target: self.engine.write(target, self.processor),
                keep=self.config.output.save_total_limit,
                spare=self.best.spared(self.step),
            )
        except SaveError as error:
            if self.is_main:
                self.progress.say(f"warning: {error}; the run continues without this checkpoint")
            self.unsaved = True
        else:
            self.saved, self.unsaved = self.step, False
            self._clock = time.monotonic()
            if self.is_main and self._clock - self._drawn >= PLOT_SECONDS:
                self._draw()
        # The main process deletes old checkpoints: the others wait here, not in an exchange of gradients.
        self.loop.group.barrier()

    def stop(self) -> None:
        """End a run that was stopped by a signal."""
        self._close_logs()
        if self.is_main:
            self._draw()
        self.loop.group.barrier()

    def _close_logs(self) -> None:
        """Write what waits; where it cannot be written, the run has not ended well."""
        if self._trackers is not None:
            self._trackers.close()
        if self._log is not None:
            self._log.flush()
            if self._log.failed:
                self.progress.say(f"error: {self._log.path} lacks its last lines: {self._log.failed}")
        self.unsaved |= bool(self.loop.group.broadcast(self._log is not None and bool(self._log.failed)))
        self.progress.close()

    def finish(self, card: Callable[[Mapping[str, Any] | None, Mapping[str, Any] | None], str]) -> None:
        """Write the finished model, the plot, the card, and last of all the mark that the run is complete.

        Raises:
            UnsavedError: the disk does not take the model.
        """
        self._close_logs()
        target = self.output_dir / folder.MODEL
        dtype = self.engine.precision.dtype
        self.best.load(self.engine, self.step)
        try:
            write_folder(
                self.loop.group,
                target.with_name(f".{folder.MODEL}"),
                target,
                lambda staging: self.engine.write_model(staging, self.processor, dtype),
                lambda staging, results: self.best.describe_model(staging),
                keep_others=True,
            )
        except SaveError as error:
            advice = f"make room and run the same command again: {self._where_it_resumes()}"
            raise UnsavedError(f"{error}; {advice}") from error
        if not self.is_main:
            self.loop.group.barrier()
            return
        self._draw()
        before = read_stored(self.output_dir / folder.EVAL_BEFORE)
        after = read_stored(self.output_dir / folder.EVAL_AFTER)
        write_text(self.output_dir / folder.CARD, card(before, after))
        write_json(
            self.output_dir / folder.DONE,
            {
                "format": 1,
                "step": self.step,
                "total_steps": self.loop.total_steps,
                "ended": True,
                "samples": self.samples,
                **self.best.outcome(self.step),
                "identity": self.identity.to_json(),
            },
        )
        self.loop.group.barrier()

    def _where_it_resumes(self) -> str:
        if self.saved is None:
            return "it starts over, as no checkpoint could be written"
        return f"it resumes from {checkpoint_name(self.saved)}"

    def last_line(self) -> dict[str, Any] | None:
        """The last training line of the log."""
        lines = [line for line in read_metrics(self.output_dir / folder.METRICS) if "loss" in line]
        return lines[-1] if lines else None

    def _is_due(self, every: int | None) -> bool:
        return self.has_ended or (every is not None and self.step % every == 0)

    @property
    def _evaluates_now(self) -> bool:
        """Whether an evaluation is due after this step."""
        every = self.config.eval.eval_steps
        due = self.config.eval.eval_after if self.has_ended else every is not None and self.step % every == 0
        return self.evaluate is not None and due

    def _close_step(self, line: Mapping[str, Any]) -> None:
        """Evaluate where it is due, ask the hooks whether the run ends here, then write the step's line.

        Raises:
            Interrupted: the run is to stop, and the evaluation was left undone.
        """
        result = None
        if self._evaluates_now:
            result = self._evaluate(folder.EVAL_AFTER if self.has_ended else f"eval_step-{self.step:06d}.json")
            self._count(line, result["metrics"])
        wishes = [hook(with_scores(line, result)) for hook in self.hooks]
        if (self._stops_early() or any(wishes)) and not self.has_ended:
            self._was_ended = True
            if self._stops_early():
                self.best.end(self.step)
            if self._evaluates_now:
                result = self._evaluate(folder.EVAL_AFTER, result)
                self._count(line, result["metrics"])
            # On resume, early stopping follows from the evaluations, but nothing else tells that a hook ended the run.
            if any(wishes) or self.saved != self.step:
                self.save(line)
        if self.has_ended or result is not None or self.step % self.config.output.logging_steps == 0:
            self._finish_line(line, result)

    def _count_logged(self, line: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """Count the evaluation of the step that the run resumes from, which came after its checkpoint.

        Raises:
            Interrupted: the run is to stop, and the evaluation after training was left undone.
        """
        if metrics:
            self._count(line, metrics)
        if self._stops_early() and not self.has_ended:
            self._was_ended = True
            self.best.end(self.step)
            after = read_stored(self.output_dir / folder.EVAL_AFTER) or {}
            if self._evaluates_now and self.loop.group.broadcast(after.get("step")) != self.step:
                self._evaluate(folder.EVAL_AFTER)

    def _count(self, line: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
        """Count the evaluation of this step, whose line is `line`."""

        def save() -> bool:
            if self.saved != self.step:
                self.save(line)
            return self.saved == self.step

        self.best.count(self.step, metrics, save=save)

    def _stops_early(self) -> bool:
        return self.best.ends_run(self.step)

    def _evaluate(self, name: str, done: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """Evaluate, unless `done` is the result already, and write the result."""
        assert self.evaluate is not None
        result = self.evaluate(self.step) if done is None else done
        if self.is_main:
            write_json(self.output_dir / name, result)
        if self.is_main and done is None:
            shown = ", ".join(f"{key} {value:.4g}" for key, value in result["metrics"].items() if value is not None)
            self.progress.say(f"step {self.step}: {result['split']} ({result['num_samples']:,} samples): {shown}")
        return result

    def _finish_line(self, line: Mapping[str, Any], result: Mapping[str, Any] | None) -> None:
        if self._log is None or self._trackers is None:
            return
        values = with_scores(line, result)
        self._log.write(values)
        if self._log.failed and self._log.failed != self._warned:
            self.progress.say(f"warning: {self._log.path} cannot be written now: {self._log.failed}; the run continues")
        self._warned = self._log.failed
        self._trackers.log(values, self.step)

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        try:
            metrics = list(read_metrics(self.output_dir / folder.METRICS))
            draw_loss(metrics, self.output_dir / folder.PLOT, title=self.title)
        except ImportError:
            self.progress.say(f"no loss plot: matplotlib is not installed ({how_to_install('train')})")
        except OSError as error:
            self.progress.say(f"warning: {self.output_dir / folder.PLOT} cannot be drawn: {error.strerror}")
