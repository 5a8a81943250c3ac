"""Names that stay in their folder, and files that are there whole or not at all."""

import ctypes
import errno
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kills import in_child

import phi3v_data.files as files
from phi3v_data.errors import UserError
from phi3v_data.files import inside, leads_outside, safe_component, unsafe_reason, write_bytes, write_json, write_whole


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("", "empty"),
        ("/etc/passwd", "absolute"),
        ("C:/a.jpg", "absolute"),
        ("a/../b.jpg", "'..'"),
        ("..", "'..'"),
        ("a\\b.jpg", "backslash"),
        ("a//b.jpg", "component"),
        ("./b.jpg", "component"),
        ("a/", "component"),
        ("a\nb.jpg", "control"),
        ("a\0b.jpg", "control"),
        ("a\ud800.jpg", "surrogate"),
        ("http://host/a.jpg", "URL"),
        ("train/CON", "reserves"),
        ("nul.jpg", "reserves"),
        ("com1.tar.gz", "reserves"),
    ],
)
def test_unsafe_paths(path: str, word: str) -> None:
    assert word in unsafe_reason(path)


@pytest.mark.parametrize(
    "path", ["a.jpg", "train/a b/c.0.jpg", "\u00e9/\u65e5.png", "a%2e%2e/b.jpg", "...", "console.jpg", "a..b/c"]
)
def test_safe_paths(path: str) -> None:
    assert unsafe_reason(path) == ""


def test_links_that_lead_outside(tmp_path: Path) -> None:
    root = tmp_path / "images"
    (root / "in").mkdir(parents=True)
    (root / "in" / "a.jpg").touch()
    (tmp_path / "secret.jpg").touch()
    (root / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "good.jpg").symlink_to("in/a.jpg")
    (root / "folder").symlink_to(tmp_path)
    (root / "loop").symlink_to("loop")
    assert leads_outside(root, "out.jpg")
    assert leads_outside(root, "folder/secret.jpg")
    assert not leads_outside(root, "good.jpg")
    assert not leads_outside(root, "in/a.jpg")
    assert not leads_outside(root, "loop")
    assert not leads_outside(root, "gone/b.jpg")


@given(st.text(min_size=1, max_size=300))
def test_any_name_becomes_a_safe_component(name: str) -> None:
    safe = safe_component(name)
    assert unsafe_reason(f"{safe}/x.jpg") == ""
    assert "/" not in safe
    assert len(safe.encode()) <= 200
    assert not safe.startswith(".")
    assert safe_component(safe) == safe


def test_ordinary_names_stay_as_they_are() -> None:
    for name in ("ApplyEyeMakeup", "talking head", "v_Archery_g01_c01", "\u00fcben", "a,b", "c++", "100% wool"):
        assert safe_component(name) == name


@pytest.mark.parametrize(
    "name", ["", "/etc/passwd", "../a", "a/../../b", "a\\b", "a\0b", "C:/a", "c:a", ".", "a//b", "a/", "http://host/a"]
)
def test_a_name_that_could_leave_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="the name") as raised:
        inside(tmp_path, name)
    assert len(str(raised.value)) < 300 + len(str(tmp_path))


def test_a_name_is_joined_to_its_folder_unless_a_link_leads_out(tmp_path: Path) -> None:
    folder = tmp_path / "dir"
    (folder / "sub").mkdir(parents=True)
    (folder / "near").symlink_to("sub")
    (folder / "far").symlink_to(tmp_path)
    (folder / "dangling").symlink_to(tmp_path / "not there")
    (tmp_path / "way").symlink_to(folder)
    assert inside(folder, "sub/new.txt") == folder / "sub/new.txt"
    assert inside(folder, "near/new.txt") == folder / "near/new.txt"
    assert inside(tmp_path / "way", "sub") == tmp_path / "way/sub"
    for name in ("far", "far/new.txt", "dangling", "sub/../far"):
        with pytest.raises(UserError):
            inside(folder, name)


