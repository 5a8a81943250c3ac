"""The answers that an evaluation generates, and in which batches. Every row is checked before a model is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi3v_data.dataset import Dataset, Split
from phi3v_data.errors import UserError
from phi3v_data.shards.view import data_directory
from phi3v_train.data.encode import EncodedPrompt, SampleError, Turns, accepted_answers, prompt_turns
from phi3v_train.data.images import image_size
from phi3v_train.data.order import SampleRef
from phi3v_train.data.reader import Reader
from phi3v_train.data.sources import EVAL_SPLITS, Source, choose_eval_split, open_source
from phi3v_train.evaluation.records import Prediction

MEASURE_CHUNK = 64
"""Rows measured by one task."""


def open_split(data_dir: Path, wanted: str | None, *, num_crops: int | None, scored: bool) -> Source:
    """The split that is asked for, else, to be scored, the first of val, dev, dev_seen, test that has answers.

    Raises:
        UserError: no such split, no choice, or no answers where they are needed.
    """
    split = choose_eval_split(data_dir, wanted) if scored or wanted is not None else None
    if split is None:
        named = ", ".join(Dataset(data_directory(data_dir)))
        reason = (
            f"it has no split {', '.join(EVAL_SPLITS[:-1])} or {EVAL_SPLITS[-1]} with answers"
            if scored
            else "no split was chosen"
        )
        raise UserError(f"{data_dir}: {reason}; choose one of its splits with --eval_split: {named}")
    return open_source(data_dir, split, num_crops=num_crops, labelled=scored)


@dataclass(frozen=True, slots=True)
class PromptSpec:
    """One answer to generate: its row and turn, its prompt's length, and what the answer will be held against."""

    row: int
    turn: int
    id: str
    num_tokens: int
    answers: tuple[str, ...]
    meta: dict[str, Any]

    def record(self, split: str, prediction: str, scores: dict[str, float]) -> Prediction:
        """The line of `predictions.jsonl`."""
        return Prediction(
            id=self.id,
            split=split,
            turn=self.turn,
            prediction=prediction,
            answers=list(self.answers),
            scores=scores,
            meta=self.meta,
        )


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows `start` to `stop` of a source, of which the chosen turns are generated."""

    start: int
    stop: int
    turns: Turns


def measure_rows(reader: Reader, rows: Rows) -> list[PromptSpec]:
    """The prompts of some rows, in order. No image is decoded.

    Raises:
        UserError: a row cannot be encoded or an image is not there.
    """
    source = reader.sources[0]
    specs: list[PromptSpec] = []
    for row in range(rows.start, rows.stop):
        sample = source.split[row]
        with reader.named(SampleRef(0, row, 0), sample):
            chosen = prompt_turns(sample, rows.turns)
            needed = sum(len(turn.images) for turn in sample.conversations[: chosen[-1] + 1])
            sizes = [image_size(source.split.image_path(name)) for name in sample.images[:needed]]
            for turn in chosen:
                ids, _ = reader.encoder.tokenize_prompt(sample, sizes, num_crops=source.num_crops, turn=turn)
                specs.append(
                    PromptSpec(row, turn, sample.id, len(ids), accepted_answers(sample, turn), dict(sample.meta))
                )
    return specs


def truth_of(split: Split, turns: Turns, limit: int | None = None) -> list[Prediction]:
    """Records to score predictions by, from a split: one for every chosen turn, its stored answer as prediction.

    Raises:
        UserError: a row has no turn that is scored.
    """
    records = []
    for row, sample in enumerate(split[:limit]):
        try:
            chosen = prompt_turns(sample, turns)
        except SampleError as error:
            file, line = split.location(row)
            raise UserError(f"{split.directory / file}:{line} (id {sample.id!r}): {error}") from None
        for turn in chosen:
            answers = accepted_answers(sample, turn)
            spec = PromptSpec(0, turn, sample.id, 0, answers, dict(sample.meta))
            records.append(spec.record(split.name, (*answers, "")[0], {}))
    return records


def encode_batch(reader: Reader, batch: tuple[Turns, Sequence[tuple[int, int]]]) -> list[EncodedPrompt]:
    """The prompts of (row, turn) pairs, images decoded; `batch` begins with the choice of turns.

    Raises:
        UserError: an image cannot be read.
    """
    turns, positions = batch
    result = []
    for row, turn in positions:
        prompts = reader.prompts(SampleRef(0, row, 0), turns)
        result.append(next(prompt for prompt in prompts if prompt.turn == turn))
    return result


def make_batches(specs: Sequence[PromptSpec], batch_size: int) -> list[tuple[int, ...]]:
    """Positions in `specs`, grouped so that prompts of similar length are together.

    The longest come first: what does not fit the memory fails at once.
    """
    order = sorted(range(len(specs)), key=lambda position: (-specs[position].num_tokens, position))
    return [tuple(order[start : start + batch_size]) for start in range(0, len(order), batch_size)]
