"""Brings the images of coming samples from a store into the local cache, in the order in which they will be needed.

The order of a run is known, so its requests need not wait for each other. Whether an image was fetched in time changes
only how long a worker waits for it: a worker reads it from the cache, waits for the request that is under way, or asks
itself. An error is left to the worker, which repeats the request, and at last names the row.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from phi3v_data.errors import UserError
from phi3v_data.media.pack import Pack
from phi3v_data.media.packed import find_packed, is_remote_index
from phi3v_data.remote.cache import cache_limit
from phi3v_data.remote.retry import impatiently
from phi3v_train.data.order import SampleRef
from phi3v_train.data.sources import Source

THREADS = 16
"""Requests under way at once; each process of a run has as many."""

SAMPLES_AHEAD = 256
"""Samples whose images are asked for before they are needed."""


class FetchAhead:
    """Requests of one process; does nothing if all images are on this machine, or none may be kept on it."""

    def __init__(self, sources: Iterable[Source]) -> None:
        self._remote = {
            number: source
            for number, source in enumerate(sources)
            if is_remote_index(source.directory / "images") and cache_limit()
        }
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="fetch") if self._remote else None

    def __bool__(self) -> bool:
        return self._pool is not None

    def want(self, refs: Iterable[SampleRef]) -> None:
        """Ask for the images of samples, which will be needed in this order."""
        if self._pool is not None:
            for ref in refs:
                if ref.source in self._remote:
                    self._pool.submit(self._fetch, ref)

    def close(self) -> None:
        """Drop what was not begun."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def _fetch(self, ref: SampleRef) -> None:
        split = self._remote[ref.source].split
        with suppress(UserError, OSError), impatiently():
            for name in split[ref.row].images:
                pack, entry = find_packed(split.image_path(name))
                _bring_near(pack, entry)


def _bring_near(pack: Pack, entry: int) -> None:
    from phi3v_data.media.remote_pack import RemotePack

    if isinstance(pack, RemotePack) and not pack.is_near(entry):
        pack.read(entry)
