"""Loads code that is not of phi3v: files of the user, and objects that other packages install."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.files import name_digest
from phi3v_data.messages import escaped

MODULE_PREFIX = "phi3v_data_user_"
"""Prefix of the names of modules loaded from a file."""

MAX_REASON = 160
"""Characters of an exception's text in a message."""

_IMPORTING = (str(Path(importlib.__file__).parent), "<frozen importlib", __file__)
"""Beginnings of the names of files that only load other code."""


@contextmanager
def loading(what: str, file: str = "") -> Iterator[None]:
    """Report any failure of loading `what` as one sentence; its code may even raise SystemExit. Ctrl-C is passed on.

    Args:
        what: subject of the sentence.
        file: the file whose line is named, see `describe_error`.

    Raises:
        UserError: `WHAT cannot be loaded: REASON`.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise
    except UserError as error:
        raise UserError(f"{what} cannot be loaded: {error}") from error
    except BaseException as error:  # whatever the code of others raises
        raise UserError(f"{what} cannot be loaded: {describe_error(error, file)}") from error


def load_object(point: EntryPoint, what: str) -> Any:
    """The object that an entry point names; `what` is the subject of the error.

    Raises:
        UserError: its module fails, even by SystemExit, or does not have it.
    """
    with loading(what):
        return point.load()


def load_file(path: Path, *, option: str) -> ModuleType:
    """Load a user's file as a module, once per process; it can import from its folder, like a script.

    Args:
        path: the file.
        option: the command line option that named it, for errors.

    Raises:
        UserError: there is no such file, or running it fails.
    """
    resolved = path.expanduser().resolve()
    if not resolved.is_file():
        raise NotFoundError(f"{option} {path}: the file does not exist")
    name = f"{MODULE_PREFIX}{name_digest(str(resolved), 12)}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, resolved)
    if spec is None or spec.loader is None:
        raise UserError(f"{option} {path}: is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(resolved.parent) not in sys.path:
        sys.path.append(str(resolved.parent))
    with loading(f"{option} {path}:", str(resolved)):
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return module


@dataclass(frozen=True, slots=True)
class ClassInFile:
    """A class of a module that `load_file` loaded, for a process that has not loaded it."""

    file: str
    name: str


def importable(cls: type) -> type | ClassInFile:
    """A class as it is pickled: itself, if its module can be imported by its name, else its file and name."""
    if not cls.__module__.startswith(MODULE_PREFIX):
        return cls
    return ClassInFile(str(sys.modules[cls.__module__].__file__), cls.__qualname__)


def by_name(cls: type | ClassInFile, settings: Mapping[str, Any]) -> Any:
    """An object of a class that `importable` gave."""
    if isinstance(cls, ClassInFile):
        cls = attrgetter(cls.name)(load_file(Path(cls.file), option="the file"))
    assert isinstance(cls, type)
    return cls(**settings)


def describe_error(error: BaseException, file: str = "") -> str:
    """`ValueError: message (my_docs.py:41)`: the innermost line of `file`, else of the code that was loaded."""
    where = ""
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{Path(error.filename).name}:{error.lineno}"
    else:
        frames = []
        trace = error.__traceback__
        while trace is not None:
            frames.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
            trace = trace.tb_next
        own = [frame for frame in frames if frame[0] == file]
        own = own or [frame for frame in frames if not frame[0].startswith(_IMPORTING)]
        if own:
            where = f"{Path(own[-1][0]).name}:{own[-1][1]}"
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    text = escaped(text if len(text) <= MAX_REASON else f"{text[:MAX_REASON]}…")
    message = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"{message} ({where})" if where else message
