"""Shared parts of the command lines: option names, lazy loading, errors, exit codes.

    COMMANDS = {"validate": CommandSpec("phi3v_data.cli.validate:validate", "Check a directory.")}
    def main() -> None:
        run(make_group("phi3v-data", "Purpose of the program.", COMMANDS))

A command is a plain function with Typer annotations; its module is imported only when the command runs, so that the
group's help is as fast as that of an empty Typer application. Exit codes: 0 success, 1 problems found, 2 could not
run, 130 interrupted, 141 broken pipe.

This module does not import click: recent Typer releases bundle their own copy.
"""

import errno
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from inspect import cleandoc
from shutil import get_terminal_size
from typing import IO, Annotated, Any, ClassVar, NoReturn, TypeAlias, cast

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from phi3v_data.cli.usage_errors import UsageError, unexpected, unknown_command, usage_sentence
from phi3v_data.errors import BROKEN_PIPE, COULD_NOT_RUN, GOOD, INTERRUPTED, OwnWarning, UserError, how_to_install
from phi3v_data.messages import MAX_ERROR, short
from phi3v_data.streams import PrintableStream, drop_output, open_streams, printable_streams

Quiet: TypeAlias = Annotated[bool, typer.Option("--quiet", "-q", help="Print only results and errors, no progress.")]
"""The `--quiet` of every command: `quiet: Quiet = False`, passed on to `phi3v_data.console`."""

OPTIONAL_PACKAGES = {
    "accelerate": "train",
    "av": "video",
    "bitsandbytes": "qlora",
    "cv2": "video",
    "datasets": "hub",
    "decord": "decord",
    "deepspeed": "deepspeed",
    "flash_attn": "flash",
    "fastapi": "serve",
    "huggingface_hub": "hub",
    "matplotlib": "train",
    "peft": "train",
    "prometheus_client": "serve",
    "pyarrow": "hub",
    "ray": "ray",
    "safetensors": "train",
    "starlette": "serve",
    "tokenizers": "hub",
    "torch": "train",
    "transformers": "train",
    "uvicorn": "serve",
}
"""Importable name of each optional package -> the extra that installs it."""

_usual_format = warnings.formatwarning

TABLE_COLUMNS = 128
"""Narrowest terminal in which Rich's table does not cut the longest option names."""

_OBSTACLES = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENAMETOOLONG,
}


@dataclass(frozen=True, slots=True)
class CommandSpec:
    """Import path of a command and its line in the group's help.

    `target` is `module:name` of a function, of a `typer.Typer`, or of a ready command object.
    """

    target: str
    help: str


