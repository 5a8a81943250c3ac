"""Identity of the files of a model: equal for copies under any path, another one after any training."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import xxhash

from phi3v_data.errors import UserError
from phi3v_train.models.directory import ModelFiles

WHOLE_BYTES = 64 << 20
PIECES, PIECE_BYTES = 256, 64 << 10
"""Of a larger file, so many pieces at even distances are read, and its size."""

_TENSOR_PIECES, _TENSOR_BYTES = 4, 4 << 10
"""Of safetensors besides, these of each tensor, as a run may train a few small ones: training changes all of a tensor,
but for rows of an embedding."""

_MOST_HEADER = 100 << 20  # safetensors' own limit


def content_of(files: ModelFiles) -> str:
    """Digest of a model's files, with those of the adapter; empty for a tiny model, which is made from its seed.

    Raises:
        UserError: a file cannot be read.
    """
    folders = [folder for folder in (files.directory, files.adapter) if folder is not None]
    if not folders:
        return ""
    digest = xxhash.xxh3_64()
    for folder in folders:
        for path in sorted(folder.iterdir(), key=lambda each: each.name):
            if path.suffix in (".json", ".safetensors", ".bin") and path.is_file():
                digest.update(path.name.encode())
                digest.update(_file_digest(path))
    return digest.hexdigest()


def _file_digest(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if size <= WHOLE_BYTES:
                return xxhash.xxh3_64_digest(file.read())
            digest = xxhash.xxh3_64(str(size).encode())
            for begin, length in sorted({*_even(0, size, PIECES, PIECE_BYTES), *_of_tensors(path, file, size)}):
                file.seek(begin)
                digest.update(file.read(length))
            return digest.digest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _of_tensors(path: Path, file: IO[bytes], size: int) -> Iterator[tuple[int, int]]:
    """Pieces of each tensor; none of a file without a header of safetensors."""
    if path.suffix != ".safetensors":
        return
    length = int.from_bytes(file.read(8), "little")
    if length > min(_MOST_HEADER, size - 8):
        return
    try:
        header = json.loads(file.read(length))
        spans = [each["data_offsets"] for name, each in header.items() if name != "__metadata__"]
        pairs = [(int(begin), int(end)) for begin, end in spans]
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return  # whoever loads it says so
    for begin, end in pairs:
        if 0 <= begin <= end <= size - 8 - length:
            yield from _even(8 + length + begin, end - begin, _TENSOR_PIECES, _TENSOR_BYTES)


def _even(first: int, size: int, pieces: int, length: int) -> Iterable[tuple[int, int]]:
    """Pieces of a range at even distances, from its first byte to its last: where each begins, and its length."""
    if size <= pieces * length:
        return [(first, size)]
    return [(first + index * (size - length) // (pieces - 1), length) for index in range(pieces)]
