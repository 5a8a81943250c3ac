"""Sharded tensors: every process writes the rows it holds, any number of processes reads the rows it needs.

    CHECKPOINT/shards/rank-00001-of-00002-00000.safetensors   rows of each tensor, in files of about 1 GB
    CHECKPOINT/shards/scaler.json                             the state of fp16's loss scaling

Keys are `model/NAME`, `exp_avg/NAME`, `exp_avg_sq/NAME` and `step/NAME`. A file's metadata say which rows of
the full tensor they are. Nothing is all-gathered for writing, and nothing but tensors and numbers is read.
"""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from phi3v_data.errors import UserError
from phi3v_data.files import load_json, sync_file
from phi3v_train.models.directory import SHARDS

SCALER = "scaler.json"
FILE_BYTES = 1 << 30


class Part(NamedTuple):
    """Rows of a tensor: `tensor` is `start` to `start + len(tensor)` of `total` rows; a scalar has 0 of them."""

    key: str
    tensor: Tensor
    start: int
    total: int


def write_shards(folder: Path, rank: int, world_size: int, parts: Iterable[Part]) -> None:
    """Write the parts that this process holds, at most one file's bytes in memory at a time."""
    (folder / SHARDS).mkdir(exist_ok=True)
    for number, batch in enumerate(batches(parts)):
        path = folder / SHARDS / f"rank-{rank:05d}-of-{world_size:05d}-{number:05d}.safetensors"
        write_file(path, batch)


def batches(parts: Iterable[Part]) -> Iterator[list[Part]]:
    """Parts in lists of about one file's bytes, on the CPU."""
    batch: list[Part] = []
    size = 0
    for part in parts:
        tensor = part.tensor.detach().to("cpu").contiguous()
        batch.append(part._replace(tensor=tensor))
        size += tensor.numel() * tensor.element_size()
        if size >= FILE_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def write_file(path: Path, parts: list[Part]) -> None:
    """Write one file, synced: the main process may be on another machine."""
    from safetensors.torch import save_file

    rows = {part.key: (part.start, part.total) for part in parts}
    save_file({part.key: part.tensor for part in parts}, path, metadata={"format": "pt", "rows": json.dumps(rows)})
    sync_file(path)


def rows_here(tensor: Tensor) -> tuple[int, int]:
    """First row that this process holds of a tensor, and the row behind its last; all of a plain one."""
    if not isinstance(tensor, DTensor):
        return 0, len(tensor) if tensor.dim() else 0
    world_size, rank = tensor.device_mesh.size(), tensor.device_mesh.get_local_rank()
    shard = math.ceil(len(tensor) / world_size)
    start, stop = min(rank * shard, len(tensor)), min((rank + 1) * shard, len(tensor))
    assert local_part(tensor).shape[0] == stop - start
    return start, stop


def local_part(tensor: Tensor) -> Tensor:
    """The rows that this process holds, as a plain tensor that shares their memory."""
    local: Tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.detach()


class Piece(NamedTuple):
    """Position of some rows of a tensor in the files."""

    start: int
    stop: int
    file: Any


class Shards:
    """The tensors of a sharded checkpoint; only what is asked for is read."""

    def __init__(self, folder: Path) -> None:
        from safetensors import safe_open

        self.folder = folder
        self._pieces: dict[str, list[Piece]] = {}
        self._totals: dict[str, int] = {}
        for path in sorted((folder / SHARDS).glob("*.safetensors")):
            file: Any = safe_open(path, framework="pt")
            for key, (start, total) in json.loads(file.metadata()["rows"]).items():
                stop = start + file.get_slice(key).get_shape()[0] if total else 0
                self._pieces.setdefault(key, []).append(Piece(start, stop, file))
                self._totals[key] = total
        for key, pieces in self._pieces.items():
            pieces.sort(key=lambda piece: piece.start)
            held = sum(piece.stop - piece.start for piece in pieces)
            if held != self._totals[key]:
                raise UserError(f"{folder}: contains {held} of {self._totals[key]} rows of {key}")

    def names(self, kind: str = "model") -> list[str]:
        """Names of the tensors of a kind, in alphabetical order."""
        prefix = f"{kind}/"
        return sorted(key.removeprefix(prefix) for key in self._pieces if key.startswith(prefix))

    def total(self, key: str) -> int:
        """Rows of the full tensor; 0 for a scalar."""
        return self._totals[key]

    def rows(self, key: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows `start` to `stop` of a tensor, all of them if neither is given; a scalar as it is."""
        pieces = self._pieces[key]
        if not self._totals[key]:
            scalar: Tensor = pieces[0].file.get_tensor(key)
            return scalar
        stop = self._totals[key] if stop is None else stop
        found = [
            piece.file.get_slice(key)[max(start, piece.start) - piece.start : min(stop, piece.stop) - piece.start]
            for piece in pieces
            if piece.start < stop and start < piece.stop
        ]
        if not found:  # a short tensor, of which this process has no row
            nothing: Tensor = pieces[0].file.get_slice(key)[0:0]
            return nothing
        return torch.cat(found) if len(found) != 1 else found[0]

    def scaler(self) -> dict[str, Any]:
        """The loss scaling's state; empty if there was none."""
        state: dict[str, Any] = load_json(self.folder / SHARDS / SCALER)
        return state
