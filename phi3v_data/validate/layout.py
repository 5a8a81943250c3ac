"""Checks `dataset.json`, file names and shards of a directory, and whether the rows agree with them."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from phi3v_data.dataset import list_directory
from phi3v_data.files import is_closed, load_json, open_regular, reading_hint
from phi3v_data.json_text import field_path
from phi3v_data.messages import counted, escaped, join_words, shown
from phi3v_data.schema import FORMAT_VERSION, Manifest
from phi3v_data.splits import NOT_SPLITS, Splits, find_splits
from phi3v_data.unfinished import MANIFEST, refuse_interrupted, refuse_marker, refuse_unfinished
from phi3v_data.validate.findings import Findings
from phi3v_data.validate.table import RowTable
from phi3v_data.wrong_values import complaint


@dataclass
class Layout:
    """The files of a directory by split, and its manifest if it has a valid one."""

    directory: Path
    splits: Splits
    manifest: Manifest | None
    digests: dict[str, str] = field(default_factory=dict)  # sha256 of each file as read, if the manifest contains one
    unread: set[str] = field(default_factory=set)  # splits with a file that cannot be read: rows are not counted
    closed: list[tuple[str, str]] = field(default_factory=list)  # (path in DIR, reason) of files that cannot be read

    def is_labelled(self, split: str) -> bool:
        """Whether the answers of a split must not be empty."""
        info = self.manifest.splits.get(split) if self.manifest else None
        return info is None or info.labelled

    def wants_digest(self, split: str, file: str) -> bool:
        """Whether the manifest contains a digest of the file."""
        info = self.manifest.splits.get(split) if self.manifest else None
        return info is not None and file in info.files


def read_layout(directory: Path, findings: Findings) -> Layout:
    """List the directory and read its manifest; report problems of names, shards and the manifest.

    Raises:
        NotFoundError: the directory does not exist.
        UserError: it cannot be listed, or its conversion was interrupted.
    """
    names = list_directory(directory)
    refuse_unfinished(directory)
    closed: list[tuple[str, str]] = []
    manifest = _read_manifest(directory, findings, closed) if MANIFEST in names else None
    listed = {split: tuple(info.files) for split, info in manifest.splits.items()} if manifest else None
    splits = find_splits(names, listed)
    for file in splits.unnamed:
        findings.add(
            "split-name",
            "the name contains no split, so its rows are not used",
            file=file,
            hint="name it NAME_SPLIT.jsonl, such as train.jsonl or docs_val.jsonl",
        )
    for split in splits.splits.values():
        for conflict in split.conflicts:
            findings.add(
                "split-name",
                conflict,
                file=split.files[0] if split.files else "",
                hint="give each split one NAME, and either one file or one complete set of shards",
            )
        for file in split.missing:
            findings.add(
                "shard-missing",
                f"the file is missing; split {shown(split.split)} needs it",
                file=file,
                hint="copy it again from its source, or write the split again",
            )
    if not splits.splits:
        refuse_interrupted(directory)
        findings.add(
            "split-empty",
            "the directory contains no NAME_SPLIT.jsonl",
            hint="is this the right directory? it should contain files such as train.jsonl" + _near_names(names),
        )
    return Layout(directory, splits, manifest, closed=closed)


_NEAR = re.compile(r".*\.(jsonl|ndjson|json|csv|tsv|parquet)(\.(gz|bz2|xz|zst|zip|txt))?", re.IGNORECASE)


def _near_names(names: list[str]) -> str:
    """The files that are probably splits with a wrong name, for a hint."""
    near = [name for name in sorted(names) if _NEAR.fullmatch(name) and name not in {MANIFEST, *NOT_SPLITS}]
    if not near:
        return ""
    return f", and contains {join_words(near, 5, each=shown)}: unpack, rename or convert them"


def _read_manifest(directory: Path, findings: Findings, closed: list[tuple[str, str]]) -> Manifest | None:
    """Read the manifest; if it is invalid, report it and return None. If it cannot be read, add it to `closed`."""

    def invalid(message: str, hint: str = "", name: str | None = None) -> None:
        findings.add("manifest-invalid", message, file=MANIFEST, field=name, hint=hint)

    try:
        value = load_json(directory / MANIFEST)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        invalid(f"cannot be read: {reason}", reading_hint(reason))
        if is_closed(error):
            closed.append((MANIFEST, reason))
        return None
    except ValueError as error:
        invalid(f"not JSON: {escaped(str(error))[:200]}", "write it again by converting, or remove it")
        return None
    refuse_marker(directory, value)
    version = value.get("format") if isinstance(value, dict) else None
    if isinstance(version, int) and not isinstance(version, bool) and version > FORMAT_VERSION:
        invalid(
            f"format {shown(version)} was written by a newer phi3v than this one, which reads format {FORMAT_VERSION}",
            "upgrade phi3v",
            "format",
        )
        return None
    try:
        return Manifest.model_validate(value)
    except ValidationError as error:
        for found in error.errors(include_url=False):
            parts, message = found["loc"], complaint(found)
            if parts[-1:] == ("[key]",):  # pydantic's mark of a name that is wrong, not the value under it
                message, parts = f"the name {shown(parts[-2])}: {message}", parts[:-2]
            invalid(message, "see the format in docs/format.md", field_path(parts) or None)
        return None


def file_digest(path: Path) -> str:
    """The digest `sha256:...` of a file, as in the manifest. Raises OSError."""
    with open_regular(path) as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"  # type: ignore[arg-type]  # typeshed's BinaryIO lacks readinto


def report_empty(layout: Layout, num_rows: Mapping[str, int], findings: Findings) -> None:
    """Report splits without rows."""
    for split, files in layout.splits.splits.items():
        if files.files and not num_rows.get(split) and split not in layout.unread:
            findings.add(
                "split-empty", f"split {shown(split)} has no rows", file=files.files[0], hint="remove the file"
            )


def report_stale(
    layout: Layout, num_rows: Mapping[str, int], table: RowTable, findings: Findings, *, count_images: bool = True
) -> None:
    """Report where the manifest disagrees with the files: digests, numbers of rows and images, splits.

    `count_images` is False if a folder of images cannot be read, so that their number is not known.
    """
    if layout.manifest is None:
        return

    def stale(message: str, name: str) -> None:
        findings.add(
            "manifest-stale",
            message,
            file=MANIFEST,
            field=name,
            hint="the files were changed after it was written: write the directory again (convert, clean, split)",
        )

    images = _images_of_splits(table)
    for split, info in layout.manifest.splits.items():
        where = f"splits.{escaped(split)}"
        if split in layout.unread:
            continue
        if not info.files and num_rows.get(split, 0) == 0 and info.rows == 0:
            continue
        if num_rows.get(split, 0) != info.rows:
            stale(
                f"it has {counted(info.rows, 'row')} in split {shown(split)}, the files have {num_rows.get(split, 0)}",
                f"{where}.rows",
            )
        if count_images and images.get(split, 0) != info.images:
            stale(
                f"it has {counted(info.images, 'image')} in split {shown(split)}, the rows use {images.get(split, 0)}",
                f"{where}.images",
            )
        for file, digest in info.files.items():
            found = layout.digests.get(file)
            if found is not None and found != digest:
                stale(f"the content of {shown(file)} has changed since dataset.json was written", f"{where}.files")
    for split in layout.splits.splits:
        if split not in layout.manifest.splits:
            stale(f"it does not list split {shown(split)}, which exists", "splits")


def _images_of_splits(table: RowTable) -> dict[str, int]:
    """Number of distinct images used by the rows of each split; missing ones are counted by use."""
    result: Counter[str] = Counter()
    starts = table.starts
    uses: dict[int, list[Any]] = {}
    for split, first, end in table.split_rows():
        uses.setdefault(split, []).append(table.uses[starts[first] : starts[end]])
    for split, parts in uses.items():
        joined = np.concatenate(parts)
        result[table.splits[split]] = len(np.unique(joined[joined >= 0])) + int((joined < 0).sum())
    return dict(result)


def report_labels(layout: Layout, labels: Mapping[str, Counter[str] | None], findings: Findings) -> None:
    """Report classes of held-out splits that train does not have."""
    train = labels.get("train")
    if layout.manifest is None or not layout.manifest.classes or not train or "train" in layout.unread:
        return
    classes = set(layout.manifest.classes)
    for split, counts in labels.items():
        if split == "train" or not counts or not layout.is_labelled(split):
            continue
        for label in sorted(set(counts) & classes - set(train)):
            findings.add(
                "label-missing-in-train",
                f"{counted(counts[label], 'row')} of split {shown(split)} with the answer {shown(label)}, which train "
                "lacks",
                file=layout.splits.splits[split].files[0],
                hint="split again by --split, or leave the class out",
            )
