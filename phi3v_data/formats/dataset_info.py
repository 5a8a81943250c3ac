"""LLaMA-Factory's `dataset_info.json`: which files are data sets, and how their columns and roles are called.

    {"demo": {"file_name": "data.json", "formatting": "sharegpt", "columns": {"messages": "messages"},
              "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}}}

As there, an entry with `columns` has no other columns, and one with `tags` has no other names of roles.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from phi3v_data.errors import UserError
from phi3v_data.formats.chat import Role
from phi3v_data.messages import shown
from phi3v_data.wrong_values import refusal

FILE = "dataset_info.json"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Columns(_Part):
    """Names of columns; None for a column that the data do not have."""

    prompt: str | None = None
    query: str | None = None
    response: str | None = None
    history: str | None = None
    messages: str | None = None
    system: str | None = None
    tools: str | None = None
    images: str | None = None
    videos: str | None = None
    audios: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    kto_tag: str | None = None


class Tags(_Part):
    """Names of the keys of a message, and of the roles."""

    role_tag: str | None = None
    content_tag: str | None = None
    user_tag: str | None = None
    assistant_tag: str | None = None
    observation_tag: str | None = None
    function_tag: str | None = None
    system_tag: str | None = None

    def roles(self) -> dict[str, Role]:
        """The meaning of each role's name."""
        pairs: tuple[tuple[str | None, Role], ...] = (
            (self.user_tag, "user"),
            (self.assistant_tag, "assistant"),
            (self.observation_tag, "tool"),
            (self.function_tag, "tool_call"),
            (self.system_tag, "system"),
        )
        return {name: role for name, role in pairs if name}


DEFAULT_COLUMNS = Columns(
    prompt="instruction",
    query="input",
    response="output",
    history="history",
    messages="conversations",
    system="system",
    tools="tools",
    images="images",
    chosen="chosen",
    rejected="rejected",
    kto_tag="kto_tag",
)
DEFAULT_TAGS = Tags(
    role_tag="from",
    content_tag="value",
    user_tag="human",
    assistant_tag="gpt",
    observation_tag="observation",
    function_tag="function_call",
    system_tag="system",
)


class Entry(_Part):
    """One data set of `dataset_info.json`."""

    file_name: str = ""
    formatting: Literal["alpaca", "sharegpt", "openai"] = "alpaca"
    columns: Columns = Field(default=DEFAULT_COLUMNS)
    tags: Tags = Field(default=DEFAULT_TAGS)
    ranking: bool = False


def read_dataset_info(text: str, where: str = FILE) -> dict[str, Entry]:
    """The entries that name a local file, by name.

    Raises:
        UserError: it is not JSON, or an entry has a wrong value.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{where}' is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"'{where}' must be an object with one entry per data set")
    entries = {}
    for name, value in content.items():
        try:
            entry = Entry.model_validate(value)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            field = ".".join(str(piece) for piece in first["loc"])
            raise UserError(f"'{where}', entry {shown(name)}: {refusal(field, first)}") from None
        if entry.file_name:
            entries[name] = entry
    return entries


def entry_from(settings: Mapping[str, Any]) -> Entry:
    """An entry from its own `model_dump`."""
    return Entry.model_validate(settings)
