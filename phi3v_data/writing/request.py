"""One call of `convert`, its arguments checked and completed."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias, TypedDict, get_type_hints

from pydantic import ValidationError

from phi3v_data.draft import Converter, Options
from phi3v_data.engine.base import ADDRESS_HELP, ENGINE_HELP, RESOURCES_HELP, EngineName, EngineSettings
from phi3v_data.engine.make_engine import check_engine
from phi3v_data.errors import UserError
from phi3v_data.messages import shown
from phi3v_data.registry import ConverterLike, find
from phi3v_data.remote.address import refuse_address
from phi3v_data.sources.missing import check_missing
from phi3v_data.splits import MAX_NAME_BYTES, is_split_name
from phi3v_data.writing.plan import parse_split_shares
from phi3v_data.wrong_values import refusal

StoreName: TypeAlias = Literal["files", "shards"]
MAX_CREDIT = 300
"""Longest origin or licence of a set, in characters."""

Progress: TypeAlias = Callable[[str, int, int | None], None]


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of a conversion: its default, and how the command line shows it."""

    default: Any
    help: str
    metavar: str = ""  # empty for a flag


class ConvertSettings(TypedDict, total=False):
    """Settings of a conversion: the keyword arguments of `convert()` and the options of `phi3v-data convert`."""

    limit: Annotated[int | None, Setting(None, "At most N samples per split.", "N")]
    split: Annotated[
        str | Mapping[str, float] | None,
        Setting(None, "Splits of your own, by group: train=0.8,val=0.1,test=0.1. Default: the source's.", "SHARES"),
    ]
    seed: Annotated[int, Setting(0, "Seed of --split.", "N")]
    plain: Annotated[bool, Setting(False, "Write only the three keys that the Phi-3.5-vision sample knows.")]
    lossy: Annotated[bool, Setting(False, "With --plain: drop the weights of turns, so that all answers are trained.")]
    unlabelled: Annotated[bool, Setting(False, "The source has no answers: the splits serve prediction only.")]
    workers: Annotated[
        int | None, Setting(None, "Processes; default: all cores. 0: in this one. Never changes the output.", "N")
    ]
    engine: Annotated[EngineName, Setting("local", ENGINE_HELP, "[local|ray]")]
    ray_address: Annotated[str | None, Setting(None, ADDRESS_HELP, "ADDRESS")]
    ray_resources: Annotated[str | None, Setting(None, RESOURCES_HELP, "LIST")]
    store: Annotated[
        StoreName,
        Setting("files", "One file per image, or tar shards, for millions of images.", "[files|shards]"),
    ]
    overwrite: Annotated[bool, Setting(False, "Start over; the old dataset stays until the new one is complete.")]
    name: Annotated[str, Setting("", "Name of the set and start of its files' names.", "NAME")]
    origin: Annotated[str, Setting("", "Where the data are from, and whom to credit, for cards.", "TEXT")]
    license: Annotated[str, Setting("", "Licence of the data, for cards: cc-by-4.0, for instance.", "NAME")]


SETTINGS: Mapping[str, Setting] = {
    name: hint.__metadata__[0] for name, hint in get_type_hints(ConvertSettings, include_extras=True).items()
}
"""The settings by name, as `ConvertSettings` lists them."""


@dataclass(frozen=True, slots=True)
class Request:
    """One call of `convert`, complete."""

    cls: type[Converter[Any]]
    options: Options
    out_dir: Path
    source: str
    progress: Progress
    shares: Mapping[str, float] | None
    seed: int
    limit: int | None
    plain: bool
    lossy: bool
    unlabelled: bool
    workers: int | None
    engine: EngineName
    ray_address: str | None
    ray_resources: str | None
    store: StoreName
    overwrite: bool
    name: str
    origin: str
    license: str

    @property
    def engine_settings(self) -> EngineSettings:
        """Where the parts are converted."""
        return {"engine": self.engine, "ray_address": self.ray_address, "ray_resources": self.ray_resources}


