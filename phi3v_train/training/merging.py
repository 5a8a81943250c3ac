"""Adapters merged into their base, shards joined: model directories that load wherever a base model does."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from phi3v_data.errors import UserError
from phi3v_data.files import write_text
from phi3v_data.lock import lock_beside
from phi3v_data.messages import shown
from phi3v_data.remote.address import refuse_address
from phi3v_train.distributed.group import SingleProcess
from phi3v_train.models.adapters import attach_adapter
from phi3v_train.models.directory import ModelFiles, read_json
from phi3v_train.models.family import ModelFamily
from phi3v_train.models.loading import load_base, load_processor, quieten_libraries
from phi3v_train.models.machine import Chosen, Compute
from phi3v_train.models.registry import family_of_config
from phi3v_train.precision import DTYPES
from phi3v_train.training.card import find_origin, merged_card
from phi3v_train.training.checkpoints import SaveError, open_checkpoint, verify, why_damaged, write_folder
from phi3v_train.training.folder import CARD
from phi3v_train.training.parallel.shards import Shards
from phi3v_train.training.saving import cast, own_state, write_model_directory

WRITTEN = frozenset({".json", ".jinja", ".safetensors", ".md", ".model", ".py", ".txt"})
"""Suffixes of the files that make up a model directory."""
NAMES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def merge_to(
    files: ModelFiles, out: Path, *, dtype: str = "auto", overwrite: bool = False, with_code: bool = False
) -> str:
    """Write `files` (an adapter over its base, or a model as it is) as one model directory; returns its dtype.

    The sum is made in fp32, layer by layer, and rounded once to `dtype`: `auto` is the base's own. A QLoRA adapter is
    merged into the base as it was before it was packed into 4 bits. `with_code` adds the model's own code. The card
    names base, sets and licences as the card of the run does.

    Raises:
        UserError: `out` is taken, the disk does not take the model, or its family has no code of its own.
    """
    with held_target(out, [files.adapter, files.directory], overwrite=overwrite) as target:
        code = code_of(files.family) if with_code else None
        name = stored_dtype(files.config()) if dtype == "auto" else dtype
        reason = Chosen("cpu", "merging needs no GPU")
        compute = Compute(reason, Chosen(name, ""), Chosen("sdpa", ""), 0)
        model = load_base(files, compute)
        processor = load_processor(files)
        files.family.match_processor(model, processor)
        if files.adapter is not None:
            model = merge_adapter(model, files.adapter)
        write_out(model, processor, target, name, files, code=code)
        return name


def join_shards(
    checkpoint: Path, out: Path, *, dtype: str = "auto", overwrite: bool = False, with_code: bool = False
) -> str:
    """Write a checkpoint in shards as one model directory; returns its dtype, `auto` being the run's compute dtype.

    Raises:
        UserError: the checkpoint is not whole, `out` is taken, the disk does not take the model, or its family has no
            code of its own.
    """
    with held_target(out, [checkpoint], overwrite=overwrite) as target:
        return _join(checkpoint, target, dtype=dtype, with_code=with_code)


def _join(checkpoint: Path, target: Path, *, dtype: str, with_code: bool) -> str:
    opened = open_checkpoint(checkpoint)
    reason = why_damaged(checkpoint) if opened is None else verify(SingleProcess(torch.device("cpu")), opened)
    if opened is None or reason:
        raise UserError(f"{checkpoint}: is not a complete checkpoint ({reason or 'its name is not checkpoint-N'})")
    quieten_libraries()
    config = read_json(checkpoint / "config.json")
    files = ModelFiles(str(checkpoint), family_of_config(config, checkpoint / "config.json"), checkpoint)
    code = code_of(files.family) if with_code else None
    name = stored_dtype(config) if dtype == "auto" else dtype
    shards = Shards(checkpoint)
    with torch.device("meta"):
        model = files.family.empty_model(checkpoint)
    state = {key: cast(shards.rows(f"model/{key}"), DTYPES[name]) for key in own_state(model)}
    write_out(model, load_processor(files), target, name, files, state, code)
    return name


@contextmanager
def held_target(out: Path, sources: Sequence[Path | None], *, overwrite: bool) -> Iterator[Path]:
    """The directory to write for `out`, see `free_target`, which no other merge writes to meanwhile.

    Raises:
        UserError: as `free_target`, or another merge writes there.
    """
    place = free_target(out, sources, overwrite=overwrite)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror}); choose another directory") from None
    busy = f"{out}: another merge writes to it; wait for it, or choose another directory"
    with lock_beside(place.with_name(f".{place.name}.merge.lock"), busy):
        yield free_target(out, sources, overwrite=overwrite)


def free_target(out: Path, sources: Sequence[Path | None], *, overwrite: bool) -> Path:
    """The directory to write for `out`, links followed; with `overwrite` in place of a model directory there.

    Raises:
        UserError: something else is there, beside a model too, or one of `sources`, which are read.
    """
    refuse_address(out, "OUT")
    target = Path(os.path.realpath(out))
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return target
    if not overwrite:
        raise UserError(f"{out}: exists already; choose another directory or give --overwrite")
    if not (target / "config.json").is_file() or not any(target.glob("*.safetensors")):
        raise UserError(f"{out}: is not a model directory, and --overwrite replaces nothing else; choose another one")
    others = (path.name for path in target.iterdir() if path.is_dir() or path.suffix not in WRITTEN)
    if (other := min(others, default=None)) is not None:
        raise UserError(
            f"{out}: has {shown(other)}, which merge did not write; move it away or choose another directory"
        )
    for source in sources:
        real = None if source is None else Path(os.path.realpath(source))
        if real is not None and target in (real, *real.parents):
            raise UserError(f"{out}: --overwrite would delete {source}, which is read; choose another directory")
    return target


def code_of(family: ModelFamily) -> Callable[[Path], None]:
    """Writer of the family's own code.

    Raises:
        UserError: it has none, because transformers or another package has it.
    """
    if not family.has_code:
        raise UserError(
            f"--with_code is not needed for {family.title}: the classes are in transformers, or in the package of the "
            "model family, not in phi3v; leave it out"
        )
    return family.write_code


def write_out(
    model: Any,
    processor: Any,
    out: Path,
    dtype: str,
    files: ModelFiles,
    state: Mapping[str, Tensor] | None = None,
    code: Callable[[Path], None] | None = None,
) -> None:
    """Write a model directory with its card, whole or not at all; `state` where the model does not hold its weights.

    Raises:
        UserError: the disk does not take it.
    """

    origin = find_origin(files)

    def write(folder: Path) -> None:
        write_model_directory(model, folder, DTYPES[dtype], state)
        processor.save_pretrained(folder)
        if code is not None:
            code(folder)
        written = ModelFiles(str(folder), files.family, folder)
        budget = written.tuned_num_crops or written.stored_num_crops
        adapter, with_code = files.adapter is not None, code is not None
        write_text(folder / CARD, merged_card(origin, files.family, budget, adapter=adapter, with_code=with_code))

    alone = SingleProcess(torch.device("cpu"))
    try:
        write_folder(alone, out.with_name(f".{out.name}.partial"), out, write)
    except SaveError as error:
        raise UserError(str(error)) from error


def stored_dtype(config: Mapping[str, Any]) -> str:
    """Number format that a base's `config.json` names."""
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return NAMES.get(stored.removeprefix("torch."), "fp32")


def merge_adapter(model: Any, adapter: Path) -> Any:
    """The model with the adapter's change added to its weights; each layer's sum is made in fp32."""
    from peft.tuners.lora import LoraLayer

    wrapped = attach_adapter(model, adapter)
    for layer in [module for module in wrapped.modules() if isinstance(module, LoraLayer)]:
        base = layer.get_base_layer()
        dtype = base.weight.dtype
        base.float()
        layer.merge(safe_merge=True)
        base.to(dtype)
    return wrapped.unload()