def command_info(
    *, examples: Sequence[str], interrupted: str = "Run the same command again."
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Attach to a command function the examples for its help and the sentence shown after Ctrl-C."""

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        function.__dict__.update(examples=tuple(examples), interrupted=interrupted)
        return function

    return mark


def snake_case(token: str) -> str:
    """The option name with `_` for `-`: Typer's `token_normalize_func`, so that both spellings work."""
    return token.replace("-", "_")


CONTEXT_SETTINGS: dict[str, Any] = {"token_normalize_func": snake_case, "help_option_names": ["-h", "--help"]}


class Command(TyperCommand):
    """A command whose help shows `--snake_case` and whose options also work in kebab-case."""

    interrupted: str = "Run the same command again."
    with_options_of: str = ""
    """The words after the command's name that decide which options it has."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        ours = {**CONTEXT_SETTINGS, "allow_extra_args": True}  # refused in `parse_args`
        kwargs["context_settings"] = {**ours, **(kwargs.get("context_settings") or {})}
        super().__init__(*args, **kwargs)
        for param in self.params:
            if isinstance(param, TyperOption) and param.name:
                _show_snake_case(param, param.name)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Print the help: Rich's tables, or plain lists in a terminal too narrow for them."""
        if get_terminal_size().columns < TABLE_COLUMNS:
            self.rich_markup_mode = None
            self.help, self.epilog = _plain(self.help), _plain(self.epilog)
        super().format_help(ctx, formatter)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write plain lists, one for each panel; a name too long for its column gets its own line."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                usual = "Arguments" if param.param_type_name == "argument" else "Options"
                panel = getattr(param, "rich_help_panel", None) or usual
                panels.setdefault(panel, []).append((record[0], _plain(record[1]) or ""))
        for panel, records in panels.items():
            with formatter.section(panel):
                formatter.write_dl(records)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse; what cannot be parsed is one sentence on stderr and exit code 2."""
        words = list(args)
        try:
            rest: list[str] = super().parse_args(ctx, args)
        except UsageError as error:
            fail(usage_sentence(error, self, ctx, words))
        if rest and not ctx.resilient_parsing:
            fail(unexpected(ctx, rest))
        return rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command with stdout and stderr that escape control characters."""
        with printable_streams():
            return super().invoke(ctx)


def _show_snake_case(option: TyperOption, name: str) -> None:
    """Rename options that Typer derived itself; names given explicitly stay (`--no-tqdm`)."""
    kebab = name.replace("_", "-")
    option.opts = [f"--{name}" if opt == f"--{kebab}" else opt for opt in option.opts]
    option.secondary_opts = [f"--no_{name}" if opt == f"--no-{kebab}" else opt for opt in option.secondary_opts]


def make_command(function: Callable[..., Any], *, name: str, help: str = "", cls: type[Command] = Command) -> Any:  # noqa: A002 - Typer's own word
    """Build the command of `function`; its help text is its docstring (or `help`) and its examples."""
    app = typer.Typer(add_completion=False, rich_markup_mode="rich")
    examples = getattr(function, "examples", ())
    epilog = "\n\n".join(["Examples:", *(_literal(line) for line in examples)]) if examples else None
    app.command(name, cls=cls, help=_paragraphs(function.__doc__ or help), epilog=epilog)(function)
    command = typer.main.get_command(app)
    command.interrupted = getattr(function, "interrupted", Command.interrupted)  # type: ignore[attr-defined]  # ours
    return command


def _paragraphs(text: str) -> str:
    """The docstring with each paragraph on one line, so that help wraps it to the terminal."""
    return "\n\n".join(_literal(" ".join(paragraph.split())) for paragraph in cleandoc(text).split("\n\n"))


def _literal(text: str) -> str:
    """The text with brackets escaped, so that Rich does not read them as markup."""
    return text.replace("[", r"\[")


def _plain(text: str | None) -> str | None:
    """The text before `_literal`, for output without markup."""
    return text and text.replace(r"\[", "[")


class LazyCommand(TyperCommand):
    """Placeholder in the group's table; imports the real command to run it or to complete its arguments."""

    def __init__(self, name: str, spec: CommandSpec) -> None:
        super().__init__(name, help=spec.help, short_help=spec.help, rich_markup_mode="rich")
        self.spec = spec
        self.loaded: Any = None

    def load(self) -> Any:
        """The real command, built once."""
        if self.loaded is None:
            module, _, attribute = self.spec.target.partition(":")
            target = getattr(import_module(module), attribute)
            if isinstance(target, typer.Typer):
                self.loaded = typer.main.get_command(target)
            elif hasattr(target, "make_context"):
                self.loaded = target
            else:
                self.loaded = make_command(target, name=str(self.name), help=self.spec.help)
        return self.loaded

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Parse with the real command; the context returned is bound to it, so that it also runs."""
        return self.load().make_context(*args, **kwargs)


class Group(TyperGroup):
    """The commands of one program; reports an error as one line on stderr and an exit code."""

    table: ClassVar[Mapping[str, CommandSpec]] = {}
    aliases: ClassVar[Mapping[str, str]] = {}

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name, spec in self.table.items():
            self.commands.setdefault(name, LazyCommand(name, spec))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the program's own options; without any word Typer prints the help."""
        words = list(args)
        try:
            rest: list[str] = super().parse_args(ctx, args)
        except UsageError as error:
            if not words:
                raise
            fail(usage_sentence(error, self, ctx, words))
        return rest

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command; for an unknown one, suggest similar names."""
        name = snake_case(args[0])
        if name in self.aliases:
            name = self.aliases[name]
            args = [name, *args[1:]]
        if not name.startswith("_") and name not in self.commands and not ctx.resilient_parsing:
            fail(unknown_command(ctx, args[0], list(self.commands)))
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; errors of the user or the environment exit with 2, without a traceback."""
        words = [*getattr(ctx, "_protected_args", ()), *ctx.args]
        try:
            return super().invoke(ctx)
        except UserError as error:
            for note in getattr(error, "__notes__", ()):
                print(f"note: {note}", file=sys.stderr)
            fail(as_typed(str(error), words))
        except KeyboardInterrupt:
            command = self.commands.get(ctx.invoked_subcommand or "")
            loaded = getattr(command, "loaded", None)
            print(f"\nStopped. {getattr(loaded, 'interrupted', Command.interrupted)}", file=sys.stderr)
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            raise typer.Exit(BROKEN_PIPE) from None
        except ModuleNotFoundError as error:
            package = (error.name or "").partition(".")[0]
            if package not in OPTIONAL_PACKAGES:
                raise
            extra = OPTIONAL_PACKAGES[package]
            fail(f"this command needs the package {package!r}, which is not installed: {how_to_install(extra)}")
        except OSError as error:
            if error.errno not in _OBSTACLES or error.filename is None:  # without a name it is stdout: see `run`
                raise
            fail(as_typed(f"{os.fsdecode(error.filename)}: {error.strerror}", words))


def as_typed(message: str, words: Sequence[str]) -> str:
    """The message with paths as the user typed them, not absolute."""
    pieces = {piece for word in words for piece in (word, word.partition("=")[2]) if piece}
    paths = {os.path.abspath(piece): piece for piece in pieces if piece[0] not in "-/~"}
    for path in sorted(paths, key=len, reverse=True):
        message = message.replace(path, paths[path])
    return message


def fail(message: str) -> NoReturn:
    """Print on stderr why the command could not run, and exit with code 2."""
    lines = "\n".join(short(line, MAX_ERROR) for line in message.split("\n"))
    print(f"error: {lines}", file=sys.stderr)
    raise typer.Exit(COULD_NOT_RUN)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"phi3v {version('phi3v')}")
        raise typer.Exit()


