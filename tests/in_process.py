"""The command lines in the test's own process, which saves starting an interpreter."""

import sys
from collections.abc import Callable
from typing import TypeAlias

import pytest

from phi3v_data.cli.app import main as phi3v_data_main

Cli: TypeAlias = Callable[..., tuple[int, str, str]]
"""`cli(*ARGS)`, or `cli(*ARGS, main=...)` for another program: exit code, stdout, stderr."""


def make_cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """For a fixture."""

    def call(*args: object, main: Callable[[], None] = phi3v_data_main) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["phi3v", *map(str, args)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return call
