"""The questions of a DocVQA source, in all its layouts; images are not opened if the source names the page.

spdocvqa_qas/{train_v1.0_withQT,val_v1.0_withQT,test_v1.0}.json   spdocvqa_images/   official, current
{train,val,test}/{split}_v1.0.json   documents/ next to it                           official, older
parquet or save_to_disk: questionId, question, answers, docId, image                 lmms-lab/DocVQA and alike
parquet: id, query {en, de, ...}, answers, image                                     nielsr/docvqa_1200_examples
parquet: question_id, question, answers, other_metadata, image                       pixparse/docvqa-...
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from phi3v_data.converters.helpers.annotations import (
    check_columns,
    images_digest,
    read_json,
    table_splits,
)
from phi3v_data.converters.helpers.image_names import ImageFiles
from phi3v_data.converters.helpers.values import field_of, text_of, texts_of
from phi3v_data.errors import NotFoundError, Reject, UserError
from phi3v_data.sources.source import Source, SourceFile
from phi3v_data.sources.tables import RowLocation
from phi3v_data.suffixes import SOURCE_IMAGE_SUFFIXES

_FILE = re.compile(r"(?P<split>train|val|validation|test)_v[0-9.]*[0-9](?P<types>_withQT)?\.json", re.IGNORECASE)
_IDS = ("questionId", "question_id", "id")
_QUESTIONS = ("question", "query")
_ANSWERS = ("answers", "answer")
_GROUPS = ("docId", "doc_id", "ucsf_document_id")
_IMAGES = ("image",)


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a page; the page is a file (`path`, stored as `name`) or in a row (`place`)."""

    split: str
    key: str
    id: str
    text: str
    answers: tuple[str, ...]
    group: str = ""
    size: int = 0
    path: str = ""
    name: str = ""
    place: RowLocation | None = None
    bundle: str = ""
    reject: str = ""
    message: str = ""


def find_questions(source: Source, language: str, config: str) -> Iterator[Question]:
    """All questions in the order of numbering.

    Raises:
        UserError: the source is not a DocVQA set.
    """
    if source.has_rows:
        yield from _from_tables(source, language, config)
    else:
        yield from _from_files(source)


def _from_files(source: Source) -> Iterator[Question]:
    files = _annotations(source)
    images = ImageFiles(source.all_files(SOURCE_IMAGE_SUFFIXES))
    source.use(files.values())
    for split, file in files.items():
        for index, row in enumerate(_entries(file)):
            yield _from_entry(split, f"{PurePosixPath(file.path).name}[{index}]", row, file, images)


def _annotations(source: Source) -> dict[str, SourceFile]:
    """Map each split to its file; of two files with the same questions, the one with question types."""
    found: dict[str, list[tuple[bool, SourceFile]]] = {}
    for file in source.all_files((".json",)):
        if match := _FILE.fullmatch(PurePosixPath(file.path).name):
            found.setdefault(match["split"].lower(), []).append((match["types"] is not None, file))
    if not found:
        raise NotFoundError(
            f"'{source.spec}' contains no DocVQA annotations (train_v1.0_withQT.json, val_v1.0_withQT.json, "
            "test_v1.0.json), and no parquet files either"
        )
    chosen = {}
    for split, files in found.items():
        best = [file for typed, file in files if typed == max(typed for typed, _ in files)]
        if len(best) > 1:
            raise UserError(
                f"split {split} exists twice, as '{best[0].where}' and '{best[1].where}'; give a source that contains "
                "it once"
            )
        chosen[split] = best[0]
    return chosen


def _entries(file: SourceFile) -> Iterable[Any]:
    content = read_json(file)
    rows = content.get("data") if isinstance(content, dict) else content
    if not isinstance(rows, list):
        raise UserError(f"'{file.where}' has no list 'data', so it is not a DocVQA annotation file")
    return rows


def _from_entry(split: str, key: str, row: Any, file: SourceFile, images: ImageFiles) -> Question:
    if not isinstance(row, Mapping) or not text_of(row.get("question")).strip():
        return Question(split, key, "", "", (), reject="row-invalid", message=f"{key} is not a question with text")
    text, answers = text_of(row["question"]), texts_of(row.get("answers"))
    group = text_of(field_of(row, _GROUPS))
    common: dict[str, Any] = {"id": text_of(field_of(row, _IDS)) or key, "text": text, "answers": answers}
    try:
        image = images.find(text_of(row.get("image")), str(PurePosixPath(file.path).parent).removeprefix("."))
    except Reject as reject:
        return Question(split, key, group=group, **common, reject=reject.code, message=f"{key}: {reject.message}")
    return Question(
        split,
        key,
        **common,
        group=group or image.path,
        size=image.size + _length(text, answers),
        path=str(image.file),
        name=f"{split}/{PurePosixPath(image.path).name}",
        bundle=image.path,
    )


def _length(text: str, answers: Iterable[str]) -> int:
    return len(text.encode("utf-8", "replace")) + sum(len(answer.encode("utf-8", "replace")) for answer in answers)


def _from_tables(source: Source, language: str, config: str) -> Iterator[Question]:
    for split, full in table_splits(source, config, default="DocVQA").items():
        check_columns(source, full, (_QUESTIONS, _IMAGES), "a DocVQA set")
        columns = source.columns(full)
        told = any(name in columns for name in (*_GROUPS, "other_metadata"))
        wanted = {*_IDS, *_QUESTIONS, *_ANSWERS, *_GROUPS, "other_metadata"}
        if not told:
            wanted.update(_IMAGES)  # only the image itself shows which questions share it
        rows = source.rows(full, columns=[name for name in columns if name in wanted])
        for index, (place, row) in enumerate(zip(source.places(full), rows, strict=True)):
            yield _from_row(split, f"{split}[{index}]", row, place, language)


def _from_row(split: str, key: str, row: Mapping[str, Any], place: RowLocation, language: str) -> Question:
    question = field_of(row, _QUESTIONS)
    if isinstance(question, Mapping):
        question = question.get(language)
    text, answers = text_of(question), texts_of(field_of(row, _ANSWERS))
    if not text.strip():
        return Question(split, key, "", "", (), reject="row-invalid", message=f"{key} has no question ({language})")
    group = text_of(field_of(row, _GROUPS)) or _from_metadata(row.get("other_metadata"))
    if not group and "image" in row:
        group = images_digest([row["image"]])
    return Question(
        split,
        key,
        text_of(field_of(row, _IDS)) or key,
        text,
        answers,
        group=group,
        size=_length(text, answers),
        place=place,
        bundle=place.bundle,
    )


def _from_metadata(value: Any) -> str:
    """The document's id from `other_metadata`, which some mirrors store as JSON text."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return ""
    return text_of(field_of(value, _GROUPS)) if isinstance(value, Mapping) else ""
