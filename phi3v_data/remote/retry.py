"""Repeats a request that failed for a reason that may pass, with a growing pause, and says so in one line."""

import json
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from phi3v_data.errors import UserError
from phi3v_data.messages import escaped, short
from phi3v_data.remote.address import without_secrets

T = TypeVar("T")

ATTEMPTS = 8
"""Requests in all: with the pauses between them, a store may be away for more than half a minute."""

LONGEST_PAUSE = 20.0
"""Seconds."""

SAID_EVERY = 30.0
"""Seconds for which a process says nothing more about a store that does not answer."""

_NO_CREDENTIALS = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError"}
)
"""Errors of botocore and google.auth, by name, as these may not be installed."""

_WRONG_SETTINGS = frozenset({"InvalidRegionError", "NoRegionError", "ParamValidationError", "OfflineModeIsEnabled"})
"""Errors of botocore and huggingface_hub that no repetition changes."""

_DENIED = (401, 403)

_FAULTS = (TypeError, AttributeError)
"""Faults of a library, which an odd answer may cause: aiobotocore fails at the checksum of an error 500."""

_FAULT_ATTEMPTS = 3

_said = -SAID_EVERY
_saying = threading.Lock()
_of_thread = threading.local()


def first_pause() -> float:
    """Seconds before the second request."""
    return 0.3


class StoreError(UserError):
    """A store did not do what was asked, and repeating it did not or would not help."""


class ChangedError(StoreError):
    """An object is not the one that was listed."""


@contextmanager
def impatiently() -> Iterator[None]:
    """Let this thread send each request once: for requests that someone else repeats if they fail."""
    _of_thread.once = True
    try:
        yield
    finally:
        _of_thread.once = False


def patiently(what: str, request: Callable[[], T], attempts: int = ATTEMPTS) -> T:
    """The result of a request, repeated while it fails for a reason that may pass.

    Args:
        what: the address of the object, for messages.
        attempts: requests in all.

    Raises:
        FileNotFoundError: there is no such object.
        StoreError: access is denied, or the last attempt failed as well.
    """
    pause = first_pause()
    attempts = 1 if getattr(_of_thread, "once", False) else attempts
    for attempt in range(1, attempts + 1):
        try:
            return request()
        except (FileNotFoundError, UserError):
            raise
        except Exception as error:
            why = _final_reason(error)
            if why and (attempt == _FAULT_ATTEMPTS or not isinstance(error, _FAULTS)):
                raise StoreError(f"{what}: {why}") from None
            reason = _described(error)
            if attempt == attempts:
                raise StoreError(
                    f"{what}: the store failed {attempts} times in a row ({reason}); run the same command again later"
                ) from None
            _say(f"{what}: the store failed ({reason}); trying again, up to {attempts} times")
        time.sleep(pause * random.uniform(0.7, 1.3))  # several processes should not return at once
        pause = min(2 * pause, LONGEST_PAUSE)
    raise AssertionError("not reached")


def _final_reason(error: Exception) -> str:
    """Why repeating a request is of no use; empty if it may be of use."""
    name = type(error).__name__
    if _is_denied(error):
        return (
            f"access is denied ({_described(error)}); the credentials come from the store's own settings (environment, "
            "profile, login)"
        )
    if name in _NO_CREDENTIALS:
        return f"no credentials ({_described(error)}); set them as the store's own tools expect them"
    if name in _WRONG_SETTINGS or _is_wrong_value(error):
        return f"the address or a setting of the store is wrong ({_described(error)}); correct it"
    if isinstance(error, (*_FAULTS, ImportError)):
        return f"the installed library of the store failed ({_described(error)})"
    return ""


def _is_denied(error: Exception) -> bool:
    """Whether it is a 401 or 403: a PermissionError of s3fs, a text or code of gcsfs, a response of huggingface_hub."""
    status = getattr(getattr(error, "response", None), "status_code", None) or getattr(error, "code", None)
    return isinstance(error, PermissionError) or status in _DENIED or str(error).startswith("Forbidden:")


def _is_wrong_value(error: Exception) -> bool:
    """Whether a library refuses an argument, and not a text that a store or a proxy has sent."""
    return isinstance(error, ValueError) and not isinstance(error, UnicodeError | json.JSONDecodeError)


def _described(error: Exception) -> str:
    text = " ".join(without_secrets(str(error)).split())
    if not text:
        text = "the answer was not complete in time" if isinstance(error, TimeoutError) else type(error).__name__
    return short(text)[:160]


def _say(line: str) -> None:
    global _said
    if not _saying.acquire(blocking=False):  # another thread is at it, or was when this process was forked
        return
    try:
        now = time.monotonic()
        if now - _said < SAID_EVERY:
            return
        _said = now
    finally:
        _saying.release()
    print(escaped(line), file=sys.stderr, flush=True)
