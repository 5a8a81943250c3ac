"""Makes a `RunConfig` of values, with all their mistakes in one sentence."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError

from phi3v_data.errors import UserError
from phi3v_data.wrong_values import refusal
from phi3v_train.config import RunConfig, home_groups


def parse_config(values: dict[str, Any], files: Mapping[str, str] = {}) -> RunConfig:
    """Make a `RunConfig` of grouped or flat values.

    Args:
        values: of the settings.
        files: name of a setting -> the file that gave it, of those that are not options.

    Raises:
        UserError: all mistakes in one sentence, each with its option, or with its file and key.
    """
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise UserError("; ".join(_sentences(error, files))) from None


def _sentences(error: ValidationError, files: Mapping[str, str]) -> Iterator[str]:
    """Each finding of Pydantic in the words of the command line, or of the file that the value came from."""
    for item in error.errors():
        names = [str(part) for part in item["loc"]]
        if names and names[0] in RunConfig.GROUPS:
            del names[0]
        file = files.get(names[0], "") if names else ""
        if item["type"] == "extra_forbidden":
            where = f"{file}: " if file else ""
            yield f"{where}{'.'.join(names)!r} is not a setting of a run{_nearest(names[-1])}"
        else:
            yield refusal(f"{file}: {names[0]}" if file else f"--{names[0]}" if names else "", item)


def _nearest(name: str) -> str:
    matches = get_close_matches(name, home_groups(), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""