def make_request(
    converter: ConverterLike,
    source: str | Path | None,
    out_dir: str | Path,
    *,
    options: Options | Mapping[str, Any] | None,
    progress: Progress | None,
    settings: ConvertSettings,
) -> Request:
    """Check what can be checked before anything is opened.

    Raises:
        UserError: an argument that cannot be.
        TypeError: a setting that does not exist.
    """
    if unknown := settings.keys() - SETTINGS.keys():
        raise TypeError(f"convert() has no setting {sorted(unknown)[0]!r}; there are {', '.join(SETTINGS)}")
    values: dict[str, Any] = {name: setting.default for name, setting in SETTINGS.items()} | {**settings}
    cls, absolute = find(converter), _out_dir(out_dir)
    request = Request(
        cls=cls,
        options=parse_options(cls, options),
        out_dir=absolute,
        source=_source_spec(cls, source, absolute),
        progress=progress or (lambda stage, done, total: None),
        shares=_shares(values.pop("split")),
        limit=_at_least(values.pop("limit"), 1, "limit"),
        workers=_at_least(values.pop("workers"), 0, "workers"),
        **values,
    )
    if request.name and not is_split_name(request.name):
        raise UserError(
            f"--name {shown(request.name)} cannot start a file name; use up to {MAX_NAME_BYTES} letters, digits, _ "
            "and -"
        )
    for option, text in (("origin", request.origin), ("license", request.license)):
        if not text.isprintable() or len(text) > MAX_CREDIT:
            raise UserError(f"--{option} {shown(text)}: give one line of at most {MAX_CREDIT} characters")
    if request.lossy and not request.plain:
        raise UserError("--lossy needs --plain: only the plain form of a row loses something")
    _check_places(request)
    check_engine(**request.engine_settings)
    if request.store not in ("files", "shards"):
        raise UserError(f"store is {request.store!r}; it can be files or shards")
    if request.plain and request.store == "shards":
        raise UserError("--plain needs --store files: the loader of the Phi-3.5-vision sample reads image files only")
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
        name = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "extra_forbidden":
            known = ", ".join(cls.Options.model_fields) or "none"
            raise UserError(f"{cls.name} has no option {name!r}; its options are {known}") from None
        if first["type"] == "missing":
            about = cls.Options.model_fields[name].description if name in cls.Options.model_fields else ""
            raise UserError(f"{cls.name} needs the option --{name}: {about}".removesuffix(": ")) from None
        raise UserError(refusal(f"--{name} of {cls.name}" if name else f"options of {cls.name}", first)) from None


def _out_dir(out_dir: str | Path) -> Path:
    if not str(out_dir):
        raise UserError("out_dir is missing: give the directory to write the dataset to")
    refuse_address(out_dir, "--out_dir")
    return Path(os.path.abspath(Path(out_dir).expanduser()))


def _source_spec(cls: type[Converter[Any]], source: str | Path | None, out_dir: Path) -> str:
    spec = str(source) if source is not None else cls.hub_id
    if not spec:
        raise UserError(f"{cls.name} has no default source; give the folder, archive or Hub id with --source")
    if spec != cls.hub_id:
        check_missing(spec, out_dir)
    return spec


def _check_places(request: Request) -> None:
    """Refuse a source inside the output and the other way round: each run would change the other's plan."""
    source = Path(request.source).expanduser()
    if not source.exists():
        return
    inside, outside = request.out_dir.resolve(), source.resolve()
    if inside.is_relative_to(outside) or outside.is_relative_to(inside):
        raise UserError(
            f"the output {request.out_dir} and the source {request.source} must not be inside each other; "
            "choose an --out_dir elsewhere"
        )


def _shares(split: str | Mapping[str, float] | None) -> Mapping[str, float] | None:
    if split is None:
        return None
    text = split if isinstance(split, str) else ",".join(f"{name}={share}" for name, share in split.items())
    return parse_split_shares(text)


def _at_least(value: int | None, least: int, name: str) -> int | None:
    if value is not None and value < least:
        raise UserError(f"--{name} must be at least {least}, not {value}")
    return value
