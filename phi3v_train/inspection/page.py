"""Inspected rows as one self-contained HTML file, in the frame of the validator's report."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from phi3v_data.errors import UserError
from phi3v_data.messages import counted
from phi3v_data.report.frame import PageParts, make_page
from phi3v_data.report.thumbnails import Thumbnailer
from phi3v_train.data.sources import Source
from phi3v_train.inspection.terminal import image_words
from phi3v_train.inspection.view import ImageView, SampleView
from phi3v_train.inspection.words import as_text

MAX_ROWS = 500
"""Rows of one page."""

MAX_TOKENS = 400_000
"""Text tokens of one page; of the rows after them only the lengths are shown."""

SECTIONS = (("Overview", "overview"), ("Rows", "rows"))


def check_number(number: int) -> None:
    """Refuse more rows than a page holds.

    Raises:
        UserError: there are more.
    """
    if number > MAX_ROWS:
        raise UserError(f"--html: {number:,} rows are too many for a page, which shows up to {MAX_ROWS}; choose fewer")


def make_inspection_page(
    views: Sequence[SampleView], source: Source, *, model: str, markers: frozenset[str], untrained: frozenset[int]
) -> bytes:
    """The page.

    Args:
        views: the rows, in the order in which they are shown.
        source: the split that they come from.
        model: the name or directory of the model that encodes them; of a directory only its last part is shown.
        markers: words of the vocabulary that are markers.
        untrained: numbers of the rows that would train nothing, although they should.
    """
    thumbnails = Thumbnailer(source.directory, sum(len(view.images) for view in views))
    left = MAX_TOKENS
    rows = []
    for view in views:
        left -= view.num_tokens - view.num_image_tokens
        rows.append(_row(view, source, thumbnails, markers, wrong=view.row in untrained, whole=left >= 0))
    name = source.manifest.name if source.manifest is not None and source.manifest.name else source.directory.name
    model = Path(model).name if Path(model).is_dir() else model
    budget = ""
    if views and views[0].num_crops is not None:
        budget = f", {views[0].budget_option} {views[0].num_crops} ({views[0].num_crops_from})"
    payload = {
        "name": name,
        "ok": not untrained,
        "headline": _headline(views, untrained),
        "verdict": f"{counted(len(views), 'row')} of {len(source):,} in split {source.split.name} as the model "
        f"{model} reads them{budget}",
        "tiles": [
            [len(views), "rows"],
            [sum(len(view.images) for view in views), "images"],
            [sum(view.num_image_tokens for view in views), "image tokens"],
            [sum(view.num_tokens - view.num_image_tokens for view in views), "text tokens"],
            [sum(view.num_supervised for view in views), "trained tokens"],
        ],
        "rows": rows,
        "footer": f"Written by phi3v-train inspect from {name}; nothing is loaded from the network.",
    }
    page = files("phi3v_train.inspection").joinpath("page")
    body, script, style = (page.joinpath(f"inspect.{kind}").read_text("utf-8") for kind in ("html", "js", "css"))
    return make_page(payload, PageParts(SECTIONS, body, script, style), title=f"{name}: inspected rows")


def _headline(views: Sequence[SampleView], untrained: frozenset[int]) -> str:
    if untrained:
        return f"{counted(len(untrained), 'row')} would train nothing"
    if all(view.trains_nothing for view in views):
        return "Rows without answers, to be predicted"
    return "Every row with an answer is trained"


def _row(
    view: SampleView, source: Source, thumbnails: Thumbnailer, markers: frozenset[str], *, wrong: bool, whole: bool
) -> dict[str, Any]:
    notes = []
    if view.refusal:
        notes.append(f"A run would refuse this row: {_without_path(view.refusal, source.directory)}")
    if view.dropped_turns:
        notes.append(f"{counted(view.dropped_turns, 'turn')} at the end left out, over --max_length")
    if not view.labelled:
        notes.append("No answer in this row: it can be predicted, not trained on.")
    if not whole:
        notes.append("The tokens are left out to keep this page small.")
    return {
        "id": view.id,
        "at": _without_path(view.place, source.directory),
        "row": view.row,
        "wrong": wrong,
        "notes": notes,
        "turns": view.num_turns,
        "tokens": view.num_tokens,
        "image": view.num_image_tokens,
        "trained": view.num_supervised,
        "images": [_image(image, thumbnails) for image in view.images],
        "spans": [_span(view, index, markers) for index in range(len(view.spans))] if whole else [],
        "template": view.template if whole else "",
    }


def _without_path(text: str, directory: Path) -> str:
    """A text that names the directory, but not its path: a page is sent to others."""
    text = text.replace(f"{directory}/", "")
    return text.replace(str(directory), directory.name) if directory.name else text


def _image(image: ImageView, thumbnails: Thumbnailer) -> dict[str, Any]:
    made = thumbnails.make(image.path)
    size = f"{image.width} x {image.height}{f' {image.text}' if image.text else ''}"
    return {"path": image.path, "about": size, "uri": made.uri, "reason": made.reason, "tag": image.tag}


def _span(view: SampleView, index: int, markers: frozenset[str]) -> dict[str, Any]:
    """A span: an image by its number, or the texts of tokens, their ids, and which of them are markers."""
    span = view.spans[index]
    if span.image:
        return {"kind": "image", "start": span.start, "image": span.image - 1, "words": image_words(span)}
    return {
        "kind": "trained" if span.kind == "supervised" else "context",
        "start": span.start,
        "texts": [as_text(word) for word in span.tokens],
        "ids": list(view.input_ids[span.start : span.start + span.length]),
        "markers": [position for position, word in enumerate(span.tokens) if word in markers],
    }
