"""A sample as lines in the terminal."""

from typing import TYPE_CHECKING

from phi3v_data.messages import counted

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from phi3v_train.inspection.view import SampleView, Span

STYLES = {"given": "", "supervised": "bold green", "image": "cyan"}
"""Style of each kind of span, by its value in the JSON."""


def show(console: "Console", view: "SampleView") -> None:
    """Print a sample: where it is, its lengths, its images, and its spans in order, the supervised ones in green."""
    from rich.text import Text

    identity = f"  id {view.id}" if view.id else ""
    console.print(
        Text.assemble((view.place, "bold"), f"{identity}  (split {view.split}, row {view.row} of {view.num_rows})")
    )
    if view.num_tokens:
        _show_tokens(console, view)
    if view.refusal:
        console.print(Text(f"refused: {view.refusal}", style="bold red"))


def _show_tokens(console: "Console", view: "SampleView") -> None:
    from rich.text import Text

    text_tokens = view.num_tokens - view.num_image_tokens
    console.print(
        f"{view.num_tokens:,} tokens: {view.num_image_tokens:,} of images, {text_tokens:,} of text, "
        f"{view.num_supervised:,} of them supervised; {counted(view.num_turns, 'turn')}, "
        f"{counted(len(view.images), 'image')}, {counted(sum(image.num_tiles for image in view.images), 'tile')}; "
        + (f"{view.budget_option} {view.num_crops} ({view.num_crops_from})" if view.num_crops else "no image budget")
    )
    if view.dropped_turns:
        console.print(Text(f"cut: {counted(view.dropped_turns, 'turn')} at the end left out", style="yellow"))
    if not view.labelled:
        console.print(Text("no answer in this row: it can be predicted, not trained on", style="yellow"))
    for image in view.images:
        console.print(
            Text.assemble(
                (f"  {image.tag}", STYLES["image"]),
                f" {image.path}: {image.width} x {image.height}{f' {image.text}' if image.text else ''}, "
                f"{image.num_tokens:,} tokens",
            )
        )
    console.print()
    for span in view.spans:
        console.print(_line(span))
    if view.refusal:
        console.print()


def _line(span: "Span") -> "Text":
    from rich.text import Text

    kind = f"image {span.image}" if span.image else span.kind
    body = image_words(span) if span.image else " ".join(span.tokens)
    return Text.assemble((f"{span.start:>7} {kind:<10} ", "dim"), (body, STYLES[span.kind]))


def image_words(span: "Span") -> str:
    """The tokens of an image in two words: `[image 1: 757 tokens]`."""
    return f"[image {span.image}: {counted(span.length, 'token')}]"
