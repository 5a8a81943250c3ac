"""The JSON Schema of a line of `metrics.jsonl`: it is committed, and describes the lines of a real run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from colour_sets import colour_directory
from pydantic import ValidationError
from run_dirs import read_lines, settings_for

from phi3v_data.cli.base import run as run_app
from phi3v_data.errors import NotFoundError
from phi3v_data.schema_files import to_text
from phi3v_train.cli.app import COMMANDS, HELP, make_group
from phi3v_train.run import run as train
from phi3v_train.schema_files import SCHEMAS, json_schema
from phi3v_train.settings import resolve
from phi3v_train.training.metrics_log import MetricsLine

ROOT = Path(__file__).parents[2]


def test_the_schema_files_are_those_of_the_models() -> None:
    for name in SCHEMAS:
        committed = (ROOT / "schemas" / f"{name}.schema.json").read_text(encoding="utf-8")
        assert committed == to_text(json_schema(name)), "the models have changed: run `make docs`"
    ids = [json.loads(path.read_text())["$id"] for path in (ROOT / "schemas").glob("*.schema.json")]
    assert {each.rpartition(":")[2] for each in ids if each.startswith("urn:phi3v:run-1:")} == set(SCHEMAS)


def test_the_command_prints_a_schema_or_writes_all(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*args: object) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as end:
            run_app(make_group("phi3v-train", HELP, COMMANDS), [str(each) for each in args])
        return end.value.code, *capsys.readouterr()

    assert json.loads(run("schema", "metrics")[1])["title"] == "MetricsLine"
    assert list(json.loads(run("schema")[1])) == ["metrics"]
    assert run("schema", "--out_dir", tmp_path)[0] == 0
    assert (tmp_path / "metrics.schema.json").read_bytes() == (ROOT / "schemas/metrics.schema.json").read_bytes()
    code, out, err = run("schema", "metric")
    assert (code, out) == (2, "")
    assert "no schema 'metric'; did you mean 'metrics'?" in err
    with pytest.raises(NotFoundError):
        json_schema("sample")


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Lines of a run on two sources with an evaluation before and after it."""
    root = tmp_path_factory.mktemp("run")
    data_dirs = [str(colour_directory(root / name, rows=6)) for name in ("a", "b")]
    changes = {"max_steps": 2, "logging_steps": 1, "eval_before": True, "eval_after": True, "metric": ["accuracy"]}
    train(resolve({**settings_for(Path(), root / "out", **changes), "data_dir": data_dirs}), quiet=True)
    return read_lines(root / "out" / "metrics.jsonl")


def test_the_lines_of_a_run_are_as_the_schema_says(lines: list[dict[str, Any]]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(json_schema("metrics"))
    validator.check_schema(json_schema("metrics"))
    assert [line["step"] for line in lines] == [0, 1, 2]
    assert "loss" not in lines[0]
    assert {"eval_loss", "eval_accuracy"} <= lines[0].keys()
    assert {"loss", "lr", "grad_norm", "samples", "seconds"} <= lines[1].keys()
    assert {"loss/a", "loss/b"} & lines[1].keys()
    for line in lines:
        validator.validate(line)
        assert MetricsLine.model_validate(line).model_dump(exclude_none=True) == line
    for line in ({**lines[1], "skipped": True, "truncated_samples": 3}, {**lines[1], "eval_a/b": 0}):
        validator.validate(line)
        MetricsLine.model_validate(line)


@pytest.mark.parametrize(
    "change",
    [
        {"step": -1},
        {"step": 1.5},
        {"loss": "1"},
        {"loss": None},
        {"samples": 2.5},
        {"eval_accuracy": "high"},
        {"loss/a": None},
        {"loss/": 1.0},
        {"eval_": 1.0},
        {"perplexity": 2.0},
    ],
    ids=str,
)
def test_other_lines_are_not(lines: list[dict[str, Any]], change: dict[str, Any]) -> None:
    line = {**lines[1], **change}
    jsonschema = pytest.importorskip("jsonschema")
    assert not jsonschema.Draft202012Validator(json_schema("metrics")).is_valid(line)
    if change != {"loss": None}:  # the model takes None for an absent value
        with pytest.raises(ValidationError):
            MetricsLine.model_validate(line)


def test_the_schema_is_found_without_torch() -> None:
    code = "import sys, phi3v_train.schema_files; print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
