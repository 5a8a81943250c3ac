"""Files of a model directory that decide token counts: config.json and those of its processor."""

from pathlib import Path
from typing import Any

from phi3v_data.errors import UserError
from phi3v_data.files import load_json
from phi3v_data.messages import shown, shown_path
from phi3v_data.tokens.family import SettingsError, TokenFamily

PREPROCESSOR_CONFIG = "preprocessor_config.json"
"""File of an image processor."""

PROCESSOR_CONFIG = "processor_config.json"
"""File of a whole processor, which may hold its image processor's values under the key `image_processor`."""

ADAPTER_CONFIG = "adapter_config.json"
"""File of a PEFT adapter, which names the model under it."""

Values = dict[str, Any]


def configured(family: TokenFamily, directory: Path) -> TokenFamily:
    """A family with the settings of a model directory.

    Raises:
        UserError: a file cannot be read, or has a value that the family does not take.
    """
    try:
        return family.configured(read_values(directory / "config.json"), processor_settings(directory))
    except SettingsError as error:
        raise UserError(f"{shown_path(directory)}: the image processor's {error}") from None


def processor_settings(directory: Path) -> Values:
    """Values of the image processor, and those of `processor_config.json` that are not its own.

    Raises:
        UserError: a file cannot be read, or is not a JSON object.
    """
    image = read_values(directory / PREPROCESSOR_CONFIG)
    whole = read_values(directory / PROCESSOR_CONFIG)
    own = whole.pop("image_processor", None)
    return {**whole, **image, **(own if isinstance(own, dict) else {})}


def has_processor_settings(directory: Path) -> bool:
    """Whether a model directory says how images are processed."""
    return any((directory / name).is_file() for name in (PREPROCESSOR_CONFIG, PROCESSOR_CONFIG))


def other_processor(adapter: Path, base: Path) -> str:
    """The processors of an adapter and of the model under it, if they are of two classes; else empty.

    Raises:
        UserError: a file cannot be read, or is not a JSON object.
    """
    own, under = _processor_class(adapter), _processor_class(base)
    if not own or not under or own == under:
        return ""
    return f"its processor is {shown(under, 40)}, that of the adapter {shown(own, 40)}"


def _processor_class(directory: Path) -> str:
    """The class of a directory's processor; empty if no file names it."""
    for name in (PROCESSOR_CONFIG, PREPROCESSOR_CONFIG):
        value = read_values(directory / name).get("processor_class")
        if isinstance(value, str) and value:
            return value
    return ""


def read_values(path: Path) -> Values:
    """A JSON object; empty if there is no such file.

    Raises:
        UserError: it cannot be read, or is not an object.
    """
    try:
        values = load_json(path)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise UserError(f"{shown_path(path)}: cannot be read: {reason}") from None
    if not isinstance(values, dict):
        raise UserError(f"{shown_path(path)}: must be a JSON object")
    return values
