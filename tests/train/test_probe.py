"""The plan names the longest samples and the one that needs most memory, also where few of the rows are measured."""

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
from in_process import make_cli
from run_dirs import arguments, settings_for
from sample_dirs import save_image, write_rows

from phi3v_data.dataset import Dataset
from phi3v_data.schema import Sample, Turn
from phi3v_train.cli.app import main
from phi3v_train.data.encode import Encoder
from phi3v_train.data.order import SampleRef
from phi3v_train.data.probe import LONG_LINES, SPREAD_ROWS
from phi3v_train.data.reader import Reader
from phi3v_train.data.sources import open_source
from phi3v_train.models.phi3v.family import PHI3V
from phi3v_train.models.phi3v.tiny import tiny_processor

ROWS, LONG_TEXT, MANY_IMAGES = 700, 333, 335


def sample(n: int, text: str = "short", images: tuple[str, ...] = ()) -> Sample:
    return Sample(id=f"r{n}", source="s", conversations=(Turn(images=images, user=f"q{n}", assistant=text),))


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short rows, one with a long text, one with four images; neither is among those that are spread evenly."""
    folder = tmp_path_factory.mktemp("probe")
    rows = [sample(n) for n in range(ROWS)]
    rows[LONG_TEXT] = sample(LONG_TEXT, "word " * 1400)
    rows[MANY_IMAGES] = sample(MANY_IMAGES, "x", tuple(save_image(folder, f"{k}.png", k) for k in range(4)))
    assert not {LONG_TEXT, MANY_IMAGES} & {index * ROWS // SPREAD_ROWS for index in range(SPREAD_ROWS)}
    assert ROWS > SPREAD_ROWS + LONG_LINES
    return write_rows(folder, rows)


def test_the_longest_and_the_largest_sample_are_named(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = make_cli(capsys, monkeypatch)
    options = arguments(settings_for(directory, tmp_path / "out", num_crops=1))
    code, out, _ = cli("plan", *options, "--json", main=main)
    assert code == 0
    plan: dict[str, Any] = json.loads(out)
    reader = Reader([open_source(directory, "train", num_crops=1)], Encoder(PHI3V.renderer(tiny_processor(1))))
    tokens = {row: len(reader.encode(SampleRef(0, row, 0)).input_ids) for row in (LONG_TEXT, MANY_IMAGES)}
    assert tokens[LONG_TEXT] > tokens[MANY_IMAGES] > 1000
    assert [(row["row"], row["line"], row["id"], row["tokens"]) for row in plan["longest"][:2]] == [
        (333, 334, "r333", tokens[LONG_TEXT]),
        (335, 336, "r335", tokens[MANY_IMAGES]),
    ]
    assert len(plan["longest"]) == 10
    assert {key: plan["largest"][key] for key in ("data_dir", "file", "row", "images", "tiles")} == {
        "data_dir": str(directory), "file": "set_train.jsonl", "row": 335, "images": 4, "tiles": 8,
    }  # fmt: skip
    assert plan["tokens"]["max"] == tokens[LONG_TEXT]
    assert SPREAD_ROWS < plan["tokens"]["measured"] <= SPREAD_ROWS + LONG_LINES
    assert plan["tokens"]["mean"] < 30, "the mean is that of the rows that are spread evenly"
    _, _, err = cli("plan", *options, main=main)
    assert (
        f"(of {plan['tokens']['measured']} rows measured out of 700, those with the longest lines among them: a short "
        "line with large images may be longer)"
    ) in err
    lines = [line for line in err.splitlines() if line.startswith(("longest", "largest"))]
    assert lines[0] == (
        f"longest  {tokens[LONG_TEXT]:,} tokens, 0 images: {directory}/set_train.jsonl:334 (row 333, id 'r333')"
    )
    assert lines[1].startswith(
        f"largest  {tokens[MANY_IMAGES]:,} tokens, 4 images: {directory}/set_train.jsonl:336 (row 335, id 'r335'): "
        "the most memory, about "
    )
    assert len(lines) == 2


def test_a_longest_sample_that_is_the_largest_has_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside it: what is trained, whose share may be over 100 %, and a package that a fitting method lacks here."""
    one = write_rows(tmp_path / "one", [sample(0), sample(1, "word " * 50)])
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None if name == "bitsandbytes" else real(name))
    options = arguments(settings_for(one, tmp_path / "out", num_crops=1, use_lora=True, lora_rank=160))
    _, out, err = make_cli(capsys, monkeypatch)("plan", *options, main=main)
    lines = [line for line in err.splitlines() if line.startswith(("longest", "largest"))]
    assert len(lines) == 1
    assert lines[0].startswith("largest ")
    assert re.search(
        r"^method   LoRA rank 160: .* M trained, 1\d\d % of the base model's parameters$", err, re.MULTILINE
    )
    assert re.search(r"^QLoRA .* yes, but bitsandbytes is not installed", out, re.MULTILINE)
    _, out, _ = make_cli(capsys, monkeypatch)("plan", *options, "--memory", "80", main=main)
    assert "bitsandbytes" not in out


def test_rows_of_several_directories_are_named_with_theirs(
    directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_rows(tmp_path / "other", [sample(0), sample(1, "word " * 1600), sample(2)])
    settings = settings_for(directory, tmp_path / "out", num_crops=1)
    settings["data_dir"] = [str(directory), str(other)]
    _, out, _ = make_cli(capsys, monkeypatch)("plan", *arguments(settings), "--json", main=main)
    found = [(Path(row["data_dir"]), row["line"]) for row in json.loads(out)["longest"][:3]]
    assert found == [(other, 2), (directory, 334), (directory, 336)]


def test_bytes_of_rows_are_those_of_the_files(tmp_path: Path) -> None:
    lines = [sample(n, "x" * n).to_json() for n in range(7)]
    (tmp_path / "s_train-00000-of-00002.jsonl").write_text("\ufeff" + "\n".join(lines[:3]) + "\n")
    (tmp_path / "s_train-00001-of-00002.jsonl").write_text("\n".join(lines[3:]))
    expected = [len(line) + 1 for line in lines[:6]] + [len(lines[6])]
    for _ in range(2):  # built, then read from its file
        split = Dataset(tmp_path)["train"]
        assert split.row_bytes().tolist() == expected
        assert split[5:1:-2].row_bytes().tolist() == [expected[5], expected[3]]
