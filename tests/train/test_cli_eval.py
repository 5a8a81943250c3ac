"""`phi3v-train eval` and `predict` as a user has them, killed in the middle too."""

import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import MODULE, finish, start
from run_dirs import read_lines
from sample_dirs import save_image, write_rows

from phi3v_data.cli.base import run
from phi3v_data.schema import Sample, Turn
from phi3v_train.cli.app import COMMANDS, HELP, make_group

SMALL = ("--model_name_or_path", "tiny", "--device", "cpu", "--num_workers", "0", "--max_new_tokens", "4", "--quiet")
ROWS = 6


def memes(directory: Path, split: str, rows: int, *, answered: bool) -> None:
    samples = [
        Sample(
            id=f"{split}-{n:010d}",
            source="memes",
            conversations=(
                Turn(
                    images=(save_image(directory, f"{split}{n}.png", n),) if n < 2 else (),
                    user=f"Is this number {n} an offensive meme?\nAnswer yes or no.",
                    assistant=("Yes", "No")[n % 2] if answered else "",
                ),
            ),
            meta={"source_id": f"{n:05d}", "sentence_id": f"s{n // 2}"},
        )
        for n in range(rows)
    ]
    write_rows(directory, samples, split)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete directory of yes-or-no questions: dev_seen with answers, test_seen without."""
    directory = tmp_path_factory.mktemp("eval") / "memes"
    memes(directory, "dev_seen", ROWS, answered=True)
    memes(directory, "test_seen", 3, answered=False)
    splits = {
        split: {"rows": rows, "images": 2, "files": {f"set_{split}.jsonl": ""}, "labelled": split == "dev_seen"}
        for split, rows in (("dev_seen", ROWS), ("test_seen", 3))
    }
    manifest = {
        "format": 1,
        "name": "memes",
        "task": "classification",
        "metrics": ["auroc", "accuracy"],
        "splits": splits,
        "num_crops": 1,
    }
    (directory / "dataset.json").write_text(json.dumps(manifest), encoding="utf-8")
    return directory


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the program here and give exit code, stdout and stderr."""

    def run_here(*args: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            run(make_group("phi3v-train", HELP, COMMANDS), [str(each) for each in args])
        out, err = capsys.readouterr()
        return int(stop.value.code or 0), out, err

    return run_here


@pytest.fixture(scope="module")
def scored(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, "subprocess.CompletedProcess[str]"]:
    """One whole evaluation, in a process of its own."""
    out = tmp_path_factory.mktemp("scored") / "out"
    return out, evaluate("eval", "--data_dir", data_dir, "--output_dir", out, "--loss", "--json", *SMALL)


def evaluate(*args: object, program: str = "") -> "subprocess.CompletedProcess[str]":
    """Run the program in a process of its own."""
    process = start(*(("-c", program) if program else MODULE), *map(str, args))
    ((code, output, errors),) = finish([process])
    return subprocess.CompletedProcess(args, code, output, errors)


def test_json_holds_one_document(scored, data_dir):
    out, done = scored
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert (document["split"], document["num_samples"], document["model"]) == ("dev_seen", ROWS, "tiny")
    assert list(document["metrics"]) == ["auroc", "accuracy", "loss"], "dataset.json's, its headline first"
    assert json.loads((out / "eval.json").read_text()) == {
        k: document[k] for k in document if k not in ("format", "files")
    }
    assert {name: Path(path).name for name, path in document["files"].items()} == {
        "predictions": "predictions.jsonl",
        "scores": "eval.json",
        "confusion": "confusion.png",
    }
    records = read_lines(out / "predictions.jsonl")
    assert list(records[0]) == ["id", "split", "turn", "prediction", "answers", "scores", "meta"]
    assert records[1]["meta"] == {"source_id": "00001", "sentence_id": "s0"}
    assert records[1]["answers"] == ["No"]


KILLED = """
import os, signal, sys
from phi3v_train.evaluation.predictions import PredictionFolder
write, left = PredictionFolder._write, 3

def torn(self, line):
    global left
    left -= 1
    if not left:
        self._part.write(line[: len(line) // 2])
        self._part.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, line)

PredictionFolder._write = torn
from phi3v_train.cli.app import main
main()
"""


def test_a_killed_evaluation_resumes_where_it_stopped(data_dir, tmp_path, call):
    arguments = ("eval", "--data_dir", data_dir, "--eval_batch_size", 2, *SMALL)
    killed = evaluate(*arguments, "--output_dir", tmp_path / "killed", program=KILLED)
    assert killed.returncode == -signal.SIGKILL
    part = tmp_path / "killed" / ".predictions-0.jsonl"
    assert (part.read_bytes().count(b"\n"), part.read_bytes()[-1:] == b"\n") == (2, False)
    before = part.read_bytes()
    code, _, err = call(
        "eval", "--data_dir", data_dir, "--output_dir", tmp_path / "killed", "--max_new_tokens", 5, *SMALL[:-3]
    )
    assert code == 2
    assert "settings.max_new_tokens was 4, is 5; --overwrite starts over" in err
    assert part.read_bytes() == before
    assert call(*arguments, "--output_dir", tmp_path / "killed")[0] == 0
    assert call(*arguments, "--output_dir", tmp_path / "whole")[0] == 0
    for name in ("predictions.jsonl", "evaluation.json", "eval.json", "confusion.png"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert not part.exists()


def test_predictions_that_are_lost_are_not_passed_over(scored, data_dir, call, tmp_path):
    out = shutil.copytree(scored[0], tmp_path / "out")
    path = out / "predictions.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    arguments = ("--data_dir", data_dir, "--output_dir", out, *SMALL)
    other = json.dumps({**json.loads(lines[0]), "id": "dev_seen-7"}) + "\n"
    for kept, reason in (
        (lines[::2], "has 3 predictions, the split has 6 prompts"),
        (
            [other, *lines[1:]],
            "prediction 1 is that of 'dev_seen-7' (turn 0), the prompt is that of 'dev_seen-0000000000' (turn 0)",
        ),
    ):
        path.write_text("".join(kept))
        for name in ("eval", "predict"):
            split = () if name == "eval" else ("--eval_split", "dev_seen")
            code, text, err = call(name, *arguments, *split)
            assert (code, text) == (2, "")
            assert err == f"error: {path}: {reason}; --overwrite predicts all of them again\n"
    assert call("eval", *arguments, "--overwrite")[0] == 0
    assert path.read_bytes() == (scored[0] / "predictions.jsonl").read_bytes()


def test_scoring_again_needs_no_model(scored, call, tmp_path):
    out, done = scored
    mine = tmp_path / "mine.py"
    mine.write_text("def half(records):\n    return len(records) / 2\n")
    metrics = ("--metric", "auroc", "--metric", "consistency", "--metric", f"{mine}:half")
    code, text, err = call(
        "eval", "--predictions", out / "predictions.jsonl", *metrics, "--output_dir", tmp_path / "again"
    )
    assert code == 0
    assert err == f"{out / 'predictions.jsonl'}: auroc, consistency, half (option)\n"
    assert text.startswith(f"dev_seen: {ROWS} samples\n")
    result = json.loads((tmp_path / "again" / "eval.json").read_text())
    assert result["metrics"]["auroc"] == json.loads(done.stdout)["metrics"]["auroc"]
    assert result["metrics"]["half"] == ROWS / 2
    assert (result["model"], result["step"]) == (None, None)


def test_predictions_of_ones_own_against_the_dataset(data_dir, call, tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [{"id": f"dev_seen-{n:010d}", "prediction": "yes."} for n in range(ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = ("eval", "--predictions", path, "--metric", "accuracy", "--json")
    code, _, err = call(*common)
    assert (code, f"{path}:1 answers: missing" in err) == (2, True)
    code, text, _ = call(*common, "--data_dir", data_dir)
    assert (code, json.loads(text)["metrics"]) == (0, {"accuracy": 0.5})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    code, _, err = call(*common, "--data_dir", data_dir)
    assert code == 2
    assert f"1 of {ROWS} predictions are missing, the first is that of 'dev_seen-0000000005'" in err


def test_text_for_people(data_dir, scored, call, tmp_path):
    path = tmp_path / "one_class.jsonl"
    records = [record for record in read_lines(scored[0] / "predictions.jsonl") if record["answers"] == ["Yes"]]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    code, text, _ = call("eval", "--predictions", path, "--metric", "auroc", "--metric", "accuracy")
    assert code == 0
    assert text.splitlines() == [
        "dev_seen: 3 samples",
        "  auroc     undefined: it needs samples of both classes, and all 3 answers are 'yes'",
        "  accuracy  0.0000",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["eval"], "nothing to evaluate: give --data_dir"),
        (["predict"], "nothing to predict: give --data_dir"),
        (["eval", "--data_dir", "DATA", "--metric", "acuracy"], "no such metric; did you mean 'accuracy'?"),
        (["eval", "--data_dir", "DATA", "--metric", "none.py:f"], "--metric none.py: the file does not exist"),
        (["eval", "--data_dir", "DATA", "--eval_split", "dev"], "no split 'dev'; it has dev_seen, test_seen"),
        (["eval", "--data_dir", "DATA", "--eval_split", "test_seen"], "split 'test_seen' has no answers"),
        (["eval", "--data_dir", "DATA", "--metric", "macro_f1", "--eval_turns", "second"], "--eval_turns"),
        (["eval", "--data_dir", "nowhere"], "nowhere: no such directory"),
        (["eval", "--predictions", "nowhere.jsonl"], "nowhere.jsonl: the file does not exist"),
        (["eval", "--predictions", "p.jsonl", "--loss"], "--loss needs a model"),
        (
            ["predict", "--data_dir", "DATA"],
            "no split was chosen; choose one of its splits with --eval_split: dev_seen, test_seen",
        ),
        (["predict", "--predictions", "p.jsonl"], "--predictions needs --format"),
    ],
)
def test_mistakes_are_one_sentence(data_dir, call, arguments, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = call(*(data_dir if each == "DATA" else each for each in arguments), "--quiet")
    assert (code, out) == (2, "")
    assert words in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_bare_directory_says_which_metric_it_gets(call, tmp_path):
    memes(tmp_path / "d", "val", 2, answered=True)
    memes(tmp_path / "d", "test", 2, answered=False)
    arguments = [each for each in SMALL if each != "--quiet"]
    code, text, err = call(
        "eval", "--data_dir", tmp_path / "d", "--num_crops", 1, "--output_dir", tmp_path / "o", *arguments
    )
    assert code == 0
    assert err.splitlines()[0] == f"{tmp_path / 'd'} val: accuracy (default)"
    assert text.startswith("tiny on val: 2 samples\n  accuracy ")
    code, _, err = call("eval", "--data_dir", tmp_path / "d", "--eval_split", "test", "--num_crops", 1, *SMALL)
    assert code == 2
    assert (
        "set_test.jsonl:1: 2 of 2 answers of split 'test' are empty, so it cannot be scored; `phi3v-train predict`"
        in err
    )


@pytest.mark.parametrize("name", ["hateful_memes", "nlvr2", "docvqa"])
def test_submissions(data_dir, call, tmp_path, name):
    common = ("predict", "--data_dir", data_dir, "--eval_split", "test_seen", "--output_dir", tmp_path, *SMALL)
    code, text, err = call(*common, "--format", name, "--json")
    assert (code, err) == (0, "")
    document: dict[str, Any] = json.loads(text)
    assert document["num_predictions"] == 3
    records = read_lines(Path(document["files"]["predictions"]))
    assert [record["answers"] for record in records] == [[], [], []]
    submission = Path(document["files"]["submission"]).read_text()
    if name == "docvqa":
        assert [row["questionId"] for row in json.loads(submission)] == [0, 1, 2]
        assert [row["answer"] for row in json.loads(submission)] == [record["prediction"] for record in records]
    else:
        rows = [line.split(",") for line in submission.splitlines()]
        assert [row[0] for row in rows] == [*(["id"] if name == "hateful_memes" else []), "00000", "00001", "00002"]
    path = document["files"]["predictions"]
    again = call("predict", "--predictions", path, "--format", name, "--output_dir", tmp_path / "again")
    assert again[0] == 0
    assert again[1].splitlines()[0] == "3 predictions"
    assert (tmp_path / "again" / Path(document["files"]["submission"]).name).read_text() == submission


@pytest.mark.slow
def test_two_processes_predict_what_one_does(data_dir, scored, tmp_path):
    arguments = ("eval", "--data_dir", data_dir, "--output_dir", tmp_path, "--loss", "--json", "--eval_batch_size", 2)
    done = evaluate(*arguments, "--num_processes", 2, *SMALL)
    assert done.returncode == 0, done.stderr
    document, other = json.loads(done.stdout), json.loads(scored[1].stdout)
    assert document["metrics"] == pytest.approx(other["metrics"], rel=1e-4)
    records, others = read_lines(tmp_path / "predictions.jsonl"), read_lines(scored[0] / "predictions.jsonl")
    assert [(r["id"], r["prediction"]) for r in records] == [(r["id"], r["prediction"]) for r in others]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] == ".") == [".lock"]


def test_splits_of_a_file_are_named_in_order(tmp_path: Path, call: Callable[..., tuple[int, str, str]]) -> None:
    path = tmp_path / "p.jsonl"
    rows = [{"id": str(n), "split": split, "turn": 0, "prediction": "a", "answers": ["a"], "meta": {}}
            for n, split in enumerate(("val", "test", "val", "dev", "train", "extra", "second"))]  # fmt: skip
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    code, text, err = call("eval", "--predictions", path, "--metric", "accuracy", "--json")
    assert (code, json.loads(text)["split"]) == (0, "dev + extra + second + test + train + val"), err


def test_other_images_under_the_same_names_are_another_evaluation(data_dir: Path, tmp_path: Path, call: Call) -> None:
    data, out = shutil.copytree(data_dir, tmp_path / "data"), tmp_path / "out"
    words = ("eval", "--data_dir", data, "--output_dir", out, *SMALL)
    assert call(*words)[0] == 0
    save_image(data, "test_seen0.png", 77)  # of another split
    assert call(*words)[0] == 0
    first = ("eval", "--data_dir", data, "--output_dir", tmp_path / "first", "--eval_limit", 1, *SMALL)
    assert call(*first)[0] == 0
    save_image(data, "dev_seen1.png", 77)  # of another row
    assert call(*first)[0] == 0
    code, _, err = call(*words)
    assert code == 2
    assert "holds another evaluation: data.images was '" in err
    identity = json.loads((out / "evaluation.json").read_text())
    del identity["data"]["images"]  # as an earlier version wrote it
    (out / "evaluation.json").write_text(json.dumps(identity))
    assert call(*words)[0] == 0
