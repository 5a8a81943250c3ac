"""`metrics.jsonl`: one JSON object per logged step, each step once, whatever was killed and resumed in between."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.json_schema import SkipJsonSchema

from phi3v_data.errors import UserError
from phi3v_data.files import open_regular, read_regular, write_text

if TYPE_CHECKING:
    from phi3v_train.training.loop import StepResult

SOURCE_LOSS = "loss/"
"""Begins the keys of the losses by data source, `loss/NAME`, in the lines of a run that has several."""

MAX_BYTES = 1 << 32
"""Bytes of a metrics file: those of over ten million steps."""

MAX_LINE = 1 << 16
"""Bytes of a line."""

SCORE = "eval_"
"""Begins the keys of the scores of an evaluation: `eval_loss`, `eval_accuracy`."""


def _describe(schema: dict[str, Any]) -> None:
    """Keys that are absent have no default, and of other keys only the two kinds may be there."""
    for field in schema["properties"].values():
        field.pop("default", None)
    schema["patternProperties"] = {
        f"^{SOURCE_LOSS}.": {
            "description": "`loss` over the samples of one data source, by its name.",
            "type": "number",
        },
        f"^{SCORE}.": {"description": "A score of the evaluation after this step, by its name.", "type": "number"},
    }
    schema["additionalProperties"] = False


_Number: TypeAlias = Annotated[float, Field(ge=0)] | SkipJsonSchema[None]
_Count: TypeAlias = Annotated[int, Field(ge=0)] | SkipJsonSchema[None]


class MetricsLine(BaseModel):
    """A line of `metrics.jsonl`: a step, and the scores of the evaluation after it.

    A key without a value is absent. Step 0 is the evaluation before training; it has only scores.
    """

    model_config = ConfigDict(
        strict=True, frozen=True, extra="allow", allow_inf_nan=False, title="MetricsLine", json_schema_extra=_describe
    )
    __pydantic_extra__: dict[str, float]

    step: int = Field(ge=0, description="Finished steps; 0 is before training.")
    epoch: float = Field(ge=0, description="Passes over the data so far.")
    loss: _Number = Field(None, description="Mean cross-entropy over the supervised tokens of the step.")
    lr: _Number = Field(None, description="Learning rate of the step.")
    grad_norm: _Number = Field(
        None, description="Norm of all gradients before clipping; absent if the step was skipped."
    )
    samples: _Count = Field(None, description="Samples of the step, over all processes.")
    supervised_tokens: _Count = Field(None, description="Tokens that the loss is the mean of.")
    tokens_per_second: _Number = Field(None, description="Tokens of any kind, over all processes.")
    images_per_second: _Number = Field(None, description="Images, over all processes.")
    seconds: _Number = Field(None, description="Wall-clock time of the step.")
    truncated_samples: _Count = Field(None, description="Samples that were cut to `--max_length`.")
    skipped: bool | SkipJsonSchema[None] = Field(
        None, description="True if the gradients were not finite, so that the weights did not change."
    )

    @model_validator(mode="after")
    def _check_keys(self) -> "MetricsLine":
        for key in self.model_extra or ():
            if not any(key.startswith(start) and key != start for start in (SOURCE_LOSS, SCORE)):
                raise ValueError(f"unknown key {key!r}; others than the fields begin with {SOURCE_LOSS} or {SCORE}")
        return self


class MetricsLog:
    """Appends lines; opening it at step S drops what a killed run wrote beyond S, and the `damaged` lines.

    A full disk does not end the run: lines wait in memory until they fit.
    """

    def __init__(self, path: Path, *, step: int) -> None:
        self.path = path
        self.failed = ""
        lines = list(_lines(path))
        self.damaged = lines.count(None)
        kept = "".join(json.dumps(line) + "\n" for line in lines if line is not None and line["step"] <= step)
        write_text(path, kept)
        self._good = len(kept.encode())
        self._waiting: list[str] = []

    def write(self, values: Mapping[str, Any]) -> None:
        """Append one line; values that are None are left out."""
        line = {name: value for name, value in values.items() if value is not None}
        self._waiting.append(json.dumps(line, allow_nan=False) + "\n")
        self.flush()

    def flush(self) -> None:
        """Write the lines that wait; `failed` is the reason if they still do."""
        data = "".join(self._waiting).encode()
        try:
            with self.path.open("r+b") as file:
                file.truncate(self._good)
                file.seek(self._good)
                file.write(data)
        except OSError as error:
            self.failed = str(error.strerror)
            return
        self._good += len(data)
        self._waiting, self.failed = [], ""


def read_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a metrics file; a last line cut by a kill is dropped, as are damaged ones.

    Raises:
        UserError: the file cannot be read.
    """
    return (line for line in _lines(path) if line is not None)


def is_log(path: Path) -> bool:
    """Whether a file begins with a line that a run writes."""
    try:
        with open_regular(path) as file:
            MetricsLine.model_validate_json(file.readline(MAX_LINE))
    except (OSError, ValueError):
        return False
    return True


def _lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """The lines with a line end; None for one that no run wrote, such as the zeros that a power cut leaves."""
    try:
        data = read_regular(path, MAX_BYTES)
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); move it away") from None
    for line in data.split(b"\n")[:-1]:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        yield value if isinstance(value, dict) and type(value.get("step")) is int else None


def with_scores(line: Mapping[str, Any], result: Mapping[str, Any] | None) -> dict[str, Any]:
    """A step's line with the scores of its evaluation, if there was one."""
    scores = {f"{SCORE}{name}": value for name, value in (result or {}).get("metrics", {}).items()}
    return {**line, **scores}


def scores_of(line: Mapping[str, Any]) -> dict[str, Any]:
    """The scores in a step's line, by the names of the metrics; empty if the step was not evaluated."""
    return {name.removeprefix(SCORE): value for name, value in line.items() if name.startswith(SCORE)}


def make_line(result: "StepResult", epoch: float) -> dict[str, Any]:
    """The line of a step in `metrics.jsonl`."""
    seconds = max(result.seconds, 1e-9)
    line: dict[str, Any] = {
        "step": result.step,
        "epoch": round(epoch, 6),
        "loss": result.loss,
        **{f"{SOURCE_LOSS}{name}": loss for name, loss in result.source_losses.items()},
        "lr": result.lr,
        "grad_norm": None if result.skipped else result.grad_norm,
        "samples": result.num_samples,
        "supervised_tokens": result.num_supervised,
        "tokens_per_second": round(result.num_tokens / seconds, 1),
        "images_per_second": round(result.num_images / seconds, 2),
        "seconds": round(result.seconds, 4),
    }
    if result.num_truncated:
        line["truncated_samples"] = result.num_truncated
    if result.skipped:
        line["skipped"] = True
    return line
