"""Conversations rendered by the chat template of a model directory, within limits.

A template is a program of whoever made the directory. transformers renders it in Jinja's sandbox, which reads no files,
but lets it loop for ever and use any amount of memory. So a child of this process renders it, with little time and
memory; the child is a fork, since it needs what is already imported, and runs nothing but Jinja.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock
from typing import Any, NoReturn

SECONDS = 2
"""CPU time for one conversation."""

MEMORY = 1 << 28
"""Bytes of memory for one conversation, beside what this process has."""

MAX_TEXT = 1 << 26
"""Bytes of a rendered conversation, as JSON."""

TOO_MUCH = f"it needs over {SECONDS} s or {MEMORY >> 20} MB for one conversation"


class TemplateError(ValueError):
    """A chat template cannot be rendered; the message is the reason."""


def render(template: str, messages: Sequence[Mapping[str, Any]], *, generation: bool, names: Mapping[str, Any]) -> str:
    """A conversation as a chat template writes it, as by `apply_chat_template(tokenize=False)`.

    Args:
        generation: end with the generation prompt.
        names: further variables of the template, such as a tokenizer's `special_tokens_map`.

    Raises:
        TemplateError: whatever the template raises, or it exceeds the limits.
    """
    if template in _refused:
        raise TemplateError(TOO_MUCH)
    request = {"template": template, "messages": messages, "generation": generation, "names": names}
    with _lock:
        answer = _renderer().ask(json.dumps(request, default=str).encode())
    if answer is None:
        _refused.add(template)
        raise TemplateError(TOO_MUCH)
    reply: dict[str, str] = json.loads(answer)
    if "error" in reply:
        raise TemplateError(reply["error"])
    return reply["text"]


class _Renderer:
    """A child that renders, and the pipe to it."""

    def __init__(self) -> None:
        import transformers.utils.chat_template_utils  # noqa: F401 - before the fork, so that it costs the child nothing

        self.owner = os.getpid()
        self.pipe, other = Pipe()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        self.child = os.fork()
        if self.child == 0:
            _serve(other)
        other.close()

    def ask(self, request: bytes) -> bytes | None:
        """The child's answer; None if it has ended."""
        try:
            self.pipe.send_bytes(request)
            return self.pipe.recv_bytes(MAX_TEXT)
        except (EOFError, OSError):
            self.end()
            return None
        except BaseException:  # the answer to this request must not be taken for that to the next one
            self.end()
            raise

    def end(self) -> None:
        """End the child."""
        global _current
        _current = None
        self.pipe.close()
        os.kill(self.child, signal.SIGKILL)
        os.waitpid(self.child, 0)


_lock = Lock()
_current: _Renderer | None = None
_refused: set[str] = set()


def _renderer() -> _Renderer:
    global _current
    if _current is None or _current.owner != os.getpid():
        _current = _Renderer()
    return _current


def _serve(pipe: "Connection[Any, Any]") -> NoReturn:
    """Answer requests until the other end is closed."""
    try:
        _keep_only(pipe.fileno())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # it ends with its parent, which decides when to stop
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _limit_memory()
        while True:
            request = json.loads(pipe.recv_bytes())
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            answer = _answer(request)
            signal.setitimer(signal.ITIMER_PROF, 0)
            pipe.send_bytes(answer)
    finally:
        os._exit(0)


def _answer(request: dict[str, Any]) -> bytes:
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        texts, _ = render_jinja_template(
            conversations=[request["messages"]],
            chat_template=request["template"],
            add_generation_prompt=request["generation"],
            **request["names"],
        )
        answer = json.dumps({"text": texts[0]}).encode()
    except MemoryError:
        answer = json.dumps({"error": TOO_MUCH}).encode()
    except Exception as error:  # a template can raise anything
        answer = json.dumps({"error": str(error)[:120]}).encode()
    return answer if len(answer) <= MAX_TEXT else json.dumps({"error": TOO_MUCH}).encode()


def _keep_only(descriptor: int) -> None:
    """Close what was open in the parent (locks, sockets), so that nothing is held when it ends."""
    null = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(null, number)
    os.closerange(3, descriptor)
    os.closerange(descriptor + 1, os.sysconf("SC_OPEN_MAX"))


def _limit_memory() -> None:
    statm = Path("/proc/self/statm")
    if statm.exists():
        used = int(statm.read_text(encoding="ascii").split()[0]) * os.sysconf("SC_PAGE_SIZE")
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = used + MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
