"""A folder of shards in a store: which objects it has, and whether they are a complete export."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.media.export_pack import RemoteShards
from phi3v_data.messages import shown
from phi3v_data.remote.address import Address
from phi3v_data.remote.cache import cache_limit
from phi3v_data.remote.export_record import MARKER, RECORD, read_record
from phi3v_data.remote.store import Store, StoredObject, open_store
from phi3v_data.shards.files import RemoteShard, state_of_object
from phi3v_data.unfinished import MANIFEST

_OTHERS = frozenset({"phi3v.json", MANIFEST, MARKER, RECORD})


@dataclass(frozen=True)
class RemoteFolder:
    """The objects below an address by their names; `shards` are those with the suffix of a shard."""

    store: Store
    shards: Mapping[str, StoredObject]
    others: Mapping[str, StoredObject]

    def __str__(self) -> str:
        return str(self.store)

    @property
    def address(self) -> Address:
        """Its address."""
        return self.store.address

    def file(self, name: str) -> RemoteShard:
        """One of its objects."""
        return RemoteShard(self.store, self.shards.get(name) or self.others[name], self._all_fit)

    @cached_property
    def _all_fit(self) -> bool:
        return 2 * sum(found.size for found in self.shards.values()) <= cache_limit()

    def has(self, name: str) -> bool:
        """Whether there is an object."""
        return name in self.shards or name in self.others

    def read(self, name: str, limit: int) -> bytes | None:
        """The bytes of a small object; None if there is none, or it is larger than `limit`."""
        found = self.others.get(name)
        return self.store.read(found, 0, found.size) if found is not None and found.size <= limit else None

    def states_of(self, shards: Sequence[str]) -> RemoteShards:
        """States and etags of shards, for the index of their images."""
        found = [self.shards[name] for name in shards]
        states = [state_of_object(each.size, each.etag) for each in found]
        return RemoteShards(self.address, states, [each.etag for each in found])


def list_folder(address: Address, kinds: Sequence[str]) -> RemoteFolder:
    """The objects below an address that matter: shards of these kinds, and small files beside them.

    Raises:
        NotFoundError: there is none.
        UserError: it is an export that is not complete; or a conversations directory.
    """
    store = open_store(address)
    is_empty = True
    shards: dict[str, StoredObject] = {}
    others: dict[str, StoredObject] = {}
    for found in store.objects():
        if found.name.endswith(tuple(f".{kind}" for kind in kinds)):
            shards[found.name] = found
        elif found.name in _OTHERS:
            others[found.name] = found
        is_empty = False
    if is_empty:
        raise NotFoundError(f"{store}: no such folder, or it is empty")
    if MANIFEST in others:
        raise UserError(
            f"{store}: is a conversations directory; only shards are read from a store: `phi3v-data export webdataset "
            "DIR --out ADDRESS` writes them"
        )
    _check_complete(store, shards, others)
    return RemoteFolder(store, shards, others)


def _check_complete(store: Store, shards: Mapping[str, StoredObject], others: Mapping[str, StoredObject]) -> None:
    """Refuse an export of phi3v that is not whole; shards of another origin have no record."""
    if RECORD not in others:
        if MARKER in others:
            raise UserError(f"{store}: an export to it is not complete; run it again, or wait for it")
        return
    record = read_record(store, others[RECORD])
    if record is None:
        raise UserError(f"{store}: {RECORD} is not the record of an export; move it away, and export again")
    for name, size in record.objects.items():
        known = shards.get(name) or others.get(name)
        if name.endswith((".tar", ".parquet")) and (known is None or known.size != size):
            why = "is missing" if known is None else f"has {known.size:,} bytes instead of {size:,}"
            raise UserError(f"{store}: {shown(name)} {why}, so the export is not whole; export again, with --overwrite")
    for name in shards.keys() - record.objects.keys():
        raise UserError(f"{store}: {shown(name)} is not of the export that is there; move it away")
