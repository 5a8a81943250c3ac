"""Early stopping and the best checkpoint: decided by the evaluations of a run, the same after a kill at any moment."""

import errno
import json
import os
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from colour_sets import colour_directory
from in_process import Cli, make_cli
from processes import train_together
from run_dirs import arguments, read_lines, settings_for, without_times
from safetensors.torch import load_file
from test_resume import kill_run

from phi3v_data.errors import UserError
from phi3v_train.cli.app import main
from phi3v_train.evaluation.during import RunEvaluation
from phi3v_train.models.phi3v.processing_phi3_v import Phi3VProcessor
from phi3v_train.run import Outcome, run
from phi3v_train.settings import resolve
from phi3v_train.training.checkpoints import list_checkpoints

CONSTANT: dict[str, Any] = {"lr_scheduler": "constant", "warmup_steps": 0}
"""With it, the first steps do not depend on how many follow."""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_directory(tmp_path_factory.mktemp("colours"), rows=9)


@pytest.fixture(autouse=True)
def no_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """With every run a plot is drawn, which takes longer than the steps here."""
    monkeypatch.setattr("phi3v_train.training.session.draw_loss", lambda *args, **kwargs: None)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Runs are compared bit by bit, as in kill_run.py."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return make_cli(capsys, monkeypatch)


def script(monkeypatch: pytest.MonkeyPatch, values: Sequence[float | None]) -> list[int]:
    """Let the evaluation after step n find accuracy `values[n - 1]`; returns the list of the steps evaluated."""
    steps: list[int] = []

    def evaluate(self: RunEvaluation, engine: Any, step: int) -> dict[str, Any]:
        steps.append(step)
        metrics = {"accuracy": values[step - 1], "loss": 5.0 - step}
        return {"split": "val", "num_samples": 3, "metrics": metrics, "model": "tiny", "step": step}

    monkeypatch.setattr(RunEvaluation, "__call__", evaluate)
    return steps


def short(data_dir: Path, output_dir: Path, *hooks: Any, **changes: Any) -> Outcome:
    usual = {"max_steps": 8, "save_steps": 3, "eval_steps": 1, "logging_steps": 1, **CONSTANT}
    return run(resolve(settings_for(data_dir, output_dir, **{**usual, **changes})), quiet=True, hooks=hooks)


def weights(folder: Path) -> dict[str, bytes]:
    name = "adapter_model" if (folder / "adapter_config.json").exists() else "model"
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(folder / f"{name}.safetensors").items()}


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def steps_of(output_dir: Path) -> list[int]:
    return [each.step for each in list_checkpoints(output_dir)]


def everything(output_dir: Path) -> dict[str, Any]:
    """Files of a run without times."""
    done = {name: value for name, value in read(output_dir / "complete.json").items() if name != "identity"}
    return {
        "done": done,
        "best": read(output_dir / "best.json") if (output_dir / "best.json").exists() else None,
        "lines": without_times(read_lines(output_dir / "metrics.jsonl")),
        "model": weights(output_dir / "model"),
        "newest": weights(list_checkpoints(output_dir)[-1].path),
    }


UP_AND_DOWN = (0.25, 0.5, 0.375, 0.75, 0.625, 0.75, 0.5, 0.875)
"""Best after step 4; without patience, after step 8."""


