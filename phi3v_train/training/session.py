"""What happens around the steps of a run: log, evaluate, save, and finish; the same after a kill at any moment.

After step S, in this order: a checkpoint where one is due, an evaluation where one is due, then the line of S in
`metrics.jsonl`. A checkpoint holds the line of its step, so whatever a kill cut off behind it is made up for on resume.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from phi3v_data.errors import UserError
from phi3v_data.files import read_json, write_json, write_text
from phi3v_train.config import RunConfig
from phi3v_train.training import folder
from phi3v_train.training.checkpoints import Checkpoint, SaveError, write_checkpoint, write_folder
from phi3v_train.training.loop import StepResult, TrainLoop
from phi3v_train.training.metrics_log import MetricsLog, read_metrics
from phi3v_train.training.plot import draw_loss
from phi3v_train.training.progress import ProgressLine
from phi3v_train.training.trackers import Trackers, open_trackers

Evaluate = Callable[[int], Mapping[str, Any]]
"""Evaluates the model as it is after a step, on every process: `split, num_samples, metrics, model, step`."""


@dataclass(frozen=True)
class RunIdentity:
    """What a run is begun with; see `identity`."""

    settings: Mapping[str, Any]
    data: list[dict[str, Any]]

    def to_json(self) -> dict[str, Any]:
        """As it stands in `state.json` and `complete.json`."""
        return {"settings": dict(self.settings), "data": self.data}


class Session:
    """One start of a run, from a checkpoint or from the beginning, on one of its processes."""

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
        self.is_main = loop.group.place.is_main
        self.output_dir: Path = self.config.output.output_dir
        self.step = 0
        self.samples = 0
        self._log: MetricsLog | None = None
        self._trackers: Trackers | None = None
        self._warned = ""
        self._line: dict[str, Any] | None = None

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take up weights, optimizer and counters."""
        state = checkpoint.state()
        self.engine.read(checkpoint.path)
        self.step, self.samples = checkpoint.step, int(state["samples"])
        self._line = state["line"]

    def open(self) -> None:
        """Open logs at the step the run stands at, and make up for what a kill cut off behind a checkpoint."""
        line = self._line
        missing = False
        if self.is_main:
            path = self.output_dir / folder.METRICS
            missing = line is not None and all(each["step"] != self.step for each in read_metrics(path))
            self._log = MetricsLog(path, step=self.step)
            self._trackers = open_trackers(
                self.config.output.report_to, self.output_dir, self.config.flat(), self.step, self.progress.say
            )
        missing = self.loop.group.share(missing)
        if self.step == 0 and self.config.eval.eval_before and self.evaluate is not None:
            self._finish_line({"step": 0, "epoch": 0.0}, self._evaluate(folder.EVAL_BEFORE))
        elif missing and line is not None:
            self._close_step(line)

    def after_step(self, result: StepResult) -> None:
        """Log, evaluate, save: what is due after a step."""
        self.step = result.step
        self.samples += result.num_samples
        line = make_line(result, self.step / self.epoch_steps)
        self.progress(result, memory_used(self.loop.group.device))
        if self._is_due(self.config.output.save_steps or self.epoch_steps):
            self.save(line)
        self._close_step(line)

    def save(self, line: Mapping[str, Any]) -> None:
        """Write a checkpoint; a disk that is full is said, and the run goes on."""
        state = {
            "samples": self.samples,
            "total_steps": self.loop.total_steps,
            "line": dict(line),
            "identity": self.identity.to_json(),
            "parallel": {"kind": self.engine.kind, "world_size": self.loop.group.place.world_size},
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
            )
        except SaveError as error:
            if self.is_main:
                self.progress.say(f"warning: {error}; the run goes on without this checkpoint")
        else:
            if self.is_main:
                self._draw()
        # The main process deletes old checkpoints: the others wait here, not in an exchange of gradients.
        self.loop.group.wait()

    def finish(self, card: Callable[[Mapping[str, Any] | None, Mapping[str, Any] | None], str]) -> None:
        """Write the finished model, the plot, the card, and last of all the mark that the run is complete.

        Raises:
            UserError: the disk does not take the model.
        """
        if self._trackers is not None:
            self._trackers.close()
        self.progress.close()
        target = self.output_dir / folder.MODEL
        dtype = self.engine.precision.dtype
        try:
            write_folder(
                self.loop.group,
                target.with_name(f".{folder.MODEL}"),
                target,
                lambda staging: self.engine.write_model(staging, self.processor, dtype),
            )
        except SaveError as error:
            raise UserError(f"{error}; make room and run the same command again: it goes on from here") from error
        if not self.is_main:
            self.loop.group.wait()
            return
        self._draw()
        before = read_json(self.output_dir / folder.EVAL_BEFORE)
        after = read_json(self.output_dir / folder.EVAL_AFTER)
        write_text(self.output_dir / folder.CARD, card(before, after))
        write_json(
            self.output_dir / folder.DONE,
            {"format": 1, "step": self.step, "samples": self.samples, "identity": self.identity.to_json()},
        )
        self.loop.group.wait()

    def last_line(self) -> dict[str, Any] | None:
        """The last training line of the log."""
        lines = [line for line in read_metrics(self.output_dir / folder.METRICS) if "loss" in line]
        return lines[-1] if lines else None

    def _is_due(self, every: int | None) -> bool:
        return self.step == self.loop.total_steps or (every is not None and self.step % every == 0)

    def _close_step(self, line: Mapping[str, Any]) -> None:
        """Evaluate where it is due, then write the step's line."""
        last = self.step == self.loop.total_steps
        result = None
        if self.evaluate is not None:
            if last and self.config.eval.eval_after:
                result = self._evaluate(folder.EVAL_AFTER)
            elif not last and self.config.eval.eval_steps and self.step % self.config.eval.eval_steps == 0:
                result = self._evaluate(f"eval_step-{self.step:06d}.json")
        if last or result is not None or self.step % self.config.output.logging_steps == 0:
            self._finish_line(line, result)

    def _evaluate(self, name: str) -> Mapping[str, Any]:
        assert self.evaluate is not None
        result = self.evaluate(self.step)
        if self.is_main:
            write_json(self.output_dir / name, result)
            shown = ", ".join(f"{key} {value:.4g}" for key, value in result["metrics"].items() if value is not None)
            self.progress.say(f"step {self.step}: {result['split']} ({result['num_samples']:,} samples): {shown}")
        return result

    def _finish_line(self, line: Mapping[str, Any], result: Mapping[str, Any] | None) -> None:
        if self._log is None or self._trackers is None:
            return
        scores = {f"eval_{name}": value for name, value in (result or {}).get("metrics", {}).items()}
        values = {**line, **scores}
        self._log.write(values)
        if self._log.failed and self._log.failed != self._warned:
            self.progress.say(f"warning: {self._log.path} cannot be written now: {self._log.failed}; the run goes on")
        self._warned = self._log.failed
        self._trackers.log(values, self.step)

    def _draw(self) -> None:
        try:
            metrics = list(read_metrics(self.output_dir / folder.METRICS))
            draw_loss(metrics, self.output_dir / folder.PLOT, title=self.title)
        except ImportError:
            self.progress.say("no loss plot: matplotlib is not installed (pip install 'phi3v[train]')")
        except OSError as error:
            self.progress.say(f"warning: {self.output_dir / folder.PLOT} cannot be drawn: {error.strerror}")


def make_line(result: StepResult, epoch: float) -> dict[str, Any]:
    """The line of a step in `metrics.jsonl`."""
    seconds = max(result.seconds, 1e-9)
    line: dict[str, Any] = {
        "step": result.step,
        "epoch": round(epoch, 6),
        "loss": result.loss,
        "lr": result.lr,
        "grad_norm": None if result.skipped else result.grad_norm,
        "samples": result.num_samples,
        "supervised_tokens": result.num_supervised,
        "tokens_per_second": round(result.num_tokens / seconds, 1),
        "images_per_second": round(result.num_images / seconds, 2),
        "seconds": round(result.seconds, 4),
    }
    if result.num_truncated:
        line["truncated_samples"] = result.num_truncated
    if result.skipped:
        line["skipped"] = True
    return line


def memory_used(device: torch.device) -> int:
    """Highest memory of the GPU so far, or memory of this process now, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
