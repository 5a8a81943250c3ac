"""Finds converters: in `converters/`, installed by other packages, in a user's file, or passed as a class.

    find("ucf101")                     the module of that name in `converters/`, then an entry point
    find("my_docs.py:MyDocs")          a class, or a function marked by `@converter`, in a file
    find(MyDocs)                       from Python

A `ConverterRef` is the same in a form that can be sent to a worker.
"""

import ast
import inspect
import sys
import sysconfig
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, partial
from hashlib import sha256
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, TypeAlias

from phi3v_data import converters
from phi3v_data.draft import Converter
from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.user_code import MODULE_PREFIX, load_file, load_object, loading

GROUP = "phi3v_data.converters"
"""Entry point group of converters that other packages install."""

ConverterLike: TypeAlias = "str | type[Converter[Any]]"


@dataclass(frozen=True, slots=True)
class ConverterRef:
    """Reference by which a worker finds the class: `module:qualname`, or a file if there is no module to import."""

    module: str
    qualname: str
    file: str = ""
    is_main: bool = False  # the script that was started: its classes are pickled as those of `__main__`

    def load(self) -> type[Converter[Any]]:
        """The class.

        Raises:
            UserError: it cannot be imported.
        """
        if self.file:
            module = load_file(Path(self.file), option="--converter")
        else:
            with loading(f"the module {self.module} of the converter"):
                module = import_module(self.module)
        if self.is_main:
            sys.modules["__main__"] = module
        target: Any = module
        for piece in self.qualname.split("."):
            target = getattr(target, piece)
        return _as_converter(target, f"{self.file or self.module}:{self.qualname}")


@dataclass(frozen=True, slots=True)
class Found:
    """One line of `phi3v-data converters`; `problem` is the reason why an installed one cannot be used."""

    name: str
    origin: str
    summary: str
    cls: type[Converter[Any]] | None
    problem: str = ""


def find(wanted: "ConverterLike | Converter[Any]") -> type[Converter[Any]]:
    """Find the converter class for a name, a `FILE.py:NAME`, or a class.

    Raises:
        UserError: there is none, or it cannot be loaded.
    """
    if isinstance(wanted, Converter):
        return type(wanted)
    if not isinstance(wanted, str):
        return _as_converter(wanted, repr(wanted))
    file, colon, name = wanted.rpartition(":")
    if colon and file.endswith(".py"):
        return _find_in_file(Path(file), name)
    if wanted.endswith(".py"):
        return _find_in_file(Path(wanted), "")
    if (module := wanted.replace("-", "_")) in _built_in():
        return _load_built_in(module)
    for point in _entry_points():
        if point.name == wanted:
            return _load_entry_point(point)
    near = get_close_matches(wanted, names())
    hint = f"did you mean {' or '.join(near)}?" if near else f"the converters are {', '.join(names())}."
    raise NotFoundError(f"no converter {wanted!r}; {hint} For one of your own pass --converter FILE.py:NAME")


def names() -> list[str]:
    """Names of built-in and installed converters."""
    return [*_built_in(), *(point.name for point in _entry_points())]


def reference(cls: type[Converter[Any]]) -> ConverterRef | None:
    """Reference by which a worker can find a class; None if it cannot (a notebook, a class inside a function)."""
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None)
    if "<" in cls.__qualname__:
        return None
    if cls.__module__ == "__main__" or cls.__module__.startswith(MODULE_PREFIX):
        if not file or not Path(file).is_file():
            return None
        return ConverterRef("", cls.__qualname__, str(Path(file).resolve()), cls.__module__ == "__main__")
    return ConverterRef(cls.__module__, cls.__qualname__)


def all_converters(files: Iterable[str] = ()) -> list[Found]:
    """Built-in, installed and, out of `files`, local converters."""
    found = [_listed(name, "built in", partial(_load_built_in, name)) for name in _built_in()]
    for point in _entry_points():
        origin = f"installed: {point.dist.name}" if point.dist else "installed"
        found.append(_listed(point.name, origin, partial(_load_entry_point, point)))
    for file in files:
        path, _, name = file.rpartition(":") if not file.endswith(".py") else (file, "", "")
        if name:
            classes = [_find_in_file(Path(path), name)]
        else:
            classes = _classes_of(load_file(Path(path), option="--converter"))
        found += [Found(cls.name, f"{Path(path).name}:{cls.__qualname__}", summary_of(cls), cls) for cls in classes]
    return found


def _listed(name: str, origin: str, load: Callable[[], type[Converter[Any]]]) -> Found:
    try:
        cls = load()
    except UserError as error:
        return Found(name, origin, "", None, str(error))
    return Found(cls.name, origin, summary_of(cls), cls)


def source_file(cls: type[Converter[Any]]) -> str:
    """The file that defines a class; empty if there is none."""
    return getattr(sys.modules.get(cls.__module__), "__file__", None) or ""


