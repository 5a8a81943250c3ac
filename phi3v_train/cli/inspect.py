"""`phi3v-train inspect`: samples as the model sees them."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from phi3v_data.cli.base import command_info
from phi3v_data.errors import GOOD, PROBLEMS
from phi3v_data.messages import counted, join_words
from phi3v_train.cli.eval_options import Base, say_notes, with_eval_settings
from phi3v_train.config import IMAGE_OPTIONS, DataConfig, ModelConfig, OptimConfig
from phi3v_train.setting_group import Group
from phi3v_train.settings import Settings

if TYPE_CHECKING:
    from phi3v_train.data.sources import Source
    from phi3v_train.inspection.view import SampleView


SHARED: dict[type[Group], tuple[str, ...]] = {
    ModelConfig: ("model_name_or_path", *IMAGE_OPTIONS),
    DataConfig: ("max_length", "truncate", "answer_choice"),
    OptimConfig: ("seed",),
}
"""Settings of a run that decide how a sample is encoded."""

PAGE_ROWS = 10
"""Rows of a page if none are named."""


@with_eval_settings(SHARED)
@command_info(
    examples=[
        "phi3v-train inspect demo_out/ucf101 --row 3 --model_name_or_path tiny",
        "phi3v-train inspect DIR --rows 0-9 --html inspected.html",
        "phi3v-train inspect DIR --random 20 --seed 1 --html inspected.html",
        "phi3v-train inspect DIR --split val --id val-0000000300 --num_crops 4",
        "phi3v-train inspect DIR --row 0 --json | jq .num_tokens",
    ]
)
def inspect(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A conversations directory, complete or bare.")],
    row: Annotated[int | None, typer.Option(min=0, metavar="N", help="Row of the split, from 0. Default: 0.")] = None,
    rows: Annotated[
        str | None,
        typer.Option(metavar="ROWS", help="Several rows: 0-9, or 3,7,10-12. With --html: the first 10."),
    ] = None,
    random: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="N rows drawn at random; the same --seed, the same rows."),
    ] = None,
    sample_id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="The sample's id, instead of --row.")
    ] = None,
    split: Annotated[str, typer.Option(metavar="NAME", help="Split to look into.")] = "train",
    epoch: Annotated[int, typer.Option(min=0, metavar="N", help="Epoch, from 0, of the random answer.")] = 0,
    base: Base = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write an HTML page with images and coloured tokens instead.")
    ] = None,
    json_output: Annotated[
        bool,
        typer.Option("--json", help="One JSON document, ids and labels in it; an array with --rows or --random."),
    ] = False,
    *,
    settings: Settings,
) -> None:
    """Show samples as the model sees them: tokens by whether they are trained, images with their tiles, lengths.

    Exits with 1 when a row shown would train nothing: it has no answer to train, or a run with these settings would
    refuse it. Rows of a split without answers (`labelled: false` in dataset.json) are shown as they would be predicted.
    """
    from phi3v_data.console import make_console
    from phi3v_data.errors import UserError
    from phi3v_data.report.frame import check_target, write_page
    from phi3v_train.data.encode import EncodeOptions, Encoder
    from phi3v_train.data.model_settings import model_notes
    from phi3v_train.data.order import SampleRef
    from phi3v_train.data.reader import Reader
    from phi3v_train.data.sources import open_source
    from phi3v_train.inspection.page import check_number, make_inspection_page
    from phi3v_train.inspection.terminal import show
    from phi3v_train.inspection.view import view_row
    from phi3v_train.inspection.words import marker_words
    from phi3v_train.models.loading import check_processors, load_processor
    from phi3v_train.models.locate import locate
    from phi3v_train.models.registry import make_renderer

    named = {"--row": row, "--rows": rows, "--random": random, "--id": sample_id}
    if len(given := [option for option, value in named.items() if value is not None]) > 1:
        raise UserError(f"{' and '.join(given)} all choose rows: give one of them")
    if html is not None and json_output:
        raise UserError("--html and --json are two forms of the same: give one of them")
    data, model, seed = settings.config.data, settings.config.model, settings.config.optim.seed
    source = open_source(directory, split)
    numbers = choose(source, row=row, rows=rows, random=random, sample_id=sample_id, seed=seed, page=html is not None)
    if html is not None:
        check_number(len(numbers))
        check_target(html, directory)
    options = EncodeOptions(data.answer_choice, seed, data.max_length, data.truncate)
    files = locate(model.model_name_or_path, base=base, weights=False)
    budget = files.family.image_budget(model.image_options)
    source = source.with_option(budget).with_model(files)
    processor = load_processor(files, budget=budget, options=model.image_options)
    check_processors(files)
    renderer = make_renderer(files.family, processor)
    reader = Reader([source], Encoder(renderer, options))
    views = [view_row(reader, SampleRef(0, number, epoch)) for number in numbers]
    origin = settings.budget_origin(source.num_crops_from)
    longest = max(view.num_tokens for view in views)
    say_notes(model_notes(files, processor, [(source, origin)], longest=longest), quiet=False)
    info = source.manifest.splits.get(split) if source.manifest is not None else None
    wanted = info is None or info.labelled
    untrained = [view for view in views if view.refusal or (wanted and view.trains_nothing)]
    if html is not None:
        page = make_inspection_page(
            views,
            source,
            model=files.name,
            markers=marker_words(renderer.tokenizer),
            untrained=frozenset(view.row for view in untrained),
        )
        write_page(html, page)
        trained = sum(view.num_supervised for view in views)
        total = sum(view.num_tokens for view in views)
        print(f"{html}: {counted(len(views), 'row')}, {total:,} tokens, {trained:,} of them trained")
    elif json_output:
        several = rows is not None or random is not None
        value = [view.to_dict() for view in views] if several else views[0].to_dict()
        print(json.dumps(value, ensure_ascii=False))
    else:
        console = make_console()
        for number, view in enumerate(views):
            if number:
                console.print()
            show(console, view)
    say_untrained(untrained, len(views))
    raise typer.Exit(PROBLEMS if untrained else GOOD)


def choose(
    source: "Source",
    *,
    row: int | None,
    rows: str | None,
    random: int | None,
    sample_id: str | None,
    seed: int,
    page: bool,
) -> list[int]:
    """The rows to show.

    Raises:
        UserError: one that is not there.
    """
    from phi3v_train.data.sources import find_row
    from phi3v_train.inspection.choose import draw_rows, parse_rows, require_row

    if rows is not None:
        return parse_rows(rows, source)
    if random is not None:
        return draw_rows(random, source, seed)
    if sample_id is not None:
        return [find_row(source, sample_id)]
    if row is None and page:
        return list(range(min(PAGE_ROWS, len(source))))
    require_row(row or 0, source, "--row")
    return [row or 0]


def say_untrained(untrained: "Sequence[SampleView]", number: int) -> None:
    """Name the rows that would train nothing, on stderr."""
    if not untrained:
        return
    places = join_words(untrained, 5, each=lambda view: Path(view.place).name)
    print(f"{len(untrained):,} of {counted(number, 'row')} would train nothing: {places}", file=sys.stderr)
