"""Load a model and its processor by what a user calls them: `tiny` or `tiny:FAMILY`, a directory, an adapter's
directory, a Hub id.

`locate` finds out, without loading weights, what is there and what is missing; `load_model` loads it.
"""

import errno
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.files import inside, load_json
from phi3v_data.tokens.model_files import ADAPTER_CONFIG, PREPROCESSOR_CONFIG, PROCESSOR_CONFIG, other_processor
from phi3v_train.models.adapters import another_base, attach_adapter
from phi3v_train.models.family import ModelFamily, OtherFamilyError
from phi3v_train.models.machine import Compute
from phi3v_train.models.meant import TINY, hint, is_model
from phi3v_train.models.registry import family_of_config, get_family

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
SHARDS = "shards"
TINY_REVISION = "seed-"
"""Begins the `revision` of an adapter on a tiny model, which tells the seed that its weights were made from."""
GENERATION_CONFIG = "generation_config.json"
LIGHT_FILES = ("*.json", "*.jinja", "tokenizer.model")
TORCH_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """A model's family and the directories that hold its files.

    `directory` is None for a tiny model. `adapter` is a PEFT adapter's directory on top of it, and `seed` that of the
    tiny model that it was made on. `processor_directory` holds tokenizer and image processor; an adapter's own where it
    has them.
    """

    name: str
    family: ModelFamily
    directory: Path | None
    adapter: Path | None = None
    seed: int | None = None

    @property
    def base_name(self) -> str:
        """The base under an adapter, by the adapter's own word; the model's name if it is not an adapter."""
        if self.adapter is None:
            return self.name
        return str(read_json(self.adapter / ADAPTER_CONFIG).get("base_model_name_or_path") or self.name)

    @property
    def processor_directory(self) -> Path | None:
        """Directory of tokenizer and image processor; None for a tiny model."""
        if self.adapter is not None and (self.adapter / "tokenizer.json").is_file():
            return self.adapter
        return self.directory

    def config(self) -> dict[str, Any]:
        """The parsed `config.json`; of a tiny model what it is built from."""
        if self.directory is None:
            return self.family.tiny_config()
        return read_json(self.directory / "config.json")

    def generation_config(self) -> dict[str, Any]:
        """The parsed `generation_config.json`; empty if there is none."""
        path = self.directory / GENERATION_CONFIG if self.directory is not None else None
        return read_json(path) if path is not None and path.is_file() else {}

    @property
    def image_processor_file(self) -> str:
        """Name of the file in `processor_directory` that has the image processor's values."""
        folder = self.processor_directory
        if folder is None or PREPROCESSOR_CONFIG in self.family.needed_files:
            return PREPROCESSOR_CONFIG
        return PREPROCESSOR_CONFIG if (folder / PREPROCESSOR_CONFIG).is_file() else PROCESSOR_CONFIG

    def preprocessor_config(self) -> dict[str, Any]:
        """The image processor's values, parsed from its file; empty for a tiny model."""
        folder = self.processor_directory
        if folder is None:
            return {}
        values = read_json(folder / self.image_processor_file)
        if self.image_processor_file == PREPROCESSOR_CONFIG:
            return values
        nested = values.get("image_processor")
        return nested if isinstance(nested, dict) else {}

    @property
    def tuned_num_crops(self) -> int | None:
        """Image budget that the run used that made this model, None for any other model.

        Raises:
            UserError: the value is not a budget of the family.
        """
        budget = self.family.budget
        value: Any = self.preprocessor_config().get(budget.tuned) if budget is not None else None
        if budget is not None and value is not None:
            try:
                self.family.tokens.check_budget(value)
            except ValueError as error:
                raise UserError(
                    f"{self.processor_directory}/{self.image_processor_file}: {budget.tuned} is wrong: {error}"
                ) from None
        return None if value is None else int(value)

    @property
    def stored_num_crops(self) -> int | None:
        """Image budget in the image processor's file, as AutoProcessor takes it; None for a tiny model."""
        budget = self.family.budget
        value: int | None = self.preprocessor_config().get(budget.name) if budget is not None else None
        return value


def tiny_name(family: ModelFamily) -> str:
    """`tiny` for the default family, `tiny:NAME` for any other."""
    return TINY if family is get_family() else f"{TINY}:{family.name}"


def tiny_family(name: str) -> ModelFamily | None:
    """The family of `tiny` or `tiny:NAME`; None for another name.

    Raises:
        NotFoundError: there is no such family.
    """
    start, colon, family = name.partition(":")
    if start != TINY:
        return None
    return get_family(family) if colon else get_family()


