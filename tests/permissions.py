"""Permissions that bind the test's own process, although root passes all of them."""

import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_VERSION_3 = 0x20080522
_OVERRIDES = 1 << 1 | 1 << 2  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


@contextmanager
def bound_by_permissions() -> Iterator[None]:
    """Drop this thread's rights to pass over file modes; skips the test where that cannot be done."""
    if os.geteuid() != 0:
        yield
        return
    libc = ctypes.CDLL(None, use_errno=True)
    header = ctypes.create_string_buffer(struct.pack("=Ii", _VERSION_3, 0))
    before = ctypes.create_string_buffer(24)
    if libc.capget(header, before) != 0:
        pytest.skip("capabilities cannot be read")
    effective, *rest = struct.unpack("=6I", before.raw[:24])
    dropped = ctypes.create_string_buffer(struct.pack("=6I", effective & ~_OVERRIDES, *rest))
    if libc.capset(header, dropped) != 0:
        pytest.skip("capabilities cannot be dropped")
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0
