"""`phi3v-train plan`."""

import json
import sys
from typing import Annotated, Any

import typer

from phi3v_data.cli.base import Quiet, command_info, make_command
from phi3v_train.cli.run import check_paths, show
from phi3v_train.cli.run_options import SettingsCommand, with_settings
from phi3v_train.settings import Settings


@with_settings
@command_info(
    examples=[
        "phi3v-train plan --data_dir docvqa",
        "phi3v-train plan --data_dir docvqa --recipe docvqa-lora-bf16 --memory 24",
        "phi3v-train plan --data_dir docvqa --json | jq .fits",
    ]
)
def plan(
    memory: Annotated[
        float | None,
        typer.Option(metavar="GB", min=0, help="Memory of another device than this machine's, a GPU with bf16."),
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    quiet: Quiet = False,
    *,
    settings: Settings,
) -> None:
    """Show what a run would do, and which methods and recipes fit the memory; nothing is trained or downloaded but the
    model's small files.
    """
    check_paths(settings)
    from phi3v_train.fits import fit_table
    from phi3v_train.launch import processes_to_start
    from phi3v_train.plan import make_plan
    from phi3v_train.plan_report import plan_json
    from phi3v_train.start import find_start

    processes = processes_to_start(settings.config) * settings.config.parallel.nnodes
    made = make_plan(settings, world_size=max(1, processes), weights=False)
    available = round(memory * 1e9) if memory is not None else made.compute.memory
    state = find_start(made).words(made.total_steps)
    elsewhere = "bf16" if memory is not None and settings.config.model.dtype == "auto" else None
    table = fit_table(made, available, dtype=elsewhere)
    if json_output:
        document = {**plan_json(made, run_state=state), "fits": [row._asdict() for row in table]}
        print(json.dumps(document, ensure_ascii=False, indent=2))
        return
    show(made, state, as_json=False, quiet=quiet)
    print(file=sys.stderr)
    on_cpu = memory is None and made.compute.device.value == "cpu"
    show_fits(table, available, here=memory is None, on_cpu=on_cpu)
    if on_cpu and not quiet:
        print("note     --memory GB tells what fits a GPU, in bf16", file=sys.stderr)


def show_fits(rows: list[Any], available: int, *, here: bool, on_cpu: bool) -> None:
    """Print which methods and recipes fit; if `here`, also for which of them this machine lacks a package.

    On a CPU the figures are lower limits, see `memory_text`.
    """
    from importlib.util import find_spec

    from rich.table import Table

    from phi3v_data.console import make_console

    table = Table(box=None, pad_edge=False)
    size, whose = ("at least GB", " of this CPU") if on_cpu else ("GB", "")
    for column in ("method", size, f"fits {available / 1e9:,.1f} GB{whose}", "recipes"):
        table.add_column(column, justify="right" if column == size else "left", overflow="fold")
    lacking = here and find_spec("bitsandbytes") is None
    for row in rows:
        fits = "yes" if row.fits else "no"
        if lacking and row.method.startswith("QLoRA"):
            fits += ", but bitsandbytes is not installed"
        table.add_row(row.method, f"{row.bytes / 1e9:,.1f}", fits, ", ".join(row.recipes))
    make_console().print(table)


command = make_command(plan, name="plan", cls=SettingsCommand)
