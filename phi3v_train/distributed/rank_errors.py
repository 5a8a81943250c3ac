"""Errors of a run with several processes: each is said once, with its rank; what merely follows from it is not."""

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
from phi3v_train.distributed.peer_monitor import BYE, SAID, PeerMonitor
from phi3v_train.launch import FOLLOWED, LAUNCHED, is_explained

FAILURES = "failures"
GRACE = 10.0
"""Seconds in which a process may find out by itself that another one is gone."""

HEARING = 2.0
"""Seconds in which the watch hears of what a collective call has found out."""

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
    """What one process says when something goes wrong, here or elsewhere.

    Args:
        group: the processes.
        resume_hint: what to do next, in a sentence; asked for when it is said.
    """

    def __init__(self, group: Group, resume_hint: Callable[[], str] | None = None) -> None:
        self.rank, self.local_rank = group.rank, group.rank_info.local_rank
        self.store = group.store
        self.resume_hint = resume_hint
        self.begun = False
        self.monitor: PeerMonitor | None = None
        self.lock = threading.Lock()
        self.has_reported_loss = False

    def begin(self) -> None:
        """From here on an error is one of the run, not one that kept it from starting."""
        self.begun = True

    def fail(self, message: str, code: int) -> NoReturn:
        """Say an error of this process, unless another one has said the same: all of them measure the same rows.

        The main process stays a little longer, for the others to ask; when it is gone, its error was the first.
        """
        said = self.count(f"said/{xxhash.xxh3_64_hexdigest(message.encode())}")
        self.count(FAILURES)
        if said == 1 or (said == 0 and not self.is_told()):
            self.say(f"rank {self.rank}: {message}")
        if self.rank == 0:
            time.sleep(HEARING)
        raise SystemExit(code)

    def fail_in_exchange(self, error: Exception) -> NoReturn:
        """Say the last lines of an error of gloo or NCCL, unless it follows from the end of another process.

        A connection that was closed is a consequence: whoever closed it is given time to say why.
        """
        if self.hears_of_peer_loss(GRACE if any(words in str(error) for words in CLOSED) else HEARING):
            self.report_peer_loss()
            raise SystemExit(FOLLOWED)
        self.fail(last_lines(error), PROBLEMS)

    def report_peer_loss(self, reason: str = "") -> None:
        """Say that another process has ended; only the first to see it does, and only where that one said nothing.

        Called by the main thread, the watch's, or both.
        """
        with self.lock:
            if self.has_reported_loss:
                return
            self.has_reported_loss = True
        failures = self.count(FAILURES)
        first = failures == 1 or (failures == 0 and self.local_rank == 0)
        if first and not is_explained() and not self.is_told():
            dead = self.monitor.dead if self.monitor is not None else -1
            which = f"rank {dead}" if dead >= 0 else "another process"
            self.say(f"rank {self.rank}: {reason or f'{which} of this run has ended; its own last lines may say why'}")

    def is_told(self) -> bool:
        """Whether the process that is gone has said why."""
        return self.hears_of_peer_loss() and self.monitor is not None and self.monitor.is_told

    def hears_of_peer_loss(self, seconds: float = HEARING) -> bool:
        """Whether another process is gone; the watch may hear of it a moment later than a collective call."""
        return self.monitor is not None and self.monitor.heard.wait(seconds)

    def say(self, message: str) -> None:
        """Print an error; and how to go on, where no launcher of ours will say so, once."""
        lines = [f"error: {message}"]
        explained = is_explained(of_resume_hint=True)
        if self.begun and self.resume_hint is not None and not explained and self.count("resume hint") <= 1:
            lines.append(self.resume_hint())
        print("\n".join(lines), file=sys.stderr, flush=True)

    def count(self, key: str) -> int:
        """Count up; how often it has been, over all processes; 0 where the store is gone with the main process."""
        try:
            return int(self.store.add(f"phi3v/{key}", 1)) if self.store is not None else 0
        except (RuntimeError, OSError):
            return 0

    def stop(self, *signal_and_frame: object) -> NoReturn:
        """torchrun, or a scheduler, ends this process: it may be the last one that can say how to go on."""
        self.report_peer_loss("stopped by SIGTERM")
        raise SystemExit(FOLLOWED)

    def lost(self) -> NoReturn:
        """From the watch, on a thread of its own: the main thread may wait for ever for the one that is gone."""
        time.sleep(GRACE)
        self.report_peer_loss()
        sys.stderr.flush()
        os._exit(FOLLOWED)


@contextmanager
def report_rank_errors(group: Group, resume_hint: Callable[[], str] | None = None) -> Iterator[RankErrors]:
    """Around everything that one process does after it has met the others.

    A mistake is said with its rank, by whoever makes it. When a process dies, the others find the connection closed:
    that is said by the first one to see it, and only where no other has said why.
    """
    ranks = RankErrors(group, resume_hint)
    if group.store is None:
        yield ranks
        return
    monitor = ranks.monitor = PeerMonitor(group.rank_info, group.store, ranks.lost)
    if LAUNCHED not in os.environ:
        signal.signal(signal.SIGTERM, ranks.stop)
    word = SAID
    try:
        yield ranks
        word = BYE
    except UserError as error:
        ranks.fail(str(error), PROBLEMS if ranks.begun else COULD_NOT_RUN)
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
    """Whether an error comes from exchanging data with other processes; gloo and NCCL say it in words only."""
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
