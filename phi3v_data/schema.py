"""Pydantic models of the files of a conversations directory: the row, the manifest, the report.

All are strict (no "3" for 3), frozen and closed (an unknown key is an error). Sequences are tuples, so that values
are hashable and can be shared between threads; JSON arrays and Python lists are accepted for them.
`schemas/*.schema.json` is generated from these models by `phi3v-data schema`.
"""

import json
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from phi3v_data.splits import MAX_NAME_BYTES, is_data_file, is_plain_name, is_split_name

FORMAT_VERSION = 2
"""Newest format that is read; written is the oldest that can hold the rows."""

_NEW_KEYS = (b'"rejected"', b'"steps"', b'"tools"')


def _set_name(name: str) -> str:
    if name and not is_plain_name(name):
        raise PydanticCustomError("set_name", "a set's name is part of its file names: no '/', '..' or leading dot")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise PydanticCustomError(
            "set_name", "a set's name is part of its file names: at most {limit} bytes", {"limit": MAX_NAME_BYTES}
        )
    return name


def _split_name(name: str) -> str:
    if not is_split_name(name):
        raise PydanticCustomError(
            "split_name",
            "a split's name has up to {limit} letters, digits, '_', '-' and '.'",
            {"limit": MAX_NAME_BYTES},
        )
    return name


def _file_name(name: str) -> str:
    if not (is_plain_name(name) and is_data_file(name)):
        raise PydanticCustomError("file_name", "a split's file is a .jsonl file in DIR itself, named without a path")
    return name


SetName: TypeAlias = Annotated[
    str, AfterValidator(_set_name), WithJsonSchema({"type": "string", "pattern": r"^([^./\\:][^/\\]*)?$"})
]
SplitName: TypeAlias = Annotated[
    str, AfterValidator(_split_name), WithJsonSchema({"type": "string", "pattern": r"^[A-Za-z0-9][A-Za-z0-9._-]*$"})
]
FileName: TypeAlias = Annotated[
    str, AfterValidator(_file_name), WithJsonSchema({"type": "string", "pattern": r"^[^./\\][^/\\]*\.jsonl$"})
]

Scalar: TypeAlias = StrictStr | StrictInt | StrictFloat | StrictBool | None
Strings: TypeAlias = Annotated[tuple[str, ...], Field(strict=False)]
Offsets: TypeAlias = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False)]
Weight: TypeAlias = Annotated[int, Field(ge=0, le=1)]
Count: TypeAlias = Annotated[int, Field(ge=0)]
Task: TypeAlias = Literal["classification", "vqa", "chat"]

Severity: TypeAlias = Literal["error", "warning", "info"]
Level: TypeAlias = Literal["quick", "full"]


class StrictModel(BaseModel):
    """Base of all file models: strict, frozen, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class ToolStep(StrictModel):
    """Calls of tools before an answer, and what they returned (format 2)."""

    calls: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False, min_length=1)] = Field(
        description="The calls as the model writes them, usually JSON."
    )
    results: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = Field(
        description="The results, in the order of the calls."
    )

    def to_row(self) -> dict[str, Any]:
        """The step as a JSON object."""
        return {"calls": list(self.calls), "results": list(self.results)}


class Turn(StrictModel):
    """One user message, its images, and the assistant's answer."""

    images: Strings = Field((), description="POSIX paths under DIR/images, in the order of their image tags.")
    user: str = Field(description="The user's text without image tags.")
    assistant: str = Field(description="The answer; empty only in a split with `labelled: false`.")
    image_offsets: Offsets = Field(
        (),
        description="Character offsets into `user`, one per image, non-decreasing; left out if all are 0 "
        "(all tags first, then one newline).",
    )
    weight: Weight = Field(
        1, description="0: the answer is context only and is not trained; left out if 1. At least one turn has 1."
    )
    steps: Annotated[tuple[ToolStep, ...], Field(strict=False)] = Field(
        (), description="Calls of tools between `user` and `assistant` (format 2); left out if empty."
    )

    def to_row(self) -> dict[str, Any]:
        """The turn as a JSON object in the format's key order."""
        row: dict[str, Any] = {"images": list(self.images), "user": self.user, "assistant": self.assistant}
        if any(self.image_offsets):
            row["image_offsets"] = list(self.image_offsets)
        if not self.weight:
            row["weight"] = 0
        if self.steps:
            row["steps"] = [step.to_row() for step in self.steps]
        return row


