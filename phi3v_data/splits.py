"""Rules for the names of JSONL files: which split a file belongs to.

    ucf101_train.jsonl                      split train, NAME ucf101
    train.jsonl                             split train, NAME empty
    memes_dev_seen.jsonl                    split dev_seen: the longest known ending wins
    docs_holdout.jsonl                      split holdout: else what follows the last `_`
    ucf101_train-00003-of-00008.jsonl       shard 3 of 8 of split train

`dataset.json` overrides these rules: a file that it lists under a split belongs to that split.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from phi3v_data.files import unsafe_reason
from phi3v_data.messages import shown

KNOWN_SPLITS = (
    "train",
    "val",
    "validation",
    "dev",
    "test",
    "dev_seen",
    "dev_unseen",
    "test_seen",
    "test_unseen",
    "test1",
    "test2",
)
"""Names of splits that are recognised at the end of a file name."""

MAX_NAME_BYTES = 100
"""Longest name of a set or a split: a file name of 255 bytes has both, a shard's number and a temporary prefix."""

ORDER = ("train", "val", "dev", "test")
"""Splits that come first in every list; the others follow by name."""

SPLIT_FOLDERS = {
    "train": "train", "val": "val", "validation": "val", "valid": "val", "dev": "dev", "test": "test",
}  # fmt: skip
"""Folder names of a source, in lower case -> the split."""

NOT_SPLITS = frozenset({"rejects.jsonl", "removed.jsonl", "predictions.jsonl"})
"""JSONL files of a directory that do not contain samples."""

_ENDINGS = sorted(KNOWN_SPLITS, key=len, reverse=True)
_SHARD = re.compile(r"(?P<stem>.+)-(?P<index>[0-9]{5,})-of-(?P<total>[0-9]{5,})", re.DOTALL)
_NUMBERED = re.compile(
    r"(?P<stem>.+)-(?P<index>[0-9]{5,})-of-(?P<total>[0-9]{5,})(?:-[0-9a-f]+)?(?P<suffix>\.[^/]*)?", re.DOTALL
)
_MOST_MISSING = 1000
"""Missing shards of a split that are listed: a name may claim any number of them."""

_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(?:_[A-Za-z0-9._-]+)*")


@dataclass(frozen=True, slots=True)
class SplitFile:
    """Name, split and shard of one JSONL file; `index` and `total` are None if it is not a shard."""

    file: str
    name: str
    split: str
    index: int | None = None
    total: int | None = None


@dataclass(frozen=True, slots=True)
class SplitFiles:
    """The files of one split in reading order, and the problems with them.

    `missing` lists shards that are not there; `conflicts` are messages about files that do not belong together
    (two NAMEs for one split, a shard next to a whole file, two totals).
    """

    split: str
    files: tuple[str, ...]
    missing: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Splits:
    """All splits of a directory in order; `unnamed` are JSONL files that belong to no split."""

    splits: Mapping[str, SplitFiles] = field(default_factory=dict)
    unnamed: tuple[str, ...] = ()


def split_sort_key(split: str) -> tuple[int, str]:
    """The sort key of a split: train, val, dev, test, then by name."""
    return (ORDER.index(split), "") if split in ORDER else (len(ORDER), split)


def canonical_split(split: str) -> str:
    """The name that converters give to an official split: `val` for `validation`, others unchanged."""
    return "val" if split == "validation" else split


def is_split_name(split: str) -> bool:
    """Whether `split` can end a file name: `MAX_NAME_BYTES` letters, digits, `.`, `-`, `_`, no sign first."""
    return len(split) <= MAX_NAME_BYTES and _SPLIT_NAME.fullmatch(split) is not None


def split_problem(split: object) -> str:
    """The sentence on a name that no split can have; empty if it can name one."""
    if isinstance(split, str) and is_split_name(split):
        return ""
    rule = f"use up to {MAX_NAME_BYTES} letters, digits, ., _ and -, first a letter or digit"
    return f"{shown(split)} cannot name a split; {rule}"


def lone_split(name: str) -> str:
    """The split of a source's only table: the known split that its name ends in or contains, else `train`.

    A name that contains several is returned unchanged.
    """
    parsed = parse_file_name(f"{name}.jsonl")
    if parsed is not None and parsed.split in KNOWN_SPLITS:
        return parsed.split
    known = {word for word in re.split(r"[^a-z0-9]+", name.lower()) if word in KNOWN_SPLITS}
    return name if len(known) > 1 else next(iter(known), "train")


def is_plain_name(name: str) -> bool:
    """Whether `name` is a single path component that is safe in a file name: no `/`, no leading dot."""
    return "/" not in name and not name.startswith(".") and not unsafe_reason(name)


def is_data_file(file: str) -> bool:
    """Whether a file name in DIR is a JSONL file of samples: not hidden, not rejects or predictions."""
    return file.endswith(".jsonl") and not file.startswith(".") and file not in NOT_SPLITS


