"""Several processes that write to one directory: which of them are alive, and which one does a piece of work.

    slices/owners/ID/owner.json   a process: its machine and boot, its process id; touched as a sign of life
    slices/owners/ID/run/         its temporary files
    slices/claims/WORK            the first claim of a piece of work: the ID of its owner
    slices/claims/WORK.ID         the claim that follows once owner ID is dead
    slices/kept/ID.json           parts that are on disk, according to a process that ended well

Works without file locks and without clocks that agree. A claim is created by one process only (a hard link, or O_EXCL)
and never changed or removed, so of several processes that find an owner dead, one follows it. An owner is dead if its
folder is gone, if it ran in this boot of this machine and its process has ended, or if it runs elsewhere and its sign
of life did not change in `LEASE_SECONDS` of watching. A process that was only suspended may so be taken for dead: then
two convert the same part, which writes the same bytes twice.
"""

import errno
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from phi3v_data.errors import BusyError, UserError
from phi3v_data.files import open_regular, read_regular, write_json
from phi3v_data.messages import join_words
from phi3v_data.mounts import NO_HARD_LINKS
from phi3v_data.writing.boot import boot_id
from phi3v_data.writing.journal import Journal, remove_tree

Life: TypeAlias = Literal["alive", "dead", "unclear"]
Claim: TypeAlias = Literal["ours", "taken", "unclear"]

BEAT_SECONDS = 10.0
LEASE_SECONDS = 60.0
"""How long the sign of life of a process on another machine is watched before it counts as dead."""

FIRST_WAIT, LONGEST_WAIT = 0.05, 2.0
_TRIES = 10
_ID = re.compile(r"[0-9a-f]{32}")
_LONGEST = 64
"""Bytes of a claim that are read; one of this module has 32, or none yet."""

_NOBODY = "nobody"
"""Owner of a claim whose content is not an id: a process without hard links was killed right before it wrote it."""


class OwnerRecord(msgspec.Struct, frozen=True):
    """`owner.json`; `space` names the process ids of the machine or container, `start` is when the process began."""

    label: str
    host: str
    boot: str
    space: str
    pid: int
    start: str


@dataclass(slots=True)
class Watch:
    """Tells which owners are alive, by what it saw of them since it was made."""

    journal: Journal
    _seen: dict[str, tuple[int, float, bool]] = field(default_factory=dict)  # last beat, when it was new, whether moved

    def owners(self) -> list[str]:
        """The ids of the processes whose folders are there."""
        try:
            return sorted(name for name in os.listdir(self.journal.owners) if _ID.fullmatch(name))
        except FileNotFoundError:
            return []

    def life(self, owner: str) -> Life:
        """Whether an owner is alive; `unclear` if it has to be watched for longer."""
        path = self.journal.owners / owner / "owner.json"
        if owner == _NOBODY:
            return self._moves(owner, 0)
        record = read_owner(path)
        if record is not None and record.boot and (record.boot, record.space) == (boot_id(), _space()):
            return "alive" if _is_running(record) else "dead"
        try:
            with open_regular(path) as file:  # opened, as NFS keeps the times of files that are not
                beat = os.fstat(file.fileno()).st_mtime_ns
        except OSError:
            return "dead"
        return self._moves(owner, beat)

    def _moves(self, owner: str, beat: int) -> Life:
        now = time.monotonic()
        last, since, moved = self._seen.get(owner, (None, now, False))
        if last != beat:
            self._seen[owner] = (beat, now, last is not None)
            return "alive" if last is not None else "unclear"
        if now - since >= LEASE_SECONDS:
            return "dead"
        return "alive" if moved else "unclear"

    def label(self, owner: str) -> str:
        """`slice 2/3 (process 123 on node7)`."""
        record = read_owner(self.journal.owners / owner / "owner.json")
        return f"{record.label} (process {record.pid} on {record.host})" if record else "a slice"


