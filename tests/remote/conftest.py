"""One object store for all tests of a process, and a cache of its own for each test."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from object_stores import KEYS, ObjectStore, forget_stores, running_store
from stub_store import Stub, running_stub

from phi3v_data.remote import retry

collect_ignore_glob = [] if find_spec("moto") and find_spec("s3fs") else ["test_*.py"]


@pytest.fixture(scope="session")
def server() -> Iterator[ObjectStore]:
    with running_store() as store:
        yield store


@pytest.fixture
def store(server: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """The server, which this process and its children use."""
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    forget_stores()
    return server


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """A store that fails as a test wants it; pauses are short, and what was said is forgotten."""
    with running_stub(Stub(tmp_path / "objects")) as running:
        for name, value in {**KEYS, "AWS_ENDPOINT_URL": running.endpoint, "XDG_CACHE_HOME": str(tmp_path)}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(retry, "first_pause", lambda: 0.001)
        monkeypatch.setattr(retry, "_said", -retry.SAID_EVERY)
        forget_stores()
        yield running
