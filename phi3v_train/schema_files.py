"""JSON Schemas (draft 2020-12) of the files of a run; `schemas/NAME.schema.json` in the repository is the output."""

from typing import Any

from phi3v_data import schema_files
from phi3v_train.training.metrics_log import MetricsLine

SCHEMAS: schema_files.Schemas = {"metrics": (MetricsLine, "serialization", "a line of metrics.jsonl of a run")}


def json_schema(name: str) -> dict[str, Any]:
    """The schema of one kind of file.

    Raises:
        NotFoundError: there is no schema of that name.
    """
    return schema_files.json_schema(name, SCHEMAS, "urn:phi3v:run-1")
