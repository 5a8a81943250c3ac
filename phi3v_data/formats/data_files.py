"""Finds the data files of a source: of a file, a folder or an archive, with the split and the settings of each.

data.json                           one file; its split by its name, else train
train.jsonl, val.jsonl, test.jsonl  files whose names say different splits
train/data.json, val/data.json      folders whose names do
x-00000-of-00002.jsonl, ...         shards
dataset_info.json                   LLaMA-Factory's list of data sets, with their columns and roles
meta.json                           InternVL's list: {"NAME": {"root": "images", "annotation": "data.jsonl"}}
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from phi3v_data.encodings import read_text
from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.files import unsafe_reason
from phi3v_data.formats.dataset_info import FILE, Entry, read_dataset_info
from phi3v_data.messages import join_words, shown
from phi3v_data.sources.source import Source, SourceFile
from phi3v_data.splits import KNOWN_SPLITS, MAX_NAME_BYTES, SPLIT_FOLDERS, canonical_split, lone_split, parse_file_name
from phi3v_data.suffixes import ARCHIVE_SUFFIXES, SOURCE_IMAGE_SUFFIXES, is_table
from phi3v_data.unfinished import MANIFEST

SUFFIXES = (".json", ".jsonl", ".ndjson", ".json.gz", ".jsonl.gz", ".ndjson.gz")
MAX_META = 1 << 20
"""Bytes of a JSON file that may be InternVL's list of data sets."""

_SHARD = re.compile(r"-[0-9]{5,}-of-[0-9]{5,}$")


@dataclass(frozen=True, slots=True)
class DataFile:
    """Rows of one file, or of one split of a source with rows.

    Attributes:
        name: path in the source, or the name of the split.
        split: the split of its rows.
        file: None for a split of a source with rows.
        folder: folder in the source that paths of images are relative to.
        entry: settings of its columns and roles.
    """

    name: str
    split: str
    file: SourceFile | None = None
    folder: str = ""
    entry: Entry | None = None


def find_data_files(source: Source, only: str = "") -> tuple[DataFile, ...]:
    """The data files in the order of numbering.

    Args:
        only: path of one file in the source, or name of one entry of `dataset_info.json` or of InternVL's list.

    Raises:
        UserError: there are none, or several that do not name different splits.
    """
    if source.has_rows:
        return _tables(source, only)
    single = not source.root.is_dir()
    files = [file for file in source.all_files() if file.path.lower().endswith(SUFFIXES)]
    source.files((*SUFFIXES, *SOURCE_IMAGE_SUFFIXES, *ARCHIVE_SUFFIXES))  # rows name images: these are not left out
    by_path = {file.path: file for file in files}
    if MANIFEST in by_path and not single and not only:
        raise UserError(f"'{source.spec}' is a conversations directory already, which needs no import")
    if single and files:
        info = source.root.with_name(FILE)
        if info.is_file() and info != source.root:
            entries = read_dataset_info(_text(info, FILE))
            entry = next((entry for entry in entries.values() if entry.file_name == files[0].path), None)
            return (DataFile(files[0].path, lone_split(_stem(files[0].path)), files[0], entry=entry),)
    infos = [file for file in files if file.path.rpartition("/")[2] == FILE]
    if infos and only not in by_path:
        found = _from_info(source, infos[0], by_path)
    elif len(files) == 1 and (meta := _meta(files[0])):
        found = _from_meta(source, files[0], meta, by_path)
    else:
        found = []
        plain = [file for file in files if file not in infos]
        depth = min((file.path.count("/") for file in plain), default=0)
        metas = [(file, meta) for file in plain if file.path.count("/") == depth and (meta := _meta(file))]
        if metas and only not in by_path:
            found = [each for file, meta in metas for each in _from_meta(source, file, meta, by_path)]
        elif plain:
            wanted = [file for file in plain if file.path == only] if only else plain
            shallow = [file for file in wanted if only or file.path.count("/") == depth]
            found = [DataFile(file.path, "", file, folder=_folder(file.path)) for file in shallow]
    if only:
        named = [each for each in found if only in (each.name, each.file.path if each.file else "")]
        if not named:
            names = ", ".join(each.name for each in found[:8]) or "none"
            raise NotFoundError(f"--data: '{source.spec}' has no '{only}'; it has {names}")
        found = named
    if not found:
        kinds = ", ".join(SUFFIXES[:3])
        table = any(is_table(file.path) for file in source.files())
        hint = "`phi3v-data convert table` reads a table of texts and images" if table else "give the file itself"
        if not table and source.files(SOURCE_IMAGE_SUFFIXES):
            hint = "images alone have no texts: `phi3v-data convert image_folder` takes names of folders for answers"
        raise NotFoundError(f"'{source.spec}' contains no data file ({kinds}, .parquet); {hint}")
    return _with_splits(source, found)


def _with_splits(source: Source, found: Sequence[DataFile]) -> tuple[DataFile, ...]:
    """The files with their splits; shards and files of one split need the same name."""
    if len(found) == 1:
        return (replace(found[0], split=_split_of(found[0].name) or "train"),)
    result = []
    stems: dict[str, str] = {}
    for each in found:
        split, stem = _split_of(each.name), _SHARD.sub("", _stem(each.name))
        path = f"{_folder(each.name)}/{stem}"
        if not split and len({_SHARD.sub("", _stem(other.name)) for other in found}) == 1:
            split = "train"  # shards of one file
        if not split or stems.setdefault(split, path) != path:
            names = ", ".join(other.name for other in found[:8])
            said = f"'{source.spec}' contains several data files, which do not name different splits: {names}"
            shard = "; `phi3v-data import webdataset` reads a shard of WebDataset"
            raise UserError(f"{said}; choose one with --data{shard if source.spec.lower().endswith('.tar') else ''}")
        result.append(replace(each, split=split))
    return tuple(result)