def test_a_file_written_whole_has_the_content_and_nothing_beside_it(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": "é", "a": [1]})
    assert (tmp_path / "a.json").read_text() == '{\n  "b": "é",\n  "a": [\n    1\n  ]\n}\n'
    write_bytes(tmp_path / "a.json", b"new")
    assert (tmp_path / "a.json").read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    with pytest.raises(TypeError), write_whole(tmp_path / "a") as file:
        file.writelines([b"half", "no bytes"])  # type: ignore[list-item]
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_killed_before_any_step_of_a_write_the_file_is_old_or_new_and_the_next_write_leaves_no_trace(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a"
    seen = set()
    for point in range(1, 20):
        path.write_bytes(b"old")
        status = in_child(lambda: write_bytes(path, b"new" * 1000), point)
        seen.add(path.read_bytes())
        write_bytes(path, b"next")
        assert (path.read_bytes(), os.listdir(tmp_path)) == (b"next", ["a"])
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert point == 4  # the file's fsync, the rename, the folder's fsync, the end
    assert seen == {b"old", b"new" * 1000}


def test_links_and_odd_things_at_the_places_of_a_write_are_replaced_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    folder = tmp_path / "dir"
    folder.mkdir()
    for make in (Path.symlink_to, Path.hardlink_to, lambda path, _: os.mkfifo(path)):
        for name in ("a", ".a.tmp"):
            make(folder / name, victim)  # type: ignore[operator]
        write_bytes(folder / "a", b"new")
        assert (folder / "a").read_bytes() == b"new"
        assert not (folder / "a").is_symlink()
        assert os.listdir(folder) == ["a"]
        (folder / "a").unlink()
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize("device", ["/dev/null", "/dev/stdout", "/dev/fd/1"])
def test_a_device_is_written_to_and_never_replaced(device: str, tmp_path: Path) -> None:
    before = os.lstat(device)
    program = """
        import sys
        from pathlib import Path
        from phi3v_data.files import write_text
        write_text(Path(sys.argv[1]), "new")
    """
    command = [sys.executable, "-c", textwrap.dedent(program), device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == ("" if device == "/dev/null" else "new")
    with (tmp_path / "out").open("w") as out:  # a regular file, by the name of a device
        assert subprocess.run(command, stdout=out, check=False).returncode == 0
    assert (tmp_path / "out").read_text() == ("" if device == "/dev/null" else "new")
    if device != "/dev/fd/1":
        assert os.lstat(device).st_ino == before.st_ino
    with pytest.raises(OSError, match="No space left"):
        write_bytes(Path("/dev/full"), b"x")


def test_processes_with_the_same_number_have_other_names_for_their_temporary_files() -> None:
    """Containers on one file system often have."""
    code = "import os; os.getpid = lambda: 7; from phi3v_data.files import process_name as n; print(n(), n())"
    found = [subprocess.check_output([sys.executable, "-c", code], text=True).split() for _ in range(2)]
    (first, again), (second, _) = found
    assert first == again != second
    assert first.startswith("7-")


def test_many_writers_of_one_file_leave_the_content_of_one_of_them(tmp_path: Path) -> None:
    program = """
        import sys
        from pathlib import Path
        from phi3v_data.files import write_bytes
        for _ in range(50):
            write_bytes(Path(sys.argv[1]), sys.argv[2].encode() * 10_000)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path / "a")]
    writers = [subprocess.Popen([*command, mark]) for mark in "xyz"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    content = (tmp_path / "a").read_bytes()
    assert (len(content), len(set(content))) == (10_000, 1)
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_does_not_take_what_was_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    class Libc:
        @staticmethod
        def syncfs(descriptor: int) -> int:
            ctypes.set_errno(code)
            return -1

    files.sync_disk(tmp_path)
    monkeypatch.setattr(ctypes, "CDLL", lambda *args, **kwargs: Libc)
    with pytest.raises(OSError, match=os.strerror(code)) as raised:
        files.sync_disk(tmp_path)
    assert raised.value.errno == code
