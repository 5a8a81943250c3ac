"""NLVR2: two photos and a sentence that is true or false for them.

    {train,dev,test1,test2}.json (JSON lines), also balanced_ and unbalanced_ ones     official
    images: images/train/<directory>/, dev/, test1/, test2/, or all in one folder
    parquet or save_to_disk: identifier or question_id, sentence or question, label or answer, left_image, right_image
    the_cauldron, configuration nlvr2

https://lil.nlp.cornell.edu/nlvr. An identifier is split-set-pair-sentence; for consistency, a sentence is correct if
it is judged correctly for all its pairs, so `meta.sentence_id` is the identifier without the pair.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import Field, field_validator

from phi3v_data.converters.cauldron import HUB_ID, convert_row, is_cauldron, only_config, plan_rows
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
from phi3v_data.messages import shown
from phi3v_data.sources.source import Source, SourceFile
from phi3v_data.sources.tables import RowLocation
from phi3v_data.suffixes import SOURCE_IMAGE_SUFFIXES

PROMPT = 'For the images displayed, is the sentence "{sentence}" factually correct?\nAnswer yes or no.'
_FILE = re.compile(r"(?P<subset>(un)?balanced_)?(?P<split>train|dev|test1|test2|test)\.jsonl?", re.IGNORECASE)
_IDENTIFIER = re.compile(r"(?P<split>[A-Za-z]+[0-9]?)-(?P<set>[0-9]+)-(?P<pair>[0-9]+)-(?P<sentence>[0-9]+)")
_IDENTIFIERS = ("identifier", "question_id", "id")
_SENTENCES = ("sentence", "question", "caption")
_LABELS = ("label", "answer")
_IMAGE_COLUMNS = (("left_image", "right_image"), ("image0", "image1"), ("image_0", "image_1"), ("images",))


class Nlvr2Options(Options):
    """Options of the converter."""

    prompt: str = Field(PROMPT, description="The user's text; {sentence} is replaced by the sentence.")
    subset: Literal["all", "balanced", "unbalanced"] = Field(
        "all", description="All rows of each file, or its official balanced or unbalanced subset."
    )

    @field_validator("prompt", mode="after")
    @classmethod
    def _holds_sentence(cls, value: str) -> str:
        if "{sentence}" not in value:
            raise ValueError("it must contain {sentence}")
        return value


@dataclass(frozen=True, slots=True)
class Identifier:
    """The components of an identifier such as `dev-850-0-1`."""

    text: str

    @property
    def _match(self) -> "re.Match[str]":
        match = _IDENTIFIER.fullmatch(self.text)
        if match is None:
            raise Reject("row-invalid", f"{shown(self.text)} is not an identifier of the form split-set-pair-sentence")
        return match

    @property
    def pair_id(self) -> str:
        """Prefix of the names of its images: `dev-850-0`."""
        return self.text.rpartition("-")[0] if self._match else ""

    @property
    def sentence_id(self) -> str:
        """The sentence, for all its pairs: `dev-850-1`."""
        match = self._match
        return f"{match['split']}-{match['set']}-{match['sentence']}"

    @property
    def set_id(self) -> str:
        """The image set, whose pairs share images: `dev-850`."""
        match = self._match
        return f"{match['split']}-{match['set']}"


class Nlvr2(Converter[Nlvr2Options]):
    """NLVR2 (official files and mirrors) → two images, a sentence, Yes or No; scored by accuracy and consistency."""

    name = "nlvr2"
    version = "1"
    hub_id = HUB_ID

    def plan(self, source: Source, options: Nlvr2Options) -> Iterable[Item]:
        if is_cauldron(source):
            return plan_rows(source, only_config(source, self.name))
        return _statements(source, options.subset)

    def convert(self, item: Item, options: Nlvr2Options) -> Draft:
        if "texts" in item.data:
            return convert_row(item)
        data = item.data
        images, notes = _images(item)
        return Draft(
            user=options.prompt.replace("{sentence}", data["sentence"]),
            assistant=item.label,
            images=images,
            group=item.group,
            meta={"source_id": data["identifier"], "sentence_id": data["sentence_id"]},
            notes=notes,
        )

    def describe(self, source: Source, options: Nlvr2Options) -> DatasetInfo:
        cauldron = is_cauldron(source)
        statements = () if cauldron else _statements(source, options.subset)
        labelled = {item.split for item in statements if item.label}
        return DatasetInfo(
            name=self.name,
            task="classification",
            metrics=("accuracy",) if cauldron else ("accuracy", "consistency"),
            classes=("No", "Yes"),
            source="NLVR2, https://lil.nlp.cornell.edu/nlvr",
            unlabelled=sorted({item.split for item in statements} - labelled),
        )


def _images(item: Item) -> tuple[list[DraftImage], tuple[str, ...]]:
    """The left and the right image, and notes on how they are stored."""
    data = item.data
    if data["place"] is None:
        named = [stored_name(name, path) for path, name in data["files"]]
        images = [DraftImage(path, name=name) for (path, _), (name, _) in zip(data["files"], named, strict=True)]
        return images, tuple(note for _, notes in named for note in notes)
    row = data["place"].read()
    columns = next(names for names in _IMAGE_COLUMNS if names[0] in row)
    values = row[columns[0]] if len(columns) == 1 else [row[name] for name in columns]
    if len(values or ()) != 2:
        raise Reject("image-missing", f"{item.key} has {len(values or ())} images instead of 2")
    return [embedded_image(value, item.key, data["place"]) for value in values], ()


@once_a_source
def _statements(source: Source, subset: str) -> tuple[Item, ...]:
    return tuple(_from_tables(source, subset) if source.has_rows else _from_files(source, subset))


def _from_files(source: Source, subset: str) -> Iterator[Item]:
    images = ImageFiles(source.all_files(SOURCE_IMAGE_SUFFIXES))
    annotations = _annotations(source, subset)
    source.use(annotations.values())
    for split, file in annotations.items():
        name = PurePosixPath(file.path).name
        for line in read_json_lines(file):
            key = f"{name}:{line.number}"
            if line.problem:
                yield _item(split, key, {}, size=line.size, reject="row-invalid", message=f"{key} {line.problem}")
                continue
            try:
                files = _find_pair(line.value, split, images)
            except Reject as reject:
                message = f"{key}: {reject.message}"
                yield _item(split, key, line.value, size=line.size, reject=reject.code, message=message)
                continue
            source.use(files)
            stored = [(str(file.file), f"{split}/{PurePosixPath(file.path).name}") for file in files]
            yield _item(split, key, line.value, size=line.size + sum(file.size for file in files), files=stored)


def _annotations(source: Source, subset: str) -> dict[str, SourceFile]:
    prefix = "" if subset == "all" else f"{subset}_"
    chosen: dict[str, SourceFile] = {}
    others = []
    for file in source.all_files((".json", ".jsonl")):
        match = _FILE.fullmatch(PurePosixPath(file.path).name)
        if match and (match["subset"] or "").lower() == prefix:
            chosen.setdefault(match["split"].lower(), file)
        elif match:
            others.append(file.path)
    if not chosen:
        hint = f"; there is '{others[0]}', which needs --subset" if others else ""
        raise NotFoundError(
            f"'{source.spec}' contains no annotations of NLVR2 ({prefix}train.json, {prefix}dev.json, "
            f"{prefix}test1.json), and no parquet files either{hint}"
        )
    return chosen


def _find_pair(row: Mapping[str, Any], split: str, images: ImageFiles) -> list[SourceFile]:
    pair = Identifier(text_of(field_of(row, _IDENTIFIERS))).pair_id
    directory = text_of(row.get("directory"))
    folder = f"images/train/{directory}" if directory else split
    return [images.find(f"{folder}/{pair}-img{side}.png") for side in (0, 1)]


def _from_tables(source: Source, subset: str) -> Iterator[Item]:
    splits = table_splits(source)
    prefix = "" if subset == "all" else f"{subset}_"
    whole = {split: full for split, full in splits.items() if not re.match(r"(un)?balanced_", split)}
    wanted = {split: full for split, full in splits.items() if prefix and split.startswith(prefix)} or whole or splits
    for split, full in wanted.items():
        columns = source.columns(full)
        check_columns(source, full, (_IDENTIFIERS, _SENTENCES, [names[0] for names in _IMAGE_COLUMNS]), "an NLVR2 set")
        texts = [name for name in columns if name in (*_IDENTIFIERS, *_SENTENCES, *_LABELS)]
        for index, (place, row) in enumerate(zip(source.places(full), source.rows(full, columns=texts), strict=True)):
            yield _item(split, f"{split}[{index}]", row, place=place)


def _item(
    split: str,
    key: str,
    row: Mapping[str, Any],
    *,
    size: int = 0,
    place: RowLocation | None = None,
    files: Sequence[tuple[str, str]] = (),
    reject: str = "",
    message: str = "",
) -> Item:
    text = text_of(field_of(row, _IDENTIFIERS))
    sentence = text_of(field_of(row, _SENTENCES))
    label = group = sentence_id = ""
    try:
        if not reject:
            identifier = Identifier(text)
            sentence_id, group = identifier.sentence_id, identifier.set_id
            label = yes_or_no(field_of(row, _LABELS))
            if not sentence.strip():
                raise Reject("row-invalid", "the row has no sentence")
    except Reject as found:
        reject, message = found.code, f"{key}: {found.message}"
    return Item(
        split,
        key,
        files[0][0] if files else "",
        group=group,
        size=size,
        bundle=place.bundle if place else "",
        label=label,
        data={
            "identifier": text,
            "sentence_id": sentence_id,
            "sentence": sentence,
            "place": place,
            "files": files,
        },
        reject=reject,
        message=message,
    )
