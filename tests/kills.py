"""Processes that end themselves with SIGKILL right before a chosen file operation, or in which one always fails."""

import importlib
import os
import signal
import stat
import sys
from collections.abc import Callable
from typing import Any

OPERATIONS = ("replace", "rename", "link", "unlink", "mkdir", "rmdir", "makedirs", "fsync")


def fork(work: Callable[[], object], kill_at: int | None = None) -> int:
    """Run `work` in a forked process of its own group, ended before its `kill_at`-th file operation; its id."""
    pid = os.fork()
    if pid:
        return pid
    os.setpgid(0, 0)
    if kill_at is not None:
        kill_before(kill_at, *OPERATIONS)
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def wait(pid: int) -> int:
    """Exit status of a process, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_child(work: Callable[[], object], kill_at: int | None = None) -> int:
    """`fork` and `wait`."""
    return wait(fork(work, kill_at))


def kill_before(number: int, *operations: str) -> None:
    """Let this process end itself with SIGKILL right before its `number`-th call of any of these functions of `os`."""
    left = number

    def wrap(operation: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*args, **kwargs)

        return counted

    for name in operations:
        setattr(os, name, wrap(getattr(os, name)))


def killed_before(operation: str, number: int, work: Callable[[], object]) -> None:
    """Do something in a process that ends itself right before its `number`-th call of that function of `os`."""

    def doomed() -> None:
        kill_before(number, operation)
        work()

    assert wait(fork(doomed)) == -signal.SIGKILL


def fail(code: int, operation: str) -> None:
    """Let every call of a function in this process (`os.link`, `fcntl.flock`) fail with an error number.

    `os.fsync` fails for folders only, as on file systems that cannot sync them.
    """
    module_name, _, name = operation.partition(".")
    module = importlib.import_module(module_name)
    real = getattr(module, name)

    def failing(*args: Any, **kwargs: Any) -> Any:
        if name == "fsync" and not stat.S_ISDIR(os.fstat(args[0]).st_mode):
            return real(*args, **kwargs)
        raise OSError(code, os.strerror(code), *map(str, args[:1]))

    setattr(module, name, failing)


def fail_syncfs(code: int) -> None:
    """Let `syncfs` fail in this process, as after a write that did not reach the disk."""
    import ctypes

    class Library:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            pass

        def syncfs(self, descriptor: int) -> int:
            assert stat.S_ISDIR(os.fstat(descriptor).st_mode)
            ctypes.set_errno(code)
            return -1

    ctypes.CDLL = Library  # type: ignore[misc, assignment]
