"""JSON Schemas (draft 2020-12) of the files of a conversations directory, generated from the models.

`schemas/NAME.schema.json` in the repository is the output of this module; a test compares the two. `phi3v_train` makes
those of its files with the same functions.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema

from phi3v_data.converters.helpers.table_map import TableMap
from phi3v_data.errors import NotFoundError
from phi3v_data.schema import Manifest, RejectRow, Report, Sample

Mode = Literal["validation", "serialization"]

Schemas: TypeAlias = Mapping[str, tuple[type[BaseModel], Mode, str]]
"""Name -> the model, whether its schema describes input or output, and the file with such values."""

SCHEMAS: Schemas = {
    "sample": (Sample, "validation", "a line of NAME_SPLIT.jsonl"),
    "manifest": (Manifest, "validation", "DIR/dataset.json"),
    "reject": (RejectRow, "serialization", "a line of DIR/rejects.jsonl"),
    "report": (Report, "serialization", "the output of `phi3v-data validate DIR --json`"),
    "table-map": (TableMap, "validation", "the mapping file of `phi3v-data convert table --map`"),
}
"""Files of the format."""


class _Steady(GenerateJsonSchema):
    """Omits titles derived from field names, and gives the same output under every supported version of pydantic."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def dict_schema(self, schema: Any) -> dict[str, Any]:
        return {"additionalProperties": True, **super().dict_schema(schema)}


def json_schema(name: str, schemas: Schemas = SCHEMAS, namespace: str = "urn:phi3v:format-1") -> dict[str, Any]:
    """The schema of one kind of file, with its dialect and an id that is stable within a format version.

    Raises:
        NotFoundError: there is no schema of that name.
    """
    if name not in schemas:
        from difflib import get_close_matches

        near = get_close_matches(name, schemas, n=1)
        raise NotFoundError(
            f"no schema {name!r}"
            + (f"; did you mean {near[0]!r}?" if near else ".")
            + f" The schemas are {', '.join(schemas)}."
        )
    model, mode, content = schemas[name]
    return {
        "$schema": GenerateJsonSchema.schema_dialect,
        "$id": f"{namespace}:{name}",
        "$comment": f"Describes {content}.",
        **model.model_json_schema(mode=mode, schema_generator=_Steady),
    }


def to_text(schema: Mapping[str, Any]) -> str:
    """The text of a schema file."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