def own_file_digest(cls: type[Any]) -> str:
    """sha256 of the file that defines a converter or a format, and of the files beside it that it imports.

    Empty for installed converters, which have a `version`, and for converters without a file. For the script that was
    started, the block under `if __name__ == "__main__":` is ignored, since it does not affect the converter.
    """
    file = source_file(cls)
    if not file or _is_installed(Path(file)):
        return ""
    folder = Path(file).resolve().parent
    digests: dict[str, str] = {}
    waiting = [Path(file).resolve()]
    while waiting:
        path = waiting.pop()
        name = path.relative_to(folder).as_posix() if digests else ""  # the file itself may be renamed
        if name in digests or not path.is_file() or _is_installed(path):
            continue
        content, imported = _parsed(path.read_bytes())
        digests[name] = sha256(content).hexdigest()
        for level, module in imported:
            start = path.parents[level - 1] if 0 < level <= len(path.parents) else folder
            place = start / module.replace(".", "/")
            if place.is_relative_to(folder):
                waiting += [place.with_suffix(".py"), place / "__init__.py"]
    return sha256("\n".join(f"{name} {digests[name]}" for name in sorted(digests)).encode()).hexdigest()


def _is_installed(path: Path) -> bool:
    return any(path.resolve().is_relative_to(folder) for folder in _installed())


@cache
def _installed() -> tuple[Path, ...]:
    """Folders of installed packages, and of this one."""
    folders = {sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "platstdlib")}
    return (Path(__file__).resolve().parent, *(Path(folder).resolve() for folder in sorted(folders)))


def _parsed(content: bytes) -> tuple[bytes, set[tuple[int, str]]]:
    """A Python file without its `if __name__ == "__main__":`, and the modules that the rest imports.

    Each is a name behind so many dots.
    """
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # compiled
        return content, set()
    lines = content.splitlines(keepends=True)
    imported: set[tuple[int, str]] = set()
    for node in reversed(tree.body):
        if isinstance(node, ast.If) and ast.unparse(node.test) in _MAIN_TESTS:
            del lines[node.lineno - 1 : node.end_lineno]
            tree.body.remove(node)
    for each in ast.walk(tree):
        if isinstance(each, ast.Import):
            imported.update((0, alias.name) for alias in each.names)
        elif isinstance(each, ast.ImportFrom):
            names = (f"{each.module}." if each.module else "") + "{}"
            imported.update((each.level, names.format(alias.name)) for alias in each.names)
            imported.add((each.level, each.module or ""))
    return b"".join(lines), imported


_MAIN_TESTS = ("__name__ == '__main__'", "'__main__' == __name__")


def summary_of(cls: type[Converter[Any]]) -> str:
    """The first line of a class's docstring."""
    return (inspect.getdoc(cls) or "").partition("\n")[0] if cls.__doc__ else ""


def _as_converter(target: Any, where: str) -> type[Converter[Any]]:
    if not isinstance(target, type) or not issubclass(target, Converter):
        raise UserError(
            f"{where} is not a converter; subclass phi3v_data.Converter, or decorate a generator function with "
            "@phi3v_data.converter('name')"
        )
    name = getattr(target, "name", None)
    if not isinstance(name, str) or not name:
        raise UserError(f"{where} has no name; write name = 'my-docs' in the class")
    return target


def _find_in_file(path: Path, name: str) -> type[Converter[Any]]:
    module = load_file(path, option="--converter")
    classes = _classes_of(module)
    named = {cls.__qualname__: cls for cls in classes} | {cls.name: cls for cls in classes if getattr(cls, "name", "")}
    if not name:
        if len(classes) == 1:
            return _as_converter(classes[0], str(path))
        raise UserError(
            f"{path} contains {len(classes)} converters; choose one with --converter FILE.py:NAME"
            + (f", where NAME is one of {', '.join(cls.__qualname__ for cls in classes)}" if classes else "")
        )
    target = getattr(module, name, None) or named.get(name)
    if target is None:
        known = ", ".join(cls.__qualname__ for cls in classes) or "no converters"
        raise NotFoundError(f"{path} has no {name!r}; it contains {known}")
    return _as_converter(target, f"{path}:{name}")


def _classes_of(module: ModuleType) -> list[type[Converter[Any]]]:
    return [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Converter) and value.__module__ == module.__name__
    ]


@cache
def _built_in() -> tuple[str, ...]:
    """Names of the modules in `converters/`, in alphabetical order."""
    return tuple(sorted(found.name for found in iter_modules(converters.__path__) if not found.ispkg))


def _load_built_in(name: str) -> type[Converter[Any]]:
    where = f"{converters.__name__}.{name}"
    with loading(f"the converter {name!r}"):
        module = import_module(where)
    found = _classes_of(module)
    if len(found) != 1 or getattr(found[0], "name", "").replace("-", "_") != name:
        those = ", ".join(str(getattr(each, "name", each.__qualname__)) for each in found) or "none"
        raise UserError(
            f"{where} (which defines {those}) must define one converter, whose name is that of the module: {name}"
        )
    return found[0]


@cache
def _entry_points() -> tuple[EntryPoint, ...]:
    return tuple(point for point in entry_points(group=GROUP) if point.name.replace("-", "_") not in _built_in())


def _load_entry_point(point: EntryPoint) -> type[Converter[Any]]:
    return _as_converter(load_object(point, f"the installed converter {point.name!r}"), point.value)