def locate(name: str, *, base: str | None = None, weights: bool = True) -> ModelFiles:
    """Find a model and check that its files are there.

    Args:
        name: `tiny`, `tiny:FAMILY`, a model directory, an adapter directory or a Hub id.
        base: model under an adapter, if it is not the one that the adapter names.
        weights: fetch and check the weights too; without, a plan costs no download.

    Raises:
        UserError: no such model, a file that is missing, or a Hub that cannot be reached.
    """
    family = tiny_family(name)
    if family is not None:
        return ModelFiles(tiny_name(family), family, None)
    path = Path(name)
    if path.is_dir():
        if is_adapter(path):
            return locate_adapter(name, base=base, weights=weights)
        return ModelFiles(name, check_directory(path, weights=weights), path)
    if path.is_file():
        meant = f"; did you mean {path.parent}?" if is_model(path.parent) else ""
        raise NotFoundError(f"--model_name_or_path {name}: is a file; give a model directory{meant}")
    is_hub_id = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    meant = hint(name) if not is_hub_id or path.parent.is_dir() else ""
    if meant or not is_hub_id:
        usual = "; give a model directory, a Hub id such as microsoft/Phi-3.5-vision-instruct, or tiny"
        raise NotFoundError(f"--model_name_or_path {name}: no such directory{meant or usual}")
    directory = fetch(name, weights=weights)
    return ModelFiles(name, check_directory(directory, weights=weights), directory)


def is_adapter(path: Path) -> bool:
    """Whether a directory holds a PEFT adapter."""
    return (path / ADAPTER_CONFIG).is_file()


def locate_adapter(name: str, *, base: str | None, weights: bool) -> ModelFiles:
    """An adapter's directory and its base: the one given, or else the one that it names.

    Raises:
        UserError: a file is missing, or the base is not where the adapter says.
    """
    path = Path(name)
    config = read_json(path / ADAPTER_CONFIG)
    named_base = config.get("base_model_name_or_path")
    under = base or named_base
    if not isinstance(under, str) or not under:
        raise UserError(f"{path / ADAPTER_CONFIG}: does not name a base model; give it with --base")
    if not list(path.glob("adapter_model.*")):
        raise NotFoundError(f"{path}: adapter_model.safetensors is missing")
    family = tiny_family(under)
    if family is not None:
        seed = str(config.get("revision") or "").removeprefix(TINY_REVISION)
        return ModelFiles(name, family, None, path, int(seed) if named_base == under and seed.isdecimal() else None)
    try:
        files = locate(under, weights=weights)
    except UserError:
        if base is not None or Path(under).is_dir():
            raise
        where = "is not there" if Path(under).is_absolute() else "is neither on this machine nor on the Hub"
        raise NotFoundError(
            f"{path / ADAPTER_CONFIG}: its base model {under} {where}; give the directory where it is now with --base"
        ) from None
    if files.adapter is not None:
        raise UserError(f"{under}: is itself an adapter; give the model under it, or merge it first, with --base")
    return ModelFiles(name, files.family, files.directory, path)


def check_directory(path: Path, *, weights: bool = True) -> ModelFamily:
    """The family of a model directory, which lacks no file.

    Raises:
        UserError: a file is missing, and what it is for; or no family reads this model.
    """
    if not (path / "config.json").is_file():
        if meant := hint(str(path)):
            raise NotFoundError(f"{path}: is not a model directory (it has no config.json){meant}")
        raise missing(path, "config.json", "the model's shapes")
    config = read_json(path / "config.json")
    family = family_of_config(config, path / "config.json")
    family.check_config(config, path / "config.json")
    for file, purpose in family.needed_files.items():
        names = (file,) if isinstance(file, str) else file
        if not any((path / name).is_file() for name in names):
            raise missing(path, " or ".join(names), purpose)
    if weights and (path / SHARDS).is_dir() and not list(path.glob("*.safetensors")):
        raise UserError(
            f"{path}: is a checkpoint in shards, one for each process that saved it; make a model directory of it "
            "first: phi3v-train merge DIR OUT"
        )
    if weights:
        for file in weight_files(path):
            if not (path / file).is_file():
                raise NotFoundError(f"{path}: {file} is missing (weights); the download was not complete")
    return family


def missing(path: Path, file: str, purpose: str) -> NotFoundError:
    """The error of a model directory that lacks a file."""
    return NotFoundError(f"{path}: {file} is missing ({purpose}); copy it from the model's original files")


