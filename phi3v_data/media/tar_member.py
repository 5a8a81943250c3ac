"""Members of tar files as bytes, the same in every run: without time and owner.

Only name, size and checksum differ between headers; `tarfile` makes each from scratch, which takes longer than the rest
of a row, and keeps an object for each member of an open file.
"""

import tarfile

BLOCK = tarfile.BLOCKSIZE
END_MARK = bytes(2 * BLOCK)

_HEADER = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)
_CHECKSUM = sum(_HEADER[100:124]) + sum(_HEADER[135:148]) + 8 * ord(" ") + sum(_HEADER[156:])
"""Checksum of a header without name and size."""

_NAME, _SIZE = 100, 11
"""Bytes of a name, and octal digits of a size, in a plain header."""


def tar_header(name: str, size: int) -> bytes:
    """The header of a member: one block, or several if the name is too long for it."""
    encoded, digits = name.encode(), b"%011o" % size
    if len(encoded) > _NAME or len(digits) > _SIZE:
        info = tarfile.TarInfo(name)
        info.size = size
        try:
            return info.tobuf(tarfile.USTAR_FORMAT)
        except ValueError:  # longer than the two fields of that format
            return info.tobuf(tarfile.PAX_FORMAT, "utf-8")
    checksum = b"%06o\0 " % (_CHECKSUM + sum(encoded) + sum(digits))
    return b"".join((encoded.ljust(_NAME, b"\0"), _HEADER[100:124], digits, _HEADER[135:148], checksum, _HEADER[156:]))


def header_bytes(name: str, size: int) -> int:
    """Bytes of the header of a member."""
    return BLOCK if name.isascii() and len(name) <= _NAME and size < 8**_SIZE else len(tar_header(name, size))


def padded(size: int) -> int:
    """Bytes that the content of a member takes, in whole blocks."""
    return -(-size // BLOCK) * BLOCK


def tar_member(name: str, data: bytes) -> bytes:
    """A member: header, content, and zeros up to a whole block."""
    return tar_header(name, len(data)) + data + bytes(padded(len(data)) - len(data))