class Sample(StrictModel):
    """One row of `NAME_SPLIT.jsonl`."""

    id: str = Field(min_length=1, description="Unique within the directory.")
    source: str = Field(description="Name of the dataset the sample comes from.")
    conversations: Annotated[tuple[Turn, ...], Field(strict=False, min_length=1)]
    system: str = Field("", description="System message; left out if empty.")
    answers: Strings = Field((), description="Accepted answers to the last turn, in the source's order.")
    group: str = Field("", description="Samples of one group must be in the same split.")
    meta: dict[str, Scalar] = Field(default_factory=dict, description="Flat object of JSON scalars.")
    rejected: str = Field("", description="Worse answer to the last turn, for preference training (format 2).")
    tools: str = Field("", description="JSON text of the tools that the turns may call (format 2).")

    @property
    def format(self) -> Literal[1, 2]:
        """The oldest format that can hold the row."""
        return 2 if self.rejected or self.tools or any(turn.steps for turn in self.conversations) else 1

    @property
    def images(self) -> tuple[str, ...]:
        """Image paths of all turns, in order."""
        return tuple(path for turn in self.conversations for path in turn.images)

    def to_row(self, *, plain: bool = False) -> dict[str, Any]:
        """The sample as a JSON object; optional keys only if set, and none of them if `plain`."""
        turns = [turn.to_row() for turn in self.conversations]
        if plain:
            for turn in turns:
                turn.pop("image_offsets", None)
                turn.pop("weight", None)
                turn.pop("steps", None)
        row: dict[str, Any] = {"id": self.id, "source": self.source, "conversations": turns}
        if plain:
            return row
        for key, value in (
            ("system", self.system),
            ("answers", list(self.answers)),
            ("group", self.group),
            ("meta", dict(self.meta)),
            ("rejected", self.rejected),
            ("tools", self.tools),
        ):
            if value:
                row[key] = value
        return row

    def to_json(self, *, plain: bool = False) -> str:
        """One line of the file, without its line end, as the Phi-3.5-vision sample writes it.

        Raises:
            ValueError: a value that JSON cannot represent (NaN, infinity).
        """
        return json.dumps(self.to_row(plain=plain), ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, line: str | bytes) -> "Sample":
        """Read one line.

        Raises:
            pydantic.ValidationError: not JSON, or not a row of format 1.
        """
        return cls.model_validate_json(line)


def lines_format(lines: bytes) -> Literal[1, 2]:
    """The oldest format that can hold valid lines; only lines that may need a newer one are parsed."""
    first, second, third = _NEW_KEYS  # spelled out, as lines may be millions
    if first not in lines and second not in lines and third not in lines:
        return 1
    for line in lines.rstrip(b"\n").split(b"\n"):
        row = json.loads(line)
        turns = row.get("conversations", ())
        if row.get("rejected") or row.get("tools") or any(turn.get("steps") for turn in turns):
            return 2
    return 1


class SplitInfo(StrictModel):
    """Record of one split in `dataset.json`."""

    rows: Count
    images: Count = Field(description="Number of distinct image files used by the rows of the split.")
    files: dict[FileName, str] = Field(
        description="Map of file name in DIR to its `sha256:...` digest, in shard order.",
        json_schema_extra={"additionalProperties": False},
    )
    labelled: bool = Field(
        True, description="False if `assistant` is empty, so that the split can only be used for prediction."
    )


class ConverterInfo(StrictModel):
    """The converter that wrote the directory, with its version and options."""

    name: str
    version: str
    options: dict[str, Any] = Field(default_factory=dict)


class Manifest(StrictModel):
    """`dataset.json`: written last, so that its presence means that the directory is complete."""

    format: Literal[1, 2] = Field(
        1,
        description="2 if a row has a rejected answer, tools or calls of tools, or if images are in shards; readers of "
        "format 1 refuse it.",
    )
    name: SetName
    task: Task
    metrics: Strings = Field((), description="Metric names; the first is the headline.")
    splits: dict[SplitName, SplitInfo] = Field(json_schema_extra={"additionalProperties": False})
    converter: ConverterInfo | None = None
    classes: Strings = Field((), description="Class names of a classification set, sorted.")
    num_crops: Annotated[int, Field(ge=1, le=16)] | None = Field(
        None, description="Tile budget suggested by the source; null if it suggests none."
    )
    source: str = Field("", description="Origin of the data, for people.")
    license: str = ""
    rejects: dict[str, Count] = Field(
        default_factory=dict, description="Number of planned samples that were left out, by reason code."
    )
    notes: dict[str, Count] = Field(
        default_factory=dict, description="Number of notes on the samples that were kept, by code."
    )
    history: Annotated[tuple[ConverterInfo, ...], Field(strict=False)] = Field(
        (),
        description="Operations on the converted set (split, merge, clean), oldest first; left out if empty.",
    )

    def to_json(self) -> str:
        """The text of the file: indented, with LF line ends and a final one."""
        value = self.model_dump(mode="json")
        if not self.history:
            del value["history"]
        return json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n"


class RejectRow(StrictModel):
    """One row of `rejects.jsonl`: a planned sample that could not be converted."""

    id: str = Field(description="The id that the sample would have had; no other sample gets it.")
    item: str = Field(description="The source item of the sample, as named by the converter's plan.")
    reason: str = Field(description="Reason code in kebab case, counted in `dataset.json`.")
    message: str = Field(description="One sentence for people.")


class Diagnostic(StrictModel):
    """One finding of the validator."""

    code: str = Field(description="A code of the catalogue: `phi3v-data explain CODE`.")
    severity: Severity
    file: str = Field(description="Path relative to the directory; empty if the finding is about the whole directory.")
    line: Count | None = Field(None, description="Line number in a JSONL file, from 1.")
    id: str | None = Field(None, description="Id of the sample, if it could be read.")
    field: str | None = Field(None, description="Path of the field, such as `conversations[0].images[2]`.")
    message: str
    hint: str = ""


class Summary(StrictModel):
    """Counts over the whole directory; `problems` counts all occurrences, including those not listed."""

    samples: Count
    turns: Count
    images: Count
    splits: dict[str, Count]
    problems: dict[str, Count]


class Report(StrictModel):
    """The output of `phi3v-data validate --json`."""

    format: Literal[1] = 1
    dir: str
    ok: bool
    level: Level
    summary: Summary
    problems: Annotated[tuple[Diagnostic, ...], Field(strict=False)]
    stats: dict[str, Any] = Field(default_factory=dict)
