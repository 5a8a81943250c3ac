"""The best evaluation of a run: its checkpoint is kept, its weights become those of the finished model."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from phi3v_data.files import write_json
from phi3v_train.config import RunConfig
from phi3v_train.distributed.group import Group
from phi3v_train.training import folder
from phi3v_train.training.best import Best, BestTracker
from phi3v_train.training.checkpoints import Checkpoint, checkpoint_name, prune, verify, why_damaged
from phi3v_train.training.parallel.engine import Engine


class BestKeeper:
    """Counts the evaluations of a run, keeps the best checkpoint and ends the run early, as its settings say.

    Every method that writes or loads is called by all processes.

    Args:
        group: the processes.
        config: the run's settings.
        tracker: compares the evaluations; None if the run compares none.
        say: prints a line.

    `in_model`: the evaluation whose weights the finished model has; None for those of the last step.
    """

    def __init__(
        self, group: Group, config: RunConfig, tracker: BestTracker | None, *, say: Callable[[str], None]
    ) -> None:
        self.tracker = tracker
        self.stopped_early = False
        self.in_model: Best | None = None
        self._group = group
        self._wanted = config.eval.keep_best
        self._limit = config.output.save_total_limit
        self._output_dir = config.output.output_dir
        self._say = say if group.is_main else lambda text: None

    @property
    def kept(self) -> Best | None:
        """The evaluation whose checkpoint is kept."""
        return self.tracker.best if self.tracker is not None and self._wanted else None

    def spared(self, step: int) -> set[int]:
        """Steps whose checkpoints are kept beyond the limit: `step`, where the run is, and the best one."""
        return {step, *([self.kept.step] if self.kept is not None else [])}

    def restore(self, state: Mapping[str, Any], *, ended: bool) -> None:
        """Count on from a checkpoint's state; `ended`: the run has no step left."""
        self.stopped_early = ended and bool(state.get("stopped_early"))
        counted = state.get("evaluations")
        if self.tracker is not None and counted and not self.tracker.restore(counted):
            self._say("note: evaluations are compared in another way than before, so they count from here on")

    def count(self, step: int, metrics: Mapping[str, Any], *, save: Callable[[], bool]) -> None:
        """Count the evaluation after a step, once. `save` writes a checkpoint if there is none of this step, and
        returns whether there is one; it is called for the best evaluation so far.
        """
        found = self.tracker.count(step, metrics) if self.tracker is not None else None
        if self.tracker is None or found is None:
            return
        before, self.tracker.best = self.tracker.best, found
        if self._wanted and not save():
            self.tracker.best = before  # what could not be written has been reported
        elif self._wanted:
            self.tidy(step)

    def ends_run(self, step: int) -> bool:
        """Whether the evaluation after `step` is the one that ends the run."""
        return self.tracker is not None and self.tracker.is_exhausted(step)

    def end(self, step: int) -> None:
        """Remember that the evaluation after `step` ends the run, and why."""
        self.stopped_early = True
        if self.tracker is not None:
            self._say(f"step {step}: {self.tracker.reason()}: the run ends here")

    def settle(self, step: int) -> None:
        """When the run starts at `step`: make sure that the best checkpoint is there; see `tidy`."""
        if self.tracker is not None and self.kept is not None:
            path = self._output_dir / checkpoint_name(self.kept.step)
            if self._group.broadcast(why_damaged(path)):
                self._say(f"warning: {path.name}, the best so far, is gone; the best one from here on is kept")
                self.tracker.best = None
        self.tidy(step)

    def tidy(self, step: int) -> None:
        """Let `best.json` name the best checkpoint, and delete those beyond the limit."""
        if self._group.is_main:
            path = self._output_dir / folder.BEST
            try:
                if self.kept is None:
                    path.unlink(missing_ok=True)
                else:
                    self._describe(self._output_dir)
            except OSError as error:
                self._say(f"warning: {path} cannot be written: {error.strerror}; the run continues")
            prune(self._output_dir, keep=self._limit, spare=self.spared(step))
        self._group.barrier()

    def load(self, engine: Engine, step: int) -> None:
        """At the end of the run, at `step`: load the weights of the best evaluation, if they were kept."""
        if not self._wanted:
            return
        self.in_model = self.kept
        if self.in_model is not None and self.in_model.step != step:
            checkpoint = Checkpoint(self._output_dir / checkpoint_name(self.in_model.step), self.in_model.step)
            reason = self._group.broadcast(why_damaged(checkpoint.path)) or verify(self._group, checkpoint)
            if reason:
                self._say(f"warning: {checkpoint.path}, the best one, cannot be used: {reason}")
                self.in_model = None
            else:
                engine.read(checkpoint.path)
        if self.in_model is None:
            self._say(f"warning: {self._output_dir / folder.MODEL} has the weights of the last step, {step}")

    def describe_model(self, target: Path) -> None:
        """Write into the finished model's folder which evaluation its weights are those of; by the main process."""
        if self.in_model is not None:
            self._describe(target)

    def state(self) -> dict[str, Any]:
        """Contents for `state.json`, beside those of every run."""
        if self.tracker is None:
            return {}
        return {"evaluations": self.tracker.to_json(), **self._early()}

    def outcome(self, step: int) -> dict[str, Any]:
        """Contents for `complete.json` of a run that ended at `step`, beside those of every run."""
        if self.tracker is None:
            return {}
        result: dict[str, Any] = {"best": self.tracker.described()}
        if self._wanted:
            result["model_step"] = self.in_model.step if self.in_model is not None else step
        if self.stopped_early:
            result["reason"] = self.tracker.reason()
        return {**result, **self._early()}

    def _early(self) -> dict[str, Any]:
        assert self.tracker is not None
        return {"stopped_early": self.tracker.without} if self.stopped_early else {}

    def _describe(self, target: Path) -> None:
        assert self.tracker is not None
        write_json(target / folder.BEST, self.tracker.described())
