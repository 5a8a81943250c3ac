"""Evaluation of a model that is being trained: before, after and between steps, without any effect on the training."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from phi3v_train.distributed.group import Group
from phi3v_train.evaluation.evaluate import Evaluator, Progress, never
from phi3v_train.evaluation.identity import make_identity, weights_identity
from phi3v_train.evaluation.predictions import PredictionFolder
from phi3v_train.evaluation.result import write_scores
from phi3v_train.precision import Precision
from phi3v_train.training.folder import PREDICTIONS
from phi3v_train.training.parallel.engine import Engine

ProgressBars = Callable[[], AbstractContextManager[Progress | None]]


class RunEvaluation:
    """Evaluates a run's model after a step; predictions go to `OUT/predictions/step-000120/`.

    A run that was killed in the middle reuses the predictions it had: they are identified by the weights that made
    them. A run with evaluations trains to the same bits as one without.

    Args:
        evaluator: split, prompts and metrics.
        output_dir: the run's folder.
        model_name: of the model before training.
        bars: opens a progress bar for one evaluation.
        say: prints a line.
        stop: whether this process is to stop; asked before every batch.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        output_dir: Path,
        *,
        model_name: str,
        bars: ProgressBars = nullcontext,
        say: Callable[[str], None] = print,
        stop: Callable[[], bool] = never,
    ) -> None:
        self.evaluator = evaluator
        self.folder = output_dir / PREDICTIONS
        self.model_name = model_name
        self._bars = bars
        self._say = say
        self._stop = stop

    def __call__(self, engine: Engine, step: int) -> dict[str, Any]:
        """Evaluate the model as it is after a step; on every process `split, num_samples, metrics, model, step`.

        Raises:
            Interrupted: the run is to stop; what was predicted so far is used on resume.
        """
        with engine.unsharded() as model:
            return self._evaluate(model, engine.group, engine.precision, step)

    def _evaluate(self, model: Any, group: Group, precision: Precision, step: int) -> dict[str, Any]:
        identity = make_identity(
            self.evaluator.source,
            self.evaluator.config,
            model=f"{self.model_name} at step {step} {weights_identity(model)}",
            dtype=precision.name,
            rows=self.evaluator.num_rows,
        )
        folder = PredictionFolder(self.folder / f"step-{step:06d}", identity, keep_going=True)
        if group.is_main:
            folder.begin(restart=True)
        with self._bars() as bar:
            records, result = self.evaluator.evaluate(
                model,
                folder,
                model_name=self.model_name,
                step=step,
                precision=precision,
                group=group,
                with_loss=True,
                progress=bar,
                stop=self._stop,
            )
        if group.is_main:
            folder.try_to(lambda: write_scores(records, result, folder.path))
            if folder.failed:
                self._say(f"warning: {folder.path} cannot be written: {folder.failed}; the run continues")
        group.barrier()  # for the main process, which writes: not in an exchange of gradients
        return result
