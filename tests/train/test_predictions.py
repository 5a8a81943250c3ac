"""A folder of predictions: whole or not there, taken up where it stopped, never mixed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from phi3v_data.errors import BusyError, UserError
from phi3v_train.evaluation.predictions import PredictionFolder
from phi3v_train.evaluation.records import Prediction, read_predictions
from phi3v_train.evaluation.submission import write_submission

IDENTITY = {"format": 1, "model": "tiny", "data": {"split": "val", "rows": 6}, "settings": {"max_new_tokens": 64}}


def record(number: int, prediction: str = "yes", **fields: Any) -> Prediction:
    base: dict[str, Any] = {
        "id": f"val-{number}",
        "split": "val",
        "turn": 0,
        "prediction": prediction,
        "answers": [],
        "scores": {"yes": 0.75, "no": 0.25},
        "meta": {"source_id": str(number)},
    }
    return base | fields  # type: ignore[return-value]


PLAN = [(f"val-{number}", 0) for number in range(6)]

BATCHES = [
    [(5, record(5)), (0, record(0))],
    [(2, record(2, "ünï\n")), (1, record(1))],
    [(4, record(4)), (3, record(3))],
]


def produce(path: Path, batches: Any = BATCHES, **changes: Any) -> PredictionFolder:
    """Begin, or go on with, a folder; makes what is not there yet."""
    folder = PredictionFolder(path, {**IDENTITY, **changes})
    with folder.lock():
        folder.begin()
        if not folder.is_complete:
            done = folder.read_parts(PLAN)
            folder.open_part()
            for batch in batches:
                if not {position for position, _ in batch} <= done.keys():
                    folder.add(batch)
                    done.update(batch)
            folder.finish([done[position] for position in range(6)])
    return folder


def files(path: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in path.iterdir() if each.name != ".lock"}


def test_predictions_are_in_the_order_of_the_dataset(tmp_path):
    produce(tmp_path / "out")
    records = read_predictions(tmp_path / "out" / "predictions.jsonl")
    assert [each["id"] for each in records] == [f"val-{number}" for number in range(6)]
    assert records[2] == record(2, "ünï\n")
    assert sorted(files(tmp_path / "out")) == ["evaluation.json", "predictions.jsonl"]


def test_a_half_line_is_dropped_and_nothing_is_doubled(tmp_path):
    whole = files(produce(tmp_path / "whole").path)
    folder = PredictionFolder(tmp_path / "out", IDENTITY)
    folder.begin()
    folder.open_part()
    folder.add(BATCHES[0])
    folder.close_part()
    part = folder.path / ".predictions-0.jsonl"
    line = part.read_bytes()
    for torn in (line + line[:-1], line + b"\0" * 40 + b"\n" + line, line + b'{"a": 1}\n[[1, 2]]x'):
        part.write_bytes(torn)
        assert folder.read_parts(PLAN) == dict(BATCHES[0])
        assert files(produce(tmp_path / "out").path) == whole
        (folder.path / "predictions.jsonl").unlink()


DAMAGED = [
    [[99, record(5)]],
    [[-1, record(5)]],
    [[True, record(1)]],
    [["1", record(1)]],
    [[4, 5], [5, None]],
    [[0, {"id": "val-0"}]],
    [[0, record(5)]],
    [[0, record(0, turn=1)]],
    [[0, record(0)], [1, record(2)]],
    [[0, record(0, scores={"yes": float("nan")})]],
    [[0, record(0, "\ud800")]],
    {"ab": 1},
    7,
]


def test_batches_that_the_plan_does_not_have_are_predicted_again(tmp_path: Path) -> None:
    whole = files(produce(tmp_path / "whole").path)
    lines = [json.dumps(each) for each in DAMAGED]
    lines += [f"[[1e999, {json.dumps(record(0))}]]", "[" * 100_000, "[" * 100_000 + "]" * 100_000, "[[1" + "0" * 9999]
    for number, line in enumerate(lines):
        folder = PredictionFolder(tmp_path / str(number), IDENTITY)
        folder.begin()
        part = folder.path / ".predictions-0.jsonl"
        part.write_text(f"{line}\n{json.dumps(BATCHES[0])}\n")
        assert folder.read_parts(PLAN) == dict(BATCHES[0]), line[:60]
        assert files(produce(folder.path).path) == whole


def test_a_part_that_is_not_a_file_of_the_evaluation_is_neither_read_nor_written(tmp_path: Path) -> None:
    whole = files(produce(tmp_path / "whole").path)
    mine = tmp_path / "mine.jsonl"
    text = json.dumps(BATCHES[0]) + "\nhalf a line"
    for number, put in enumerate((os.symlink, os.link, lambda _, part: os.mkfifo(part))):
        mine.write_text(text)
        folder = PredictionFolder(tmp_path / str(number), IDENTITY)
        folder.begin()
        put(mine, folder.path / ".predictions-0.jsonl")
        signal.alarm(60)  # ends the tests where something waits
        assert files(produce(folder.path).path) == whole
        signal.alarm(0)
        assert mine.read_text() == text
    folder = PredictionFolder(tmp_path / "folder", IDENTITY)
    (folder.path / ".predictions-0.jsonl").mkdir(parents=True)
    with pytest.raises(UserError, match=r"predictions-0\.jsonl: is a folder, where phi3v writes a file; move it away"):
        produce(folder.path)


def test_a_fifo_as_the_identity_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "evaluation.json")
    signal.alarm(60)
    with pytest.raises(UserError) as caught:
        produce(tmp_path)
    assert str(caught.value) == f"{tmp_path}/evaluation.json: was not written by an evaluation; --overwrite starts over"
    PredictionFolder(tmp_path, IDENTITY).begin(restart=True)
    signal.alarm(0)
    assert json.loads(files(tmp_path)["evaluation.json"]) == IDENTITY


def test_files_of_other_names_are_kept(tmp_path: Path) -> None:
    (tmp_path / ".predictions-mine.jsonl").write_text("mine")
    produce(tmp_path).begin(overwrite=True)
    assert sorted(files(tmp_path)) == [".predictions-mine.jsonl", "evaluation.json"]


def test_whole_predictions_are_those_of_the_plan(tmp_path: Path) -> None:
    path = produce(tmp_path).path / "predictions.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    advice = "; --overwrite predicts all of them again"
    for kept, reason in (
        (lines[:3], f"{path}: has 3 predictions, the split has 6 prompts"),
        (lines[:1], f"{path}: has 1 prediction, the split has 6 prompts"),
        (
            [lines[0], lines[2], lines[1], *lines[3:]],
            f"{path}: prediction 2 is that of 'val-2' (turn 0), the prompt is that of 'val-1' (turn 0)",
        ),
        ([*lines[:5], "[" * 100_000 + "\n"], f"{path}:6: nested too deeply for a prediction"),
        ([], f"{path}: contains no predictions"),
    ):
        path.write_text("".join(kept))
        folder = PredictionFolder(tmp_path, IDENTITY)
        folder.begin()
        with pytest.raises(UserError) as caught:
            folder.read_whole(PLAN)
        assert str(caught.value) == f"{reason}{advice}"
    folder.begin(restart=True)  # as a run does
    assert folder.read_whole(PLAN) is None
    assert not path.exists()
    assert [each["id"] for each in produce(tmp_path).read_whole(PLAN) or []] == [name for name, _ in PLAN]


def test_an_identity_without_images_is_completed(tmp_path: Path) -> None:
    """It is of a version that did not record them."""
    data: dict[str, Any] = {"split": "val", "rows": 6}
    produce(tmp_path, data=data)
    produce(tmp_path, data={**data, "images": "0a"})
    assert json.loads(files(tmp_path)["evaluation.json"])["data"] == {**data, "images": "0a"}
    with pytest.raises(UserError, match=r"data\.images was '0a', is '1b'; --overwrite starts over"):
        produce(tmp_path, data={**data, "images": "1b"})


def test_parts_of_several_processes_are_read(tmp_path):
    for rank, batch in enumerate(BATCHES):
        folder = PredictionFolder(tmp_path, IDENTITY)
        folder.open_part(rank)
        folder.add(batch)
        folder.close_part()
    assert sorted(PredictionFolder(tmp_path, IDENTITY).read_parts(PLAN)) == [0, 1, 2, 3, 4, 5]


def test_another_evaluation_is_refused_with_the_difference(tmp_path):
    produce(tmp_path)
    before = files(tmp_path)
    other = {"model": "big", "settings": {"max_new_tokens": 8}}
    with pytest.raises(UserError) as caught:
        produce(tmp_path, **other)
    assert str(caught.value) == (
        f"{tmp_path} holds another evaluation: model was 'tiny', is 'big'; settings.max_new_tokens was 64, is 8; "
        "--overwrite starts over, another --output_dir keeps it"
    )
    assert files(tmp_path) == before
    folder = PredictionFolder(tmp_path, {**IDENTITY, **other})
    folder.begin(overwrite=True)
    assert sorted(files(tmp_path)) == ["evaluation.json"]
    folder.begin()
    PredictionFolder(tmp_path, IDENTITY).begin(restart=True)
    assert json.loads(files(tmp_path)["evaluation.json"]) == IDENTITY


def test_files_of_unknown_origin_are_kept(tmp_path):
    (tmp_path / "predictions.jsonl").write_text("mine\n")
    with pytest.raises(UserError, match="of unknown origin"):
        produce(tmp_path)
    assert files(tmp_path) == {"predictions.jsonl": b"mine\n"}
    (tmp_path / "evaluation.json").write_text("[")
    with pytest.raises(UserError, match=r"evaluation\.json: was not written by an evaluation"):
        produce(tmp_path)


def test_one_writer_a_folder(tmp_path):
    with PredictionFolder(tmp_path, IDENTITY).lock(), pytest.raises(BusyError, match="another evaluation"):
        produce(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file; give a folder"):
        produce(tmp_path / "file")


def test_a_run_survives_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    folder = PredictionFolder(tmp_path / "file" / "out", IDENTITY, keep_going=True)
    folder.begin(restart=True)
    assert folder.failed == "Not a directory"
    assert folder.read_parts(PLAN) == {}
    folder.open_part()
    folder.add(BATCHES[0])
    folder.finish([])
    with pytest.raises(NotADirectoryError):
        PredictionFolder(tmp_path / "file" / "out", IDENTITY).begin()


KILL_EVERYWHERE = """
import os, shutil, signal, sys
from pathlib import Path
from test_predictions import IDENTITY, PredictionFolder, files, produce

