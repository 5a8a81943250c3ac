"""Loads Python files of the user: converters and metrics."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.files import name_digest

MODULE_PREFIX = "phi3v_data_user_"
"""Prefix of the names of modules loaded from a file."""


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
    try:
        spec.loader.exec_module(module)
    except UserError:
        del sys.modules[name]
        raise
    except Exception as error:  # the user's own code: whatever it raises is reported with its line
        del sys.modules[name]
        raise UserError(f"{option} {path}: cannot be loaded: {describe_error(error, str(resolved))}") from error
    return module


def describe_error(error: BaseException, file: str = "") -> str:
    """`ValueError: message (my_docs.py:41)`: the innermost line of `file`, else of anything, with the file's name."""
    where = ""
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{Path(error.filename).name}:{error.lineno}"
    else:
        frames = []
        trace = error.__traceback__
        while trace is not None:
            frames.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
            trace = trace.tb_next
        own = [frame for frame in frames if frame[0] == file] or frames
        if own:
            where = f"{Path(own[-1][0]).name}:{own[-1][1]}"
    text = error.msg if isinstance(error, SyntaxError) else str(error)
    message = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return f"{message} ({where})" if where else message
