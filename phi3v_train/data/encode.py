"""A conversation to token ids, labels and image inputs: the one code path of training and evaluation.

A sample is its turns' prompts and answers, one after another, each encoded by the model family's `Renderer`. Labels are
the answers with the marker that ends them; of the last turn also what follows it; all else is -100, as is all of an
answer of weight 0. Labels stand at their own tokens: the model shifts them.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import numpy as np
import xxhash
from numpy.typing import NDArray

from phi3v_data.errors import UserError
from phi3v_data.messages import counted
from phi3v_data.schema import Sample, Turn
from phi3v_data.tokens.family import ImageShapeError
from phi3v_train.data.images import read_image
from phi3v_train.models.renderer import (
    NO_LABEL,
    AnswerIds,
    ImageArrays,
    ImageLayout,
    PromptError,
    Renderer,
    TurnIds,
)

Ids: TypeAlias = NDArray[np.int64]
Turns: TypeAlias = Literal["last", "first", "all"]


class SampleError(UserError):
    """A sample that cannot be encoded; the message says why, and whoever knows the row puts its place before it."""


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a sample comes from. `row` counts from 0 within the split; its line in the file is found on demand."""

    directory: str
    split: str
    row: int
    id: str

    def __str__(self) -> str:
        return f"{self.directory} {self.split}[{self.row}] (id {self.id!r})"


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """Choice of a sample's answers and turns. The random answer depends only on seed, epoch and id."""

    answer_choice: Literal["stored", "random"] = "stored"
    seed: int = 0
    max_length: int | None = None
    truncate: Literal["refuse", "turns"] = "refuse"


@dataclass(frozen=True, slots=True)
class SampleTokens:
    """A sample without its pixels: `input_ids` and `labels` (T,), and the layouts of its images.

    `num_turns` turns are in it, `dropped_turns` were cut off at the end; only the images of kept turns count.
    """

    input_ids: Ids
    labels: Ids
    images: tuple[ImageLayout, ...]
    num_turns: int
    dropped_turns: int = 0

    @property
    def num_supervised(self) -> int:
        """Tokens that have a label."""
        return int((self.labels != NO_LABEL).sum())

    @property
    def num_tiles(self) -> int:
        """Inputs of the vision tower: tiles, or whole images where there are no tiles."""
        return sum(image.num_tiles for image in self.images)


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """A sample as the model takes it.

    `input_ids` (T,) int64, image n as a run of -n until it is collated; `labels` (T,) int64, unshifted, -100 where
    none; `images`, the arrays of each image, whose names and shapes are the model family's.
    """

    input_ids: Ids
    labels: Ids
    images: tuple[ImageArrays, ...]
    num_supervised: int
    provenance: Provenance
    dropped_turns: int = 0


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """All that precedes one answer, earlier turns with their true answers.

    `turn` counts from 0; `answers` are the accepted answers, empty in an unlabelled split; the rest as in
    `EncodedSample`.
    """

    input_ids: Ids
    images: tuple[ImageArrays, ...]
    turn: int
    answers: tuple[str, ...]
    provenance: Provenance


def check_offsets(turn: Turn) -> None:
    """Refuse image offsets that do not fit the images and the text.

    Raises:
        SampleError: they do not.
    """
    offsets = turn.image_offsets
    if offsets and (
        len(offsets) != len(turn.images) or list(offsets) != sorted(offsets) or offsets[-1] > len(turn.user)
    ):
        raise SampleError(
            f"image_offsets {list(offsets)} must be {len(turn.images)} rising positions in a text of "
            f"{len(turn.user)} characters"
        )


def choose_answer(sample: Sample, options: EncodeOptions, epoch: int) -> str:
    """The answer of the last turn to train on: `assistant`, or by `answer_choice="random"` one of `answers`.

    An answer that is listed twice is as likely as two. Another epoch chooses again.
    """
    if options.answer_choice == "random" and sample.answers:
        key = f"answer\0{options.seed}\0{epoch}\0{sample.id}"
        digest = xxhash.xxh3_64_intdigest(key.encode("utf-8", "surrogatepass"))
        return sample.answers[digest % len(sample.answers)]
    return sample.conversations[-1].assistant


def accepted_answers(sample: Sample, turn: int) -> tuple[str, ...]:
    """Answers that count as right for a turn: of the last turn `answers`, else what the row holds."""
    if turn == len(sample.conversations) - 1 and sample.answers:
        return sample.answers
    stored = sample.conversations[turn].assistant
    return (stored,) if stored else ()


def prompt_turns(sample: Sample, turns: Turns) -> tuple[int, ...]:
    """Indices of the turns whose answers are generated: the last, the first or all of those that are trained.

    Raises:
        SampleError: all turns have weight 0.
    """
    trained = tuple(index for index, turn in enumerate(sample.conversations) if turn.weight)
    if not trained:
        raise SampleError(nothing_trained(len(sample.conversations)))
    return {"last": trained[-1:], "first": trained[:1], "all": trained}[turns]


