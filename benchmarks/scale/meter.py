"""CPU time of a command with all that it starts, and the peak memory of each of its processes (Linux)."""

import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

EVERY = 0.05
"""Seconds between two looks at the processes."""


@dataclass
class Peak:
    """Peak memory of one process, in bytes: all that was resident, and the part that no file backs."""

    resident: int = 0
    anonymous: int = 0


@dataclass
class Meter:
    """Looks at a process and its descendants until `stop`."""

    pid: int
    peaks: dict[int, Peak] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _watch(self) -> None:
        while not self.ended.wait(EVERY):
            self._look(self.pid)

    def _look(self, pid: int) -> None:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            children = [word for each in Path(f"/proc/{pid}/task").iterdir() for word in _words(each / "children")]
        except (FileNotFoundError, ProcessLookupError):
            return
        found = {line.partition(":")[0]: line.split()[1] for line in lines if line.startswith(("VmHWM", "RssAnon"))}
        peak = self.peaks.setdefault(pid, Peak())
        peak.resident = max(peak.resident, int(found.get("VmHWM", 0)) * 1024)
        peak.anonymous = max(peak.anonymous, int(found.get("RssAnon", 0)) * 1024)
        for child in children:
            self._look(int(child))

    def stop(self) -> dict[int, Peak]:
        """The peaks by process id."""
        self.ended.set()
        self.thread.join()
        return self.peaks


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def measure(
    command: list[str], *, seconds: float, log: Path, good: tuple[int, ...], env: dict[str, str]
) -> dict[str, Any]:
    """Run a command and return its figures; after `seconds` it is interrupted, and `interrupted` is true.

    `cpu_s` is of the process and of all descendants that were waited for. `peak_mb` is the peak resident memory of the
    process itself and then of the others, largest first; `anonymous_mb` is without pages of mapped files. What the
    command prints is appended to `log`.

    Raises:
        RuntimeError: the exit code is none of `good`.
    """
    begin = time.monotonic()
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env, start_new_session=True)
    meter = Meter(process.pid)
    interrupted = threading.Event()

    def interrupt() -> None:
        interrupted.set()
        os.killpg(process.pid, signal.SIGINT)

    timer = threading.Timer(seconds, interrupt)
    timer.start()
    try:
        _, status, usage = os.wait4(process.pid, 0)
    finally:
        timer.cancel()
    process.returncode = code = os.waitstatus_to_exitcode(status)
    peaks = meter.stop()
    wall = time.monotonic() - begin
    if not interrupted.is_set() and code not in good:
        raise RuntimeError(f"exit code {code} of {' '.join(command)}; see {log}")
    own = peaks.pop(process.pid, Peak())
    ordered = [own, *sorted(peaks.values(), key=lambda peak: -peak.resident)]
    return {
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 2),
        "system_s": round(usage.ru_stime, 2),
        "wall_s": round(wall, 2),
        "peak_mb": [round(peak.resident / 1e6) for peak in ordered if peak.resident > 20e6],
        "anonymous_mb": [round(peak.anonymous / 1e6) for peak in ordered if peak.resident > 20e6],
        **({"interrupted": True} if interrupted.is_set() else {"exit_code": code}),
    }
