"""The mapping file of `convert table`: maps the columns of a table to samples.

    images: photo                     # one or several columns; a cell may be a list, or paths with `separator`
    user: "{question}\\nAnswer briefly."
    assistant: "{answer}"
    answers: accepted                 # all accepted answers, for scores
    split: part                       # train if it is empty
    group: shop                       # samples of one group must be in the same split
    metrics: [anls]

`{column}` is replaced by a cell, `{query.en}` by a field inside one; write `{{` and `}}` for braces. `turns:` contains
a longer conversation. The full list of keys: `phi3v-data schema table-map`.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from phi3v_data.encodings import read_text
from phi3v_data.errors import UserError
from phi3v_data.messages import shown
from phi3v_data.metric_names import unknown_metric
from phi3v_data.schema import Task
from phi3v_data.splits import is_split_name
from phi3v_data.wrong_values import refusal
from phi3v_data.yaml_keys import repeated_key

_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Names = Annotated[
    tuple[str, ...],
    BeforeValidator(_as_list),
    Field(strict=False),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class TurnMap(_Model):
    """Map of one turn."""

    user: str = Field(description="Template of the user's text.")
    assistant: str = Field("", description="Template of the answer.")
    images: Names = Field((), description="Columns with the images of the turn.")

    @field_validator("user", "assistant", mode="after")
    @classmethod
    def _is_template(cls, value: str) -> str:
        for _ in placeholders(value):
            pass
        return value


class TableMap(_Model):
    """Map from a row of a table to a sample."""

    name: str = Field("", description="Name of the set and its files. Default: the file name of the table.")
    task: Task = Field("vqa", description="Kind of task.")
    metrics: Names = Field(("accuracy",), description="Metrics; the first is the headline.")
    images: Names = Field((), description="Columns with the images: paths relative to the table, or embedded.")
    user: str = Field("", description="Template of the user's text.")
    assistant: str = Field("", description="Template of the answer; empty if the table has no answers (--unlabelled).")
    turns: Annotated[tuple[TurnMap, ...], Field(strict=False)] = Field((), description="Several turns instead of one.")
    system: str = Field("", description="Template of a system message.")
    answers: Names = Field((), description="Columns with accepted answers, in order; cells may be lists.")
    split: str = Field("", description="Column with the split. Default: all rows are train.")
    group: str = Field("", description="Column with the group; samples of one group must be in the same split.")
    id: str = Field("", description="Column with the id of the row. Default: its number.")
    meta: Names = Field((), description="Columns to keep in `meta` of the sample.")
    values: dict[str, dict[str, str]] = Field(
        default_factory=dict, description="Replacements of cells, by column: {label: {'0': 'No', '1': 'Yes'}}."
    )
    separator: str = Field("", description="Separator of several paths or answers in one cell.")
    delimiter: str = Field("", description="Separator of the cells of a CSV file. Default: a comma; a tab in .tsv.")
    classes: Names = Field((), description="Class names, for the task classification.")
    source: str = Field("", description="Where the data come from, for people.")
    license: str = Field("", description="Licence of the data.")

    @field_validator("user", "assistant", "system", mode="after")
    @classmethod
    def _is_template(cls, value: str) -> str:
        for _ in placeholders(value):
            pass
        return value

    @field_validator("name", mode="after")
    @classmethod
    def _is_name(cls, value: str) -> str:
        if value and not is_split_name(value):
            raise ValueError("it becomes part of file names: use up to 100 letters, digits, _, - and .")
        return value

    @field_validator("metrics", mode="after")
    @classmethod
    def _are_known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if why := unknown_metric(value):
            raise ValueError(why)
        return value

    @field_validator("delimiter", mode="after")
    @classmethod
    def _is_character(cls, value: str) -> str:
        if len(value) > 1:
            raise ValueError("it must be one character")
        return value

    @model_validator(mode="after")
    def _is_one_form(self) -> "TableMap":
        if bool(self.turns) == bool(self.user):
            raise ValueError("give either 'user' (and 'assistant'), or 'turns'")
        if self.turns and (self.assistant or self.images):
            raise ValueError("with 'turns', put 'assistant' and 'images' into the turns")
        return self

    def all_turns(self) -> tuple[TurnMap, ...]:
        """The turns, given in either form."""
        return self.turns or (TurnMap(user=self.user, assistant=self.assistant, images=self.images),)

    def columns(self) -> Iterator[tuple[str, str]]:
        """Pairs of a field of the map and a column that it needs."""
        for number, turn in enumerate(self.all_turns()):
            where = f"turns.{number}." if self.turns else ""
            for field in ("user", "assistant"):
                for name in placeholders(getattr(turn, field)):
                    yield where + field, name
            for name in turn.images:
                yield where + "images", name
        for name in placeholders(self.system):
            yield "system", name
        for field in ("answers", "meta"):
            for name in getattr(self, field):
                yield field, name
        for field in ("split", "group", "id"):
            if name := getattr(self, field):
                yield field, name


def placeholders(template: str) -> Iterator[str]:
    """The columns that a template needs.

    Raises:
        ValueError: a single brace, or an empty placeholder.
    """
    for match in _PLACEHOLDER.finditer(template):
        if match[0] in ("{", "}"):
            raise ValueError(f"a single '{match[0]}' at character {match.start() + 1}; write '{match[0] * 2}' for one")
        if match[1] is not None:
            if not match[1].strip():
                raise ValueError(f"an empty {{}} at character {match.start() + 1}; write a column name into it")
            yield match[1].strip()


def fill(template: str, cells: Mapping[str, str]) -> str:
    """Fill a template with cells."""

    def put(match: "re.Match[str]") -> str:
        return match[0][0] if match[1] is None else cells[match[1].strip()]

    return _PLACEHOLDER.sub(put, template)


def read_map(path: str | Path) -> str:
    """Read and check a mapping file; return its text.

    Raises:
        UserError: it does not exist, is not YAML, or has an invalid key; with the line.
    """
    try:
        text = read_text(Path(path))
    except OSError as error:
        raise UserError(f"--map: cannot read '{path}': {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--map: '{path}' is not UTF-8 text") from error
    parse_map(text, Path(path).name)
    return text


def parse_map(text: str, where: str = "the map") -> TableMap:
    """Parse the text of a mapping file.

    Raises:
        UserError: it is not YAML, or has an invalid key; with the line.
    """
    try:
        content = yaml.safe_load(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        twice = repeated_key(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise UserError(f"{where}{line} is not YAML: {problem}") from error
    if twice is not None:
        raise UserError(f"{where}:{twice[0]}: the key {shown(twice[1], 40)} is there twice; keep one of the two values")
    if not isinstance(content, dict):
        raise UserError(f"{where} must contain keys such as 'images: photo' and 'user: \"{{question}}\"'")
    try:
        return TableMap.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        location = [piece for piece in first["loc"] if isinstance(piece, str | int)]
        message = refusal(".".join(str(piece) for piece in location), first)
        if first["type"] == "extra_forbidden":
            keys = TableMap.model_fields if len(location) == 1 else TurnMap.model_fields
            message += f"; the keys are {', '.join(keys)}"
        raise UserError(f"{where}:{line_of(node, location)}: {message}") from None


def line_of(node: Any, location: "list[str | int]") -> int:
    """The line (from 1) of a key in a composed YAML document, or of the nearest key above if it is missing."""
    line = 1
    for piece in location:
        found = None
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == str(piece)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(piece, int) and piece < len(node.value):
            found = (node.value[piece], node.value[piece])
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line
