"""Base class of chat formats: one class in one module of this folder, found by being there.

class MyFormat(RowFormat):
    name = "my-format"
    def recognizes(self, row): ...      # does a row of unknown format have this one?
    def read(self, row): ...            # row -> Chat and faults; never raises for what a row contains
    def write(self, chat): ...          # Chat -> row, and what the format cannot carry
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from phi3v_data.formats.chat import Chat, Reading, Written
from phi3v_data.user_code import by_name, importable


@dataclass(frozen=True)
class RowFormat:
    """A chat format, both ways. Fields of a subclass are settings of one file, such as names of columns."""

    name: ClassVar[str]
    title: ClassVar[str]  # for people: the tools that read it
    consumer: ClassVar[str]  # name of the tool whose rules a file of this format is checked against by default
    reserved: ClassVar[tuple[str, ...]] = ()  # strings that the format's readers take for placeholders in any text
    files_below: ClassVar[bool] = False  # its readers take paths below the folder of the file only
    suffix: ClassVar[str] = ".jsonl"  # of the file that `export` writes: .json (an array) or .jsonl

    always: tuple[str, ...] = ()  # optional fields (id, answers, group, meta, weight) that every row written has

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled so that a worker finds the class, also one in a file of the user's own."""
        settings = {field.name: getattr(self, field.name) for field in fields(self)}
        return by_name, (importable(type(self)), settings)

    def recognizes(self, row: Mapping[str, Any]) -> bool:
        """Whether a row has the fields of this format and of no other."""
        raise NotImplementedError

    def read(self, row: Mapping[str, Any]) -> Reading:
        """The conversation of a row, and what is wrong with it; field names as in the row. Raises nothing."""
        raise NotImplementedError

    def write(self, chat: Chat) -> Written:
        """The row of a conversation whose image references are final; texts with reserved strings are spelled out."""
        raise NotImplementedError