def _split_of(name: str) -> str:
    """The split that a path names by its file or a folder; empty if none or several."""
    stem = _SHARD.sub("", _stem(name))
    parsed = parse_file_name(f"{stem}.jsonl")
    if parsed is not None and parsed.split in KNOWN_SPLITS:
        return canonical_split(parsed.split)
    known = {word for word in re.split(r"[^a-z0-9]+", stem.lower()) if word in KNOWN_SPLITS}
    if len(known) == 1:
        return canonical_split(known.pop())
    folders = [SPLIT_FOLDERS[piece] for piece in _folder(name).lower().split("/") if piece in SPLIT_FOLDERS]
    return folders[-1] if folders and not known else ""


def _stem(name: str) -> str:
    """The file name without its extension."""
    base = name.rpartition("/")[2]
    suffix = max((suffix for suffix in SUFFIXES if base.lower().endswith(suffix)), key=len, default="")
    return base[: -len(suffix)] if suffix else base


def set_name(files: Sequence[DataFile], source: Source) -> str:
    """The name of the set: that of its only file without the split, else that of the source."""
    stem = _SHARD.sub("", _stem(files[0].name)) if len(files) == 1 else _stem(Path(source.spec).name)
    for suffix in ARCHIVE_SUFFIXES:
        stem = stem.removesuffix(suffix)
    parsed = parse_file_name(f"{stem}.jsonl")
    if parsed is not None and parsed.split in KNOWN_SPLITS and parsed.name:
        stem = parsed.name
    return re.sub(r"[^A-Za-z0-9_-]+", "_", stem).strip("_")[:MAX_NAME_BYTES] or "import"


def _folder(path: str) -> str:
    return path.rpartition("/")[0]


def _tables(source: Source, only: str) -> tuple[DataFile, ...]:
    names = [name for name in source.split_names() if not only or name == only]
    if not names:
        raise NotFoundError(f"--data: '{source.spec}' has no '{only}'; it has {', '.join(source.split_names())}")
    found = [DataFile(name, canonical_split(name.rpartition("/")[2])) for name in names]
    if len({each.split for each in found}) < len(found):
        raise UserError(
            f"'{source.spec}' contains several configurations with equal splits: {', '.join(names[:8])}; choose one "
            "with --data"
        )
    return tuple(found)


def _text(file: Path, where: str) -> str:
    try:
        return read_text(file)
    except OSError as error:
        raise UserError(f"cannot read '{where}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"'{where}' is not UTF-8 text") from error


def _from_info(source: Source, info: SourceFile, files: dict[str, SourceFile]) -> list[DataFile]:
    """The entries of LLaMA-Factory's list whose files are there."""
    found = []
    entries = read_dataset_info(_text(info.file, info.where), info.where)
    for name, entry in entries.items():
        path = _joined(info.path, entry.file_name, f"'{info.where}', entry '{name}', file_name")
        if path in files:
            found.append(DataFile(name, "", files[path], folder=_folder(path), entry=entry))
    if not found:
        each = [f"{shown(name, 40)} names {shown(entry.file_name)}" for name, entry in entries.items()]
        named = f" ({join_words(each, 3)})" if each else ""
        raise NotFoundError(
            f"'{source.spec}': no entry of '{info.where}' names a JSON file that is there{named}; give the file itself"
        )
    return found


def _meta(file: SourceFile) -> dict[str, Any]:
    """InternVL's list of data sets; empty if the file is something else."""
    if file.size > MAX_META or not file.path.lower().endswith(".json"):
        return {}
    try:
        content = json.loads(read_text(file.file))
    except (OSError, ValueError, RecursionError, UserError):
        return {}
    entries = content.values() if isinstance(content, dict) else ()
    is_meta = entries and all(isinstance(entry, dict) and isinstance(entry.get("annotation"), str) for entry in entries)
    return content if is_meta else {}


def _from_meta(
    source: Source, meta_file: SourceFile, meta: dict[str, Any], files: dict[str, SourceFile]
) -> list[DataFile]:
    found = []
    for name, entry in meta.items():
        where = f"'{meta_file.where}', entry '{name}'"
        path = _joined(meta_file.path, entry["annotation"], f"{where}, annotation")
        there = files.get(path)
        if there is None and not source.root.is_dir() and (beside := source.root.parent / path).is_file():
            there = SourceFile(path, beside, beside.stat().st_size)
        if there is None:
            raise NotFoundError(
                f"{where}: there is no file {shown(path)}; its paths are read relative to the folder of "
                f"'{meta_file.where}'"
            )
        root = entry.get("root")
        folder = _joined(meta_file.path, root, f"{where}, root") if isinstance(root, str) and root else ""
        found.append(DataFile(name, "", there, folder=folder))
    return found


def _joined(beside: str, name: str, where: str) -> str:
    """A path in the source that another file of it names."""
    path = str(PurePosixPath(name.replace("\\", "/")))
    if why := unsafe_reason(path):
        raise UserError(f"{where}: the path {shown(name)} {why}")
    folder = _folder(beside)
    return f"{folder}/{path}" if folder else path