def parse_file_name(file: str) -> SplitFile | None:
    """Parse a file name into NAME, split and shard; None if it contains no split."""
    if not file.endswith(".jsonl"):
        return None
    stem = file[: -len(".jsonl")]
    index = total = None
    shard = _SHARD.fullmatch(stem)
    if shard is not None:
        stem, index, total = shard["stem"], int(shard["index"]), int(shard["total"])
        if not index < total:
            return None
    for ending in _ENDINGS:
        if stem == ending:
            return SplitFile(file, "", ending, index, total)
        if stem.endswith(f"_{ending}"):
            return SplitFile(file, stem[: -len(ending) - 1], ending, index, total)
    name, underscore, split = stem.rpartition("_")
    if not underscore or not name or not is_split_name(split):
        return None
    return SplitFile(file, name, split, index, total)


def file_name(name: str, split: str, index: int | None = None, total: int | None = None) -> str:
    """The file name of a split or of one of its shards: the inverse of `parse_file_name`."""
    stem = f"{name}_{split}" if name else split
    if index is None or total is None:
        return f"{stem}.jsonl"
    return f"{stem}-{index:05d}-of-{total:05d}.jsonl"


def find_splits(files: Iterable[str], manifest: Mapping[str, Sequence[str]] | None = None) -> Splits:
    """Group the file names of DIR (not paths) by split.

    `manifest` maps each split to its files as listed in `dataset.json`; the naming rules do not apply to these files,
    and they keep the manifest's order. A listed file that does not exist counts as missing.
    """
    present = sorted(
        {file for file in files if is_data_file(file)}, key=lambda file: file.encode("utf-8", "surrogateescape")
    )
    result: dict[str, SplitFiles] = {}
    listed: set[str] = set()
    there = set(present)
    for split, wanted in (manifest or {}).items():
        listed.update(wanted)
        result[split] = SplitFiles(
            split,
            tuple(file for file in wanted if file in there),
            tuple(file for file in wanted if file not in there),
        )
    parsed: dict[str, list[SplitFile]] = {}
    unnamed = []
    for file in present:
        if file in listed:
            continue
        entry = parse_file_name(file)
        if entry is None:
            unnamed.append(file)
        else:
            parsed.setdefault(entry.split, []).append(entry)
    for split, entries in parsed.items():
        if split in result:
            extra = ", ".join(entry.file for entry in entries)
            known = result[split]
            result[split] = SplitFiles(
                split,
                known.files,
                known.missing,
                (*known.conflicts, f"dataset.json does not list {extra}; the name says split {split!r}"),
            )
        else:
            result[split] = _gather(split, entries)
    order = sorted(result, key=split_sort_key)
    return Splits({split: result[split] for split in order}, tuple(unnamed))


def _gather(split: str, entries: list[SplitFile]) -> SplitFiles:
    """Order the files of one split and collect its missing files and conflicts."""
    entries = sorted(entries, key=lambda entry: (entry.name, entry.total or 0, entry.index or 0))
    conflicts = []
    names = sorted({entry.name for entry in entries})
    whole = [entry.file for entry in entries if entry.total is None]
    totals = sorted({entry.total for entry in entries if entry.total is not None})
    if len(names) > 1:
        conflicts.append(f"split {split!r} has files of several names: {', '.join(repr(name) for name in names)}")
    elif whole and totals:
        conflicts.append(f"split {split!r} has shards next to the whole file {whole[0]}")
    elif len(totals) > 1:
        conflicts.append(f"split {split!r} has shards of {' and of '.join(map(str, totals))}")
    missing = []
    for name in names:
        for total in totals:
            there = {entry.index for entry in entries if entry.name == name and entry.total == total}
            if there:
                numbers = (i for i in range(total) if i not in there)
                missing += [file_name(name, split, i, total) for i in islice(numbers, _MOST_MISSING)]
    return SplitFiles(split, tuple(entry.file for entry in entries), tuple(missing), tuple(conflicts))


def shard_faults(paths: Iterable[str]) -> list[str]:
    """Faults of shards by the numbers in their names, `PATH-00000-of-00008.SUFFIX`.

    Returns a sentence for each group of shards of which some are missing, or which has shards of two sets.
    """
    groups: dict[tuple[str, str], dict[str, set[int]]] = {}
    for path in paths:
        if found := _NUMBERED.fullmatch(path):
            sets = groups.setdefault((found["stem"], found["suffix"] or ""), {})
            sets.setdefault(found["total"], set()).add(int(found["index"]))
    faults = []
    for (stem, suffix), sets in groups.items():
        if len(sets) > 1:
            faults.append(f"{shown(stem)} has shards of {' and of '.join(sorted(sets))}: keep one set of them")
            continue
        [(total, there)] = sets.items()
        first = 1 if 0 not in there and int(total) in there else 0  # some tools count from 1
        wanted = range(first, first + int(total))
        if missing := len(wanted) - sum(number in wanted for number in there):
            name = f"{stem}-{next(number for number in wanted if number not in there):05d}-of-{total}{suffix}"
            faults.append(f"{missing:,} of {len(wanted):,} shards are missing, the first is {shown(name)}")
    return faults