def test_a_run_ends_after_evaluations_without_an_improvement(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An equal score is not an improvement; `eval_after` is the evaluation that ended it; hooks see the same steps."""
    steps = script(monkeypatch, UP_AND_DOWN)
    outcome = short(data_dir, tmp_path / "out", early_stopping_patience=2, eval_after=True)
    assert steps == [1, 2, 3, 4, 5, 6]
    assert (outcome.step, outcome.stopped, outcome.already_complete) == (6, 0, False)
    assert outcome.after is not None
    assert (outcome.after["step"], outcome.after["metrics"]["accuracy"]) == (6, 0.75)
    done = read(tmp_path / "out" / "complete.json")
    assert (done["step"], done["total_steps"], done["ended"], done["stopped_early"]) == (6, 8, True, 2)
    assert done["reason"] == "accuracy on val has not improved for 2 evaluations"
    assert (done["best"]["step"], done["best"]["value"]) == (4, 0.75)
    assert "model_step" not in done
    assert not (tmp_path / "out" / "best.json").exists()
    assert steps_of(tmp_path / "out") == [3, 6]
    assert weights(tmp_path / "out" / "model") == weights(tmp_path / "out" / "checkpoint-000006")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Training ended early, after step 6: accuracy on val has not improved for 2 evaluations." in card
    assert "| metric | before | after |" in card


def test_an_early_stopped_run_is_complete_and_resumes_with_more_patience(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, UP_AND_DOWN)
    out = tmp_path / "out"
    short(data_dir, out, early_stopping_patience=2, keep_best=True)
    for changes in ({}, {"early_stopping_patience": 1}, {"max_steps": 9}):
        again = short(data_dir, out, **{"early_stopping_patience": 2, "keep_best": True, **changes})
        assert (again.already_complete, again.step, again.done["stopped_early"]) == (True, 6, 2)
    assert short(data_dir, out, early_stopping_patience=3, keep_best=True).step == 7
    delta = {"early_stopping_min_delta": 0.0}
    assert short(data_dir, out, early_stopping_patience=0, keep_best=True, **delta).step == 8
    short(data_dir, tmp_path / "whole", early_stopping_patience=4, keep_best=True)
    found, expected = everything(out), everything(tmp_path / "whole")
    assert expected["done"]["best"]["step"] == 7 or expected["done"]["best"]["value"] == 0.75
    assert found == expected


def test_min_delta_is_what_an_improvement_must_exceed(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.5 to 0.625 is exactly the least: not enough. The best one is the highest all the same, and is kept."""
    script(monkeypatch, (0.5, 0.625, 0.5625, 0.6875, 0.75, 0.75, 0.75, 1.0))
    outcome = short(
        data_dir, tmp_path / "out", early_stopping_patience=2, early_stopping_min_delta=0.125, keep_best=True
    )
    assert outcome.step == 3
    assert outcome.done["reason"] == "accuracy on val has not improved by more than 0.125 for 2 evaluations"
    assert (outcome.done["best"]["step"], outcome.done["model_step"]) == (2, 2)


@pytest.mark.parametrize(
    ("changes", "best"),
    [
        ({"best_metric": "loss"}, 3),
        ({"best_mode": "min"}, 1),
    ],
)
def test_the_criterion_is_a_metric_or_the_loss(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], best: int
) -> None:
    script(monkeypatch, (0.25, 0.75, 0.75))
    outcome = short(data_dir, tmp_path / "out", max_steps=3, eval_after=True, early_stopping_patience=9, **changes)
    assert (outcome.step, outcome.done["best"]["step"]) == (3, best)


