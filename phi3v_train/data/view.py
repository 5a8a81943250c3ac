"""A sample as the model sees it, for people: spans of tokens by what is learnt of them, images with their tiles."""

from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

from phi3v_data.schema import Sample
from phi3v_data.tokens.phi3v_geometry import CropGeometry, crop_geometry
from phi3v_train.data.encode import IGNORED, Encoder, Ids, SampleError
from phi3v_train.data.order import SampleRef
from phi3v_train.data.pictures import picture_size
from phi3v_train.data.reader import Reader

NEWLINE_TOKEN = "<0x0A>"
NEWLINE_SIGN = "⏎"


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring tokens of one kind: `given` (no label), `learnt` (labels), or the `image` of that number.

    `tokens` are words of the vocabulary, `▁` a space and `⏎` a line end; of an image there are none.
    """

    kind: str
    start: int
    length: int
    tokens: tuple[str, ...] = ()
    image: int = 0


@dataclass(frozen=True, slots=True)
class ImageView:
    """An image: its size in the file, its canvas and its tile grid (beside the global view), in pixels and tiles."""

    path: str
    turn: int
    width: int
    height: int
    canvas_width: int
    canvas_height: int
    rows: int
    cols: int
    num_tiles: int
    num_tokens: int


@dataclass(frozen=True, slots=True)
class SampleView:
    """All of it. `refusal` says why a run would not take the sample; `labelled` is False where there is no answer."""

    place: str
    id: str
    split: str
    row: int
    num_rows: int
    num_crops: int
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

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def view_sample(reader: Reader, ref: SampleRef) -> SampleView:
    """Encode a row and lay it out; a sample over `--max_length` is shown whole, with its refusal.

    Raises:
        UserError: the row, its images or its text cannot be encoded at all.
    """
    source = reader.sources[ref.source]
    sample = source.split[ref.row]
    with reader.named(ref, sample):
        sizes = [picture_size(source.split.image_path(name)) for name in sample.images]
        ids, labels, kept, refusal = _encode(reader.encoder, sample, sizes, source.num_crops, ref.epoch)
    geometry = [crop_geometry(*size, source.num_crops) for size in sizes]
    return SampleView(
        place=reader.place(ref),
        id=sample.id,
        split=source.split.name,
        row=ref.row,
        num_rows=len(source),
        num_crops=source.num_crops,
        num_crops_from=source.num_crops_from,
        labelled=bool((labels != IGNORED).any()),
        num_turns=kept,
        dropped_turns=len(sample.conversations) - kept,
        num_tokens=len(ids),
        num_image_tokens=int((ids < 0).sum()),
        num_supervised=int((labels != IGNORED).sum()),
        refusal=refusal,
        images=tuple(_images(sample, sizes, geometry, kept)),
        spans=tuple(_spans(reader.encoder.tokenizer, ids, labels)),
        input_ids=tuple(ids.tolist()),
        labels=tuple(labels.tolist()),
    )


def _encode(
    encoder: Encoder, sample: Sample, sizes: list[tuple[int, int]], num_crops: int, epoch: int
) -> tuple[Ids, Ids, int, str]:
    """Ids, labels, number of turns in them, and why a run would refuse them."""
    if not sample.conversations[-1].assistant:
        last = len(sample.conversations) - 1
        ids, _ = encoder.tokenize_prompt(sample, sizes, num_crops=num_crops, turn=last)
        labels = ids.copy()
        labels[:] = IGNORED
        return ids, labels, last + 1, ""
    refusal = ""
    try:
        tokens = encoder.tokenize(sample, sizes, num_crops=num_crops, epoch=epoch)
    except SampleError as error:
        refusal = str(error)
        whole = encoder.with_options(replace(encoder.options, max_length=None))
        tokens = whole.tokenize(sample, sizes, num_crops=num_crops, epoch=epoch)
    return tokens.input_ids, tokens.labels, tokens.num_turns, refusal


def _images(
    sample: Sample, sizes: list[tuple[int, int]], geometry: list[CropGeometry], num_turns: int
) -> list[ImageView]:
    owners = [(turn, path) for turn, each in enumerate(sample.conversations[:num_turns]) for path in each.images]
    return [
        ImageView(
            path,
            turn,
            *size,
            crop.padded_width,
            crop.padded_height,
            crop.rows,
            crop.cols,
            crop.num_tiles,
            crop.num_tokens,
        )
        for (turn, path), size, crop in zip(owners, sizes, geometry, strict=False)
    ]


def _spans(tokenizer: Any, ids: Ids, labels: Ids) -> list[Span]:
    """Cut a sequence where its kind changes."""
    result: list[Span] = []
    start = 0
    kinds = [(min(token, 0), label != IGNORED) for token, label in zip(ids.tolist(), labels.tolist(), strict=True)]
    for (image, learnt), group in groupby(kinds):
        length = len(list(group))
        if image:
            result.append(Span("image", start, length, image=-image))
        else:
            words = tokenizer.convert_ids_to_tokens(ids[start : start + length].tolist())
            tokens = tuple(word.replace(NEWLINE_TOKEN, NEWLINE_SIGN) for word in words)
            result.append(Span("learnt" if learnt else "given", start, length, tokens))
        start += length
    return result
