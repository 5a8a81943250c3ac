"""64-bit hashes of many texts at once, of their UTF-8 bytes: equal for text in a file and as `str`.

Without a seed they are only valid in one process and its forks: theirs is random, so that no file can be crafted to
contain texts with equal hashes.
"""

import secrets
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

PADDING = bytes(8)
"""Padding that `word_view` needs after the last byte."""

SEED = secrets.randbits(64)
"""Seed of this process and its forks."""

FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd: multiplying by it loses nothing
_SHIFT = np.uint64(29)
_LONG = 256  # bytes; longer texts are hashed one by one
_MASKS: Words = np.array([(1 << (8 * count)) - 1 for count in range(8)], np.uint64)


def word_view(padded: bytes) -> Words:
    """A view of the eight bytes from each position as one little-endian number, without a copy."""
    return np.ndarray((len(padded) - 7,), "<u8", buffer=padded, strides=(1,))


def hash_spans(padded: bytes, starts: Ints, lengths: Ints, *, seed: int = SEED) -> Ints:
    """Hash of each range of a text that ends in `PADDING`; with a `seed` of its own also valid in other processes."""
    words = word_view(padded)
    hashes: Words = (lengths.astype(np.uint64) ^ np.uint64(seed)) * FACTOR
    if not len(lengths):
        return hashes.view(np.int64)
    whole = lengths >> 3
    long = np.flatnonzero(lengths > _LONG) if int(lengths.max()) > _LONG else ()
    if len(long):
        whole[long] = 0
    tails = starts + (whole << 3)
    least, most = int(whole.min()), int(whole.max())
    for index in range(least):
        _mix(hashes, words[starts + 8 * index])
    active = np.flatnonzero(whole > least) if most > least else np.empty(0, np.int64)
    for index in range(least, most):
        part = hashes[active]
        _mix(part, words[starts[active] + 8 * index])
        hashes[active] = part
        active = active[whole[active] > index + 1]
    _mix(hashes, words[tails] & _MASKS[lengths & 7])
    view = memoryview(padded)
    for text in long:
        start = int(starts[text])
        digest = xxhash.xxh3_64_intdigest(view[start : start + int(lengths[text])], seed=seed)
        hashes[text] = np.uint64(digest)
    return hashes.view(np.int64)


def sample_spans(padded: bytes, starts: Ints, lengths: Ints) -> Ints:
    """Hash of the length and of four words of each range: of two with equal hashes, the rest may differ.

    Takes the same time for ranges of any length. `padded` ends in `PADDING`.
    """
    words = word_view(padded)
    hashes: Words = (lengths.astype(np.uint64) ^ np.uint64(SEED)) * FACTOR
    room = np.maximum(lengths - 8, 0)
    for eighths in (1, 3, 5, 7):
        _mix(hashes, words[starts + (room * eighths >> 3)])
    result = hashes.view(np.int64)
    short = np.flatnonzero(lengths < 8)
    if len(short):
        result[short] = hash_spans(padded, starts[short], lengths[short])
    return result


def hash_texts(texts: Sequence[str]) -> Ints:
    """Hash of each text."""
    joined = "".join(texts)
    if joined.isascii():
        data = joined.encode()
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    else:
        encoded = list(map(_encode, texts))
        data = b"".join(encoded)
        lengths = np.fromiter(map(len, encoded), np.int64, len(texts))
    return hash_spans(data + PADDING, np.cumsum(lengths) - lengths, lengths)


def pair_hashes(left: Ints, right: Ints) -> Ints:
    """One hash of two, in this order."""
    hashes: Words = left.view(np.uint64) * FACTOR
    _mix(hashes, right.view(np.uint64))
    return hashes.view(np.int64)


def _mix(hashes: Words, words: Words) -> None:
    hashes ^= words
    hashes *= FACTOR
    hashes ^= hashes >> _SHIFT


def _encode(text: str) -> bytes:
    """Encode a file name like `os.fsencode`; other lone surrogates stay distinct, too."""
    try:
        return text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return text.encode(errors="surrogatepass")
