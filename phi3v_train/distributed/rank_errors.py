"""Errors of a run with several processes: each is reported once, with its rank; its consequences are not."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from traceback import print_exc
from typing import NoReturn

import torch.distributed as dist
import xxhash

from phi3v_data.errors import COULD_NOT_RUN, PROBLEMS, UserError
from phi3v_train.distributed.group import Group
from phi3v_train.distributed.peer_monitor import BYE, REPORTED, PeerMonitor
from phi3v_train.launch import FOLLOWED, LAUNCHED, is_explained

FAILURES = "failures"
GRACE = 10.0
"""Seconds in which a process may notice by itself that another one is lost."""

NOTICING = 2.0
"""Seconds in which the monitor notices a loss that a collective call has reported."""

CLOSED = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Socket closed")

LAST_LINES, LONGEST_MESSAGE = 3, 180

ADVICE: tuple[tuple[tuple[str, ...], str], ...] = (
    (("/dev/shm", "shared memory"), "give the container more shared memory (docker run --shm-size=8g)"),
    (("out of memory",), "lower --batch_size_per_gpu, or see which other program uses the GPU"),
    (("mismatch",), "the processes were not in the same exchange; please report this"),
    (("Duplicate GPU",), "start one process per GPU"),
    (("imed out", "timeout"), "another process is stuck or very slow"),
)
"""Words of an error of gloo or NCCL, and what to do about it."""


class RankErrors:
    """Reports what goes wrong in this process, or in another.

    Args:
        group: the processes.
        resume_hint: returns one sentence on what to do next; called when it is printed.
    """

    def __init__(self, group: Group, resume_hint: Callable[[], str] | None = None) -> None:
        self.rank, self.local_rank = group.rank, group.rank_info.local_rank
        self.store = group.store
        self.resume_hint = resume_hint
        self.has_begun = False
        self.monitor: PeerMonitor | None = None
        self.lock = threading.Lock()
        self.has_reported_loss = False

    def begin(self) -> None:
        """From now on an error is one of the run, not one that kept it from starting."""
        self.has_begun = True

    def fail(self, message: str, code: int) -> NoReturn:
        """Report an error of this process, unless another one has reported the same: all of them measure the same rows.

        The main process exits a little later, so that the others can ask it; once it is gone, its error was the first.
        """
        reports = self.count(f"said/{xxhash.xxh3_64_hexdigest(message.encode())}")
        self.count(FAILURES)
        if reports == 1 or (reports == 0 and not self.is_reported()):
            self.say(f"rank {self.rank}: {message}")
        if self.rank == 0:
            time.sleep(NOTICING)
        raise SystemExit(code)

    def fail_in_exchange(self, error: Exception) -> NoReturn:
        """Report the last lines of an error of gloo or NCCL, unless it follows from the loss of another process.

        A closed connection is a consequence: whoever closed it is given time to report why.
        """
        if self.notices_peer_loss(GRACE if any(words in str(error) for words in CLOSED) else NOTICING):
            self.report_peer_loss()
            raise SystemExit(FOLLOWED)
        self.fail(last_lines(error), PROBLEMS)

    def report_peer_loss(self, reason: str = "") -> None:
        """Report that another process is lost: only by the first to notice, and only if that one reported nothing.

        Called by the main thread, the monitor's, or both.
        """
        with self.lock:
            if self.has_reported_loss:
                return
            self.has_reported_loss = True
        failures = self.count(FAILURES)
        first = failures == 1 or (failures == 0 and self.local_rank == 0)
        if first and not is_explained() and not self.is_reported():
            lost_rank = self.monitor.lost_rank if self.monitor is not None else -1
            which = f"rank {lost_rank}" if lost_rank >= 0 else "another process"
            self.say(f"rank {self.rank}: {reason or f'{which} of this run has exited; its last lines may say why'}")

    def is_reported(self) -> bool:
        """Whether the lost process has reported why."""
        return self.notices_peer_loss() and self.monitor is not None and self.monitor.is_reported

    def notices_peer_loss(self, seconds: float = NOTICING) -> bool:
        """Whether another process is lost; the monitor may notice a moment later than a collective call."""
        return self.monitor is not None and self.monitor.lost_peer.wait(seconds)

    def say(self, message: str) -> None:
        """Print an error; and once, unless a launcher of phi3v does, how to resume."""
        lines = [f"error: {message}"]
        explained = is_explained(of_resume_hint=True)
        if self.has_begun and self.resume_hint is not None and not explained and self.count("resume hint") <= 1:
            lines.append(self.resume_hint())
        print("\n".join(lines), file=sys.stderr, flush=True)

    def count(self, key: str) -> int:
        """Add 1 to a counter of all processes; returns its value, 0 if the store is gone with the main process."""
        try:
            return int(self.store.add(f"phi3v/{key}", 1)) if self.store is not None else 0
        except (RuntimeError, OSError):
            return 0

    def stop(self, *signal_and_frame: object) -> NoReturn:
        """torchrun, or a scheduler, stops this process: it may be the last one that can print how to resume."""
        self.report_peer_loss("stopped by SIGTERM")
        raise SystemExit(FOLLOWED)

    def lost(self) -> NoReturn:
        """Called by the monitor on its thread: the main thread may wait forever for the lost process."""
        time.sleep(GRACE)
        self.report_peer_loss()
        sys.stderr.flush()
        os._exit(FOLLOWED)


@contextmanager
def report_rank_errors(group: Group, resume_hint: Callable[[], str] | None = None) -> Iterator[RankErrors]:
    """Around everything that one process does after it has met the others.

    A mistake is reported with its rank, by the process that makes it. When a process dies, the others find the
    connection closed: the first one to notice reports that, and only if no other has reported why.
    """
    ranks = RankErrors(group, resume_hint)
    if group.store is None:
        yield ranks
        return
    monitor = ranks.monitor = PeerMonitor(group.rank_info, group.store, ranks.lost)
    if LAUNCHED not in os.environ:
        signal.signal(signal.SIGTERM, ranks.stop)
    word = REPORTED
    try:
        yield ranks
        word = BYE
    except UserError as error:
        ranks.fail(str(error), PROBLEMS if ranks.has_begun else COULD_NOT_RUN)
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
        ranks.fail(f"{where}{error.strerror or error}", PROBLEMS)
    except Exception as error:
        if is_of_exchange(error):
            ranks.fail_in_exchange(error)
        print_exc()
        ranks.fail(f"{type(error).__name__}: {error}", PROBLEMS)
    finally:
        monitor.close(word)


def is_of_exchange(error: Exception) -> bool:
    """Whether an error comes from exchanging data with other processes; gloo and NCCL tell only by the message."""
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in (*CLOSED, "NCCL", "gloo"))
    )


def last_lines(error: Exception) -> str:
    """The end of a message that may have many lines and a stack of addresses, and advice where the cause is known."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("frame #")]
    text = " ".join(lines[-LAST_LINES:])
    text = text if len(text) <= LONGEST_MESSAGE else f"...{text[-LONGEST_MESSAGE:]}"
    advice = next((advice for words, advice in ADVICE if any(word in str(error) for word in words)), "")
    return f"{type(error).__name__}: {text}{f'; {advice}' if advice else ''}"
