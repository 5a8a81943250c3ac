"""The settings of a run as options of a command, one help panel per group."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic.fields import FieldInfo

from phi3v_data.cli.base import Command, snake_case
from phi3v_data.cli.options import option_parameter
from phi3v_data.errors import UserError
from phi3v_train.config import RunConfig
from phi3v_train.foreign_names import ALIASES, own_name
from phi3v_train.settings import resolve

PANELS = {
    "model": "Model",
    "data": "Data",
    "method": "Trained weights",
    "optim": "Steps and learning rate",
    "eval": "Evaluation",
    "output": "Output, checkpoints, logs",
    "parallel": "Devices",
}

Recipe = Annotated[
    str | None, typer.Option(metavar="NAME", help="Published settings; `phi3v-train recipes` lists them.")
]
ConfigFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="YAML file of settings; a run's config.yaml, for instance.")
]


class SettingsCommand(Command):
    """A command whose settings may be typed under the names of other trainers as well."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        settings = {**(kwargs.pop("context_settings", None) or {}), "token_normalize_func": typed_name}
        super().__init__(*args, context_settings=settings, **kwargs)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse a setting under two names, of which the parser would take the later one without a word."""
        spelled: dict[str, str] = {}
        for word in args:
            if word == "--":
                break
            name = snake_case(word.partition("=")[0].removeprefix("--")) if word.startswith("--") else ""
            own = ALIASES.get(name, name)
            if own in ALIASES.values() and spelled.setdefault(own, name) != name:
                raise UserError(f"--{spelled[own]} and --{name} are two names of one option: give one of them")
        parsed: list[str] = super().parse_args(ctx, args)
        return parsed


def typed_name(token: str) -> str:
    """Our name of an option as it was typed.

    Raises:
        UserError: another trainer's name for something that is expressed differently here.
    """
    try:
        return own_name(snake_case(token))
    except ValueError as error:
        raise UserError(str(error)) from None


def with_settings(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(..., settings=Settings)` as a command with every setting of a run, --recipe and --config as options.

    Only what was given counts as an option; Pydantic checks the values.
    """
    signature = inspect.signature(function)
    own = [parameter for name, parameter in signature.parameters.items() if name != "settings"]
    keyword = inspect.Parameter.KEYWORD_ONLY
    sources = [
        inspect.Parameter("recipe", keyword, default=None, annotation=Recipe),
        inspect.Parameter("config", keyword, default=None, annotation=ConfigFile),
    ]
    fields = [
        flag(name, field, PANELS[group]) if field.annotation is bool else option_parameter(name, field, PANELS[group])
        for group, model in RunConfig.GROUPS.items()
        for name, field in model.model_fields.items()
    ]

    def command(**values: Any) -> Any:
        recipe, config = values.pop("recipe"), values.pop("config")
        given = {parameter.name: values.pop(parameter.name) for parameter in fields}
        options = {name: value for name, value in given.items() if value not in (None, [])}
        return function(**values, settings=resolve(options, config_file=config, recipe=recipe))

    command.__signature__ = signature.replace(parameters=[*own, *sources, *fields])  # type: ignore[attr-defined]  # Typer reads it
    command.__annotations__ = {p.name: p.annotation for p in (*own, *sources, *fields)}
    command.__doc__ = function.__doc__
    command.__dict__.update({k: v for k, v in function.__dict__.items() if k in ("examples", "interrupted")})
    return command


def flag(name: str, field: FieldInfo, panel: str) -> inspect.Parameter:
    """A yes-or-no setting: `--use_lora`; where yes is the default, with its `--no_` form."""
    names = f"--{name}/--no_{name}" if field.default else f"--{name}"
    note = " [default: yes]" if field.default else ""
    text = f"{field.description or ''}{note}".replace("[", r"\[")
    option = typer.Option(names, help=text, rich_help_panel=panel, show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[bool | None, option]
    )
