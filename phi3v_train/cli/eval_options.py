"""Options that `eval`, `predict` and `inspect` share with `run`: the same names, texts and checks."""

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from phi3v_data.cli.options import option_parameter
from phi3v_train.cli.run_options import ConfigFile
from phi3v_train.config import IMAGE_OPTIONS, DataConfig, EvalConfig, ModelConfig, OptimConfig, ParallelConfig
from phi3v_train.setting_group import Group
from phi3v_train.settings import resolve

if TYPE_CHECKING:
    from phi3v_train.data.model_settings import ModelNote

SHARED: dict[type[Group], tuple[str, ...]] = {
    ModelConfig: ("model_name_or_path", *IMAGE_OPTIONS, "attn", "dtype", "device"),
    EvalConfig: ("eval_split", "eval_limit", "eval_batch_size", "eval_turns", "max_new_tokens", "metric"),
    DataConfig: ("num_workers",),
    ParallelConfig: ("num_processes",),
}
PANELS: dict[type[Group], str] = {
    ModelConfig: "Model",
    EvalConfig: "Evaluation",
    DataConfig: "Data",
    OptimConfig: "Data",
    ParallelConfig: "Machine",
}

DataDir = Annotated[Path | None, typer.Option("--data_dir", metavar="DIR", help="Conversations directory.")]
Base = Annotated[
    str | None, typer.Option(metavar="MODEL", help="Base model, if it is not the one that the adapter names.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Start over in an --output_dir that holds another one.")]


def with_eval_settings(
    shared: Mapping[type[Group], Sequence[str]] = SHARED, *, leave_out: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`function(..., settings=Settings)` as a command with the shared settings, and --config, as options."""

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(function)
        own = [parameter for name, parameter in signature.parameters.items() if name != "settings"]
        file = inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ConfigFile)
        fields = [
            option_parameter(name, group.model_fields[name], PANELS[group])
            for group, names in shared.items()
            for name in names
            if name not in leave_out
        ]

        def command(**values: Any) -> Any:
            config = values.pop("config")
            given = {parameter.name: values.pop(parameter.name) for parameter in fields}
            options = {name: value for name, value in given.items() if value not in (None, [])}
            return function(**values, settings=resolve(options, config_file=config))

        parameters = [*own, file, *fields]
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]  # Typer reads it
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        command.__doc__ = function.__doc__
        command.__dict__.update(function.__dict__)
        return command

    return wrap


def say_notes(notes: "Iterable[ModelNote]", *, quiet: bool) -> None:
    """Print differences among model, dataset and options on stderr; with `quiet` the warnings only."""
    for note in notes:
        if note.is_warning or not quiet:
            print(f"{'warning' if note.is_warning else 'note'}: {note.text}", file=sys.stderr)
