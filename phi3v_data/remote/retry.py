"""Repeats a request that failed for a reason that may pass, with a growing pause, and says so in one line."""

import random
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from phi3v_data.errors import UserError
from phi3v_data.messages import short
from phi3v_data.remote.address import without_secrets

T = TypeVar("T")

ATTEMPTS = 8
"""Requests in all: with the pauses between them, a store may be away for about a minute."""

LONGEST_PAUSE = 20.0
"""Seconds."""

SAID_EVERY = 30.0
"""Seconds for which a process says nothing more about a store that does not answer."""

_FINAL = frozenset({"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "InvalidRegionError"})
"""Errors of botocore that no repetition changes, by name, as botocore may not be installed."""

_said = -SAID_EVERY
_saying = threading.Lock()


def first_pause() -> float:
    """Seconds before the second request."""
    return 0.3


class StoreError(UserError):
    """A store did not do what was asked, and repeating it did not or would not help."""


class ChangedError(StoreError):
    """An object is not the one that was listed."""


def patiently(what: str, request: Callable[[], T]) -> T:
    """The result of a request, repeated while it fails for a reason that may pass.

    Args:
        what: the address of the object, for messages.

    Raises:
        FileNotFoundError: there is no such object.
        StoreError: access is denied, or the last attempt failed as well.
    """
    pause = first_pause()
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return request()
        except (FileNotFoundError, UserError):
            raise
        except Exception as error:
            if why := _final_reason(error):
                raise StoreError(f"{what}: {why}") from None
            reason = _described(error)
            if attempt == ATTEMPTS:
                raise StoreError(
                    f"{what}: the store failed {ATTEMPTS} times in a row ({reason}); run the same command again later"
                ) from None
            _say(f"{what}: the store failed ({reason}); trying again, up to {ATTEMPTS} times")
        time.sleep(pause * random.uniform(0.7, 1.3))  # several processes should not return at once
        pause = min(2 * pause, LONGEST_PAUSE)
    raise AssertionError("not reached")


def _final_reason(error: Exception) -> str:
    """Why repeating a request is of no use; empty if it may be of use."""
    if isinstance(error, PermissionError):
        return (
            f"access is denied ({_described(error)}); the credentials come from the store's own settings (environment, "
            "profile, login)"
        )
    if type(error).__name__ in _FINAL:
        return f"no credentials ({_described(error)}); set them as the store's own tools expect them"
    if isinstance(error, TypeError | AttributeError | ImportError):
        return f"the installed library of the store failed ({_described(error)})"
    return ""


def _described(error: Exception) -> str:
    text = " ".join(without_secrets(str(error)).split()) or type(error).__name__
    return short(text)[:160]


def _say(line: str) -> None:
    global _said
    with _saying:
        now = time.monotonic()
        if now - _said < SAID_EVERY:
            return
        _said = now
    print(line, file=sys.stderr, flush=True)
