"""stdout and stderr for commands: open even if the shell closed them, and with control characters escaped.

File names, archive members, table cells and row texts are printed in many messages. Control characters in them are
escaped here, for everything that a command prints. rich's own colours and cursor moves are not data: its consoles write
to the underlying stream (`phi3v_data.console`).
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from phi3v_data.messages import printable

_STREAMS = ("stdin", "stdout", "stderr")


class PrintableStream:
    """A text stream that escapes control characters; other attributes are those of the underlying stream."""

    def __init__(self, behind: IO[str]) -> None:
        self.behind = behind

    def write(self, text: str) -> int:
        """Write a text. A carriage return at its start is kept: progress lines begin with one."""
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
    """The underlying stream, for a writer that escapes control characters itself."""
    return stream.behind if isinstance(stream, PrintableStream) else stream


@contextmanager
def printable_streams() -> Iterator[None]:
    """Escape control characters on stdout and stderr inside the block."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (
        stream if isinstance(stream, PrintableStream) else PrintableStream(stream) for stream in before
    )
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def open_streams() -> None:
    """Open `/dev/null` for each of stdin, stdout and stderr that was closed (`>&-`).

    Otherwise the next file opened would get its descriptor, and printed text would end up in that file.
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
        else:  # the descriptor is in use for something else by now
            stream = open(os.devnull, "r" if number == 0 else "w", encoding="utf-8")  # noqa: SIM115 - stays
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def drop_output() -> None:
    """Discard the rest of stdout: its reader is gone, or its disk is full."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)
