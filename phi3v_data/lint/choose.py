"""The format in which a file is read: as given, by `dataset_info.json` beside it, or guessed from its rows."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from phi3v_data.encodings import read_text
from phi3v_data.errors import UserError
from phi3v_data.formats.base import RowFormat
from phi3v_data.formats.dataset_info import FILE, Entry, read_dataset_info
from phi3v_data.formats.guess import GUESSED_FROM, guess_from, nested
from phi3v_data.formats.registry import all_formats, get_format
from phi3v_data.formats.rows import RowFile
from phi3v_data.formats.sharegpt import ShareGPT
from phi3v_data.messages import shown


@dataclass(frozen=True, slots=True)
class ChosenFormat:
    """A format, and the reason why; empty if the user gave it. `info`: the entry of `dataset_info.json` that it has."""

    format: RowFormat
    reason: str = ""
    info: str = ""


def choose_format(rows: RowFile, name: str | None) -> ChosenFormat:
    """The format of a file.

    Raises:
        NotFoundError: there is no format of this name.
        UserError: none is given, and the rows do not show one plainly; `dataset_info.json` is damaged.
    """
    if name is not None and name != ShareGPT.name:
        return ChosenFormat(get_format(name)())
    found = _entry(rows.path)
    if found is not None:
        key, entry = found
        return ChosenFormat(ShareGPT(entry=entry), f"entry {shown(key)} of {FILE}" if name is None else "", key)
    if name is not None:
        return ChosenFormat(get_format(name)())
    read = [row for row in islice(rows.rows(), GUESSED_FROM) if row.place is not None or row.faults]
    guess = guess_from(row.value for row in read if row.value is not None)
    if guess.name:
        return ChosenFormat(get_format(guess.name)(), f"{guess.rows} of the first {guess.num_rows} rows have it")
    if not read:
        raise UserError(f"'{rows.path}' has no rows")
    if guess.within:
        raise nested(str(rows.path), guess.within)
    if guess.own_rows:
        raise UserError(f"'{rows.path}' is a file of a conversations directory: validate its folder")
    names = ", ".join(guess.others or all_formats())
    said = f"may be {' or '.join(guess.others)}" if guess.others else f"is of no known format{guess.fields}"
    raise UserError(f"'{rows.path}' {said}: give --format, one of {names}")


def _entry(path: Path) -> tuple[str, Entry] | None:
    info = path.with_name(FILE)
    if not info.is_file() or info == path:
        return None
    try:
        entries = read_dataset_info(read_text(info), str(info))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{info}' cannot be read: {error}") from error
    return next(((name, entry) for name, entry in entries.items() if entry.file_name == path.name), None)
