"""`phi3v-train merge`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from phi3v_data.cli.base import command_info


@command_info(
    examples=[
        "phi3v-train merge output/model merged",
        "phi3v-train merge output/checkpoint-000120 model --dtype bf16",
        "phi3v-train merge output/model merged --with_code",
        "phi3v-train merge output/checkpoint-000120 merged --base models/Phi-3.5-vision-instruct --dtype bf16",
    ]
)
def merge(
    source: Annotated[
        str, typer.Argument(metavar="ADAPTER_OR_CHECKPOINT", help="A run's model or a checkpoint of it.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory for the merged model.")],
    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Base model, if it is not the one that the adapter names.")
    ] = None,
    dtype: Annotated[
        Literal["auto", "bf16", "fp16", "fp32"], typer.Option(help="Number format; auto: the base's own.")
    ] = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
    with_code: Annotated[
        bool, typer.Option("--with_code", help="Add the code of Phi-3-vision: OUT then loads without this package.")
    ] = False,
) -> None:
    """Merge an adapter into its base model, in full precision (a QLoRA adapter too).

    OUT loads wherever a base model does. A checkpoint without adapter is written in one number format; one in shards,
    as FSDP saves it, is put together. Phi-3-vision's model type is unknown to transformers: OUT loads where this
    package is installed, or, with --with_code, anywhere with trust_remote_code=True.
    """
    from phi3v_train.models.loading import locate
    from phi3v_train.training.merging import join_shards, merge_to
    from phi3v_train.training.parallel.shards import is_sharded

    if is_sharded(Path(source)):
        written = join_shards(Path(source), out, dtype=dtype, overwrite=overwrite, with_code=with_code)
    else:
        written = merge_to(locate(source, base=base), out, dtype=dtype, overwrite=overwrite, with_code=with_code)
    print(f"{out}: a model directory in {written}")
