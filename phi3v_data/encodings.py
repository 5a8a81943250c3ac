"""Detects text files that are not plain UTF-8, and reads them if they are part of a source.

The JSONL files of a directory must be UTF-8; tables and annotations of a source may be UTF-16 or UTF-32 with a byte
order mark, as spreadsheets write them, and gzipped.
"""

import codecs
import gzip
import io
import zlib
from pathlib import Path
from typing import BinaryIO, cast

from phi3v_data.errors import UserError
from phi3v_data.files import open_regular

HEAD_BYTES = 64
"""Number of bytes that `encoding_of` needs."""

MAX_RATIO = 200
MAX_RATIO_FROM = 1 << 26

_PACKED = (
    (b"\x1f\x8b", "gzip"),
    (b"PK\x03\x04", "zip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\x00", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PAR1", "parquet"),
)
_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"),  # before UTF-16, which begins alike
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
)
_PYTHON_NAMES = {"UTF-16": "utf-16", "UTF-32": "utf-32"}


def encoding_of(head: bytes) -> str:
    """The encoding or file type by the first 64 bytes of a file (`UTF-16`, `gzip`, ...); empty for UTF-8 text."""
    for magic, name in (*_PACKED, *_MARKS):
        if head.startswith(magic):
            return name
    pairs = head[: len(head) // 2 * 2]
    if len(pairs) >= 8:
        even, odd = pairs[::2], pairs[1::2]
        if (not any(odd) and all(even)) or (not any(even) and all(odd)):
            return "UTF-16 without a byte order mark"
    return ""


def file_encoding(path: Path) -> str:
    """`encoding_of` a file. Raises OSError."""
    with open_regular(path) as file:
        return encoding_of(file.read(HEAD_BYTES))


def open_utf8(path: Path) -> BinaryIO:
    """Open a text file of a source as a stream of UTF-8 bytes; the caller closes it.

    Raises:
        OSError: it cannot be opened.
        UserError: its type is not supported (zip, parquet, ...); also while reading: a gzip file decompresses to more
            than 200 times its size, is damaged, or is not in the encoding of its byte order mark.
    """
    stream: BinaryIO = open_regular(path)
    kind = encoding_of(stream.read(HEAD_BYTES))
    stream.seek(0)
    if kind == "gzip":
        stream = cast(BinaryIO, io.BufferedReader(_Unzipped(stream, path)))
        kind = encoding_of(stream.peek(HEAD_BYTES)[:HEAD_BYTES])  # type: ignore[attr-defined]  # it is buffered
    if kind in _PYTHON_NAMES:
        return cast(BinaryIO, io.BufferedReader(_Recoded(stream, _PYTHON_NAMES[kind], path)))
    if kind:
        stream.close()
        raise UserError(f"'{path.name}' is {kind}, not text; decompress it, or save it again as UTF-8")
    return stream


def read_text(path: Path) -> str:
    """Read a whole text file of a source or of the user, without its byte order mark.

    Raises:
        OSError, UnicodeDecodeError, UserError: as `open_utf8`.
    """
    with open_utf8(path) as stream:
        return stream.read().decode("utf-8-sig")


class _Unzipped(io.RawIOBase):
    """The decompressed content of a gzip file, up to a limit on its size."""

    def __init__(self, packed: BinaryIO, path: Path) -> None:
        self._packed = packed
        self._stream = gzip.GzipFile(fileobj=packed)
        self._path = path
        self._limit = max(MAX_RATIO_FROM, MAX_RATIO * path.stat().st_size)
        self._read = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview[int]") -> int:  # type: ignore[override]  # narrower than a Buffer
        try:
            data = self._stream.read1(len(buffer))
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"'{self._path.name}' is a damaged or cut gzip file; download it again") from error
        self._read += len(data)
        if self._read > self._limit:
            raise UserError(
                f"'{self._path.name}' decompresses to more than {MAX_RATIO} times its size, so it may be a zip bomb"
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._stream.close()
        self._packed.close()
        super().close()


class _Recoded(io.RawIOBase):
    """A UTF-16 or UTF-32 stream, read as UTF-8."""

    def __init__(self, stream: BinaryIO, encoding: str, path: Path) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._encoding = encoding
        self._path = path
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview[int]") -> int:  # type: ignore[override]  # narrower than a Buffer
        while not self._left:
            data = self._stream.read(1 << 16)
            try:
                self._left = self._decoder.decode(data, final=not data).encode()
            except UnicodeError as error:
                raise UserError(f"'{self._path.name}' is damaged: not valid {self._encoding.upper()}") from error
            if not data:
                break
        size = min(len(buffer), len(self._left))
        buffer[:size], self._left = self._left[:size], self._left[size:]
        return size

    def close(self) -> None:
        self._stream.close()
        super().close()