work, begin = Path(sys.argv[1]), sys.argv[2]

def start(path):
    if begin == "overwrite":
        PredictionFolder(path, IDENTITY).begin(overwrite=True)
    produce(path)

def in_child(function, *arguments, kill_at=0):
    pid = os.fork()
    if pid == 0:
        left = kill_at
        def wrap(operation):
            def counted(*a, **k):
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return operation(*a, **k)
            return counted
        for name in ("replace", "unlink", "mkdir", "fsync"):
            setattr(os, name, wrap(getattr(os, name)))
        write = PredictionFolder._write
        def torn(self, line):
            nonlocal left
            left -= 1
            if left == 0:
                self._part.write(line[: len(line) // 2])
                self._part.flush()
                os.kill(os.getpid(), signal.SIGKILL)
            write(self, line)
        PredictionFolder._write = torn
        function(*arguments)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

start(work / "whole")
wanted = files(work / "whole")
point = 0
while True:
    point += 1
    out = work / f"out{point}"
    if begin == "overwrite":
        produce(out, model="other")
    code = in_child(start, out, kill_at=point)
    if code == 0:
        break
    assert code == -signal.SIGKILL, code
    assert in_child(start, out) == 0
    assert files(out) == wanted, (point, sorted(files(out)))
print(point - 1)
"""


@pytest.mark.parametrize("begin", ["fresh", "overwrite"])
def test_killed_anywhere_it_ends_with_the_same_bytes(tmp_path, begin):
    done = subprocess.run(
        [sys.executable, "-c", KILL_EVERYWHERE, str(tmp_path), begin],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{Path(__file__).parent}{os.pathsep}{os.environ['PYTHONPATH']}"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 8


def test_submissions_are_what_the_official_scripts_read(tmp_path):
    records = [record(337, 'Paris, "FR"'), record(24, "no."), record(3, "dunno", meta={"source_id": "dev-850-0-0"})]
    docvqa = write_submission(records, "docvqa", tmp_path)
    assert json.loads(docvqa.read_text()) == [
        {"questionId": 337, "answer": 'Paris, "FR"'},
        {"questionId": 24, "answer": "no."},
        {"questionId": "dev-850-0-0", "answer": "dunno"},
    ]
    memes = write_submission(records, "hateful_memes", tmp_path)
    assert memes.read_text() == "id,proba,label\n337,0.750000,1\n24,0.750000,0\ndev-850-0-0,0.750000,1\n"
    nlvr2 = write_submission(records, "nlvr2", tmp_path)
    assert nlvr2.read_text() == "337,True\n24,False\ndev-850-0-0,True\n"
    # As NLVR2's evaluation script reads it.
    assert [line.strip().split(",")[1].lower() for line in nlvr2.read_text().splitlines()] == ["true", "false", "true"]


def test_what_a_submission_cannot_take(tmp_path):
    with pytest.raises(UserError, match=r"has no meta\.source_id"):
        write_submission([record(1, meta={})], "docvqa", tmp_path)
    with pytest.raises(UserError, match="the source id '1' is predicted twice"):
        write_submission([record(1), record(1, turn=1)], "nlvr2", tmp_path)
    with pytest.raises(UserError, match="has no scores"):
        write_submission([record(1, scores={})], "hateful_memes", tmp_path)
    assert list(tmp_path.iterdir()) == []
