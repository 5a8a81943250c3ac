"""A conversation to token ids, labels and canvases: the one code path of training and evaluation.

    {system}{system text}{end of turn}                       where there is a system message
    {user}{image tags}{user text}{end of turn}{assistant}    every turn; tags are numbered through all turns
    {answer}{end of turn}                                    its answer
    {end of text}                                            once, at the end

The markers are those of a `phi3v_data.tokens.chat.ChatFormat`. All that precedes an answer is encoded by
`prompts.encode_prompt`, the processor's own function, so each `<s>` is where the processor puts it. Each answer is
tokenized alone, without special tokens: together with `<|assistant|>` its leading space would vanish. Labels are the
answers and their end of turn; of the last turn also the newline and the end of the text; all else is -100. Each label
is at its own token: the model shifts them.

All that is asked of a processor is its `tokenizer`, called with a text, and `image_processor.make_canvas`.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeAlias

import numpy as np
import xxhash
from numpy.typing import NDArray

from phi3v_data.errors import UserError
from phi3v_data.schema import Sample, Turn
from phi3v_data.tokens.chat import ChatFormat, TurnText
from phi3v_data.tokens.family import ImageShapeError
from phi3v_data.tokens.phi3v import CHAT
from phi3v_data.tokens.phi3v_geometry import crop_geometry
from phi3v_train.data.pictures import read_picture
from phi3v_train.models.phi3v.prompts import ImageTagError, encode_piece, encode_prompt

IGNORED = -100
"""Label of a token that is not learnt."""

Ids: TypeAlias = NDArray[np.int64]
Canvas: TypeAlias = NDArray[np.uint8]
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
    """What of a sample reaches the model. The random answer depends on seed, epoch and id, and on nothing else."""

    answer_choice: Literal["stored", "random"] = "stored"
    seed: int = 0
    max_length: int | None = None
    truncate: Literal["refuse", "turns"] = "refuse"


@dataclass(frozen=True, slots=True)
class SampleTokens:
    """A sample without its pixels: `input_ids` and `labels` (T,), `image_sizes` (n, 2), the padded (H, W) of images.

    `num_turns` turns are in it, `dropped_turns` were cut off at the end; only the images of kept turns count.
    """

    input_ids: Ids
    labels: Ids
    image_sizes: Ids
    num_turns: int
    dropped_turns: int = 0

    @property
    def num_supervised(self) -> int:
        """Tokens that have a label."""
        return int((self.labels != IGNORED).sum())

    @property
    def num_tiles(self) -> int:
        """Tiles with a picture on them, global views among them."""
        return int(((self.image_sizes // 336).prod(axis=1) + 1).sum())


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """A sample as the model takes it.

    `input_ids` (T,) int64, image n as a run of -n; `labels` (T,) int64, unshifted, -100 where none; `canvases`, one
    (H, W, 3) uint8 an image, padded to multiples of 336; `image_sizes` (n, 2) int64, their (H, W).
    """

    input_ids: Ids
    labels: Ids
    canvases: tuple[Canvas, ...]
    image_sizes: Ids
    num_supervised: int
    provenance: Provenance
    dropped_turns: int = 0


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """The way to one answer: all that stands before it, earlier turns with their true answers.

    `turn` counts from 0; `answers` are the accepted answers, empty in an unlabelled split; the rest as in
    `EncodedSample`.
    """

    input_ids: Ids
    canvases: tuple[Canvas, ...]
    image_sizes: Ids
    turn: int
    answers: tuple[str, ...]
    provenance: Provenance


def turn_text(turn: Turn) -> TurnText:
    """The texts of a turn and where its images stand, as a chat format takes them.

    Raises:
        SampleError: the offsets of the images do not fit the text.
    """
    offsets = turn.image_offsets or (0,) * len(turn.images)
    if (
        len(offsets) != len(turn.images)
        or list(offsets) != sorted(offsets)
        or (offsets and offsets[-1] > len(turn.user))
    ):
        raise SampleError(
            f"image_offsets {list(offsets)} must be {len(turn.images)} rising positions in a text of "
            f"{len(turn.user)} characters"
        )
    return TurnText(turn.user, turn.assistant, len(turn.images), offsets)


def choose_answer(sample: Sample, options: EncodeOptions, epoch: int) -> str:
    """The answer of the last turn to train on: `assistant`, or by `answer_choice="random"` one of `answers`.

    An answer that is listed twice is as likely as two. Another epoch chooses anew.
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


