"""A command line that Typer's parser refuses, as one sentence that says what to do.

The values are read again from the words that were typed, as neither Typer's errors nor their texts are the same in all
releases; their classes are private but for `BadParameter`, so they are told apart by name.
"""

import inspect
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated, Any, get_args

import typer

from phi3v_data.messages import shown
from phi3v_data.wrong_values import refusal

UsageError: type[Exception] = typer.BadParameter.__bases__[0]

_ALIKE = 0.8
"""Least likeness (of difflib) of an option that is suggested for an unknown one."""


def usage_sentence(error: Exception, command: Any, ctx: Any, words: Sequence[str]) -> str:
    """The sentence for a `UsageError` that the parser of `command` raised for these words."""
    name, option = getattr(error, "option_name", ""), getattr(error, "param", None)
    match type(error).__name__:
        case "NoSuchOption":
            typed = _as_typed(name, words)
            options = [param for param in command.params if param.param_type_name == "option"]
            known = [opt for param in options for opt in (*param.opts, *param.secondary_opts)]
            return f"no option {shown(typed)} of '{_called(ctx)}'{_suggestion(ctx, typed, known, _ALIKE)}"
        case "BadOptionUsage":
            flags = [opt for param in command.params if getattr(param, "is_flag", False) for opt in param.opts]
            return f"{name} takes no value{see(ctx)}" if name in flags else f"{name} needs a value{see(ctx)}"
        case "MissingParameter":
            given = _given(command, ctx, words)
            missing = [_with_value(param) for param in command.params if param.required and not given.get(param.name)]
            needed = " and ".join([", ".join(missing[:-1]), missing[-1]] if missing[1:] else missing)
            return f"'{_called(ctx)}' needs {needed}{see(ctx)}"
        case "BadParameter" if option is not None:
            if sentence := _wrong_value(command, option, _given(command, ctx, words).get(option.name)):
                return sentence + see(ctx)
    message = str(getattr(error, "message", error)).rstrip(".")
    return message[:1].lower() + message[1:] + see(ctx)


def unexpected(ctx: Any, words: Sequence[str]) -> str:
    """The sentence for words that no argument of the command takes."""
    return f"'{_called(ctx)}' has no place for {' '.join(map(shown, words))}{see(ctx)}"


def unknown_command(ctx: Any, name: str, known: Sequence[str]) -> str:
    """The sentence for a command that the program does not have."""
    return f"no command {shown(name)}{_suggestion(ctx, name, known)}"


def see(ctx: Any) -> str:
    """Where the options of the command are explained, as the end of a sentence."""
    return f"; see '{_called(ctx)} --help'"


def _called(ctx: Any) -> str:
    """The command as it is called, with the converter whose options it has: `phi3v-data convert ucf101`."""
    return " ".join(filter(None, (ctx.command_path, getattr(ctx.command, "with_options_of", ""))))


def _suggestion(ctx: Any, name: str, known: Sequence[str], cutoff: float = 0.6) -> str:
    names = {_bare(each): each for each in known}
    near = [shown(names[each]) for each in get_close_matches(_bare(name), names, cutoff=cutoff)]
    return f"; did you mean {' or '.join(near)}? See '{_called(ctx)} --help'." if near else see(ctx)


def _bare(word: str) -> str:
    return word.lstrip("-").replace("-", "_")


def _as_typed(name: str, words: Sequence[str]) -> str:
    """The option as it was typed: the parser names `--a_b` for `--a-b`, and `-a` for `-abc`."""
    for word in words:
        typed = word.partition("=")[0]
        if _bare(typed) == _bare(name) or (word[:1] == "-" != word[1:2] and len(name) == 2 and name[1] in word):
            return typed
    return name


def _given(command: Any, ctx: Any, words: Sequence[str]) -> dict[str, Any]:
    """The values that were typed, by the name of their parameter."""
    given: dict[str, Any] = command.make_parser(ctx).parse_args(args=list(words))[0]
    return given


def _wrong_value(command: Any, param: Any, value: Any) -> str:
    """Why a value does not have the type of its parameter; empty if nothing is wrong with it."""
    from pydantic import Field, TypeAdapter, ValidationError

    annotation = inspect.signature(command.callback).parameters[param.name].annotation
    kind, info = get_args(annotation)
    checked: Any = Annotated[kind, Field(ge=info.min, le=info.max)]
    try:
        TypeAdapter(checked).validate_strings(value)
    except ValidationError as error:
        return refusal(_name(param), error.errors()[0])
    return ""


def _name(param: Any) -> str:
    return str(param.opts[0] if param.param_type_name == "option" else param.metavar or param.name.upper())


def _with_value(param: Any) -> str:
    """An option with the word for its value: `--out PATH`."""
    name = _name(param)
    return name if param.metavar in (None, name) else f"{name} {param.metavar}"