IS_PAIR = "the row is a preference pair, which is not trained here: `phi3v-data export trl` writes it for TRL"
HAS_TOOLS = "the row has tools, which are not trained here: `phi3v-data export swift` writes it for ms-swift"
"""Why a row that needs format 2 is refused."""


def nothing_trained(num_turns: int) -> str:
    """Why a row whose turns all have weight 0 is refused."""
    which = "its only turn has" if num_turns == 1 else f"all its {num_turns} turns have"
    return f"{which} weight 0, so nothing of it is trained or scored: give weight 1 to an answer, or remove the row"


class Encoder:
    """Encodes samples with one renderer and one set of options; travels to worker processes by pickling.

    Images may be given as paths or as Pillow images. `num_crops` is the image budget, None for a family without one.
    """

    def __init__(self, renderer: Renderer, options: EncodeOptions = EncodeOptions()) -> None:
        self.renderer = renderer
        self.options = options

    def with_options(self, options: EncodeOptions) -> "Encoder":
        """The same renderer with other options."""
        other = copy.copy(self)
        other.options = options
        return other

    def tokenize(
        self, sample: Sample, sizes: Sequence[tuple[int, int]], *, num_crops: int | None, epoch: int = 0
    ) -> SampleTokens:
        """Ids and labels of a sample whose images are `sizes` (width, height) pixels large, in order of all turns.

        Raises:
            SampleError: an answer is missing, a text contains tags, an image is too narrow, the sample is too long,
                or no turn in it is trained.
        """
        if sample.rejected:
            raise SampleError(IS_PAIR)
        limit = self.options.max_length
        texts = [turn.assistant for turn in sample.conversations[:-1]] + [choose_answer(sample, self.options, epoch)]
        for index, text in enumerate(texts):
            if not text:
                raise SampleError(f"conversations[{index}].assistant is empty: there is nothing to train on")
        turns, layouts = self._turns(sample, texts, sizes, num_crops)
        parts: list[tuple[list[int], AnswerIds]] = []
        length = 0
        for index, (prompt, answer) in enumerate(turns):
            assert answer is not None
            length += len(prompt) + len(answer.ids)
            if limit is not None and length > limit:
                if parts and self.options.truncate == "turns":
                    break
                raise SampleError(self._too_long(length, turns[index + 1 :]))
            length += answer.num_before_turn - len(answer.ids)
            parts.append((prompt, answer))
        kept = len(parts)
        weights = [turn.weight for turn in sample.conversations]
        if not any(weights[:kept]):
            raise SampleError(self._untrained(kept, len(weights)))
        num_images = sum(len(turn.images) for turn in sample.conversations[:kept])
        if self.renderer.several_differ and num_images == 1 < len(layouts):
            cut = sample.model_copy(update={"conversations": sample.conversations[:kept], "answers": ()})
            alone = self.tokenize(cut, sizes[:1], num_crops=num_crops, epoch=epoch)
            return replace(alone, dropped_turns=len(turns) - alone.num_turns)
        input_ids: list[int] = []
        labels: list[int] = []
        for index, (prompt, answer) in enumerate(parts):
            last = index == kept - 1
            ids = answer.ids if last else answer.ids[: answer.num_before_turn]
            trained = (answer.num_trained_if_last if last else answer.num_trained) * weights[index]
            input_ids += prompt + ids
            labels += [NO_LABEL] * len(prompt) + ids[:trained] + [NO_LABEL] * (len(ids) - trained)
        return SampleTokens(_ids(input_ids), _ids(labels), layouts[:num_images], kept, len(turns) - kept)

    def encode(
        self,
        sample: Sample,
        images: Sequence[Any],
        *,
        num_crops: int | None,
        provenance: Provenance,
        epoch: int = 0,
    ) -> EncodedSample:
        """A sample for training.

        Raises:
            SampleError: see `tokenize`; or an image cannot be read.
        """
        read = [read_image(image) for image in images[: len(sample.images)]]
        tokens = self.tokenize(sample, [image.size for image in read], num_crops=num_crops, epoch=epoch)
        return EncodedSample(
            tokens.input_ids,
            tokens.labels,
            self._arrays(read, tokens.images, num_crops),
            tokens.num_supervised,
            provenance,
            tokens.dropped_turns,
        )

    def tokenize_prompt(
        self, sample: Sample, sizes: Sequence[tuple[int, int]], *, num_crops: int | None, turn: int
    ) -> tuple[Ids, tuple[ImageLayout, ...]]:
        """`input_ids` (T,) up to the generation point of `turn`, and the layouts of the images in it.

        `sizes` may stop at that turn's last image. Earlier turns are there with their stored answers.
        """
        texts = [each.assistant for each in sample.conversations[:turn]]
        turns, layouts = self._turns(sample, texts, sizes, num_crops)
        ids: list[int] = []
        for prompt, answer in turns:
            ids += prompt
            if answer is not None:
                ids += answer.ids[: answer.num_before_turn]
        return _ids(ids), layouts

    def encode_prompts(
        self,
        sample: Sample,
        images: Sequence[Any],
        *,
        num_crops: int | None,
        provenance: Provenance,
        turns: Turns = "last",
    ) -> list[EncodedPrompt]:
        """The prompts of a sample for generation, one per chosen turn; an image is read once for all of them.

        Raises:
            SampleError: a text contains tags, an image cannot be read or is too narrow.
        """
        chosen = prompt_turns(sample, turns)
        needed = sum(len(turn.images) for turn in sample.conversations[: chosen[-1] + 1])
        read = [read_image(image) for image in images[:needed]]
        sizes = [image.size for image in read]
        tokens = [self.tokenize_prompt(sample, sizes, num_crops=num_crops, turn=turn) for turn in chosen]
        arrays: dict[tuple[int, int], ImageArrays] = {}  # turns share images, unless these have other tiles there
        prompts = []
        for turn, (ids, layouts) in zip(chosen, tokens, strict=True):
            for index, layout in enumerate(layouts):
                if (index, layout.num_tiles) not in arrays:
                    arrays[index, layout.num_tiles] = self.renderer.image_arrays(read[index], layout, num_crops)
            own = tuple(arrays[index, layout.num_tiles] for index, layout in enumerate(layouts))
            prompts.append(EncodedPrompt(ids, own, turn, accepted_answers(sample, turn), provenance))
        return prompts

    def _turns(
        self, sample: Sample, answers: Sequence[str], sizes: Sequence[tuple[int, int]], num_crops: int | None
    ) -> tuple[list[TurnIds], tuple[ImageLayout, ...]]:
        """Ids of all turns, or up to the first one without an answer, and the layouts of all images in them."""
        if sample.tools or any(turn.steps for turn in sample.conversations):
            raise SampleError(HAS_TOOLS)
        turns = sample.conversations[: len(answers) + 1]
        owners = [index for index, turn in enumerate(turns) for _ in turn.images]
        for turn in turns:
            check_offsets(turn)
        try:
            layouts = self.renderer.layouts(sizes[: len(owners)], num_crops)
        except ImageShapeError:
            self._name_shape(sizes, owners, num_crops)
            raise
        try:
            return self.renderer.conversation(turns, answers, layouts, system=sample.system), tuple(layouts)
        except PromptError as error:
            where = "" if error.turn is None else f"conversations[{error.turn}].user: "
            raise SampleError(f"{where}{error}") from None

    def _name_shape(self, sizes: Sequence[tuple[int, int]], owners: Sequence[int], num_crops: int | None) -> None:
        """Raise SampleError for the first image whose shape the image processor cannot take."""
        for (width, height), turn in zip(sizes, owners, strict=False):
            try:
                self.renderer.image_layout(width, height, num_crops)
            except ImageShapeError as error:
                raise SampleError(f"conversations[{turn}].images: {error}") from None

    def _arrays(
        self, images: Sequence[Any], layouts: Sequence[ImageLayout], num_crops: int | None
    ) -> tuple[ImageArrays, ...]:
        """The model inputs of the images that have a layout."""
        return tuple(
            self.renderer.image_arrays(image, layout, num_crops) for image, layout in zip(images, layouts, strict=False)
        )

    def _untrained(self, kept: int, num_turns: int) -> str:
        """Why a sample is refused whose `kept` first turns have weight 0."""
        if kept == num_turns:
            return nothing_trained(num_turns)
        return (
            f"its first {counted(kept, 'turn')} within --max_length {self.options.max_length} "
            f"{'has' if kept == 1 else 'have'} weight 0, so nothing of it would be trained: raise --max_length, or "
            "remove the sample"
        )

    def _too_long(self, length: int, turns: Sequence[TurnIds]) -> str:
        """Why a sample is refused, and what to do; `turns` are those not yet in `length`."""
        limit = self.options.max_length
        tokens = self.renderer.tokens
        lower = f", lower --{tokens.budget_option}" if tokens.max_budget is not None else ""
        fewer = f"raise --max_length{lower}"
        if self.options.truncate == "turns":
            return (
                f"its first turn alone has {length} tokens, over --max_length {limit}, and a turn is never cut inside: "
                f"{fewer}, or remove the sample"
            )
        length += sum(len(turn.prompt) + (turn.answer.num_before_turn if turn.answer else 0) for turn in turns)
        return (
            f"it has {length} tokens, over --max_length {limit}: {fewer}, or cut at a turn's border with --truncate "
            "turns"
        )


def _ids(values: list[int]) -> Ids:
    return np.array(values, dtype=np.int64)