@dataclass(slots=True)
class Claims:
    """The claims of this process, and its view of those of others."""

    journal: Journal
    id: str
    watch: Watch
    _pause: float = FIRST_WAIT

    def claim(self, work: str) -> Claim:
        """Claim a piece of work: `taken` if a living process has it, `unclear` if that is not known yet.

        Raises:
            UserError: this process was taken for dead.
        """
        self.check_alive()
        seen: set[str] = set()
        name = work
        while True:
            owner = self._owner(name)
            if owner is None:
                if self._create(name):
                    self._pause = FIRST_WAIT
                    return "ours"
                if self._is_over():
                    return "unclear"
                continue
            if owner in seen:
                raise self.journal.foreign(self._path(name), "its owner has another claim of the same work")
            seen.add(owner)
            following = f"{work}.{owner}"
            if not self._path(following).exists():
                if owner == self.id:
                    return "ours"
                if (life := self.watch.life(owner)) != "dead":
                    return "taken" if life == "alive" else "unclear"
            name = following

    def check_alive(self) -> None:
        """Check that the others count on this process.

        Raises:
            UserError: this process was taken for dead.
        """
        if not (self.journal.owners / self.id / "id").exists() and not self._is_over():
            raise UserError(
                f"{self.journal.out_dir}: the other slices took this process for dead, after it gave no sign of life "
                f"for {LEASE_SECONDS:.0f} seconds; what was finished is kept: run the same command again"
            )

    def _is_over(self) -> bool:
        """Whether another process has published, or is about to end that: it removes all claims."""
        return self.journal.is_finished() or self.journal.publishing.exists()

    def wait(self) -> None:
        """Wait a little, and longer the next time."""
        time.sleep(self._pause)
        self._pause = min(LONGEST_WAIT, 1.5 * self._pause)

    def keep(self, parts: Iterable[int]) -> None:
        """Record that these parts are on disk, so that no other process has to look at their images."""
        folder = self.journal.slices / "kept"
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / f"{self.id}.json", sorted(parts))

    def others(self) -> list[str]:
        """Names of the other processes that are not known to be dead."""
        return [
            self.watch.label(owner)
            for owner in self.watch.owners()
            if owner != self.id and self.watch.life(owner) != "dead"
        ]

    def _path(self, name: str) -> Path:
        return self.journal.slices / "claims" / name

    def _owner(self, name: str) -> str | None:
        try:
            content = read_regular(self._path(name), limit=_LONGEST).decode("ascii", "replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno != errno.EFBIG:
                raise
            raise self.journal.foreign(self._path(name), "it is longer than a claim") from None
        return content if _ID.fullmatch(content) else _NOBODY

    def _create(self, name: str) -> bool:
        """Whether this process created the claim; at once with its content, if there are hard links."""
        path = self._path(name)
        try:
            os.link(self.journal.owners / self.id / "id", path)
        except FileExistsError:
            return False  # perhaps by this process, if NFS repeated the call: `claim` reads whose it is
        except FileNotFoundError:
            if not self._is_over():
                raise
            return False
        except OSError as error:
            if error.errno not in NO_HARD_LINKS:
                raise
            try:
                descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666)
            except FileExistsError:
                return False
            with open(descriptor, "wb") as file:
                file.write(self.id.encode())
        return True


@contextmanager
def join(journal: Journal, label: str) -> Iterator[Claims]:
    """Become an owner inside the block; `journal` gets the folder of this process."""
    own = uuid.uuid4().hex
    folder = journal.owners / own
    watch = Watch(journal)
    for owner in watch.owners():
        if watch.life(owner) == "dead":
            _remove(journal.owners / owner)
    record = OwnerRecord(label, socket.gethostname(), boot_id(), _space(), os.getpid(), _start_of(os.getpid()))
    for left in reversed(range(_TRIES)):
        aside = journal.slices / f"joining-{own}"
        try:
            for path in (journal.slices / "claims", journal.owners, aside / "run"):
                path.mkdir(parents=True, exist_ok=True)
            write_json(aside / "owner.json", msgspec.to_builtins(record))
            (aside / "id").write_text(own, encoding="ascii")
            os.rename(aside, folder)  # complete from the start, as an owner without a record is dead
            break
        except FileNotFoundError:  # another process removed the folders at this moment
            if not left:
                raise
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(folder / "owner.json", stop), daemon=True)
    beat.start()
    try:
        yield Claims(Journal(journal.out_dir, own=folder), own, watch)
    finally:
        stop.set()
        beat.join()
        _remove(folder)


def refuse_joined(journal: Journal) -> None:
    """Wait until it is known that no process that shares the parts is alive.

    Raises:
        BusyError: one is.
    """
    watch = Watch(journal)
    while True:
        lives = {owner: watch.life(owner) for owner in watch.owners()}
        if alive := [watch.label(owner) for owner, life in lives.items() if life == "alive"]:
            raise BusyError(
                f"another run is writing {journal.out_dir}: {join_words(alive, 2)}; wait for it, or choose another "
                "folder"
            )
        if "unclear" not in lives.values():
            return
        time.sleep(LONGEST_WAIT)


def read_owner(path: Path) -> OwnerRecord | None:
    """The record of an owner; None if it is absent or damaged."""
    try:
        return msgspec.json.decode(read_regular(path, limit=1 << 16), type=OwnerRecord)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def kept_elsewhere(journal: Journal) -> set[int]:
    """Parts that are on disk according to the processes that ended well."""
    kept: set[int] = set()
    for path in sorted((journal.slices / "kept").glob("*.json")):
        with suppress(OSError, msgspec.DecodeError, UnicodeDecodeError):
            kept.update(msgspec.json.decode(read_regular(path), type=list[int]))
    return kept


def _remove(folder: Path) -> None:
    """Remove a folder that other processes may remove, or create again, at the same time."""
    for _ in range(_TRIES):
        with suppress(OSError):
            remove_tree(folder)
        if not folder.exists():
            return


def remove_claims(journal: Journal) -> None:
    """Remove all claims and owners once a set is complete; a process that is still there sees that it is.

    With them go the temporary files that killed processes left where there are no file locks.
    """
    _remove(journal.slices)
    for left in journal.root.glob(".*.tmp"):
        left.unlink(missing_ok=True)


def _beat(path: Path, stop: threading.Event) -> None:
    while not stop.wait(BEAT_SECONDS):
        with suppress(OSError):
            os.utime(path)


def _space() -> str:
    """The name of the space of process ids: containers of one machine have several; empty if not known."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _is_running(record: OwnerRecord) -> bool:
    """Whether the process of a record of this machine is running."""
    try:
        os.kill(record.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user, whose start may be hidden
        return True
    return _start_of(record.pid) == record.start


def _start_of(pid: int) -> str:
    """When a process of this machine began, in the kernel's ticks; empty if it has ended, or is not known."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
