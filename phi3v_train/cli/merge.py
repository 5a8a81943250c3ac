"""`phi3v-train merge`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from phi3v_data.cli.base import command_info
from phi3v_data.errors import PROBLEMS, UserError


@command_info(
    examples=[
        "phi3v-train merge output/model merged",
        "phi3v-train merge output/checkpoint-000120 model --dtype bf16",
        "phi3v-train merge output/model merged --with_code",
        "phi3v-train merge merged --check vllm",
        "phi3v-train merge output/checkpoint-000120 merged --base models/Phi-3.5-vision-instruct --dtype bf16",
    ]
)
def merge(
    source: Annotated[str, typer.Argument(metavar="MODEL", help="A run's model, an adapter or a checkpoint.")],
    out: Annotated[
        Path | None, typer.Argument(metavar="[OUT]", help="Directory for the merged model; with --check not needed.")
    ] = None,
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Base model, if it is not the one that the adapter names.")
    ] = None,
    dtype: Annotated[
        Literal["auto", "bf16", "fp16", "fp32"], typer.Option(help="Number format; auto: the base's own.")
    ] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT, if it is a model directory.")] = False,
    with_code: Annotated[
        bool, typer.Option("--with_code", help="Add the code of Phi-3-vision: OUT then loads without this package.")
    ] = False,
    check: Annotated[
        Literal["vllm", "mlx", "transformers"] | None,
        typer.Option(help="Say what an engine needs and what is missing in OUT, or in MODEL if OUT is not given."),
    ] = None,
) -> None:
    """Merge an adapter into its base model, in full precision (a QLoRA adapter too).

    OUT loads wherever a base model does. A checkpoint without adapter is written in one number format; one in shards,
    as FSDP saves it, is put together. Phi-3-vision's model type is unknown to transformers: OUT loads where this
    package is installed, or, with --with_code, anywhere with trust_remote_code=True.

    --check reads config.json, the processor's and the tokenizer's files and the names of the weights. The exit
    code is 1 if something is missing or different; alone, it writes nothing.
    """
    if out is None and check is None:
        raise UserError("nothing to do: give OUT, the directory for the merged model, or --check ENGINE")
    if out is None and (overwrite or with_code or dtype != "auto" or base is not None):
        raise UserError("--base, --dtype, --overwrite and --with_code are for writing: give OUT, too")
    if out is not None:
        write(source, out, base=base, dtype=dtype, overwrite=overwrite, with_code=with_code)
    if check is not None and not report(source if out is None else str(out), check):
        raise typer.Exit(PROBLEMS)


def write(source: str, out: Path, *, base: str | None, dtype: str, overwrite: bool, with_code: bool) -> None:
    """Write the merged model, and say so."""
    from phi3v_train.models.directory import is_sharded
    from phi3v_train.models.locate import locate

    files = None if is_sharded(Path(source)) else locate(source, base=base, called="MODEL")
    from phi3v_train.training.merging import join_shards, merge_to

    if files is None:
        written = join_shards(Path(source), out, dtype=dtype, overwrite=overwrite, with_code=with_code)
    else:
        written = merge_to(files, out, dtype=dtype, overwrite=overwrite, with_code=with_code)
    print(f"{out}: a model directory in {written}")


def report(name: str, engine: str) -> bool:
    """Print what an engine does not find in a model directory; whether it finds everything."""
    from phi3v_train.models.loading import quieten_libraries
    from phi3v_train.models.locate import is_adapter, locate

    if is_adapter(Path(name)):
        raise UserError(f"{name}: is an adapter, and the engines load merged models only; give OUT, too, to merge it")
    files = locate(name, called="MODEL")
    if files.directory is None:
        raise UserError(f"{name}: is not a directory, so there is nothing to check; give OUT, too, to write it")
    quieten_libraries()
    found = files.family.check_engine(files.directory, engine)
    print(f"{name} for {found.origin}")
    for kind, text in found.findings:
        print(f"{kind + ':':<11}{text}")
    print("ok: nothing is missing" if found.fits else "not ok: see the lines above")
    return found.fits
