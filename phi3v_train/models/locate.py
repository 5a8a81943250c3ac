"""Find a model by what a user calls it: `tiny` or `tiny:FAMILY`, a directory, an adapter's directory, a Hub id.

`locate` finds out, without loading weights, what is there and what is missing.
"""

import errno
from pathlib import Path

from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.tokens.model_files import ADAPTER_CONFIG
from phi3v_train.models.directory import ModelFiles, is_sharded, read_json, tiny_family, tiny_name, weight_files
from phi3v_train.models.family import ModelFamily
from phi3v_train.models.meant import hint, is_model
from phi3v_train.models.registry import family_of_config

TINY_REVISION = "seed-"
"""Begins the `revision` of an adapter on a tiny model, which tells the seed that its weights were made from."""
LIGHT_FILES = ("*.json", "*.jinja", "tokenizer.model")


def locate(
    name: str, *, base: str | None = None, weights: bool = True, called: str = "--model_name_or_path"
) -> ModelFiles:
    """Find a model and check that its files are there.

    Args:
        name: `tiny`, `tiny:FAMILY`, a model directory, an adapter directory or a Hub id.
        base: model under an adapter, if it is not the one that the adapter names.
        weights: fetch and check the weights too; without, a plan costs no download.
        called: the option or argument that `name` is of, for messages.

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
    refuse_missing(name, called=called)
    directory = fetch(name, weights=weights, called=called)
    return ModelFiles(name, check_directory(directory, weights=weights), directory)


def refuse_missing(name: str, *, called: str = "--model_name_or_path") -> None:
    """Refuse a name that is neither that of a directory or a tiny model, nor perhaps of a model on the Hub.

    The Hub is not asked, so this can be done before anything is loaded. `called`: see `locate`.

    Raises:
        UserError: there is no such model.
    """
    path = Path(name)
    if tiny_family(name) is not None or path.is_dir():
        return
    if path.is_file():
        meant = f"; did you mean {path.parent}?" if is_model(path.parent) else ""
        raise NotFoundError(f"{called} {name}: is a file; give a model directory{meant}")
    meant = hint(name) if not is_hub_id(name) or path.parent.is_dir() else ""
    if meant or not is_hub_id(name):
        usual = "; give a model directory, a Hub id such as microsoft/Phi-3.5-vision-instruct, or tiny"
        raise NotFoundError(f"{called} {name}: no such directory{meant or usual}")


def is_hub_id(name: str) -> bool:
    """Whether a name may be that of a repository on the Hub, OWNER/NAME; a directory may have it, too."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~"))


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
        files = locate(under, weights=weights, called="its base model" if base is None else "--base")
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
        if (path / "dataset.json").is_file():
            raise UserError(f"{path}: is a dataset directory, not a model; give the directory of a model or an adapter")
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
    if weights and is_sharded(path) and not list(path.glob("*.safetensors")):
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


def fetch(name: str, *, weights: bool, called: str) -> Path:
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
            f"{called} {name}: no such directory, and no such model on the Hub (or it is private: log in "
            "with `hf auth login`)"
        ) from None
    except HFValidationError as error:
        raise UserError(f"{called} {name}: {error}") from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise UserError(
            f"{called} {name}: the Hub cannot be reached and this machine has no copy; download it where "
            f"there is a connection (`hf download {name} --local-dir DIR`) and give DIR, or try "
            f"{called} tiny"
        ) from None
