"""stdout and stderr as every command gets them: there even where the shell closed them, and free of escape codes.

Names of files and members, cells of tables and texts of rows reach the screen in many messages. What could steer a
terminal in them is spelled out here, once, for everything that a command prints. rich's own colours and cursor moves
are not data: its consoles write to the stream behind (`phi3v_data.cli.console`).
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from phi3v_data.messages import printable

_STREAMS = ("stdin", "stdout", "stderr")


class PrintableStream:
    """A text stream that writes what is printable; all else is that of the stream behind."""

    def __init__(self, behind: IO[str]) -> None:
        self.behind = behind

    def write(self, text: str) -> int:
        """Write a text. A carriage return at its start stays: progress lines begin with one."""
        head = "\r" if text.startswith("\r") else ""
        self.behind.write(head + printable(text[len(head) :]))
        return len(text)

    def writelines(self, lines: "list[str]") -> None:
        """Write several texts."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.behind, name)


def stream_behind(stream: Any) -> Any:
    """The stream itself, for a writer that spells out what steers terminals by its own means."""
    return stream.behind if isinstance(stream, PrintableStream) else stream


@contextmanager
def printable_streams() -> Iterator[None]:
    """Let stdout and stderr write what is printable."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        stream if isinstance(stream, PrintableStream) else PrintableStream(stream) for stream in before
    )
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def open_streams() -> None:
    """Give a process whose stdin, stdout or stderr was closed (`>&-`) one that leads nowhere.

    Otherwise the next file that is opened would get its number, and what is printed would end up in that file.
    """
    for number, name in enumerate(_STREAMS):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != number:
                os.dup2(nowhere, number)
                os.close(nowhere)
            os.set_inheritable(number, True)
            stream = open(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - stays
        else:  # something else has the number by now
            stream = open(os.devnull, "r" if number == 0 else "w", encoding="utf-8")  # noqa: SIM115 - stays
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def drop_output() -> None:
    """Let what is still to be written to stdout go nowhere: its reader is gone, or its disk is full."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
