"""Divides a converter's items into numbered parts, in memory that does not depend on the content of items.

Items are written, with their digests, to one spool file per split under the journal's scratch folder; memory is 9 bytes
per item, and 8 for the check that keys are unique. An item is spooled as elements of an array in MessagePack, so that
those of a part are read at once. Numbers and boundaries of parts depend only on the plan, never on
the workers.
"""

import hashlib
import pickle
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import IO, Any

import msgspec

from phi3v_data.draft import Item
from phi3v_data.errors import UserError
from phi3v_data.files import name_hash
from phi3v_data.sources.item_fingerprint import item_fingerprint
from phi3v_data.sources.reads import Roots
from phi3v_data.splits import canonical_split, is_split_name, split_problem, split_sort_key

MIN_PART, MAX_PART, WANTED_PARTS = 2, 256, 1024
GENERATOR_PART = 64


def part_size(num_items: int | None) -> int:
    """Items per part, in this one place: as many as give `WANTED_PARTS` parts, within limits.

    `num_items` is None if it is not known before all are converted: then a part is what a kill can cost. Items of
    one source row or file stay together, so a part may be larger.
    """
    if num_items is None:
        return GENERATOR_PART
    return min(MAX_PART, max(MIN_PART, -(-num_items // WANTED_PARTS)))


SPLIT_PRECISION = 1e-6
UNNAMED_SPLIT = "train"
"""Where samples are counted whose own split cannot be one; they are rejects."""

_NO_ROOTS = Roots()


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive items of one split; `first` is the number of its first sample."""

    index: int
    split: str
    spool: str
    offsets: tuple[int, ...]  # in the spool, of every `MAX_PART` items, and the end
    count: int
    first: int


@dataclass(frozen=True, slots=True)
class Plan:
    """All parts in the order of numbering, samples per split, and digests of keys, sizes and contents."""

    folder: Path
    parts: tuple[Part, ...]
    counts: Mapping[str, int]
    digest: str
    content: str

    @property
    def num_items(self) -> int:
        return sum(self.counts.values())


class Planned(msgspec.Struct, frozen=True, array_like=True):
    """An item in the spool: its digest by the roots of the plan, `Item.made`, its key, its other fields.

    `made` and the key are empty if `convert` has to make it, or if its fields are no plain values.
    """

    digest: str
    made: bytes
    key: str
    fields: msgspec.Raw

    def item(self) -> Item:
        """The item, without what is made of it; of one that is made, sequences in `data` are lists."""
        fields = msgspec.msgpack.decode(self.fields)
        return Item(*(pickle.loads(fields) if isinstance(fields, bytes) else fields))


_BUFFER = 1 << 17
_ARRAY = b"\xdc"
"""First byte of an array in MessagePack whose length is the next two."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Planned]).decode


@dataclass(slots=True)
class _Spool:
    """Spools the items of one split."""

    file: IO[bytes]
    name: str
    digest: Any = field(default_factory=hashlib.sha256)
    content: Any = field(default_factory=hashlib.sha256)
    size: int = 0
    offsets: "array[int]" = field(default_factory=lambda: array("Q"))
    joined: bytearray = field(default_factory=bytearray)  # 1 if an item belongs together with the previous one
    last_bundle: str = ""

    def part(self, start: int, count: int) -> tuple[int, ...]:
        """`Part.offsets` of consecutive items."""
        end = start + count
        return (*self.offsets[start:end:MAX_PART], self.offsets[end] if end < len(self.offsets) else self.size)


def parse_split_shares(text: str) -> dict[str, float]:
    """Read `train=0.8,val=0.1,test=0.1`.

    Raises:
        UserError: it does not have this form, or the shares do not add up to 1.
    """
    shares: dict[str, float] = {}
    for word in text.split(","):
        name, equals, value = (piece.strip() for piece in word.partition("="))
        try:
            share = float(value)
        except ValueError:
            share = -1.0
        name = canonical_split(name)
        if not equals or not is_split_name(name) or not 0 < share <= 1 or name in shares:
            raise UserError(
                f"--split {text!r}: {word.strip()!r} is not NAME=SHARE with a share between 0 and 1, each name once; "
                "write for example train=0.8,val=0.1,test=0.1"
            )
        shares[name] = share
    if abs(sum(shares.values()) - 1) > SPLIT_PRECISION:
        raise UserError(f"--split {text!r}: the shares add up to {sum(shares.values()):g}; they must add up to 1")
    return shares


def choose_split(group: str, shares: Mapping[str, float], seed: int) -> str:
    """The split of a group, by its hash, so that rows added later do not move others."""
    point = group_point(group, seed)
    edge = 0.0
    for name, share in shares.items():
        edge += share
        if point < edge:
            return name
    return list(shares)[-1]


def group_point(group: str, seed: int) -> float:
    """The hash of a group as a number in [0, 1); the same on every machine."""
    digest = hashlib.sha256(f"{seed}\0{group}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def spool_plan(
    items: Iterable[Item],
    folder: Path,
    *,
    roots: Roots = _NO_ROOTS,
    shares: Mapping[str, float] | None = None,
    seed: int = 0,
    limit: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Plan:
    """Write a converter's items to `folder` and cut them into parts.

    Raises:
        UserError: an object is not an Item, or a key is repeated.
    """
    spools: dict[str, _Spool] = {}
    keys = array("Q")
    try:
        for index, item in enumerate(items):
            if not isinstance(item, Item) or not isinstance(item.key, str) or not item.key:
                raise UserError(f"plan() must yield Item objects with a key; number {index} is {item!r:.200}")
            split = choose_split(item.group or item.key, shares, seed) if shares else canonical_split(item.split)
            if split not in spools and (problem := split_problem(split)):
                item, split = _without_split(item, problem), UNNAMED_SPLIT
            if split not in spools:
                name = f"items-{len(spools):04d}.pickle"
                spools[split] = _Spool((folder / name).open("wb", _BUFFER), name)
            spool = spools[split]
            if limit is not None and len(spool.offsets) >= limit:
                continue
            keys.append(name_hash(item.key))
            _add(spool, item if item.split == split else msgspec.structs.replace(item, split=split), roots)
            if progress and index % 1000 == 0:
                progress(index)
    finally:
        for spool in spools.values():
            spool.file.close()
    if twice := _find_duplicate(keys, folder, spools):
        raise UserError(f"plan() yields the key {twice!r} twice; keys must be unique so that a run can be resumed")
    return _cut(spools, folder)


def _without_split(item: Item, problem: str) -> Item:
    """A reject among the rows of train, unless the item is one already."""
    if item.reject:
        return msgspec.structs.replace(item, split=UNNAMED_SPLIT)
    message = f"{item.key}: the split {problem}"
    return msgspec.structs.replace(item, split=UNNAMED_SPLIT, reject="row-invalid", message=message, made=b"")


def _add(spool: _Spool, item: Item, roots: Roots) -> None:
    spool.digest.update(f"{item.key}\0{item.size}\n".encode("utf-8", "surrogatepass"))
    digest = item_fingerprint(item, roots)
    spool.content.update(digest.encode())
    spool.offsets.append(spool.size)
    spool.joined.append(bool(item.bundle) and item.bundle == spool.last_bundle)
    spool.last_bundle = item.bundle
    fields = (
        item.split,
        item.key,
        item.path,
        item.group,
        item.size,
        item.bundle,
        item.label,
        item.data,
        item.reject,
        item.message,
    )
    if item.made:
        try:
            spool.size += spool.file.write(_encode((digest, item.made, item.key, fields)))
            return
        except (TypeError, ValueError, OverflowError):  # such as a key that is not Unicode
            pass
    try:  # without the class, which takes as long to find as the fields to read
        pickled = pickle.dumps(fields, protocol=pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise UserError(f"item {item.key!r} cannot be sent to a worker: {error}; keep plain values in Item.data") from (
            error
        )
    spool.size += spool.file.write(_encode((digest, b"", "", pickled)))


def _cut(spools: Mapping[str, _Spool], folder: Path) -> Plan:
    total = sum(len(spool.offsets) for spool in spools.values())
    size = part_size(total)
    digest, content = hashlib.sha256(), hashlib.sha256()
    parts: list[Part] = []
    counts: dict[str, int] = {}
    number = 0
    for split in sorted(spools, key=split_sort_key):
        spool = spools[split]
        count = len(spool.offsets)
        counts[split] = count
        digest.update(f"{split}\0{spool.digest.hexdigest()}\n".encode())
        content.update(f"{split}\0{spool.content.hexdigest()}\n".encode())
        start = 0
        while start < count:
            end = min(count, start + size)
            while end < count and spool.joined[end]:
                end += 1
            offsets = spool.part(start, end - start)
            parts.append(Part(len(parts), split, spool.name, offsets, end - start, number + start))
            start = end
        number += count
    return Plan(folder, tuple(parts), counts, digest.hexdigest(), content.hexdigest())


def read_items(folder: Path, part: Part) -> Iterator[Item]:
    """Yield the items of a part."""
    return (planned.item() for planned in chain.from_iterable(read_planned(folder, part)))


def read_planned(folder: Path, part: Part) -> Iterator[list[Planned]]:
    """Yield what is spooled of a part, up to `MAX_PART` items at a time.

    Only files written by this run are unpickled.
    """
    with (folder / part.spool).open("rb") as file:
        file.seek(part.offsets[0])
        left = part.count
        for start, end in pairwise(part.offsets):
            count = min(left, MAX_PART)
            left -= count
            yield _decode(_ARRAY + count.to_bytes(2, "big") + file.read(end - start))


def _find_duplicate(keys: "array[int]", folder: Path, spools: Mapping[str, _Spool]) -> str:
    """A key that occurs twice, or empty; keys are compared as text only if their hashes are equal."""
    if not keys:
        return ""
    import numpy as np

    ordered = np.sort(np.frombuffer(keys, dtype=np.uint64))
    suspects = {int(value) for value in ordered[1:][ordered[1:] == ordered[:-1]]}
    seen: set[str] = set()
    for spool in spools.values() if suspects else ():
        count = len(spool.offsets)
        for item in read_items(folder, Part(0, "", spool.name, spool.part(0, count), count, 0)):
            if name_hash(item.key) in suspects:
                if item.key in seen:
                    return item.key
                seen.add(item.key)
    return ""
