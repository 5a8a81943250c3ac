"""`phi3v-train inspect`: one sample as the model sees it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phi3v_data.cli.base import command_info
from phi3v_data.errors import GOOD, PROBLEMS
from phi3v_data.messages import counted
from phi3v_train.cli.eval_options import Base, say_notes, with_eval_settings
from phi3v_train.config import DataConfig, Group, ModelConfig, OptimConfig
from phi3v_train.settings import Settings

if TYPE_CHECKING:
    from rich.console import Console

    from phi3v_train.data.view import SampleView, Span


SHARED: dict[type[Group], tuple[str, ...]] = {
    ModelConfig: ("model_name_or_path", "num_crops"),
    DataConfig: ("max_length", "truncate", "answer_choice"),
    OptimConfig: ("seed",),
}
"""Settings of a run that decide how a sample is encoded."""

STYLES = {"given": "", "learnt": "bold green", "image": "cyan"}
"""Style of each kind of span, by its value in the JSON."""

KINDS = {"learnt": "supervised"}
"""Kinds of spans that the terminal shows by another word than the JSON."""


@with_eval_settings(SHARED)
@command_info(
    examples=[
        "phi3v-train inspect demo_out/ucf101 --row 3 --model_name_or_path tiny",
        "phi3v-train inspect DIR --split val --id val-0000000300 --num_crops 4",
        "phi3v-train inspect DIR --row 0 --json | jq .num_tokens",
    ]
)
def inspect(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A conversations directory, complete or bare.")],
    row: Annotated[int | None, typer.Option(min=0, metavar="N", help="Row of the split, from 0. Default: 0.")] = None,
    sample_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="The sample's id, instead of --row.")
    ] = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Split to look into.")] = "train",
    epoch: Annotated[int, typer.Option(min=0, metavar="N", help="Epoch, from 0, of the random answer.")] = 0,
    base: Base = None,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON document, ids and labels in it.")] = False,
    *,
    settings: Settings,
) -> None:
    """Show one sample as the model sees it: tokens by whether they are trained, images with their tiles, lengths.

    Exits with 1 when a run with these settings would refuse the sample.
    """
    from phi3v_data.console import make_console
    from phi3v_data.errors import UserError
    from phi3v_train.data.encode import EncodeOptions, Encoder
    from phi3v_train.data.model_settings import model_notes
    from phi3v_train.data.order import SampleRef
    from phi3v_train.data.reader import Reader
    from phi3v_train.data.sources import find_row, open_source
    from phi3v_train.data.view import view_sample
    from phi3v_train.models.loading import load_processor, locate
    from phi3v_train.models.registry import make_renderer

    if row is not None and sample_id is not None:
        raise UserError("--row and --id both name a sample: give one of them")
    data, model = settings.config.data, settings.config.model
    source = open_source(directory, split, num_crops=model.num_crops)
    number = find_row(source, sample_id) if sample_id is not None else row or 0
    if number >= len(source):
        raise UserError(f"--row {number}: split {split!r} has the rows 0 to {len(source) - 1}")
    options = EncodeOptions(data.answer_choice, settings.config.optim.seed, data.max_length, data.truncate)
    files = locate(model.model_name_or_path, base=base, weights=False)
    source = source.with_model(files, tuned_first=True)
    processor = load_processor(files)
    encoder = Encoder(make_renderer(files.family, processor), options)
    view = view_sample(Reader([source], encoder), SampleRef(0, number, epoch))
    origin = settings.origin("num_crops") if source.num_crops_from == "option" else source.num_crops_from
    say_notes(model_notes(files, processor, [(source, origin)], longest=view.num_tokens), quiet=False)
    if json_output:
        print(json.dumps(view.to_dict(), ensure_ascii=False))
    else:
        show(make_console(), view)
    raise typer.Exit(PROBLEMS if view.refusal else GOOD)


def show(console: "Console", view: "SampleView") -> None:
    """Print a sample."""
    from rich.text import Text

    console.print(
        Text.assemble((view.place, "bold"), f"  id {view.id}  (split {view.split}, row {view.row} of {view.num_rows})")
    )
    text_tokens = view.num_tokens - view.num_image_tokens
    console.print(
        f"{view.num_tokens:,} tokens: {view.num_image_tokens:,} of images, {text_tokens:,} of text, "
        f"{view.num_supervised:,} of them supervised; {counted(view.num_turns, 'turn')}, "
        f"{counted(len(view.images), 'image')}, {counted(sum(image.num_tiles for image in view.images), 'tile')}; "
        + (f"num_crops {view.num_crops} ({view.num_crops_from})" if view.num_crops is not None else "no tile budget")
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
        console.print(_line(span, view))
    if view.refusal:
        console.print()
        console.print(Text(f"refused: {view.refusal}", style="bold red"))


def _line(span: "Span", view: "SampleView") -> object:
    from rich.text import Text

    kind = f"image {span.image}" if span.image else KINDS.get(span.kind, span.kind)
    body = f"{view.images[span.image - 1].tag} x {span.length:,}" if span.image else " ".join(span.tokens)
    return Text.assemble((f"{span.start:>7} {kind:<10} ", "dim"), (body, STYLES[span.kind]))
