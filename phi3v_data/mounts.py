"""File systems: the type for a path, and errors of operations that it does not support."""

import errno
import os
import re
from pathlib import Path

UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK})
"""Errors of a file system that does not support an operation."""

NO_HARD_LINKS = frozenset(
    {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES}
)
"""Errors of `os.link` after which the file can still be copied: no hard links, too many links, another disk."""

_MOUNTS = Path("/proc/self/mountinfo")


def file_system(path: Path) -> str:
    """A description such as `the file system (nfs4, mounted at /mnt/data)`; `the file system` if it is not known."""
    found = mount_of(path)
    return f"the file system ({found[0]}, mounted at {found[1]})" if found else "the file system"


def mount_of(path: Path) -> tuple[str, str] | None:
    """Type and mount point of the file system of a path, which need not exist."""
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None
    real = os.path.realpath(path)
    best: tuple[str, str] | None = None
    for line in lines:
        before, _, after = line.partition(" - ")
        fields, more = before.split(" "), after.split(" ")
        if len(fields) < 5 or not more[0]:
            continue
        point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
        fits = real == point or real.startswith(point.rstrip("/") + "/")
        if fits and (best is None or len(point) >= len(best[1])):
            best = more[0], point
    return best


def is_case_blind(folder: Path) -> bool:
    """Whether a folder ignores letter case in names; it must be writable."""
    probe = folder / "Case"
    probe.touch()
    blind = (folder / "cASE").exists()
    probe.unlink()
    return blind