def test_the_best_checkpoint_is_kept_and_is_the_model(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is saved although no checkpoint is due, and stays beyond the limit; the newest one is there beside it."""
    script(monkeypatch, UP_AND_DOWN)
    seen: list[list[int]] = []

    def watch(line: Mapping[str, Any]) -> bool:
        seen.append(steps_of(tmp_path / "out"))
        return False

    outcome = short(data_dir, tmp_path / "out", watch, max_steps=7, save_total_limit=1, keep_best=True, eval_after=True)
    assert seen == [[1], [2], [2, 3], [4], [4], [4, 6], [4, 7]]
    best = {
        "step": 4,
        "metric": "accuracy",
        "value": 0.75,
        "split": "val",
        "num_samples": 3,
        "metrics": {"accuracy": 0.75, "loss": 1.0},
    }
    assert read(tmp_path / "out" / "best.json") == read(tmp_path / "out" / "model" / "best.json") == best
    assert (outcome.done["best"], outcome.done["model_step"], outcome.step) == (best, 4, 7)
    assert weights(tmp_path / "out" / "model") == weights(tmp_path / "out" / "checkpoint-000004")
    short(data_dir, tmp_path / "four", max_steps=4)
    assert weights(tmp_path / "out" / "model") == weights(tmp_path / "four" / "model")
    assert not (tmp_path / "four" / "model" / "best.json").exists()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "The weights are those of step 4, the best of the evaluations (accuracy on `val`, 0.75)." in card
    assert "| metric | before | step 4 | after |\n| --- | --- | --- | --- |\n| accuracy |  | 0.75 | 0.5 |\n" in card


def test_evaluations_that_are_undefined_are_no_improvement(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script(monkeypatch, (None, None, 0.5, None, None, 0.5, 0.5, 0.5))
    outcome = short(data_dir, tmp_path / "out", early_stopping_patience=3, keep_best=True)
    assert (outcome.step, outcome.done["model_step"]) == (6, 3)
    script(monkeypatch, [None] * 8)
    outcome = short(data_dir, tmp_path / "none", early_stopping_patience=2, keep_best=True)
    assert (outcome.step, outcome.done["best"], outcome.done["model_step"]) == (2, None, 2)
    assert f"warning: {tmp_path / 'none' / 'model'} has the weights of the last step, 2\n" in capfd.readouterr().err


@pytest.mark.parametrize("save_steps", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_stopped_after_each_step_the_run_ends_as_one_that_never_stopped(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, save_steps: int
) -> None:
    """A signal is heard of in the next step; its evaluation is left to the next start."""
    script(monkeypatch, UP_AND_DOWN)
    changes = {"early_stopping_patience": 3, "keep_best": True, "save_steps": save_steps, "save_total_limit": 1}
    short(data_dir, tmp_path / "whole", **changes)
    expected = everything(tmp_path / "whole")
    assert expected["done"]["step"] == 7

    def send(line: Mapping[str, Any]) -> bool:
        os.kill(os.getpid(), signal.SIGTERM)
        return False

    outcomes = [short(data_dir, tmp_path / "out", send, **changes)]
    while outcomes[-1].stopped:
        assert len(outcomes) < 10
        outcomes.append(short(data_dir, tmp_path / "out", send, **changes))
    assert [each.step for each in outcomes] == [2, 2, 4, 4, 6, 6, 7]
    assert everything(tmp_path / "out") == expected
    assert steps_of(tmp_path / "out") == steps_of(tmp_path / "whole") == [4, 7]


REAL: dict[str, Any] = {
    **CONSTANT, "learning_rate": 0.03, "max_steps": 9, "save_steps": 3, "save_total_limit": 1, "eval_steps": 1,
    "eval_after": True, "eval_limit": 3, "max_new_tokens": 1, "best_metric": "loss", "early_stopping_patience": 3,
    "keep_best": True, "num_train_epochs": 1, "use_lora": False, "pack": False, "lora_dropout": 0,
    "answer_choice": "stored",
}  # fmt: skip
"""Losses that go up and down: best after step 4, ended after step 7; checkpoints 1, 2, 3, 4, 6, 7."""


@pytest.mark.slow
def test_killed_before_file_operations_it_stops_at_the_same_step_with_the_same_best(tmp_path: Path) -> None:
    data = colour_directory(tmp_path / "data", rows=10)
    assert kill_run(data, tmp_path, "operations", 7, 67, **REAL) >= 5
    done = read(tmp_path / "whole" / "complete.json")
    assert (done["step"], done["stopped_early"], done["model_step"]) == (7, 3, 4)


def test_the_best_is_forgotten_where_its_checkpoint_is_gone_or_damaged(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script(monkeypatch, UP_AND_DOWN)
    out = tmp_path / "out"
    changes = {"keep_best": True, "save_total_limit": 1}
    short(data_dir, out, max_steps=5, eval_after=True, **changes)
    shutil.copytree(out, tmp_path / "copy")
    shutil.rmtree(out / "checkpoint-000004")
    capfd.readouterr()
    outcome = short(data_dir, out, max_steps=7, eval_after=True, **changes)
    assert "checkpoint-000004, the best so far, is gone; the best one from here on is kept\n" in capfd.readouterr().err
    assert (outcome.done["best"]["step"], outcome.done["model_step"]) == (6, 6)
    file = tmp_path / "copy" / "checkpoint-000004" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    outcome = short(data_dir, tmp_path / "copy", max_steps=7, eval_after=True, **changes)
    words = capfd.readouterr().err
    assert f"{file.parent}, the best one, cannot be used: model.safetensors is not what was written\n" in words
    assert f"{tmp_path / 'copy' / 'model'} has the weights of the last step, 7\n" in words
    assert outcome.done["model_step"] == 7
    assert not (tmp_path / "copy" / "model" / "best.json").exists()
    assert "The weights are those" not in (tmp_path / "copy" / "README.md").read_text()


def test_a_best_checkpoint_that_could_not_be_written_leaves_the_one_before(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The disk is full at step 4, the best: the best of those that are there is the model's."""
    script(monkeypatch, UP_AND_DOWN)
    original = Phi3VProcessor.save_pretrained
    full: list[bool] = []

    def save(self: Phi3VProcessor, folder: Path, *args: Any, **kwargs: Any) -> Any:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, folder, *args, **kwargs)

    def fill(line: Mapping[str, Any]) -> bool:
        full[:] = [True] if line["step"] == 3 else []
        return False

    monkeypatch.setattr(Phi3VProcessor, "save_pretrained", save)
    outcome = short(data_dir, tmp_path / "out", fill, max_steps=5, keep_best=True)
    assert capfd.readouterr().err.count("the disk is full; the run continues without this checkpoint") == 1
    assert (outcome.done["best"]["step"], outcome.done["model_step"], outcome.unsaved) == (2, 2, False)
    assert weights(tmp_path / "out" / "model") == weights(tmp_path / "out" / "checkpoint-000002")


