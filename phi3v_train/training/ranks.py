"""Errors of a run with several processes: each is said once, with its rank; what merely follows from it is not."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch.distributed as dist
import xxhash
from torch.distributed.distributed_c10d import Store

from phi3v_data.errors import UserError
from phi3v_train.training.parallel.place import Place

FAILURES = "phi3v/failures"
FAILED = 1
"""Exit code of a process that ends because of another one."""


@contextmanager
def one_of_many(place: Place, store: Store | None) -> Iterator[None]:
    """Around everything that one process does after it has met the others.

    A mistake is said with its rank, by whoever makes it. When a process dies, the others find the connection closed:
    that is said by the first one to see it, and only where no other has said why.
    """
    if store is None:
        yield
        return
    try:
        yield
    except UserError as error:
        announce(store)
        if not is_first(store, str(error)):
            raise SystemExit(FAILED) from None
        raise type(error)(f"rank {place.rank}: {error}") from error
    except RuntimeError as error:
        if not is_lost_connection(error):
            announce(store)
            raise
        follow(place, store)


def announce(store: Store) -> int:
    """Count this failure; returns how many there are now, 0 where the store itself is gone."""
    try:
        return int(store.add(FAILURES, 1))
    except (RuntimeError, OSError):
        return 0


def is_first(store: Store, message: str) -> bool:
    """Whether no other process has said this: all of them measure the same rows."""
    key = xxhash.xxh3_64_hexdigest(message.encode())
    try:
        return int(store.add(f"phi3v/said/{key}", 1)) == 1
    except (RuntimeError, OSError):
        return True


def follow(place: Place, store: Store) -> NoReturn:
    """End because another process has ended."""
    if announce(store) == 1:
        print(f"error: rank {place.rank}: another process of this run has ended without a word", file=sys.stderr)
    raise SystemExit(FAILED)


def is_lost_connection(error: RuntimeError) -> bool:
    """Whether a collective call failed because another process is gone; gloo says it in words only."""
    words = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed", "NCCL")
    return isinstance(error, dist.DistError) or any(each in str(error) for each in words)
