"""Digests of values that are the same in every process, to be compared on resume."""

import sys
from collections.abc import Mapping, Set
from dataclasses import fields, is_dataclass
from pathlib import PurePath
from typing import Any

import xxhash

from phi3v_data.sources.reads import Roots

MAX_DEPTH = 100
_SAVED_NAMES = {"RowLocation": "RowLocation"}
"""Names under which classes that have another one now count in digests that journals hold."""

_NO_ROOTS = Roots()


def fingerprint(value: object, roots: Roots = _NO_ROOTS) -> str:
    """xxh3-128 of a value, as hex digits.

    For strings and paths below one of `roots` only the rest is used, so that the source can be moved. Arrays and PIL
    images are digested by their pixels, other objects as `pickle` would store them.
    """
    pieces: list[bytes] = []
    if _feed_plain(pieces, value, roots, 0):
        return xxhash.xxh3_128_hexdigest(b"".join(pieces))
    hasher = xxhash.xxh3_128()
    _feed(hasher, value, roots, 0)
    return hasher.hexdigest()


def _feed_plain(pieces: list[bytes], value: Any, roots: Roots, depth: int) -> bool:
    """Add the bytes that `_feed` hashes, in a third of its time; False for what is not plain data, as rows are."""
    kind = type(value)
    if kind is str:
        label, rest = (roots.name(value) if value.startswith(roots.starts) else None) or ("", value)
        text = rest.encode("utf-8", "surrogatepass")
        pieces += (b"text %b %d\n" % (label.encode(), len(text)), text)
    elif kind is bytes:
        pieces += (b"bytes %d\n" % len(value), value)
    elif value is None or kind in (bool, int, float):
        text = repr(value).encode()
        pieces += (b"%b %d\n" % (kind.__name__.encode(), len(text)), text)
    elif depth >= MAX_DEPTH:
        return False
    elif kind is dict:
        count = b"%d" % len(value)
        pieces += (b"mapping %d\n" % len(count), count)
        for key in sorted(value, key=repr):
            if not _feed_plain(pieces, key, roots, depth + 1):
                return False
            if not _feed_plain(pieces, value[key], roots, depth + 1):
                return False
    elif kind is list or kind is tuple:
        count = b"%d" % len(value)
        pieces += (b"sequence %d\n" % len(count), count)
        return all(_feed_plain(pieces, each, roots, depth + 1) for each in value)
    else:
        return False
    return True


def _feed(hasher: Any, value: object, roots: Roots, depth: int) -> None:
    if depth > MAX_DEPTH:
        hasher.update(b"...")
    elif value is None or isinstance(value, bool | int | float | complex):
        _put(hasher, type(value).__name__, repr(value).encode())
    elif isinstance(value, str | PurePath):
        text = str(value)
        label, rest = roots.name(text) or ("", text)
        _put(hasher, f"text {label}", rest.encode("utf-8", "surrogatepass"))
    elif isinstance(value, bytes | bytearray | memoryview):
        _put(hasher, "bytes", value)
    elif isinstance(value, Mapping):
        _put(hasher, "mapping", b"%d" % len(value))
        for key in sorted(value, key=repr):
            _feed(hasher, key, roots, depth + 1)
            _feed(hasher, value[key], roots, depth + 1)
    elif isinstance(value, list | tuple):
        _put(hasher, "sequence", b"%d" % len(value))
        for each in value:
            _feed(hasher, each, roots, depth + 1)
    elif isinstance(value, Set):
        _put(hasher, "set", "".join(sorted(fingerprint(each, roots) for each in value)).encode())
    elif is_dataclass(value) and not isinstance(value, type):
        name = type(value).__qualname__
        _put(hasher, _SAVED_NAMES.get(name, name), b"")
        for field in fields(value):
            if field.compare:
                _feed(hasher, getattr(value, field.name), roots, depth + 1)
    elif isinstance(value, type) or hasattr(value, "__qualname__"):
        _put(hasher, "named", f"{getattr(value, '__module__', '')}.{value.__qualname__}".encode())
    elif (pixels := _pixels(value)) is not None:
        _feed(hasher, pixels, roots, depth + 1)
    else:
        _put(hasher, type(value).__qualname__, b"")
        _feed(hasher, _state(value), roots, depth + 1)


def _put(hasher: Any, kind: str, content: Any) -> None:
    """Kind and length first, so that no two different values feed the same bytes."""
    size = content.nbytes if isinstance(content, memoryview) else len(content)
    hasher.update(f"{kind} {size}\n".encode())
    hasher.update(content)


def _pixels(value: Any) -> tuple[Any, ...] | None:
    """Shape, type and bytes of an array or a PIL image; None for anything else. Imports neither library."""
    numpy, pil = sys.modules.get("numpy"), sys.modules.get("PIL.Image")
    if numpy is not None and isinstance(value, numpy.ndarray) and not value.dtype.hasobject:
        return ("array", str(value.dtype), value.shape, numpy.ascontiguousarray(value).tobytes())
    if pil is not None and isinstance(value, pil.Image):
        try:
            return ("image", value.mode, value.size, value.getpalette(), value.tobytes())
        except (OSError, ValueError, SyntaxError, EOFError):
            return ("image", "unreadable")
    return None


def _state(value: Any) -> Any:
    """The pickled object, without memory addresses."""
    try:
        reduced = value.__reduce_ex__(4)
    except Exception:  # an open file, a lock: cannot be compared
        return None
    return (
        reduced
        if isinstance(reduced, str)
        else [list(piece) if hasattr(piece, "__next__") else piece for piece in reduced]
    )