def test_evaluations_compared_in_another_way_count_from_there(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    script(monkeypatch, (0.75, 0.5, 0.25, 0.25))
    short(data_dir, tmp_path / "out", max_steps=2, keep_best=True, early_stopping_patience=2)
    capfd.readouterr()
    changes = {"keep_best": True, "best_metric": "loss", "early_stopping_patience": 2}
    outcome = short(data_dir, tmp_path / "out", max_steps=4, **changes)
    assert "note: evaluations are compared in another way than before, so they count from here on\n" in (
        capfd.readouterr().err
    )
    assert (outcome.step, outcome.done["best"]["metric"], outcome.done["model_step"]) == (4, "loss", 3)


def test_a_run_without_keep_best_drops_the_best_checkpoint(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, UP_AND_DOWN)
    short(data_dir, tmp_path / "out", max_steps=5, keep_best=True, save_total_limit=1)
    assert steps_of(tmp_path / "out") == [4, 5]
    outcome = short(data_dir, tmp_path / "out", max_steps=6, save_total_limit=1)
    assert steps_of(tmp_path / "out") == [6]
    assert "best" not in outcome.done
    assert not (tmp_path / "out" / "best.json").exists()
    assert not (tmp_path / "out" / "model" / "best.json").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"early_stopping_patience": 3},
            "--early_stopping_patience 3 needs evaluations during training: give --eval_steps N",
        ),
        ({"keep_best": True}, "--keep_best needs evaluations during training: give --eval_steps N"),
        (
            {"early_stopping_patience": -1},
            "--early_stopping_patience must be at least 0, not '-1'",
        ),
        (
            {"early_stopping_min_delta": 0.1},
            "--early_stopping_min_delta is for --early_stopping_patience N: add it",
        ),
        (
            {"best_metric": "loss", "eval_steps": 2},
            "--best_metric loss is for --early_stopping_patience N and --keep_best: add one of them",
        ),
        (
            {"best_metric": "anls", "eval_steps": 2, "keep_best": True},
            "--best_metric anls: this run computes accuracy and loss; give one of them, or add --metric anls",
        ),
        (
            {"greater_is_better": "false"},
            "'greater_is_better' is not a setting of a run: give --best_mode max (true) or min (false); without it "
            "the lowest loss is best, of other metrics the highest value",
        ),
        (
            {"save_best_only": "true"},
            "'save_best_only' is not a setting of a run: give --keep_best, which keeps the best checkpoint beside the "
            "newest ones (--save_total_limit), from which a stopped run resumes",
        ),
    ],
)
def test_what_cannot_be_is_one_sentence(
    data_dir: Path, tmp_path: Path, cli: Cli, changes: dict[str, Any], words: str
) -> None:
    typed = arguments(settings_for(data_dir, tmp_path / "out", **changes))
    code, _, errors = cli("run", *typed, "--skip_validation", main=main)
    assert (code, errors) == (2, f"error: {words}\n")
    assert not (tmp_path / "out").exists()


def test_names_of_other_trainers_in_a_config_file(data_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "eval:\n  load_best_model_at_end: true\n  metric_for_best_model: eval_loss\n  eval_steps: 2\n"
        "early_stopping_patience: 3\nearly_stopping_threshold: 0.01\n"
    )
    config = resolve({}, config_file=file).config.eval
    assert (config.keep_best, config.best_metric, config.early_stopping_min_delta) == (True, "eval_loss", 0.01)
    file.write_text("greater_is_better: true\nkeep_best: true\neval_steps: 2\n")
    with pytest.raises(UserError, match=rf"^{file}: 'greater_is_better' is not a setting of a run: give --best_mode"):
        resolve({}, config_file=file)


