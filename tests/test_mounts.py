"""The file system of a path, read from the kernel's table of mounts."""

from pathlib import Path

import pytest

from phi3v_data import mounts

TABLE = r"""21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 21 0:5 / /mnt/data rw shared:2 - nfs4 server:/export rw,vers=4.2
31 21 0:6 / /mnt/my\040disk rw - fuse.sshfs host: rw
32 30 0:7 / /mnt/data/inner rw -
33 21 0:8 / /mnt/late rw - tmpfs tmpfs rw
34 21 0:9 / /mnt/late rw - xfs /dev/sdb rw
cut
"""
"""As proc(5) describes it; the line of /mnt/data/inner was cut before its type."""


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/home/ada", ("ext4", "/")),
        ("/mnt/data", ("nfs4", "/mnt/data")),
        ("/mnt/data/set/images", ("nfs4", "/mnt/data")),
        ("/mnt/database", ("ext4", "/")),
        ("/mnt/my disk/set", ("fuse.sshfs", "/mnt/my disk")),
        ("/mnt/data/inner/x", ("nfs4", "/mnt/data")),
        ("/mnt/late/x", ("xfs", "/mnt/late")),
    ],
)
def test_the_deepest_and_latest_mount_counts(
    path: str, expected: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(TABLE)
    monkeypatch.setattr(mounts, "_MOUNTS", table)
    assert mounts.mount_of(Path(path)) == expected
    assert mounts.file_system(Path(path)) == f"the file system ({expected[0]}, mounted at {expected[1]})"


def test_without_a_table_of_mounts_the_file_system_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "_MOUNTS", Path("/nowhere/mountinfo"))
    assert mounts.mount_of(Path("/")) is None
    assert mounts.file_system(Path("/")) == "the file system"
