"""A store of objects on this machine: moto's S3 server, a process of its own, and a proxy that fails on demand."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

BUCKET = "sets"

KEYS = {"AWS_ACCESS_KEY_ID": "test-id", "AWS_SECRET_ACCESS_KEY": "test-secret", "AWS_DEFAULT_REGION": "us-east-1"}


@dataclass(frozen=True)
class ObjectStore:
    """A running server with a bucket."""

    endpoint: str

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of a process that uses it."""
        return {**KEYS, "AWS_ENDPOINT_URL": self.endpoint}

    def client(self) -> Any:
        """boto3's client: the second way to look at the objects."""
        return _client(self.endpoint)

    def names(self, prefix: str = "") -> list[str]:
        """All keys with a prefix."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [found["Key"] for page in pages for found in page.get("Contents", ())]

    def put(self, key: str, data: bytes) -> None:
        """Write an object."""
        self.client().put_object(Bucket=BUCKET, Key=key, Body=data)

    def get(self, key: str) -> bytes:
        """Read an object."""
        data: bytes = self.client().get_object(Bucket=BUCKET, Key=key)["Body"].read()
        return data

    def put_folder(self, folder: "os.PathLike[str]", prefix: str) -> None:
        """Write the files below a folder as objects."""
        for parent, _, files in os.walk(folder):
            for name in files:
                path = os.path.join(parent, name)
                with open(path, "rb") as file:
                    self.put(f"{prefix}/{os.path.relpath(path, folder)}", file.read())


@cache
def _client(endpoint: str) -> Any:
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        region_name=KEYS["AWS_DEFAULT_REGION"],
    )


def forget_stores() -> None:
    """Forget the connections of this process, which belong to one endpoint."""
    import s3fs

    from phi3v_data.remote import store

    store._store.cache_clear()
    store._file_system.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()


def free_port() -> int:
    """A port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running_store() -> Iterator[ObjectStore]:
    """Run moto's server in a process of its own."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        env={**os.environ, "S3_UPLOAD_PART_MIN_SIZE": "256"},  # bytes, so that small objects can have parts
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        store = ObjectStore(f"http://127.0.0.1:{port}")
        wait_for(store.endpoint, process)
        store.client().create_bucket(Bucket=BUCKET)
        yield store
    finally:
        process.kill()
        process.wait()


def wait_for(endpoint: str, process: "subprocess.Popen[bytes]") -> None:
    """Wait until a server answers."""
    for _ in range(600):
        try:
            with urlopen(endpoint, timeout=5):
                return
        except (URLError, ConnectionError, TimeoutError):
            assert process.poll() is None, "the server ended"
            time.sleep(0.05)
    raise AssertionError("the server does not answer")