def weight_files(path: Path) -> Iterator[str]:
    """Names of the safetensors files that a model directory should have.

    Raises:
        UserError: the index is not one, or names a file outside the directory.
    """
    if not (path / INDEX).is_file():
        yield WEIGHTS
        return
    names = read_json(path / INDEX).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise UserError(f"{path / INDEX}: expected `weight_map`, an object of tensor names and file names")
    for name in sorted(set(names.values())):
        inside(path, name, link_ok=True)  # a copy from the Hub is a folder of links
        yield name


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in a model directory's safetensors files, by their headers.

    Raises:
        UserError: a file is not there, or is not of this format.
    """
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(path):
        try:
            with safe_open(path / file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118  # no mapping: it cannot be iterated itself
                    shapes[name] = tuple(tensors.get_slice(name).get_shape())
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path / file}: cannot be read as safetensors ({error})") from None
    return shapes


def fetch(name: str, *, weights: bool) -> Path:
    """The local directory of a Hub model, downloaded where need be.

    Raises:
        UserError: there is no such model, or no connection and no copy on this machine.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    patterns = [*LIGHT_FILES, "*.safetensors"] if weights else list(LIGHT_FILES)
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except RepositoryNotFoundError:
        raise NotFoundError(
            f"--model_name_or_path {name}: no such directory, and no such model on the Hub (or it is private: log in "
            "with `hf auth login`)"
        ) from None
    except HFValidationError as error:
        raise UserError(f"--model_name_or_path {name}: {error}") from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise UserError(
            f"--model_name_or_path {name}: the Hub cannot be reached and this machine has no copy; download it where "
            f"there is a connection (`hf download {name} --local-dir DIR`) and give DIR, or try "
            "--model_name_or_path tiny"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a model directory.

    Raises:
        UserError: it is not one.
    """
    try:
        value = load_json(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot be read as JSON ({reason})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object")
    return value


def load_processor(files: ModelFiles, *, budget: int | None = None, options: Mapping[str, int] | None = None) -> Any:
    """Tokenizer and image processor.

    Args:
        files: the model.
        budget: image budget in place of the directory's own.
        options: options of images that were given; of these, those beside the budget.

    Raises:
        UserError: a value in the processor's files that the model does not have.
    """
    family = files.family
    if files.processor_directory is None:
        processor: Any = family.tiny_processor()
    else:
        try:
            processor = family.load_processor(files.processor_directory)
        except (ValueError, TypeError) as error:
            raise UserError(f"{files.processor_directory}: the processor's files cannot be used: {error}") from None
        except UserError as error:
            if files.adapter is not None and isinstance(error, OtherFamilyError):
                reason = f"the adapter's processor is not one of {family.title}"
                raise UserError(another_base(files.adapter, str(files.directory), reason)) from None
            raise
    family.set_budget(processor, budget)
    for name, value in (options or {}).items():
        if name in family.tokens.other_options:
            family.set_option(processor, name, value)
    return processor


def check_processors(files: ModelFiles) -> None:
    """Refuse an adapter with another processor than its base, which is then another model, before any is loaded.

    Raises:
        UserError: naming both.
    """
    if files.adapter is None or files.directory is None:
        return
    if reason := other_processor(files.adapter, files.directory):
        raise UserError(another_base(files.adapter, str(files.directory), reason))


def quieten_libraries() -> None:
    """No bars, no advice and no notes on deprecation from libraries between our lines."""
    import logging
    import warnings

    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.|peft\.")


def load_base(files: ModelFiles, compute: Compute, *, seed: int = 0, empty: bool = False) -> Any:
    """The model without its adapter, on the CPU, all weights in the compute dtype.

    With `empty`, which a family that `reads_rows` knows, it is on the device `meta`, its weights not read.
    """
    import torch

    quieten_libraries()
    dtype = getattr(torch, TORCH_DTYPES[compute.dtype.value])
    if files.directory is None:
        model: Any = files.family.tiny_model(seed if files.seed is None else files.seed).to(dtype)
        model.set_attn_implementation(compute.attn_implementation)
        return named(model, tiny_name(files.family))
    more = {"device_map": "meta"} if empty else {}
    model = files.family.load_model(
        files.directory, dtype=dtype, attn_implementation=compute.attn_implementation, **more
    )
    return named(model, files.name if files.adapter is None else str(files.directory))


def named(model: Any, name: str) -> Any:
    """The model under the name that its adapters will give for their base: of a directory, the absolute path."""
    if tiny_family(name) is None and Path(name).is_dir():
        name = str(Path(name).absolute())
    model.config._name_or_path = model.name_or_path = name
    return model


def load_model(files: ModelFiles, compute: Compute, *, seed: int = 0) -> Any:
    """The model for evaluation, its adapter on top, on the device, in evaluation mode."""
    model = load_base(files, compute, seed=seed)
    if files.adapter is not None:
        model = attach_adapter(model, files.adapter).base_model.model
    model.to(compute.device.value)
    return model.eval()
