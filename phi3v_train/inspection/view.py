"""A sample as the model sees it, for people: spans of tokens by whether they are trained, images with their tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np

from phi3v_data.errors import UserError
from phi3v_data.schema import Sample
from phi3v_data.tokens.chat import ChatFormat
from phi3v_train.data.encode import Encoder, Ids, SampleError, choose_answer
from phi3v_train.data.images import image_size
from phi3v_train.data.order import SampleRef
from phi3v_train.data.reader import Reader
from phi3v_train.data.sources import budget_shown
from phi3v_train.inspection.words import token_words
from phi3v_train.models.renderer import NO_LABEL, ImageLayout, turn_text


@dataclass(frozen=True, slots=True)
class Span:
    """Adjacent tokens of one kind: `given` (no label), supervised (labels), or the `image` of that number.

    `tokens` as `token_words` gives them; of an image there are none.
    """

    kind: str
    start: int
    length: int
    tokens: tuple[str, ...] = ()
    image: int = 0


@dataclass(frozen=True, slots=True)
class ImageView:
    """An image: its size in the file and its layout.

    `tag` stands for it in a prompt. `facts` are the model family's own: pixels, rows and columns; `text` says the same
    in words.
    """

    path: str
    turn: int
    width: int
    height: int
    num_tiles: int
    num_tokens: int
    tag: str = ""
    facts: Mapping[str, int] = field(default_factory=dict)
    text: str = ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON; facts stand between the image's size and its counts."""
        sizes = {"path": self.path, "turn": self.turn, "width": self.width, "height": self.height}
        return {**sizes, **self.facts, "num_tiles": self.num_tiles, "num_tokens": self.num_tokens}


@dataclass(frozen=True, slots=True)
class SampleView:
    """A sample as `inspect` shows it.

    `place` is the row's file and line; `refusal` says why a run would not take the sample; `labelled` is False where
    there is no answer. `template` is the text of the chat template, with a tag for each image. A row that cannot be
    encoded at all has a refusal and no tokens.
    """

    place: str
    id: str
    split: str
    row: int
    num_rows: int
    num_crops: int | None
    num_crops_from: str
    labelled: bool
    num_turns: int
    dropped_turns: int
    num_tokens: int
    num_image_tokens: int
    num_supervised: int
    refusal: str
    images: tuple[ImageView, ...]
    spans: tuple[Span, ...]
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    template: str = ""
    budget_option: str = "num_crops"

    @property
    def trains_nothing(self) -> bool:
        """Whether no token is supervised, or a run would refuse the sample."""
        return bool(self.refusal) or not self.num_supervised

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "images": [image.to_dict() for image in self.images]}


def view_row(reader: Reader, ref: SampleRef) -> SampleView:
    """Encode a row and lay it out. A sample that a run would refuse is shown whole, with its refusal."""
    try:
        return _view_sample(reader, ref)
    except UserError as error:
        source = reader.sources[ref.source]
        try:
            sample_id = source.split[ref.row].id
        except UserError:
            sample_id = ""
        budget, origin = budget_shown(source, reader.encoder.renderer.tokens)
        return SampleView(
            reader.location(ref), sample_id, source.split.name, ref.row, len(source), budget, origin,
            True, 0, 0, 0, 0, 0, str(error), (), (), (), (),
        )  # fmt: skip


def _view_sample(reader: Reader, ref: SampleRef) -> SampleView:
    source = reader.sources[ref.source]
    sample = source.split[ref.row]
    with reader.named(ref, sample):
        sizes = [image_size(source.split.image_path(name)) for name in sample.images]
        ids, labels, kept, refusal = _encode(reader.encoder, sample, sizes, source.num_crops, ref.epoch)
    layouts = reader.encoder.renderer.layouts(sizes, source.num_crops)
    budget, origin = budget_shown(source, reader.encoder.renderer.tokens)
    return SampleView(
        place=reader.location(ref),
        id=sample.id,
        split=source.split.name,
        row=ref.row,
        num_rows=len(source),
        num_crops=budget,
        num_crops_from=origin,
        budget_option=reader.encoder.renderer.tokens.budget_option,
        labelled=bool(sample.conversations[-1].assistant),
        num_turns=kept,
        dropped_turns=len(sample.conversations) - kept,
        num_tokens=len(ids),
        num_image_tokens=int((ids < 0).sum()),
        num_supervised=int((labels != NO_LABEL).sum()),
        refusal=refusal,
        images=tuple(_images(sample, sizes, layouts, kept, reader.encoder.renderer.tokens.chat)),
        spans=tuple(_spans(reader.encoder.renderer.tokenizer, ids, labels)),
        input_ids=tuple(ids.tolist()),
        labels=tuple(labels.tolist()),
        template=_template_text(reader.encoder, sample, kept, ref.epoch),
    )