def test_a_split_is_needed_and_one_on_which_the_metric_is_defined(data_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(data_dir, tmp_path / "data")
    file = tmp_path / "data" / "colours_val.jsonl"
    row = file.read_text().splitlines()[0]
    row = row.replace('"assistant": "red"', '"assistant": "yes"')
    file.write_text(row + "\n")
    with pytest.raises(UserError, match="compared by auroc, which is undefined on split 'val': it needs samples of"):
        short(tmp_path / "data", tmp_path / "out", keep_best=True, metric=["auroc"])
    file.unlink()
    with pytest.raises(UserError, match=r"--keep_best needs a split to evaluate, and no --data_dir has a split val"):
        short(tmp_path / "data", tmp_path / "out", keep_best=True)


def test_the_plan_and_the_last_lines_name_the_best(
    data_dir: Path, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(monkeypatch, UP_AND_DOWN)
    out = tmp_path / "out"
    settings = settings_for(
        data_dir, out, max_steps=8, eval_steps=1, keep_best=True, early_stopping_patience=2, **CONSTANT
    )
    code, results, errors = cli("run", *arguments(settings), "--skip_validation", main=main)
    assert code == 0
    assert (
        "best     highest accuracy on val, every 1 step; its checkpoint is kept and becomes the model; the run ends "
        "after 2 evaluations without an improvement\n"
    ) in errors
    assert "step 6: accuracy on val has not improved for 2 evaluations: the run ends here\n" in errors
    lines = [
        f"{out}: complete after 6 steps: accuracy on val has not improved for 2 evaluations",
        "best     val: accuracy 0.75 after step 4",
        f"answers  {out}/predictions/step-000004/predictions.jsonl",
        f"model    {out}/model (step 4)",
        f"plot     {out}/loss.png",
    ]
    assert results.splitlines() == lines
    code, results, errors = cli("run", *arguments(settings), "--skip_validation", main=main)
    assert (code, results.splitlines()) == (0, lines)
    assert "already complete" in errors


# DeepSpeed keeps the process group of the first run, so a process can do only one with it.
STRATEGIES: dict[str, dict[str, Any]] = {
    "ddp": {"parallel": "ddp"},
    "ddp lora": {"parallel": "ddp", "use_lora": True, "lora_rank": 4},
    "ddp qlora": {"parallel": "ddp", "use_qlora": True, "lora_rank": 4},
    "ddp 8-bit": {"parallel": "ddp", "optim": "adamw_8bit"},
    "fsdp": {"parallel": "fsdp"},
    "fsdp lora": {"parallel": "fsdp", "use_lora": True, "lora_rank": 4},
    "zero3": {"parallel": "zero3"},
}


@pytest.mark.slow
def test_two_processes_stop_at_the_same_step_and_write_the_best_weights(data_dir: Path, tmp_path: Path) -> None:
    """The loss falls from step to step, so the highest is that of step 1: the model is that of one step alone."""
    runs = []
    for name, changes in STRATEGIES.items():
        usual = {
            "learning_rate": 1e-4, "max_steps": 6, "save_steps": 2, "save_total_limit": 1, "eval_steps": 1,
            "max_new_tokens": 1, "best_metric": "loss", "best_mode": "max", "early_stopping_patience": 2,
            "keep_best": True, **CONSTANT,
        }  # fmt: skip
        runs.append(settings_for(data_dir, tmp_path / name, **usual, **changes))
    train_together(2, runs, tmp_path)
    for name, changes in STRATEGIES.items():
        done = read(tmp_path / name / "complete.json")
        assert (done["step"], done["stopped_early"], done["model_step"], done["best"]["step"]) == (3, 2, 1, 1), name
        assert steps_of(tmp_path / name) == [1, 3], name
        alone = {key: value for key, value in changes.items() if key != "parallel"}
        one = tmp_path / f"{name} alone"
        run(resolve(settings_for(data_dir, one, learning_rate=1e-4, max_steps=1, **CONSTANT, **alone)), quiet=True)
        file = "adapter_model.safetensors" if "lora" in name else "model.safetensors"
        expected, found = load_file(one / "model" / file), load_file(tmp_path / name / "model" / file)
        assert expected.keys() == found.keys(), name
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=0, atol=1e-6, msg=f"{name} {key}")
