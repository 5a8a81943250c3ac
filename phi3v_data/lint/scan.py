"""One pass over the rows of a file: findings of each, what it repeats, the images that it uses."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from phi3v_data.formats.consumers.base import RowView
from phi3v_data.formats.row_block import RowBlock, read_row
from phi3v_data.formats.rows import RowFile, RowReader
from phi3v_data.json_text import JsonFault
from phi3v_data.lint.block_text import BlockText, Template, TemplateRows
from phi3v_data.lint.elements import Elements
from phi3v_data.lint.images import Uses, ref_hashes
from phi3v_data.lint.lengths import Lengths
from phi3v_data.lint.repeats import NONE, Repeats
from phi3v_data.lint.row_check import CheckedRow, RowCheck
from phi3v_data.lint.templates import Templates, as_single_rows, content_start
from phi3v_data.validate.findings import Findings
from phi3v_data.validate.hashes import hash_texts

Ints = npt.NDArray[np.int64]

_TABLE_ROWS = 256  # of a parquet file that are checked together


class FileScan:
    """Reads a file; `blocks` yields the images of its rows, and the counts are right when it is exhausted."""

    def __init__(
        self, rows: RowFile, check: RowCheck, templates: Templates, findings: Findings, lengths: Lengths | None = None
    ) -> None:
        self.rows = rows
        self.check = check
        self.templates = templates
        self.findings = findings
        self.lengths = lengths  # None: tokens are not counted
        self.repeats = Repeats(RowReader(str(rows.path)).read)
        self.file = rows.path.name
        self.num_rows = 0
        self.num_turns = 0
        self._more: dict[int, _More] = {}  # by the id of a template
        self._last_line = -1

    def blocks(self, observe: Callable[[int], None]) -> Iterator[Uses]:
        """Yield the images of block after block; `observe` is told how many bytes have been read."""
        if self.rows.layout == "parquet":
            yield from self._table()
            return
        for block in self.rows.blocks():
            for line, fault in block.faults:
                self._add_text_fault(line, fault)
            if len(block):
                yield self._check_block(block)
            observe(block.offset + block.size)
        for more in self._more.values():
            self.check.over_rows.row(more.view, more.number, more.count)

    def _check_block(self, block: RowBlock) -> Uses:
        """Rows by template, then the others one by one."""
        sort = self.templates.sort if self.lengths is None else as_single_rows
        text, groups, left = sort(block)
        numbers: Sequence[int] = left.tolist()
        lines = block.lines
        first = self.num_rows
        elements = Elements(lines, first, self._last_line)
        self._last_line = int(lines[-1])
        checked = []
        for number, (value, faults) in zip(numbers, self._values(block, numbers), strict=True):
            checked.append(self.check.check(value[0] if value else None, first + number, faults))
        starts = block.starts.copy()
        starts[left] += np.array([content_start(block.text(number)) for number in numbers], np.int64)
        ids = np.full(len(block), NONE)
        uses = _BlockUses(self.file, lines, elements, text)
        for group in groups:
            template = group.template
            if template.id is not None:
                ids[group.rows] = text.hashes(group, template.id)
                if template.begins_with_id:
                    starts[group.rows] = group.closes[template.id] + (template.number is None)
            uses.add_group(group)
            self.num_turns += template.num_turns * len(group.rows)
            self._count(template, first + int(group.rows[0]), len(group.rows))
        contents = self.repeats.content_hashes(text.padded, starts, block.ends - starts)
        for number, row in zip(numbers, checked, strict=True):
            if row.view is None:
                contents[number] = NONE
        self._enter(checked, left, lines, ids, uses)
        self.repeats.add(lines, ids, contents, block.offset + starts, block.ends - starts)
        return uses.made()

    def _count(self, template: Template, number: int, count: int) -> None:
        """Count rows for the checks over rows: those of a template at once, but for its first block."""
        more = self._more.get(id(template))
        if more is None:
            self._more[id(template)] = _More(template.view, number)
            self.check.over_rows.row(template.view, number, count)
        else:
            more.count += count

    def _values(self, block: RowBlock, numbers: Sequence[int]) -> Iterator[tuple[tuple[Any] | None, list[JsonFault]]]:
        if len(numbers) == len(block):
            yield from block.values()
            return
        for number in numbers:
            yield read_row(block.text(number), block.name)

    def _table(self) -> Iterator[Uses]:
        checked: list[CheckedRow] = []
        lines: list[int] = []
        contents: list[int] = []
        for row in self.rows.rows():
            checked.append(self.check.check(row.value, row.line - 1, row.faults))
            lines.append(row.line)
            contents.append(_content(row.value))
            if len(lines) == _TABLE_ROWS:
                yield self._enter_table(checked, lines, contents)
                checked, lines, contents = [], [], []
        if lines:
            yield self._enter_table(checked, lines, contents)

    def _enter_table(self, checked: list[CheckedRow], lines: list[int], contents: list[int]) -> Uses:
        places, ids, nowhere = np.array(lines), np.full(len(lines), NONE), np.zeros(len(lines), np.int64)
        uses = _BlockUses(self.file, places, Elements(places, self.num_rows, -1), None)
        self._enter(checked, np.arange(len(lines)), places, ids, uses)
        self.repeats.add(places, ids, np.array(contents, np.uint64).view(np.int64), nowhere, nowhere)
        return uses.made()

    def _enter(self, checked: list[CheckedRow], numbers: Ints, lines: Ints, ids: Ints, uses: "_BlockUses") -> None:
        """Report the rows that were checked one by one, and note their ids and what they use."""
        for number, row in zip(numbers.tolist(), checked, strict=True):
            for fault in row.faults:
                self.findings.add(
                    fault.code,
                    fault.message,
                    file=self.file,
                    line=int(lines[number]),
                    id=row.id or None,
                    field=uses.elements.field(number, fault.field),
                    hint=fault.hint,
                    severity=fault.severity,
                )
            self.num_turns += row.num_turns
            uses.add_row(number, row)
        if self.lengths is not None:
            fields = [uses.elements.field(number, None) for number in numbers.tolist()]
            self.lengths.add(lines[numbers].tolist(), fields, checked)
        self.num_rows += len(lines)
        known = [number for number, row in zip(numbers.tolist(), checked, strict=True) if row.id]
        ids[known] = hash_texts([row.id for row in checked if row.id])

    def _add_text_fault(self, line: int, fault: JsonFault) -> None:
        for found in self.check.check(None, 0, [fault]).faults:
            self.findings.add(
                found.code, found.message, file=self.file, line=line, hint=found.hint, severity=found.severity
            )


@dataclass(slots=True)
class _More:
    """Rows of a template behind the block that it was first seen in; `number` is that of its first row."""

    view: RowView
    number: int
    count: int = 0


@dataclass(slots=True)
class _BlockUses:
    """Collects the images of a block."""

    file: str
    lines: Ints
    elements: Elements
    text: BlockText | None
    groups: list[TemplateRows] = field(default_factory=list)
    hashes: list[Ints] = field(default_factory=list)
    refs: list[str | bytes] = field(default_factory=list)
    owners: list[tuple[int, str, str]] = field(default_factory=list)  # row, id and field of each of `refs`

    def add_group(self, group: TemplateRows) -> None:
        """Add the images of rows with one template."""
        if group.template.images and self.text is not None:
            self.groups.append(group)
            self.hashes.append(self.text.hashes(group, group.template.images))

    def add_row(self, number: int, row: CheckedRow) -> None:
        """Add the images of one row."""
        for image in row.images:
            self.refs.append(image.value)
            self.owners.append((number, row.id, image.field))

    def made(self) -> Uses:
        """All of them."""
        hashes = [*self.hashes, ref_hashes(self.refs)] if self.refs else self.hashes
        return Uses(np.concatenate(hashes) if hashes else np.zeros(0, np.int64), self.ref, self.place)

    def ref(self, use: int) -> str | bytes:
        """The reference of a use."""
        group, use, image = self._find(use)
        if group is None or self.text is None:
            return self.refs[use]
        value = group.template.images[image]
        return self.text.string(int(group.opens[value, use]), int(group.closes[value, use]))

    def place(self, use: int) -> dict[str, object]:
        """File, line, id and field of a use."""
        group, use, image = self._find(use)
        if group is None or self.text is None:
            number, row_id, name = self.owners[use]
        else:
            number, name = int(group.rows[use]), group.template.image_fields[image]
            row_id = self.text.id_of(group, use)
        field = self.elements.field(number, name)
        return {"file": self.file, "line": int(self.lines[number]), "id": row_id or None, "field": field}

    def _find(self, use: int) -> tuple[TemplateRows | None, int, int]:
        """The group of a use, its column there and its image; without a group, its place in `refs`."""
        for group in self.groups:
            images = len(group.template.images)
            size = images * len(group.rows)
            if use < size:
                return group, use // images, use % images
            use -= size
        return None, use, 0


def _content(value: Any) -> int:
    """Hash of a row of a table without its id."""
    row = {key: item for key, item in value.items() if key != "id"} if isinstance(value, dict) else value
    return xxhash.xxh3_64_intdigest(repr(row).encode("utf-8", "surrogatepass"))


def images_folder(path: Path, images_root: Path | None) -> Path:
    """The folder that paths of images are relative to."""
    return path.parent if images_root is None else images_root
