"""Hateful memes: an image with text on it, hateful or not.

    img/*.png (or img.tar.gz)   train, dev_seen, dev_unseen, test_seen, test_unseen .jsonl     official
    img/*.png                   train, dev, test .jsonl (test without labels)                  phase 1
    parquet or save_to_disk: id, img, image, label, text            neuralcatcher/hateful_memes and alike
    the_cauldron, configuration hateful_memes

https://ai.meta.com/tools/hatefulmemes. Images are found by `img`: many `id`s have lost their leading zero.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from pydantic import Field

from phi3v_data.converters.cauldron import convert_row, is_cauldron, only_config, plan_rows
from phi3v_data.converters.helpers.annotations import (
    check_columns,
    embedded_image,
    once_a_source,
    read_json_lines,
    table_splits,
    yes_or_no,
)
from phi3v_data.converters.helpers.image_names import ImageFiles, stored_name
from phi3v_data.converters.helpers.values import field_of, text_of
from phi3v_data.draft import Converter, DatasetInfo, Draft, DraftImage, Item, Options
from phi3v_data.errors import NotFoundError, Reject
from phi3v_data.sources.source import Source
from phi3v_data.sources.tables import RowLocation
from phi3v_data.suffixes import SOURCE_IMAGE_SUFFIXES

PROMPT = "Is this an offensive meme?\nAnswer yes or no."
_FILE = re.compile(r"(train|dev|val|test|(dev|test)_(seen|unseen))\.jsonl", re.IGNORECASE)


class HatefulMemesOptions(Options):
    """Options of the converter."""

    prompt: str = Field(PROMPT, description="The user's text; {text} is replaced by the text on the meme.")


class HatefulMemes(Converter[HatefulMemesOptions]):
    """Hateful Memes (official files and mirrors) → a meme, Yes or No; scored by AUROC."""

    name = "hateful_memes"
    version = "1"
    hub_id = "neuralcatcher/hateful_memes"

    def plan(self, source: Source, options: HatefulMemesOptions) -> Iterable[Item]:
        if is_cauldron(source):
            return plan_rows(source, only_config(source, self.name))
        return _memes(source)

    def convert(self, item: Item, options: HatefulMemesOptions) -> Draft:
        if "texts" in item.data:
            return convert_row(item, "" if options.prompt == PROMPT else options.prompt)
        data = item.data
        notes: tuple[str, ...] = ()
        if data["place"] is None:
            name, notes = stored_name(f"img/{data['stem']}{PurePosixPath(item.path).suffix}", item.path)
            image = DraftImage(item.path, name=name)
        else:
            row = data["place"].read()
            image = embedded_image(field_of(row, ("image", "img")), item.key, data["place"])
        return Draft(
            user=options.prompt.replace("{text}", data["text"]),
            assistant=item.label,
            images=[image],
            group=item.group,
            meta={"source_id": data["stem"]},
            notes=notes,
        )

    def describe(self, source: Source, options: HatefulMemesOptions) -> DatasetInfo:
        memes = () if is_cauldron(source) else _memes(source)
        labelled = {item.split for item in memes if item.label}
        return DatasetInfo(
            name=self.name,
            task="classification",
            metrics=("auroc", "accuracy"),
            classes=("No", "Yes"),
            source="Hateful Memes, https://ai.meta.com/tools/hatefulmemes",
            unlabelled=sorted({item.split for item in memes} - labelled),
        )


@once_a_source
def _memes(source: Source) -> tuple[Item, ...]:
    return tuple(_from_tables(source) if source.has_rows else _from_files(source))


def _from_files(source: Source) -> Iterator[Item]:
    files = [file for file in source.all_files((".jsonl",)) if _FILE.fullmatch(PurePosixPath(file.path).name)]
    if not files:
        raise NotFoundError(
            f"'{source.spec}' contains no annotations of Hateful Memes (train.jsonl, dev_seen.jsonl, ...), and no "
            "parquet files either"
        )
    images = ImageFiles(source.all_files(SOURCE_IMAGE_SUFFIXES))
    source.use(files)
    for file in files:
        path = PurePosixPath(file.path)
        folder = str(path.parent).removeprefix(".")
        for line in read_json_lines(file):
            key = f"{path.name}:{line.number}"
            if line.problem:
                yield _item(path.stem.lower(), key, {}, reject="row-invalid", message=f"{key} {line.problem}")
                continue
            try:
                image = images.find(_reference(line.value, key), folder)
            except Reject as reject:
                message = f"{key}: {reject.message}"
                yield _item(path.stem.lower(), key, line.value, reject=reject.code, message=message, size=line.size)
                continue
            yield _item(path.stem.lower(), key, line.value, path=str(image.file), size=line.size + image.size)


def _from_tables(source: Source) -> Iterator[Item]:
    for split, full in table_splits(source).items():
        check_columns(source, full, (("image", "img"), ("img", "id"), ("text",)), "a set of Hateful Memes")
        columns = [name for name in source.columns(full) if name in ("id", "img", "label", "text")]
        for index, (place, row) in enumerate(zip(source.places(full), source.rows(full, columns=columns), strict=True)):
            yield _item(split, f"{split}[{index}]", row, place=place)


def _item(
    split: str,
    key: str,
    row: Mapping[str, Any],
    *,
    path: str = "",
    size: int = 0,
    place: RowLocation | None = None,
    reject: str = "",
    message: str = "",
) -> Item:
    stem = label = ""
    try:
        if not reject:
            stem = PurePosixPath(_reference(row, key)).stem
            label = yes_or_no(row.get("label"))
    except Reject as found:
        reject, message = found.code, f"{key}: {found.message}"
    return Item(
        split,
        key,
        path,
        group=stem,
        size=size,
        bundle=place.bundle if place else "",
        label=label,
        data={"stem": stem, "text": text_of(row.get("text")), "place": place},
        reject=reject,
        message=message,
    )


def _reference(row: Mapping[str, Any], key: str) -> str:
    """Path of a row's image: `img/01235.png`, built from the id if the row does not contain it."""
    if (img := row.get("img")) and isinstance(img, str):
        return img
    if isinstance(img, Mapping) and text_of(img.get("path")):
        return text_of(img["path"])
    if number := text_of(row.get("id")):
        return f"img/{number.zfill(5)}.png"
    raise Reject("row-invalid", f"{key} has neither 'img' nor 'id'")
