"""Processes that start like `python ARGUMENTS`, but with torch, transformers and phi3v_train imported already.

A server for each process of pytest imports them once, and every process is forked from it: a start then costs a tenth
of a second of CPU time instead of several seconds. These are real processes: streams, environment, folder, signals,
exit code and the end of the interpreter are their own. Not for what needs a fresh interpreter: variables that are read
by an import (HF_ENDPOINT), the memory of a process, or what a command imports.

    python -m warm DESCRIPTOR: the server; DESCRIPTOR is its end of a socket
"""

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LARGEST = 1 << 17
"""Bytes of a request: the arguments and the environment."""

servers: dict[int, tuple[socket.socket, "subprocess.Popen[bytes]"]] = {}
"""By id of the process that started it: a fork of it starts one of its own."""


class Process:
    """Like a `subprocess.Popen` with pipes of text, but a child of the server."""

    def __init__(
        self,
        *arguments: str | Path,
        env: Mapping[str, str],
        cwd: Path | None = None,
        stdin: int | None = None,
        new_session: bool = False,
    ) -> None:
        request = {
            "arguments": [*map(str, arguments)],
            "environment": dict(env),
            "folder": str(cwd or Path.cwd()),
            "new_session": new_session,
        }
        mine, theirs = socket.socketpair()
        with theirs, open(os.devnull, "rb") as nothing:
            read_in, write_in = os.pipe() if stdin == subprocess.PIPE else (os.dup(nothing.fileno()), None)
            pipes = [os.pipe(), os.pipe()]
            given = [read_in, *(write for _, write in pipes)]
            socket.send_fds(control_of_server(), [json.dumps(request).encode()], [*given, theirs.fileno()])
            for each in given:
                os.close(each)
        self.args = request["arguments"]
        self.returncode: int | None = None
        self.stdin = None if write_in is None else os.fdopen(write_in, "w", encoding="utf-8")
        self.stdout, self.stderr = (os.fdopen(read, encoding="utf-8") for read, _ in pipes)
        self._line = mine
        self._report = mine.makefile("r")
        self._readers: list[threading.Thread] = []
        self._texts = ["", ""]
        self.pid = int(self._report.readline())

    def poll(self) -> int | None:
        """The exit code, or minus the signal that ended the process; None while it runs."""
        if self.returncode is None and select.select([self._line], [], [], 0)[0]:
            self._end()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code; subprocess.TimeoutExpired if it is not there in so many seconds."""
        if self.returncode is None:
            if not select.select([self._line], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self._end()
        assert self.returncode is not None
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """The rest of stdout and of stderr, to their ends; waits for the end of the process."""
        if self.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.stdin.close()
        if not self._readers:
            self._readers = [threading.Thread(target=self._read, args=(number,), daemon=True) for number in (0, 1)]
            for reader in self._readers:
                reader.start()
        for reader in self._readers:
            reader.join(timeout)
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(timeout)
        return self._texts[0], self._texts[1]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def _read(self, number: int) -> None:
        with (self.stdout, self.stderr)[number] as stream:
            self._texts[number] = stream.read()

    def _end(self) -> None:
        self.returncode = int(self._report.readline())
        self._report.close()
        self._line.close()


def control_of_server() -> socket.socket:
    """Socket to the server of this process, which is started if it has none."""
    if os.getpid() not in servers:
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [sys.executable, "-m", "warm", str(theirs.fileno())]
            environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
            process = subprocess.Popen(
                command,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=environment,
            )
        servers[os.getpid()] = mine, process
    return servers[os.getpid()][0]


def serve(control: socket.socket) -> dict[str, Any]:
    """Fork a process for each request; returns in each of these, with its request. Ends with the process that asks."""
    lines: dict[int, socket.socket] = {}
    ended, signalled = os.pipe()
    os.set_blocking(signalled, False)
    signal.set_wakeup_fd(signalled)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        ready, _, _ = select.select([control, ended], [], [])
        if ended in ready:
            os.read(ended, 4096)
            for pid in list(lines):
                if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    with lines.pop(pid) as line, contextlib.suppress(OSError):
                        line.sendall(b"%d\n" % code)
        if control in ready:
            message, given, _, _ = socket.recv_fds(control, LARGEST, 4)
            if not message:
                os._exit(0)
            pid = os.fork()
            if not pid:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.signal(signal.SIGINT, interrupt)
                for number in range(3):
                    os.dup2(given[number], number)
                for each in (*given, ended, signalled, control.detach(), *(line.detach() for line in lines.values())):
                    os.close(each)
                request: dict[str, Any] = json.loads(message)
                return request
            lines[pid] = socket.socket(fileno=given.pop())
            lines[pid].sendall(b"%d\n" % pid)
            for each in given:
                os.close(each)


def become(request: dict[str, Any]) -> None:
    """Act as python started with these arguments."""
    import numpy as np

    np.random.seed()  # of its own, as in a process that imports numpy
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    if request["new_session"]:
        os.setsid()
    kind, *rest = request["arguments"]
    if kind == "-m":
        sys.argv = rest
        sys.path[0] = request["folder"]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path[0] = ""
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    else:
        sys.argv = [kind, *rest]
        sys.path[0] = str(Path(kind).resolve().parent)
        runpy.run_path(kind, run_name="__main__")


PRELOADED = (
    *(f"phi3v_data.cli.{name}" for name in ("app", "card", "clean", "convert", "export", "import_rows", "merge")),
    *(f"phi3v_data.cli.{name}" for name in ("preview", "split", "stats", "store", "validate")),
    "peft",
    "phi3v_train.cli.app",
    "phi3v_train.evaluation.generate",
    "phi3v_train.models.phi3v.modeling_phi3_v",
    "phi3v_train.training.session",
)


if __name__ == "__main__":
    for module in PRELOADED:
        with contextlib.suppress(ImportError):  # without torch, the commands of phi3v_data are warm
            importlib.import_module(module)
    gc.collect()
    gc.freeze()  # what was imported is not looked at again by each process, nor copied for it
    become(serve(socket.socket(fileno=int(sys.argv[1]))))