def _encode(
    encoder: Encoder, sample: Sample, sizes: list[tuple[int, int]], num_crops: int | None, epoch: int
) -> tuple[Ids, Ids, int, str]:
    """Ids, labels, number of turns in them, and why a run would refuse them."""
    if not sample.conversations[-1].assistant:
        last = len(sample.conversations) - 1
        ids, _ = encoder.tokenize_prompt(sample, sizes, num_crops=num_crops, turn=last)
        labels = ids.copy()
        labels[:] = NO_LABEL
        return ids, labels, last + 1, ""
    refusal = ""
    try:
        tokens = encoder.tokenize(sample, sizes, num_crops=num_crops, epoch=epoch)
    except SampleError as error:
        refusal = str(error)
        encoder = encoder.with_options(replace(encoder.options, max_length=None))
        untrained = not any(turn.weight for turn in sample.conversations)
        shown = _all_trained(sample) if untrained else sample
        tokens = encoder.tokenize(shown, sizes, num_crops=num_crops, epoch=epoch)
        if untrained:
            tokens = replace(tokens, labels=np.full_like(tokens.labels, NO_LABEL))
    return tokens.input_ids, tokens.labels, tokens.num_turns, refusal


def _all_trained(sample: Sample) -> Sample:
    turns = tuple(turn.model_copy(update={"weight": 1}) for turn in sample.conversations)
    return sample.model_copy(update={"conversations": turns})


def _template_text(encoder: Encoder, sample: Sample, num_turns: int, epoch: int) -> str:
    """The text of the chat template for the first turns of a sample; up to the generation point without an answer."""
    chat = encoder.renderer.tokens.chat
    turns = [turn_text(turn) for turn in sample.conversations[:num_turns]]
    answered = bool(sample.conversations[-1].assistant)
    if answered and num_turns == len(sample.conversations):
        turns[-1] = turns[-1]._replace(assistant=choose_answer(sample, encoder.options, epoch))
    text = chat.conversation_text(turns, system=sample.system)
    return text if answered else text.removesuffix(chat.answer_ending(last=True))


def _images(
    sample: Sample,
    sizes: Sequence[tuple[int, int]],
    layouts: Sequence[ImageLayout],
    num_turns: int,
    chat: ChatFormat,
) -> list[ImageView]:
    owners = [(turn, path) for turn, each in enumerate(sample.conversations[:num_turns]) for path in each.images]
    return [
        ImageView(
            path,
            turn,
            *size,
            layout.num_tiles,
            layout.num_tokens,
            chat.numbered_tag(number),
            layout.facts or {},
            layout.text,
        )
        for number, ((turn, path), size, layout) in enumerate(zip(owners, sizes, layouts, strict=False), 1)
    ]


def _spans(tokenizer: Any, ids: Ids, labels: Ids) -> list[Span]:
    """Cut a sequence where its kind changes."""
    result: list[Span] = []
    start = 0
    kinds = [(min(token, 0), label != NO_LABEL) for token, label in zip(ids.tolist(), labels.tolist(), strict=True)]
    for (image, supervised), group in groupby(kinds):
        length = len(list(group))
        if image:
            result.append(Span("image", start, length, image=-image))
        else:
            tokens = tuple(token_words(tokenizer, ids[start : start + length].tolist()))
            result.append(Span("supervised" if supervised else "given", start, length, tokens))
        start += length
    return result