def make_group(name: str, help: str, commands: Mapping[str, CommandSpec], aliases: Mapping[str, str] = {}) -> Any:  # noqa: A002 - Typer's own word
    """Build a program from its table of commands; `aliases` are alternative names, not shown in help."""
    group_class = type("Group", (Group,), {"table": commands, "aliases": aliases})
    app = typer.Typer(
        name=name,
        help=help,
        cls=group_class,
        no_args_is_help=True,
        rich_markup_mode="rich",
        context_settings=CONTEXT_SETTINGS,
    )

    @app.callback()
    def root(
        version: Annotated[
            bool, typer.Option("--version", help="Show the version.", callback=_print_version, is_eager=True)
        ] = False,
    ) -> None:
        pass

    return typer.main.get_command(app)


def run(group: Any, args: Sequence[str] | None = None) -> NoReturn:
    """Run a program and end the process with its exit code.

    A bug in phi3v prints its traceback and exits with 2, never with 1, which means "problems found".
    """
    open_streams()
    warnings.formatwarning = format_warning
    try:
        try:
            group.main(args=args, prog_name=group.name)
        except SystemExit as stop:
            if isinstance(stop.__context__, BrokenPipeError):  # rich and click make it a 1: "problems found"
                raise stop.__context__ from None
            code = stop.code if isinstance(stop.code, int) else GOOD if stop.code is None else COULD_NOT_RUN
        else:
            code = GOOD
        code = _flush(code)
    except BrokenPipeError:
        drop_output()
        code = BROKEN_PIPE
    except KeyboardInterrupt:  # before or after the command itself
        code = INTERRUPTED
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OBSTACLES and error.filename is None:
            sys.exit(_unwritten(error))
        from traceback import print_exc

        print_exc(file=cast(IO[str], PrintableStream(sys.stderr)))
        print("error: this is a bug in phi3v, not in your data; please report the lines above", file=sys.stderr)
        code = COULD_NOT_RUN
    sys.exit(code)


def format_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning as the commands print it: one of phi3v is a sentence, others are as usual."""
    if issubclass(category, OwnWarning):
        return f"warning: {message}\n"
    return _usual_format(message, category, filename, lineno, line)


def _flush(code: int) -> int:
    """Flush stdout; return the exit code of a run that would have ended with `code`."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        if code != COULD_NOT_RUN:
            return _unwritten(error)
        drop_output()  # the error has been printed
    return code


def _unwritten(error: OSError) -> int:
    drop_output()
    print(f"error: the output cannot be written: {error.strerror}", file=sys.stderr)
    return COULD_NOT_RUN
