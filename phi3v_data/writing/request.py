"""One call of `convert`, its arguments checked and completed."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import ValidationError

from phi3v_data.draft import Converter, Options
from phi3v_data.engine.base import EngineName
from phi3v_data.errors import UserError
from phi3v_data.messages import shown
from phi3v_data.registry import ConverterLike, find
from phi3v_data.splits import is_split_name
from phi3v_data.writing.plan import parse_split_shares

Progress: TypeAlias = Callable[[str, int, int | None], None]


@dataclass(frozen=True, slots=True)
class Request:
    """What `convert` was asked to do."""

    cls: type[Converter[Any]]
    options: Options
    out_dir: Path
    source: str
    shares: Mapping[str, float] | None
    seed: int
    limit: int | None
    plain: bool
    unlabelled: bool
    workers: int
    engine: EngineName
    overwrite: bool
    progress: Progress
    name: str


def make_request(
    converter: ConverterLike,
    source: str | Path | None,
    out_dir: str | Path,
    *,
    options: Options | Mapping[str, Any] | None,
    split: str | Mapping[str, float] | None,
    seed: int,
    limit: int | None,
    plain: bool,
    unlabelled: bool,
    workers: int | None,
    engine: EngineName,
    overwrite: bool,
    progress: Progress | None,
    name: str,
) -> Request:
    """Check what can be checked before anything is opened.

    Raises:
        UserError: an argument that cannot be.
    """
    cls = find(converter)
    request = Request(
        cls=cls,
        options=parse_options(cls, options),
        out_dir=_out_dir(out_dir),
        source=_source_spec(cls, source),
        shares=_shares(split),
        seed=seed,
        limit=_at_least(limit, 1, "limit"),
        plain=plain,
        unlabelled=unlabelled,
        workers=_workers(workers),
        engine=engine,
        overwrite=overwrite,
        progress=progress or (lambda stage, done, total: None),
        name=name,
    )
    if name and not is_split_name(name):
        raise UserError(f"--name {shown(name)} cannot start a file name; use letters, digits, _ and -")
    _check_places(request)
    if engine not in ("local", "ray"):
        raise UserError(f"engine is {engine!r}; it can be local or ray")
    return request


def parse_options(cls: type[Converter[Any]], options: Options | Mapping[str, Any] | None) -> Options:
    """A converter's options, checked.

    Raises:
        UserError: an unknown option or a wrong value.
    """
    if isinstance(options, cls.Options):
        return options
    try:
        return cls.Options.model_validate(dict(options or {}))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(piece) for piece in first["loc"]) or "options"
        if first["type"] == "extra_forbidden":
            known = ", ".join(cls.Options.model_fields) or "none"
            raise UserError(f"{cls.name} has no option {name!r}; its options are {known}") from None
        if first["type"] == "missing":
            about = cls.Options.model_fields[name].description if name in cls.Options.model_fields else ""
            raise UserError(f"{cls.name} needs the option --{name}: {about}".removesuffix(": ")) from None
        raise UserError(f"option {name} of {cls.name}: {first['msg']}, not {shown(first['input'])}") from None


def _out_dir(out_dir: str | Path) -> Path:
    if not str(out_dir):
        raise UserError("out_dir is missing: say where the dataset is to go")
    return Path(os.path.abspath(Path(out_dir).expanduser()))


def _source_spec(cls: type[Converter[Any]], source: str | Path | None) -> str:
    spec = str(source) if source is not None else cls.hub_id
    if not spec:
        raise UserError(f"{cls.name} has no source of its own; say where the data lie with --source")
    return spec


def _check_places(request: Request) -> None:
    """Refuse a source inside the output and the other way round: each run would change the other's plan."""
    source = Path(request.source).expanduser()
    if not source.exists():
        return
    inside, outside = request.out_dir.resolve(), source.resolve()
    if inside.is_relative_to(outside) or outside.is_relative_to(inside):
        raise UserError(
            f"the output {request.out_dir} and the source {request.source} lie one in the other; "
            "choose an --out_dir elsewhere"
        )


def _shares(split: str | Mapping[str, float] | None) -> Mapping[str, float] | None:
    if split is None:
        return None
    text = split if isinstance(split, str) else ",".join(f"{name}={share}" for name, share in split.items())
    return parse_split_shares(text)


def _workers(workers: int | None) -> int:
    if workers is None:
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return _at_least(workers, 0, "workers") or 0


def _at_least(value: int | None, least: int, name: str) -> int | None:
    if value is not None and value < least:
        raise UserError(f"--{name} must be at least {least}, not {value}")
    return value
