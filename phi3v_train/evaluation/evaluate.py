"""Evaluate a model on a split: predictions, scores, the held-out loss. Used by `run`, `eval` and `predict` alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from phi3v_data.errors import UserError
from phi3v_train.config import EvalConfig
from phi3v_train.data.encode import Encoder
from phi3v_train.data.loader import TrainLoader
from phi3v_train.data.order import SampleOrder, SampleRef
from phi3v_train.data.reader import Reader
from phi3v_train.data.sources import Source
from phi3v_train.data.workers import Workers
from phi3v_train.distributed.group import Group
from phi3v_train.distributed.stopping import Interrupted
from phi3v_train.evaluation.generate import Generator, undisturbed
from phi3v_train.evaluation.metric import Metric, Undefined
from phi3v_train.evaluation.predictions import PredictionFolder
from phi3v_train.evaluation.prompts import MEASURE_CHUNK, PromptSpec, Rows, encode_batch, make_batches, measure_rows
from phi3v_train.evaluation.records import Prediction
from phi3v_train.evaluation.result import make_result
from phi3v_train.loss import mean_loss
from phi3v_train.models.registry import family_of_model
from phi3v_train.models.renderer import Renderer
from phi3v_train.precision import Precision

Progress = Callable[[str, int, int | None], None]


def never() -> bool:
    """False: this evaluation is never asked to stop."""
    return False


@dataclass(frozen=True)
class Evaluator:
    """Evaluates models on one split; its prompts are measured once.

    Args:
        source: the split.
        renderer: encodes it.
        config: limit, batch size, turns, longest answer.
        metrics: the metrics to compute; the first is the headline.
        num_workers: processes that decode images.
        progress: called as `progress(stage, done, total)`; `evaluate` may be given another one.
    """

    source: Source
    renderer: Renderer
    config: EvalConfig
    metrics: tuple[Metric, ...] = ()
    num_workers: int = 0
    progress: Progress | None = None

    @property
    def num_rows(self) -> int:
        """Rows that are evaluated."""
        return min(len(self.source), self.config.eval_limit or len(self.source))

    @cached_property
    def reader(self) -> Reader:
        """Reads the split."""
        return Reader([self.source], Encoder(self.renderer))

    @cached_property
    def specs(self) -> tuple[PromptSpec, ...]:
        """Every answer to generate, in the order of the dataset.

        Raises:
            UserError: a row cannot be encoded or an image is not there.
        """
        turns = self.config.eval_turns
        starts = range(0, self.num_rows, MEASURE_CHUNK)
        chunks = [Rows(start, min(start + MEASURE_CHUNK, self.num_rows), turns) for start in starts]
        specs: list[PromptSpec] = []
        with Workers(self.reader, self.num_workers if len(chunks) > 8 else 0) as workers:
            for chunk, measured in zip(chunks, workers.map(measure_rows, chunks), strict=True):
                specs += measured
                if self.progress is not None:
                    self.progress("prompts", chunk.stop, self.num_rows)
        return tuple(specs)

    def truth(self) -> list[Prediction]:
        """The first accepted answer to every prompt, as if it had been predicted."""
        split = self.source.split.name
        scores = {"yes": 0.5, "no": 0.5}
        return [spec.record(split, (*spec.answers, "")[0], scores) for spec in self.specs]

    def check(self) -> None:
        """Refuse, before a model is loaded, rows that cannot be scored with the metrics.

        Raises:
            UserError: rows without answers, or without what one of our metrics needs.
        """
        bare = [spec for spec in self.specs if not spec.answers]
        if bare:
            place = self.reader.location(SampleRef(0, bare[0].row, 0))
            raise UserError(
                f"{place}: {len(bare)} of {len(self.specs)} answers of split {self.source.split.name!r} are empty, so "
                "it cannot be scored; `phi3v-train predict` takes splits without answers"
            )
        truth = self.truth()
        for metric in self.metrics:
            if metric.is_built_in:
                try:
                    metric.function(truth)
                except Undefined:
                    continue  # reported with the result

    def require_defined(self, name: str) -> None:
        """Refuse, before a model is loaded, rows for which one of our metrics is undefined, whatever is predicted.

        Raises:
            UserError: it is; the message says why.
        """
        for metric in self.metrics:
            if metric.name == name and metric.is_built_in:
                try:
                    metric.function(self.truth())
                except Undefined as reason:
                    raise UserError(
                        f"evaluations cannot be compared by {name}, which is undefined on split "
                        f"{self.source.split.name!r}: {reason}; give --best_metric, loss for instance"
                    ) from None

    def predict(
        self,
        model: Any,
        folder: PredictionFolder,
        *,
        precision: Precision,
        group: Group,
        progress: Progress | None = None,
        stop: Callable[[], bool] = never,
    ) -> list[Prediction]:
        """Generate the predictions that `folder` lacks; returns all of them, on the main process only.

        The model's mode and all random generators are left as they were. `stop` is asked before every batch.

        Raises:
            UserError: out of memory, an image that cannot be read, or `folder` is complete with predictions of others.
            Interrupted: a process was asked to stop.
        """
        plan = [(spec.id, spec.turn) for spec in self.specs]
        whole = folder.read_whole(plan) if group.is_main else None
        if group.broadcast(whole is not None):
            return whole or []
        here = folder.read_parts(plan)
        done: dict[int, Prediction] = {}
        for parts in group.gather_to_main(here):
            done = {**parts, **done}
        found = {position for positions in group.all_gather(sorted(here)) for position in positions}
        batches = make_batches(self.specs, self.config.eval_batch_size)
        left = [tuple(position for position in batch if position not in found) for batch in batches]
        mine = [batch for batch in left if batch][group.rank :: group.world_size]
        folder.open_part(group.rank)
        try:
            with undisturbed(model):
                made = self._generate(
                    model, folder, mine, precision, num_done=len(found), progress=progress or self.progress, stop=stop
                )
        finally:
            folder.close_part()
        for others in group.gather_to_main(made):
            done.update(others)
        if not group.broadcast(len(done) == len(self.specs)):
            raise Interrupted
        if not group.is_main:
            return []
        records = [done[position] for position in range(len(self.specs))]
        folder.finish(records)
        return records

    def _generate(
        self,
        model: Any,
        folder: PredictionFolder,
        batches: Sequence[tuple[int, ...]],
        precision: Precision,
        *,
        num_done: int,
        progress: Progress | None,
        stop: Callable[[], bool],
    ) -> dict[int, Prediction]:
        generator = Generator(
            model,
            self.renderer,
            max_new_tokens=self.config.max_new_tokens,
            autocast=precision.autocast,
        )
        made: dict[int, Prediction] = {}
        total = num_done + sum(map(len, batches))
        turns = self.config.eval_turns
        jobs = [(turns, [(self.specs[p].row, self.specs[p].turn) for p in batch]) for batch in batches]
        split = self.source.split.name
        with Workers(self.reader, self.num_workers if len(jobs) > 1 else 0) as workers:
            for batch, prompts in zip(batches, workers.map(encode_batch, jobs), strict=True):
                if stop():
                    break
                answers = generator(prompts)
                entries = [
                    (position, self.specs[position].record(split, answer.text, answer.scores))
                    for position, answer in zip(batch, answers, strict=True)
                ]
                folder.add(entries)
                made.update(entries)
                if progress is not None:
                    progress("answers", num_done + len(made), total)
        return made

    def loss(self, model: nn.Module, *, precision: Precision, group: Group) -> float | None:
        """Mean loss over all supervised tokens of the rows; None if there are none.

        Raises:
            UserError: a row cannot be encoded.
        """
        order = SampleOrder((self.num_rows,), self.config.eval_batch_size * group.world_size)
        with (
            undisturbed(model),
            TrainLoader(
                self.reader,
                order,
                micro_batch_size=self.config.eval_batch_size,
                rank=group.rank,
                world_size=group.world_size,
                num_workers=self.num_workers,
                prepare=family_of_model(model).prepare,
                pin_memory=group.device.type == "cuda",
            ) as loader,
        ):
            micros = (micro for batch in loader.steps(0, order.epoch_steps) for micro in batch)
            return mean_loss(model, micros, precision=precision, group=group)

    def evaluate(
        self,
        model: Any,
        folder: PredictionFolder,
        *,
        model_name: str,
        step: int | None,
        precision: Precision,
        group: Group,
        with_loss: bool = False,
        progress: Progress | None = None,
        stop: Callable[[], bool] = never,
    ) -> tuple[list[Prediction], dict[str, Any]]:
        """Predict and score.

        Returns:
            The predictions, on the main process only, and on every process `split, num_samples, metrics, model, step`
            (and `notes` where a metric is undefined).

        Raises:
            Interrupted: a process was asked to stop.
        """
        records = self.predict(model, folder, precision=precision, group=group, progress=progress, stop=stop)
        if group.sum([float(stop())])[0]:
            raise Interrupted
        loss = {"loss": self.loss(model, precision=precision, group=group)} if with_loss else {}
        result: dict[str, Any] = {}
        if group.is_main:
            result = make_result(
                records,
                self.metrics,
                split=self.source.split.name,
                num_samples=self.num_rows,
                model=model_name,
                step=step,
                extra=loss,
            )
        return records, group.broadcast(result)