def prompt_turns(sample: Sample, turns: Turns) -> range:
    """Indices of the turns whose answers are generated."""
    total = len(sample.conversations)
    return {"last": range(total - 1, total), "first": range(1), "all": range(total)}[turns]


class Encoder:
    """Encodes samples with one processor and one set of options; travels to worker processes by pickling.

    Images may be given as paths or as Pillow images.
    """

    def __init__(self, processor: Any, options: EncodeOptions = EncodeOptions(), chat: ChatFormat = CHAT) -> None:
        self.tokenizer = processor.tokenizer
        self.image_processor = processor.image_processor
        self.options = options
        self.chat = chat

    def with_options(self, options: EncodeOptions) -> "Encoder":
        """The same processor with other options."""
        other = copy.copy(self)
        other.options = options
        return other

    @cached_property
    def _endings(self) -> tuple[int, int]:
        """Number of ids of what follows the end of a turn, and of the end of the text."""
        chat = self.chat
        texts = (chat.supervised_ending(last=False), chat.answer_ending(last=False), chat.answer_ending(last=True))
        end, newline, final = (len(encode_piece(self.tokenizer, text)) for text in texts)
        return newline - end, final - newline

    def tokenize(
        self, sample: Sample, sizes: Sequence[tuple[int, int]], *, num_crops: int, epoch: int = 0
    ) -> SampleTokens:
        """Ids and labels of a sample whose images are `sizes` (width, height) pixels large, in order of all turns.

        Raises:
            SampleError: an answer is missing, tags stand in the text, an image is too narrow, the sample is too long.
        """
        prompts, geometry = self._turn_prompts(sample, sizes, num_crops)
        newline, final = self._endings
        limit = self.options.max_length
        answers = [turn.assistant for turn in sample.conversations[:-1]] + [choose_answer(sample, self.options, epoch)]
        parts: list[tuple[list[int], list[int]]] = []
        length = 0
        for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            if not answer:
                raise SampleError(f"conversations[{index}].assistant is empty: there is nothing to train on")
            ids = encode_piece(self.tokenizer, self.chat.answer_text(answer, last=True))
            length += len(prompt) + len(ids)
            if limit is not None and length > limit:
                if parts and self.options.truncate == "turns":
                    break
                raise SampleError(self._too_long(length, prompts[index + 1 :], answers[index + 1 :]))
            length -= final
            parts.append((prompt, ids))
        kept = len(parts)
        input_ids: list[int] = []
        labels: list[int] = []
        for index, (prompt, ids) in enumerate(parts):
            last = index == kept - 1
            answer_ids = ids if last else ids[:-final]
            learnt = len(ids) if last else len(ids) - final - newline
            input_ids += prompt + answer_ids
            labels += [IGNORED] * len(prompt) + ids[:learnt] + [IGNORED] * (len(answer_ids) - learnt)
        num_images = sum(len(turn.images) for turn in sample.conversations[:kept])
        return SampleTokens(_ids(input_ids), _ids(labels), geometry[:num_images], kept, len(prompts) - kept)

    def encode(
        self,
        sample: Sample,
        images: Sequence[Any],
        *,
        num_crops: int,
        provenance: Provenance,
        epoch: int = 0,
    ) -> EncodedSample:
        """A sample for training.

        Raises:
            SampleError: see `tokenize`; or an image cannot be read.
        """
        pictures = [read_picture(image) for image in images[: len(sample.images)]]
        tokens = self.tokenize(sample, [picture.size for picture in pictures], num_crops=num_crops, epoch=epoch)
        kept = pictures[: len(tokens.image_sizes)]
        return EncodedSample(
            tokens.input_ids,
            tokens.labels,
            self._canvases(kept, tokens.image_sizes, num_crops),
            tokens.image_sizes,
            tokens.num_supervised,
            provenance,
            tokens.dropped_turns,
        )

    def tokenize_prompt(
        self, sample: Sample, sizes: Sequence[tuple[int, int]], *, num_crops: int, turn: int
    ) -> tuple[Ids, Ids]:
        """`input_ids` (T,) up to the generation point of `turn`, and `image_sizes` (n, 2) of the images in it.

        `sizes` may stop at that turn's last image. Earlier turns stand with their stored answers.
        """
        prompts, geometry = self._turn_prompts(sample, sizes, num_crops, last=turn)
        ids: list[int] = []
        for index, prompt in enumerate(prompts):
            ids += prompt
            if index < turn:
                answer = sample.conversations[index].assistant
                ids += encode_piece(self.tokenizer, self.chat.answer_text(answer, last=False))
        return _ids(ids), geometry

    def encode_prompts(
        self,
        sample: Sample,
        images: Sequence[Any],
        *,
        num_crops: int,
        provenance: Provenance,
        turns: Turns = "last",
    ) -> list[EncodedPrompt]:
        """The prompts of a sample for generation, one a chosen turn; a picture is read once for all of them.

        Raises:
            SampleError: tags stand in the text, an image cannot be read or is too narrow.
        """
        chosen = prompt_turns(sample, turns)
        needed = sum(len(turn.images) for turn in sample.conversations[: chosen[-1] + 1])
        pictures = [read_picture(image) for image in images[:needed]]
        sizes = [picture.size for picture in pictures]
        tokens = [self.tokenize_prompt(sample, sizes, num_crops=num_crops, turn=turn) for turn in chosen]
        canvases = self._canvases(pictures, tokens[-1][1], num_crops)
        return [
            EncodedPrompt(
                ids, canvases[: len(image_sizes)], image_sizes, turn, accepted_answers(sample, turn), provenance
            )
            for turn, (ids, image_sizes) in zip(chosen, tokens, strict=True)
        ]

    def _turn_prompts(
        self, sample: Sample, sizes: Sequence[tuple[int, int]], num_crops: int, last: int | None = None
    ) -> tuple[list[list[int]], Ids]:
        """Ids before each answer up to turn `last`, and the padded (H, W) of all images in them."""
        turns = sample.conversations[: None if last is None else last + 1]
        result: list[list[int]] = []
        grid: list[tuple[int, int]] = []
        for index, turn in enumerate(turns):
            first = len(grid)
            try:
                geometry = [crop_geometry(*size, num_crops) for size in sizes[first : first + len(turn.images)]]
                system = "" if index else sample.system
                text = self.chat.turn_prompt(turn_text(turn), system=system, first_image=first + 1)
                counts = [image.num_tokens for image in geometry]
                result.append(encode_prompt(self.tokenizer, text, counts, first_image=first + 1, bos=index == 0))
            except ImageShapeError as error:
                raise SampleError(f"conversations[{index}].images: {error}") from None
            except ImageTagError as error:
                raise SampleError(f"conversations[{index}].user: {error}") from None
            grid += [image.image_size for image in geometry]
        return result, np.array(grid, dtype=np.int64).reshape(-1, 2)

    def _canvases(self, pictures: Sequence[Any], image_sizes: Ids, num_crops: int) -> tuple[Canvas, ...]:
        """The padded pictures; their sizes are those that the ids were counted with."""
        canvases = tuple(self.image_processor.make_canvas(picture, num_crops) for picture in pictures)
        assert [canvas.shape[:2] for canvas in canvases] == [tuple(size) for size in image_sizes.tolist()]
        return canvases

    def _too_long(self, length: int, prompts: Sequence[list[int]], answers: Sequence[str]) -> str:
        """Why a sample is refused, and what may be done; `prompts` and `answers` are those not yet in `length`."""
        limit = self.options.max_length
        if self.options.truncate == "turns":
            return (
                f"its first turn alone has {length} tokens, over --max_length {limit}, and a turn is never cut inside: "
                "raise --max_length, lower --num_crops, or take the sample out"
            )
        length += sum(map(len, prompts)) + sum(
            len(encode_piece(self.tokenizer, self.chat.answer_text(answer, last=False))) for answer in answers
        )
        return (
            f"it has {length} tokens, over --max_length {limit}: raise --max_length, lower --num_crops, or cut at a "
            "turn's border with --truncate turns"
        )


def _ids(values: list[int]) -> Ids:
    return np.array(values, dtype=np.int64)
