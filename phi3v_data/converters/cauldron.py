"""The Cauldron: fifty vision-language sets with rows of `images: [..]` and `texts: [{user, assistant, source}]`.

    CONFIG/train-*.parquet          a snapshot of the Hub dataset, or the Hub itself
    train-*.parquet, save_to_disk   one configuration

https://huggingface.co/datasets/HuggingFaceM4/the_cauldron. For its evaluation the Phi-3.5-vision sample holds out
the first 500 rows and uses only their first question: `--holdout 500`.
"""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import Field

from phi3v_data.converters.helpers.annotations import (
    check_columns,
    embedded_image,
    images_digest,
    table_splits,
)
from phi3v_data.converters.helpers.values import text_of
from phi3v_data.draft import Converter, DatasetInfo, Draft, DraftTurn, Item, Options
from phi3v_data.errors import Reject, UserError
from phi3v_data.sources.source import Source
from phi3v_data.sources.tables import RowLocation

HUB_ID = "HuggingFaceM4/the_cauldron"
METRICS: Mapping[str, tuple[str, ...]] = {
    "docvqa": ("anls",),
    "infographic_vqa": ("anls",),
    "st_vqa": ("anls",),
    "visualmrc": ("anls",),
    "hateful_memes": ("auroc", "accuracy"),
}
"""Metrics of configurations whose headline metric is not accuracy."""

HOLDOUT_SPLIT = "val"


class CauldronOptions(Options):
    """Options of the converter."""

    config: str = Field("", description="Configuration; optional if the source contains only one.")
    texts: Literal["all", "first", "each"] = Field(
        "all", description="One conversation with all texts of a row, only the first text, or one sample per text."
    )
    holdout: int = Field(
        0,
        ge=0,
        description="Use the first N rows as split 'val', with their first text only (Phi-3.5-vision sample: 500).",
    )
    group_by: Literal["auto", "images", "row"] = Field(
        "auto",
        description="Rows that --split and --holdout keep together: those with the same images, or each row alone. "
        "auto: images on disk, row on the Hub, where comparing images would mean to download them twice.",
    )


class Cauldron(Converter[CauldronOptions]):
    """Any configuration of the_cauldron → conversations of one or several turns."""

    name = "cauldron"
    version = "1"
    hub_id = HUB_ID

    def plan(self, source: Source, options: CauldronOptions) -> Iterable[Item]:
        return plan_rows(source, options)

    def convert(self, item: Item, options: CauldronOptions) -> Draft:
        return convert_row(item)

    def describe(self, source: Source, options: CauldronOptions) -> DatasetInfo:
        config = config_of(source, options.config)
        return DatasetInfo(
            name=f"cauldron_{config}" if config else self.name,
            task="vqa",
            metrics=METRICS.get(config, ("accuracy",)),
            source=f"The Cauldron{f', configuration {config}' if config else ''}, https://huggingface.co/datasets/{HUB_ID}",
        )


def is_cauldron(source: Source) -> bool:
    """Whether the rows have the format of the Cauldron."""
    if not source.has_rows:
        return False
    columns = source.columns(next(iter(source.split_names()), ""))
    return "texts" in columns and "images" in columns


def config_of(source: Source, config: str) -> str:
    """Name of the configuration: as requested, or the folder of the only one; may be empty."""
    if config:
        return config.lower()
    folders = {name.rpartition("/")[0] for name in source.split_names()}
    if source.kind == "parquet" and folders == {""} and not source.hub_id:
        folders = {str(PurePosixPath(file.path).parent) for file in source.files((".parquet",))}
    name = folders.pop().rpartition("/")[2] if len(folders) == 1 else ""
    return "" if name in (".", "data", "default") else name


def plan_rows(source: Source, options: CauldronOptions) -> Iterator[Item]:
    """Items of one configuration, in the order of its rows.

    Raises:
        UserError: the rows do not have the format of the Cauldron, or the configuration does not exist.
    """
    config = config_of(source, options.config) or "row"
    by_images = options.group_by == "images" or (options.group_by == "auto" and not source.hub_id)
    for split, full in table_splits(source, options.config).items():
        check_columns(source, full, (("images",), ("texts",)), "a configuration of the_cauldron")
        rows = source.rows(full, columns=("images", "texts") if by_images else ("texts",))
        held: set[str] = set()
        for index, (place, row) in enumerate(zip(source.places(full), rows, strict=True)):
            group = images_digest(row["images"] or ()) if by_images else f"{config}/{index}"
            reserved = index < options.holdout
            if reserved:
                held.add(group)
            yield from _items(split, index, place, row, group, options, config, reserved, group in held)


def _items(
    split: str,
    index: int,
    place: RowLocation,
    row: Mapping[str, Any],
    group: str,
    options: CauldronOptions,
    config: str,
    reserved: bool,
    held: bool,
) -> Iterator[Item]:
    count = len(row["texts"] or ())
    if count == 0 or (options.texts == "all" and not reserved):
        choices: Iterable[tuple[int, ...]] = (tuple(range(count)),)
    else:
        choices = [(number,) for number in range(1 if reserved or options.texts == "first" else count)]
    for chosen in choices:
        number = f".{chosen[0]}" if options.texts == "each" and not reserved and chosen else ""
        yield Item(
            split=HOLDOUT_SPLIT if reserved else split,
            key=f"{split}[{index}]{number}",
            group=group,
            size=sum(len(text_of(text.get(field))) for text in row["texts"] or () for field in ("user", "assistant")),
            bundle=place.bundle,
            data={
                "place": place,
                "texts": chosen,
                "source_id": f"{config}/{index}{number}",
                "leaks": held and not reserved,
            },
        )


def convert_row(item: Item, prompt: str = "") -> Draft:
    """Convert a row to one sample; `prompt`, if any, replaces the row's own wording.

    Raises:
        Reject: `image-missing`, `no-turns`, `image-in-holdout`.
    """
    if item.data["leaks"]:
        raise Reject("image-in-holdout", f"{item.key} has the same images as a row that is held out")
    place: RowLocation = item.data["place"]
    row = place.read()
    texts = [row["texts"][number] for number in item.data["texts"]]
    if not texts:
        raise Reject("no-turns", f"{item.key} has no text")
    images = [embedded_image(value, item.key, place) for value in row["images"] or ()]
    turns = [
        DraftTurn(prompt or text_of(text.get("user")), text_of(text.get("assistant")), images if first else ())
        for first, text in zip((True, *[False] * len(texts)), texts, strict=False)
    ]
    meta = {"source_id": item.data["source_id"]}
    if origin := text_of(texts[0].get("source")):
        meta["origin"] = origin
    return Draft(turns=turns, group=item.group or images_digest(row["images"] or ()), meta=meta)


def only_config(source: Source, config: str) -> CauldronOptions:
    """Options for another converter to read its own configuration, with one sample per text.

    Raises:
        UserError: the source only contains another configuration.
    """
    found = config_of(source, "")
    folders = {name.rpartition("/")[0].rpartition("/")[2] for name in source.split_names()}
    if found and found != config and config not in folders:
        raise UserError(f"'{source.spec}' contains the configuration '{found}' of the_cauldron, not '{config}'")
    return CauldronOptions(config=config if len(folders) > 1 else "", texts="each")
