"""Shows one row as text, with a description of its images."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from phi3v_data.dataset import Dataset, Split
from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.files import UnsafeNameError, inside, unsafe_reason
from phi3v_data.media.formats import UnreadableImageError
from phi3v_data.media.images import file_size, probe
from phi3v_data.messages import counted, escaped
from phi3v_data.schema import Sample, Turn
from phi3v_data.shards.view import data_directory
from phi3v_data.tokens.choose import choose_model, with_image_options
from phi3v_data.tokens.family import ImageShapeError, TokenFamily
from phi3v_data.tokens.registry import count_image_tokens


def find_row(directory: str | Path, *, split: str | None = None, row: int = 0) -> tuple[Split, int]:
    """The split and the number of a row; without a name, the first split.

    Raises:
        NotFoundError: no such directory, split or row.
    """
    dataset = Dataset(data_directory(directory))
    found = dataset[split or next(iter(dataset))]
    if not -len(found) <= row < len(found):
        raise NotFoundError(
            f"{directory}: no row {row} in split {found.name!r}, which has {counted(len(found), 'row')}"
        )
    return found, row % len(found)


def describe_row(
    split: Split,
    row: int,
    *,
    num_crops: int | None = None,
    image_options: Mapping[str, int] | None = None,
    model: str | Path | None = None,
) -> Iterator[str]:
    """Yield the lines that show a row: its location, fields and turns, with the image tokens of a model family.

    Raises:
        NotFoundError: no such model.
        BudgetError: `num_crops` is not one that the family takes (also a ValueError).
    """
    family, budget = with_image_options(choose_model(model, None).family, num_crops, image_options)
    manifest = Dataset(split.directory).manifest
    crops = family.choose_budget(budget, manifest.num_crops if manifest else None)
    sample = split[row]
    file, line = split.location(row)
    yield f"{file}:{line}  row {row:,} of {len(split):,} in split {split.name}"
    yield f"id       {escaped(sample.id)}"
    yield f"source   {escaped(sample.source)}"
    for name, value in (("group", sample.group), ("system", sample.system)):
        if value:
            yield f"{name:<9}{_indented(value)}"
    for key, item in sample.meta.items():
        yield f"meta     {escaped(key)}: {escaped(str(item))}"
    for number, turn in enumerate(sample.conversations, 1):
        yield ""
        if len(sample.conversations) > 1:
            yield f"turn {number}"
        yield from _describe_turn(split.directory, turn, family, crops)
    if sample.rejected:
        yield f"rejected {_indented(sample.rejected)}"
    if sample.tools:
        yield f"tools    {_indented(sample.tools)}"
    if sample.answers:
        yield f"accepted {_accepted(sample)}"


def _describe_turn(directory: Path, turn: Turn, family: TokenFamily, num_crops: int | None) -> Iterator[str]:
    for number, name in enumerate(turn.images):
        place = f", at character {turn.image_offsets[number]}" if any(turn.image_offsets) else ""
        yield f"image    {escaped(name)}  {describe_image(directory, name, family, num_crops)}{place}"
    yield f"user     {_indented(turn.user)}"
    for step in turn.steps:
        yield from (f"call     {_indented(call)}" for call in step.calls)
        yield from (f"result   {_indented(result)}" for result in step.results)
    yield f"answer   {_indented(turn.assistant)}"
    if not turn.weight:
        yield "weight   0: the answer is context only, not trained"


def describe_image(directory: Path, name: str, family: TokenFamily, num_crops: int | None) -> str:
    """A description such as `320 x 240 JPEG, 14,203 bytes, 757 tokens`, or the problem."""
    try:
        path = inside(directory / "images", name)
    except UnsafeNameError:
        return f"(not opened: the path {unsafe_reason(name) or 'leads outside through a link'})"
    try:
        size = file_size(path)
        info = probe(path)
    except UnreadableImageError as error:
        return f"({error})"
    except OSError as error:
        return f"({error.strerror})"
    text = f"{info.width} x {info.height} {info.format}, {size:,} bytes"
    if info.mode not in ("RGB", "L"):
        text += f", {info.mode}"
    if info.orientation != 1:
        text += f", EXIF orientation {info.orientation}"
    try:
        return f"{text}, {count_image_tokens(family, info.width, info.height, num_crops):,} tokens"
    except ImageShapeError as error:
        return f"{text} ({error})"


def _indented(text: str) -> str:
    """The text with further lines aligned under the first, and control characters escaped."""
    return "\n         ".join(map(escaped, text.split("\n")))


def _accepted(sample: Sample) -> str:
    return ", ".join(map(repr, sample.answers))


def check_row_options(html: Path | None, row: int | None, split: str | None) -> None:
    """Reject options that cannot be combined.

    Raises:
        UserError: both a row and a page were requested.
    """
    if html is not None and (row is not None or split is not None):
        raise UserError("--html makes a gallery of the whole set; --row and --split show one row in the terminal")
