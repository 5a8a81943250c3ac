"""Pydantic fields as command-line options: a converter's options, the settings of a run.

Values are parsed by the model, not by the command line's parser, so that an invalid one gives a one-sentence error.
"""

import inspect
from collections.abc import Callable, Mapping
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from phi3v_data.errors import UserError


def with_options(function: Callable[..., Any], model: type[BaseModel], panel: str, owner: str) -> Callable[..., Any]:
    """Turn `function(**common, options={...})` into a Typer function that also takes the model's fields as options.

    Raises:
        UserError: a field has the name of an option that all converters have.
    """
    signature = inspect.signature(function)
    common = {name: parameter for name, parameter in signature.parameters.items() if name != "options"}
    if taken := sorted(common.keys() & model.model_fields.keys()):
        raise UserError(
            f"{owner} has an option {taken[0]!r}, which is an option of convert itself; rename it in {model.__name__}"
        )
    own = [option_parameter(name, field, panel) for name, field in model.model_fields.items()]

    def run(**values: Any) -> None:
        given = {name: values.pop(name) for name in model.model_fields}
        options = {
            name: _read(value, model.model_fields[name].annotation)
            for name, value in given.items()
            if value is not None and value != []
        }
        function(**values, options=options)

    run.__signature__ = signature.replace(parameters=[*common.values(), *own])  # type: ignore[attr-defined]
    run.__annotations__ = {name: parameter.annotation for name, parameter in run.__signature__.parameters.items()}  # type: ignore[attr-defined]
    run.__doc__ = function.__doc__
    return run


def describe_fields(model: type[BaseModel]) -> dict[str, dict[str, Any]]:
    """Map the name of each field to its type in words, default and help, for lists of options."""
    return {
        name: {
            "type": _words(field.annotation),
            "default": None if field.is_required() else _default(field),
            "required": field.is_required(),
            "help": field.description or "",
        }
        for name, field in model.model_fields.items()
    }


def option_parameter(name: str, field: FieldInfo, panel: str) -> inspect.Parameter:
    """A Typer option for one field: None if not given; an option for a list may be repeated."""
    inner = _without_none(field.annotation)
    is_flag = inner is bool
    is_list = get_origin(inner) in (list, tuple, set, frozenset)
    value: Any = bool | None if is_flag else list[str] | None if is_list else str | None
    default = None if field.is_required() else _default(field)
    text = field.description or ""
    if field.is_required():
        text += " [required]"
    elif default is not None and default is not False and default not in ("", [], {}):
        text += f" [default: {', '.join(map(str, default)) if isinstance(default, list) else default}]"
    option = typer.Option(
        help=text.strip().replace("[", r"\["),
        metavar=None if is_flag else _words(inner),
        rich_help_panel=panel,
        show_default=False,
    )
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[value, option])


def _read(value: Any, annotation: Any) -> Any:
    """Convert a command-line value to a field's type; an invalid one is returned as it is, for the model to reject."""
    inner = _without_none(annotation)
    if isinstance(value, list):
        element = get_args(inner)[0] if get_args(inner) else str
        return [_read(each, element) for each in value]
    if get_origin(inner) is Literal:
        return next((choice for choice in get_args(inner) if str(choice) == value), value)
    if isinstance(value, str) and inner is not str:
        try:
            return TypeAdapter(inner).validate_strings(value)
        except ValidationError:
            return value
    return value


def _default(field: FieldInfo) -> Any:
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return None
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple | set | frozenset):
        return list(value)
    return value if isinstance(value, str | int | float | bool | list | dict | NoneType) else str(value)


def _without_none(annotation: Any) -> Any:
    if get_origin(annotation) in (Union, UnionType):
        inner = [each for each in get_args(annotation) if each is not NoneType]
        if len(inner) == 1:
            return inner[0]
    return annotation


def _words(annotation: Any) -> str:
    """The type as shown in help: `INTEGER`, `[floor|center]`."""
    inner = _without_none(annotation)
    if get_origin(inner) is Literal:
        return f"[{'|'.join(str(value) for value in get_args(inner))}]"
    if get_origin(inner) in (list, tuple, set, frozenset):
        return _words(get_args(inner)[0]) if get_args(inner) else "TEXT"
    if isinstance(inner, type) and issubclass(inner, Enum):
        return f"[{'|'.join(str(member.value) for member in inner)}]"
    names: Mapping[Any, str] = {int: "INTEGER", float: "FLOAT", str: "TEXT", bool: "FLAG"}
    return names.get(inner, getattr(inner, "__name__", "TEXT").upper())
