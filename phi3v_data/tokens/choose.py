"""The model family and the tokenizer that `--model` and `--tokenizer` mean together.

`--model` decides image tokens and special strings; a model directory given there also counts text with its tokenizer.
`--tokenizer` decides the text count. Without `--model`, the family is that of the tokenizer's directory, else the
default.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from phi3v_data.errors import UserError
from phi3v_data.messages import shown_path
from phi3v_data.tokens.family import TokenFamily
from phi3v_data.tokens.model_files import has_processor_settings
from phi3v_data.tokens.registry import default_family, family_of_type, find_family, read_model_type


@dataclass(frozen=True)
class ChosenModel:
    """A model family, and the directory whose tokenizer counts text exactly; None if text tokens are estimated.

    `tokenizer_required`: the user named that directory as a tokenizer's, so that it must have one. `without_settings`:
    the model directory, if it has no file that says how images are processed.
    """

    family: TokenFamily
    tokenizer: Path | None = None
    tokenizer_required: bool = False
    without_settings: Path | None = None


def choose_model(model: str | Path | None, tokenizer: str | Path | None) -> ChosenModel:
    """The family and the tokenizer that these options mean.

    Args:
        model: name of a family, or a model directory.
        tokenizer: a directory with `tokenizer.json`.

    Raises:
        NotFoundError: no such family or directory, or no family reads the model in the directory.
        UserError: the tokenizer belongs to another family than the model; or a family cannot be loaded.
    """
    family, directory = (None, None) if model is None else find_family(model)
    bare = directory if directory is not None and not has_processor_settings(directory) else None
    if tokenizer is None:
        return ChosenModel(family or default_family(), directory, without_settings=bare)
    owner = _family_of_directory(Path(tokenizer))
    if family is None:
        family = owner or default_family()
    elif owner is not None and owner.name != family.name:
        raise UserError(
            f"--tokenizer {shown_path(tokenizer)} is of the model family {owner.name}, but --model "
            f"{shown_path(str(model))} is of {family.name}: name a tokenizer of {family.name}, or leave --tokenizer out"
        )
    return ChosenModel(family, Path(tokenizer), tokenizer_required=True, without_settings=bare)


def with_image_options(
    family: TokenFamily, num_crops: int | None, others: Mapping[str, int] | None
) -> tuple[TokenFamily, int | None]:
    """The family under `num_crops` and other options of images, and the image budget among them, None if not given.

    Raises:
        BudgetError: an option that the family does not have, or a value that it does not take.
    """
    options = dict(others or {})
    if num_crops is not None:
        options["num_crops"] = num_crops
    return family.with_options(options)


def _family_of_directory(directory: Path) -> TokenFamily | None:
    """The family of a directory by its config.json; None if that names none that can be loaded."""
    try:
        model_type = read_model_type(directory)
        return None if model_type is None else family_of_type(model_type)
    except UserError:
        return None
