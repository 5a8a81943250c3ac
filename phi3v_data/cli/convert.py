"""`phi3v-data convert NAME`: a command whose options depend on the converter that is named."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any, NoReturn, get_args, get_type_hints

import typer

from phi3v_data.cli.base import Quiet, command_info, make_command, snake_case
from phi3v_data.errors import GOOD, PROBLEMS, UserError
from phi3v_data.messages import counted

INTERRUPTED = "Finished parts are kept: the same command resumes from there."


EXAMPLES = [
    "phi3v-data convert ucf101 --source UCF101_subset.tar.gz --out_dir out",
    "phi3v-data convert --converter my_docs.py:MyDocs --source docs --out_dir out",
    "phi3v-data convert ucf101 --help",
    "phi3v-data convert ucf101 --source UCF101_subset.tar.gz --out_dir out --slice 2/8",
    "phi3v-data convert --finish out",
]
SLICE_HELP = (
    "Only share K of N, next to other processes or machines that do the others; the last one to finish completes DIR."
)


def convert(
    converter_name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Name of the converter; `phi3v-data converters` lists them.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|HUB_ID",
            help="Folder, archive, s3://BUCKET/PREFIX (gs://, hf://) or Hub id. Default: the converter's own Hub id.",
        ),
    ] = None,
    out_dir: Annotated[
        str | None,
        typer.Option(
            metavar="DIR", help="Directory for the dataset. [required, except with --finish]".replace("[", r"\[")
        ),
    ] = None,
    converter: Annotated[
        str | None, typer.Option(metavar="FILE.py:NAME", help="A converter of your own, instead of NAME.")
    ] = None,
    allow_rejects: Annotated[
        int, typer.Option(metavar="N", help="Exit with 0 if at most N samples could not be converted.")
    ] = 0,
    finish: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Only complete DIR, if its slices are done, or if a convert, split, merge or clean was killed as it "
            "moved files there.",
        ),
    ] = None,
    slice: Annotated[str | None, typer.Option(metavar="K/N", help=SLICE_HELP)] = None,  # noqa: A002
    quiet: Quiet = False,
    *,
    options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> None:
    """Turn a dataset into a conversations directory.

    An interrupted conversion is resumed by the same command and gives the same bytes.

    Exit code 1: more samples than --allow_rejects could not be converted (with --slice, of the slice, or of the set if
    it completes it); DIR/rejects.jsonl says which and why.
    """
    from phi3v_data.console import progress_bar
    from phi3v_data.conversion import convert as run_conversion
    from phi3v_data.registry import find
    from phi3v_data.slices import convert_slice

    if finish is not None:
        finish_only(finish, allow_rejects, converter_name or converter or source or out_dir)
    cls = find(which(converter_name, converter))
    if out_dir is None:
        raise UserError("--out_dir is missing: give the directory to write the dataset to")
    with progress_bar(quiet=quiet) as progress:
        if slice is not None:
            part = convert_slice(cls, source, out_dir, slice, options=options, progress=progress, **settings)
        else:
            result = run_conversion(cls, source, out_dir, options=options, progress=progress, **settings)
    if slice is not None:
        report_slice(out_dir, part, allow_rejects)
    report(out_dir, result, allow_rejects)


def report(out_dir: str, result: Any, allow_rejects: int) -> NoReturn:
    """Print the result of a conversion, and exit."""
    for warning in result.warnings:
        typer.echo(f"warning: {warning}", err=True)
    for note in result.notes:
        typer.echo(f"note: {note}", err=True)
    if result.resumed:
        typer.echo(f"resumed after {counted(result.resumed, 'sample')} that were already converted", err=True)
    print(summary(out_dir, result))
    raise typer.Exit(PROBLEMS if result.rejects > allow_rejects else GOOD)


def report_slice(out_dir: str, result: Any, allow_rejects: int) -> NoReturn:
    """Print the result of a slice, and of the whole set if that is complete now, and exit."""
    for warning in result.warnings:
        typer.echo(f"warning: {warning}", err=True)
    text = f"{out_dir}: slice {result.slice}: {counted(result.samples, 'sample')}"
    if result.rejects:
        text += f", {result.rejects:,} rejected"
    if result.resumed:
        text += f", {result.resumed:,} of them converted before"
    if result.whole is not None:
        if not result.whole.already_complete:
            typer.echo(text, err=True)
        report(out_dir, replace(result.whole, resumed=0), allow_rejects)
    for note in result.notes:
        typer.echo(f"note: {note}", err=True)
    print(f"{text}; the set is not complete yet, {result.missing}")
    raise typer.Exit(PROBLEMS if result.rejects > allow_rejects else GOOD)


def finish_only(directory: str, allow_rejects: int, also: str | None) -> NoReturn:
    """Complete a directory and exit; `also` is what was given beside it, which has no meaning here.

    Raises:
        UserError: something was given beside it, or there is nothing to finish.
    """
    from phi3v_data.conversion import finish

    if also:
        raise UserError(f"--finish DIR cannot be combined with {also!r}: it needs neither a converter nor a source")
    result = finish(directory)
    print(summary(directory, result))
    rejected = not result.manifest.history and result.rejects > allow_rejects
    raise typer.Exit(PROBLEMS if rejected else GOOD)


def summary(out_dir: str, result: Any) -> str:
    """The last line: contents of the directory, and what was left out."""
    splits = ", ".join(f"{name} {split.rows:,}" for name, split in result.manifest.splits.items())
    text = f"{out_dir}: {'already complete: ' if result.already_complete else ''}"
    text += f"{counted(result.samples, 'sample')} ({splits}), {counted(result.images, 'image')}"
    for code, count in result.manifest.notes.items():
        text += f", {count:,} {code}"
    if result.rejects:
        reasons = ", ".join(f"{count:,} {code}" for code, count in result.manifest.rejects.items())
        text += f", {result.rejects:,} rejected ({reasons}; see {out_dir}/rejects.jsonl)"
    return text


def which(name: str | None, converter: str | None) -> str:
    """The converter to look up, from NAME and `--converter`.

    Raises:
        UserError: neither.
    """
    if converter:
        return f"{converter}:{name}" if name and converter.endswith(".py") else converter
    if not name:
        from phi3v_data.registry import names

        raise UserError(
            f"no converter given; choose one of {', '.join(names())}, or your own with --converter FILE.py:NAME"
        )
    return name


class ConvertCommand:
    """Stands for `convert` until the arguments tell which converter's options it has."""

    name = "convert"
    interrupted = INTERRUPTED

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Parse with the command of the converter that the arguments name."""
        return build_command(wanted(args)).make_context(info_name, args, parent=parent, **extra)


def with_settings(
    function: Callable[..., None], *, after: str = "converter", without: Sequence[str] = ()
) -> Callable[..., None]:
    """`function(**common, **settings)` as a Typer function that has the settings of a conversion as options.

    Args:
        after: the parameter of `function` that they follow in the help.
        without: names of settings that make no sense for it.
    """
    from phi3v_data.writing.request import SETTINGS, ConvertSettings

    hints = get_type_hints(ConvertSettings)

    def option(name: str) -> inspect.Parameter:
        setting, hint = SETTINGS[name], hints[name]
        kind: Any = bool if hint is bool else int if int in (hint, *get_args(hint)) else str
        about = typer.Option(f"--{name}", metavar=setting.metavar or None, help=setting.help)
        value: Any = kind if setting.default is not None else kind | None
        return inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=setting.default, annotation=Annotated[value, about]
        )

    def run(**values: Any) -> None:
        function(**values)

    signature = inspect.signature(function)
    common = [each for each in signature.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    keyword_only = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in common]
    place = 1 + list(signature.parameters).index(after)
    keyword_only[place:place] = [option(name) for name in SETTINGS if name not in without]
    run.__signature__ = signature.replace(parameters=keyword_only)  # type: ignore[attr-defined]
    run.__doc__ = function.__doc__
    return run


def build_command(name: str | None) -> Any:
    """The command with the options of one converter; None: only those that all have."""
    from phi3v_data.cli.options import with_options
    from phi3v_data.draft import Options
    from phi3v_data.registry import find, summary_of

    if name is None:
        function = with_options(with_settings(convert), Options, "", "")
    else:
        cls = find(name)
        function = with_options(with_settings(convert), cls.Options, f"Options of {cls.name}", cls.name)
        words = f"--converter {name}" if ".py" in name else name
        source = "" if cls.hub_id else " --source PATH"
        examples = [f"phi3v-data convert {words}{source} --out_dir out"]
        function = command_info(examples=examples, interrupted=INTERRUPTED)(function)
        function.__doc__ = f"{summary_of(cls)}\n\n{convert.__doc__}"
        command = make_command(function, name="convert")
        command.with_options_of = words
        return command
    return make_command(command_info(examples=EXAMPLES, interrupted=INTERRUPTED)(function), name="convert")


TAKE_VALUES = {"source", "out_dir", "allow_rejects", "finish", "slice"}
FLAGS = {"quiet", "help", "q", "h"}
"""Options of the command besides the settings of a conversion."""


def wanted(args: Sequence[str]) -> str | None:
    """Find the converter in unparsed arguments: `--converter`, else the first word that no option takes."""
    from phi3v_data.registry import names
    from phi3v_data.writing.request import SETTINGS

    take_values = TAKE_VALUES | {name for name, setting in SETTINGS.items() if setting.metavar}
    flags = FLAGS | {name for name, setting in SETTINGS.items() if not setting.metavar}
    name = converter = None
    words = list(args)
    while words:
        word = words.pop(0)
        if not word.startswith("-"):
            name = name or word
            continue
        option, equals, value = word.lstrip("-").partition("=")
        option = snake_case(option)
        if option == "converter":
            converter = value if equals else words.pop(0) if words else None
        elif option in take_values:
            del words[: 0 if equals else 1]
        elif option not in flags and not equals and words and not words[0].startswith("-"):
            following = words.pop(0)  # the value of an option of the converter's own, or NAME after a flag of its own
            name = name or (following if following in names() else None)
    return which(name, converter) if name or converter else None


command = ConvertCommand()
