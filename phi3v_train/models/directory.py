"""A model directory's files: its family, its configuration, and the tensors in its safetensors files."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi3v_data.errors import UserError
from phi3v_data.files import inside, load_json
from phi3v_data.messages import counted
from phi3v_data.tokens.model_files import ADAPTER_CONFIG, PREPROCESSOR_CONFIG, PROCESSOR_CONFIG
from phi3v_train.models.family import ModelFamily
from phi3v_train.models.meant import TINY
from phi3v_train.models.registry import get_family

INDEX = "model.safetensors.index.json"
WEIGHTS = "model.safetensors"
SHARDS = "shards"
LAYERS = ("num_hidden_layers", "num_layers", "depth")
"""Numbers of layers in `config.json`, as the families call them."""
GENERATION_CONFIG = "generation_config.json"


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
        return self._budget(self.family.budget.tuned) if self.family.budget is not None else None

    @property
    def stored_num_crops(self) -> int | None:
        """Image budget in the image processor's file, as AutoProcessor takes it; None for a tiny model.

        Raises:
            UserError: the value is not a budget of the family.
        """
        return self._budget(self.family.budget.name) if self.family.budget is not None else None

    def _budget(self, name: str) -> int | None:
        """An image budget in the image processor's file, checked."""
        value: Any = self.preprocessor_config().get(name)
        if value is None:
            return None
        try:
            self.family.tokens.check_budget(value)
        except ValueError as error:
            raise UserError(
                f"{self.processor_directory}/{self.image_processor_file}: {name} is wrong: {error}"
            ) from None
        return int(value)


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


def is_sharded(folder: Path) -> bool:
    """Whether a checkpoint was written sharded."""
    return (folder / SHARDS).is_dir()


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
    shapes: dict[str, tuple[int, ...]] = {}
    for file in weight_files(path):
        shapes |= shapes_in(path / file)
    return shapes


def shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors in one safetensors file, by its header, which fits the file's size.

    Raises:
        UserError: it is not there, not whole, or not of this format.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            names = tensors.keys()
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{file}: cannot be read as safetensors ({error}); copy or download it again") from None


def check_weights(path: Path, config: Mapping[str, Any]) -> None:
    """Refuse weights that are not whole, and more layers in `config.json` than there are tensors.

    The layers are made one by one before the weights are looked at, and a stranger's file may ask for any number.

    Raises:
        UserError: of either kind.
    """
    stored = len(stored_shapes(path))
    for name, number in layer_counts(config):
        if number > stored:
            raise UserError(
                f"{path / 'config.json'}: {name} is {number:,}, but the weights have {counted(stored, 'tensor')}; "
                "copy it from the model's original files"
            )


def layer_counts(config: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, int]]:
    """Yield the numbers of layers in a configuration and those within it, with their names."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from layer_counts(value, f"{before}{name}.")
        elif name in LAYERS and isinstance(value, int):
            yield before + name, value


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
