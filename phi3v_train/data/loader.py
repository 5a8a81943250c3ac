"""Micro-batches of a run, step by step, decoded ahead in worker processes.

    order.batch(step)          the samples of the step
      -> measure (workers)     length and tiles of each, from text and image headers
      -> partition             the micro-batches of this process
      -> fetch ahead           images in a store, into the local cache
      -> encode, collate (workers), as far ahead as `prefetch` allows
      -> prepare, pin (a thread of this process), so that the step finds them ready for its copies
      -> StepBatch             in order

Every result is a function of its arguments alone, so any number of workers, and a run that was stopped and resumed,
give the same bits. Processes do not communicate: each measures the whole step and knows all counts.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from phi3v_train.data.collate import BatchShape, to_tensors
from phi3v_train.data.fetch_ahead import SAMPLES_AHEAD, FetchAhead
from phi3v_train.data.order import SampleOrder, SampleRef
from phi3v_train.data.partition import Rates, partition
from phi3v_train.data.reader import Measure, Reader
from phi3v_train.data.workers import Built, Future, MicroBatchJob, Workers

if TYPE_CHECKING:
    from torch import Tensor

MEASURE_CHUNK = 16
"""Samples measured by one task."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """One forward pass.

    `inputs` are the model's keyword arguments (see `collate`), or what the loader's `prepare` makes of them.
    `token_sources` (supervised tokens,) are the numbers of the data sources that they come from, in the order of rows
    and columns. A filler, which has no `refs`, is there if a short step leaves a process without samples: real inputs,
    no labels, so that in collective calls all processes are in the same layers.
    """

    inputs: dict[str, Any]
    shape: BatchShape
    refs: tuple[SampleRef, ...]
    measures: tuple[Measure, ...]
    token_sources: "Tensor"

    @property
    def num_supervised(self) -> int:
        """Tokens that have a label."""
        return self.shape.num_supervised


@dataclass(frozen=True, slots=True)
class StepPlan:
    """A step before any image is decoded; counts are over all processes unless noted.

    `micro_batches` are positions in `refs`, of this process; an empty one becomes a filler.
    """

    step: int
    epoch: int
    refs: tuple[SampleRef, ...]
    measures: tuple[Measure, ...]
    micro_batches: tuple[tuple[int, ...], ...]

    @property
    def num_supervised(self) -> int:
        """Supervised tokens: the divisor of the loss."""
        return sum(measure.num_supervised for measure in self.measures)

    def supervised_of(self, source: int) -> int:
        """Tokens of a source that have a label."""
        return sum(
            measure.num_supervised
            for ref, measure in zip(self.refs, self.measures, strict=True)
            if ref.source == source
        )

    @property
    def num_tokens(self) -> int:
        """Tokens, image tokens among them, without padding."""
        return sum(measure.cost.tokens for measure in self.measures)

    @property
    def num_images(self) -> int:
        """Images."""
        return sum(measure.num_images for measure in self.measures)

    @property
    def num_truncated(self) -> int:
        """Samples of which turns were cut off."""
        return sum(measure.dropped_turns > 0 for measure in self.measures)


class StepBatch:
    """A step: its plan, and its micro-batches for this process.

    They are decoded while one goes through them: once, in order, and before the next step is asked for.
    """

    def __init__(self, plan: StepPlan, micro_batches: Iterator[MicroBatch]) -> None:
        self.plan = plan
        self._micro_batches = micro_batches
        self._passed = False

    @property
    def step(self) -> int:
        """Number of the step, from 0."""
        return self.plan.step

    def __len__(self) -> int:
        """Micro-batches of this process; the same for all processes."""
        return len(self.plan.micro_batches)

    def __iter__(self) -> Iterator[MicroBatch]:
        if self._passed:
            raise RuntimeError(f"the micro-batches of step {self.step} are gone: take them before the next step")
        return self._micro_batches

    def pass_over(self) -> None:
        """Drop what was not taken."""
        self._passed = True
        deque(self._micro_batches, maxlen=0)


class TrainLoader:
    """Steps of a run for one process.

        with TrainLoader(reader, order, micro_batch_size=1, num_workers=2) as loader:
            for batch in loader.steps(start=resumed_at, stop=total_steps):
                for micro_batch in batch:
                    model(**micro_batch.inputs, num_items_in_batch=batch.plan.num_supervised)

    Args:
        reader: rows and how to encode them.
        order: which samples a step has.
        micro_batch_size: samples of one forward pass; packed, their mean number.
        rank: number of this process.
        world_size: number of processes.
        pack: one row per micro-batch, samples end to end.
        lockstep: the processes synchronise in every micro-batch, not only at the end of a step.
        rates: work by which a step is divided.
        num_workers: processes that decode; 0 decodes in this one, when asked.
        prefetch: micro-batches decoded ahead; None: two per worker.
        prepare: changes the inputs of a collated batch, on the CPU (`ModelFamily.prepare`); None leaves them.
        pin_memory: copy tensors to page-locked memory, for copies to a GPU beside its work. With workers, `prepare` and
            these copies are made by a thread while the model computes.
    """

    def __init__(
        self,
        reader: Reader,
        order: SampleOrder,
        *,
        micro_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        pack: bool = False,
        lockstep: bool = False,
        rates: Rates = Rates(),  # noqa: B008  # frozen
        num_workers: int = 0,
        prefetch: int | None = None,
        prepare: "Callable[[Mapping[str, Tensor]], dict[str, Any]] | None" = None,
        pin_memory: bool = False,
    ) -> None:
        self.order = order
        self.micro_batch_size = micro_batch_size
        self.rank = rank
        self.world_size = world_size
        self.pack = pack
        self.lockstep = lockstep
        self.rates = rates
        self.prepare = prepare
        self.pin_memory = pin_memory
        self.prefetch = max(1, 2 * num_workers if prefetch is None else prefetch)
        self._workers = Workers(reader, num_workers)
        self._fetch = FetchAhead(reader.sources)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prepare") if num_workers else None

    def start(self) -> None:
        """Start the workers now, so that they are ready when the model is loaded."""
        self._workers.start()

    def close(self) -> None:
        """Stop the workers; work not yet started is dropped."""
        self._fetch.close()
        if self._thread is not None:
            self._thread.shutdown(wait=False, cancel_futures=True)
        self._workers.close()
        if self._thread is not None:
            self._thread.shutdown(wait=True)  # it may have waited for a worker

    def __enter__(self) -> "TrainLoader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def plans(self, start: int, stop: int) -> Iterator[StepPlan]:
        """Steps `start` to `stop` (exclusive), measured and divided, but not decoded.

        Raises:
            UserError: a sample cannot be encoded; file, line and id are named.
        """
        waiting: deque[tuple[int, tuple[SampleRef, ...], list[Future[list[Measure]]]]] = deque()
        ahead = 1 if self._workers.inline else 2 + self.prefetch // max(1, self.order.batch_size // self.world_size)
        following = start
        while waiting or following < stop:
            while following < stop and len(waiting) < ahead:
                refs = self.order.batch(following)
                chunks = [refs[index : index + MEASURE_CHUNK] for index in range(0, len(refs), MEASURE_CHUNK)]
                waiting.append((following, refs, [self._workers.measure(chunk) for chunk in chunks]))
                following += 1
            step, refs, futures = waiting.popleft()
            measures = tuple(measure for future in futures for measure in future.result())
            yield self._plan(step, refs, measures)

    def steps(self, start: int, stop: int) -> Iterator[StepBatch]:
        """Steps `start` to `stop` (exclusive). Samples of earlier steps are not read.

        Raises:
            UserError: a sample cannot be encoded, or a worker was killed.
        """
        plans = self._fetched(self.plans(start, stop))
        planned: deque[StepPlan] = deque()
        jobs: deque[tuple[StepPlan, tuple[int, ...]]] = deque()
        running: deque[Future[MicroBatch]] = deque()

        def advance() -> bool:
            """Hand out work until `prefetch` micro-batches are under way; False when there is no more."""
            while len(running) < self.prefetch:
                if not jobs:
                    plan = next(plans, None)
                    if plan is None:
                        return False
                    planned.append(plan)
                    jobs.extend((plan, batch) for batch in plan.micro_batches)
                plan, batch = jobs.popleft()
                running.append(self._ready(plan, batch, self._workers.build(self._job(plan, batch))))
            return True

        def micro_batches(plan: StepPlan) -> Iterator[MicroBatch]:
            for _ in plan.micro_batches:
                advance()
                micro = running.popleft().result()
                advance()
                yield micro

        advance()
        while planned:
            plan = planned.popleft()
            batch = StepBatch(plan, micro_batches(plan))
            yield batch
            batch.pass_over()
            advance()

    def _fetched(self, plans: Iterator[StepPlan]) -> Iterator[StepPlan]:
        """The same plans; the images of this process in the coming ones are asked for, more and more steps ahead."""
        most = SAMPLES_AHEAD * self.world_size // self.order.batch_size if self._fetch else 0
        ahead: deque[StepPlan] = deque()
        depth = 0  # steps; grows, so that the first step does not wait for others
        for plan in plans:
            self._fetch.want(plan.refs[index] for batch in plan.micro_batches for index in batch)
            ahead.append(plan)
            if len(ahead) > depth:
                depth = min(depth + 1, most)
                yield ahead.popleft()
        yield from ahead

    def _plan(self, step: int, refs: tuple[SampleRef, ...], measures: tuple[Measure, ...]) -> StepPlan:
        shares = partition(
            [measure.cost for measure in measures],
            micro_batch_size=self.micro_batch_size,
            world_size=self.world_size,
            pack=self.pack,
            lockstep=self.lockstep,
            rates=self.rates,
        )
        return StepPlan(step, refs[0].epoch, refs, measures, shares[self.rank])

    def _job(self, plan: StepPlan, batch: Sequence[int]) -> MicroBatchJob:
        """Job of a worker; the filler of an empty micro-batch is the sample with the least work."""
        filler = not batch
        if filler:
            works = [self.rates.sample(measure.cost) for measure in plan.measures]
            batch = (works.index(min(works)),)
        return MicroBatchJob(tuple(plan.refs[index] for index in batch), self.pack, filler)

    def _ready(self, plan: StepPlan, batch: Sequence[int], built: Future[Built]) -> Future[MicroBatch]:
        """The micro-batch of a worker's result, made by the thread if there are workers, else when it is asked for."""
        make = partial(self._micro_batch, plan, batch, built)
        return self._thread.submit(make) if self._thread is not None else _Later(make)

    def _micro_batch(self, plan: StepPlan, batch: Sequence[int], built: Future[Built]) -> MicroBatch:
        import torch

        from phi3v_train.device import change_tensors

        arrays, shape = built.result()
        inputs = to_tensors(arrays)
        if self.prepare is not None:
            inputs = self.prepare(inputs)
        refs = tuple(plan.refs[index] for index in batch)
        measures = tuple(plan.measures[index] for index in batch)
        numbers = torch.tensor([ref.source for ref in refs], dtype=torch.long)
        counts = torch.tensor([measure.num_supervised for measure in measures], dtype=torch.long)
        token_sources = numbers.repeat_interleave(counts)
        if self.pin_memory:
            inputs = change_tensors(inputs, torch.Tensor.pin_memory)
            token_sources = token_sources.pin_memory()
        return MicroBatch(inputs, shape, refs, measures, token_sources)


class _Later:
    """A micro-batch that is made when it is asked for."""

    def __init__(self, make: Callable[[], MicroBatch]) -> None:
        self._make = make

    def result(self) -> MicroBatch:
        return self._make()
