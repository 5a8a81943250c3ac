"""`phi3v-train run` and `plan` as a user types them: the plan, the folder, the numbers."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from colour_sets import colour_directory
from PIL import Image
from run_dirs import arguments, command, read_lines, settings_for, without_times

import phi3v_data
import phi3v_train
from phi3v_data.cli.base import make_group
from phi3v_data.cli.base import run as run_program
from phi3v_data.schema import Manifest, SplitInfo
from phi3v_train.cli.app import COMMANDS, HELP
from phi3v_train.models.phi3v.tiny import tiny_tokenizer
from phi3v_train.models.registry import get_family
from phi3v_train.plan import make_plan
from phi3v_train.plan_report import plan_lines
from phi3v_train.run import run
from phi3v_train.settings import resolve
from phi3v_train.training.card import card_text

FOLDER = {
    "README.md",
    "checkpoint-000002",
    "checkpoint-000004",
    "complete.json",
    "config.yaml",
    "data.json",
    "environment.json",
    "eval_after.json",
    "eval_before.json",
    "loss.png",
    "metrics.jsonl",
    "model",
    "predictions",
    "tensorboard",
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_directory(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="module")
def finished(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A run with the defaults that a user gets: workers, TensorBoard, evaluation before and after."""
    out = tmp_path_factory.mktemp("run") / "out"
    settings = settings_for(
        data_dir, out, num_train_epochs=2, use_lora=True, lora_rank=4, max_new_tokens=2, num_workers=1
    )
    for name in ("eval_before", "eval_after", "report_to"):
        del settings[name]
    result = command("run", *arguments(settings))
    assert result.returncode == 0, result.stderr
    return out, result.stdout, result.stderr


def test_an_unknown_metric_of_the_set_is_refused_without_a_split_to_evaluate(tmp_path: Path) -> None:
    data = colour_directory(tmp_path / "data", held_out=0)
    (data / "colours_val.jsonl").unlink()
    content = (data / "colours_train.jsonl").read_bytes()
    info = SplitInfo(rows=8, images=6, files={"colours_train.jsonl": f"sha256:{hashlib.sha256(content).hexdigest()}"})
    manifest = Manifest(name="colours", task="vqa", metrics=("bleu",), splits={"train": info})
    (data / "dataset.json").write_text(manifest.to_json())
    with pytest.raises(phi3v_data.UserError, match=r"dataset\.json asks for the metric 'bleu', .* choose with"):
        make_plan(resolve(settings_for(data, tmp_path / "out")))


@pytest.mark.parametrize(
    ("warmup", "text"),
    [
        (4, None),
        (5, "--warmup_steps 5 takes more than half of the 8 steps; lower it"),
        (
            50,
            "--warmup_steps 50 is not over when the run ends after 8 steps: the learning rate never reaches its "
            "highest value; lower --warmup_steps",
        ),
    ],
)
def test_a_warm_up_of_more_than_half_the_run_is_a_warning(
    data_dir: Path, tmp_path: Path, warmup: int, text: str | None
) -> None:
    plan = make_plan(resolve(settings_for(data_dir, tmp_path / "out", max_steps=8, warmup_steps=warmup)))
    warnings = [words for name, words in plan_lines(plan, run_state="begins") if name == "warning"]
    assert [words for words in warnings if "warmup" in words] == ([text] if text else [])


def test_the_folder_explains_itself(finished: tuple[Path, str, str], data_dir: Path) -> None:
    out, stdout, _ = finished
    assert {path.name for path in out.iterdir() if not path.name.startswith(".")} == FOLDER
    assert "complete after 4 steps" in stdout
    assert str(out / "model") in stdout
    assert str(out / "loss.png") in stdout
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["optim"]["batch_size"] == 4
    assert "use_lora: true  # option" in (out / "config.yaml").read_text()
    environment = json.loads((out / "environment.json").read_text())
    assert {"torch", "transformers", "peft", "phi3v"} <= set(environment["packages"])
    assert "/" not in json.dumps(environment)
    (data,) = json.loads((out / "data.json").read_text())
    assert (data["split"], data["rows"], data["num_crops"]) == ("train", 8, 1)
    with Image.open(out / "loss.png") as plot:
        assert plot.width >= 800
    card = (out / "README.md").read_text()
    assert "# tiny tuned on" in card
    assert "phi3v-train merge model merged" in card
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "peft"
    assert list((out / "tensorboard").glob("events*"))


def test_the_card_names_its_data_and_its_lines_run(data_dir: Path, tmp_path: Path) -> None:
    """A complete set with a licence, full weights; the card's Python is run beside the model."""
    data = tmp_path / "data"
    shutil.copytree(data_dir, data)
    shutil.rmtree(data / ".phi3v", ignore_errors=True)
    content = (data / "colours_train.jsonl").read_bytes()
    info = SplitInfo(rows=8, images=6, files={"colours_train.jsonl": f"sha256:{hashlib.sha256(content).hexdigest()}"})
    (data / "colours_val.jsonl").unlink()
    manifest = Manifest(name="colours", task="vqa", splits={"train": info}, source="painted", license="cc-by-4.0")
    (data / "dataset.json").write_text(manifest.to_json())
    out = tmp_path / "out"
    run(resolve(settings_for(data, out, max_steps=1)), quiet=True)
    card = (out / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["license"] == "cc-by-4.0"
    assert "| colours | painted | cc-by-4.0 |" in card
    assert "`import phi3v_train` registers its class" in card
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    Image.new("RGB", (60, 40), (200, 30, 30)).save(out / "image.jpg")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=out, capture_output=True, text=True, check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("\n")


def test_licences_of_several_sets_are_a_sorted_list_on_the_card(data_dir: Path, tmp_path: Path) -> None:
    config = resolve(settings_for(data_dir, tmp_path / "out")).config
    info = SplitInfo(rows=8, images=6, files={"colours_train.jsonl": f"sha256:{'0' * 64}"})
    licences = ("openrail", "mit", "cc-by-4.0", "mit", "apache-2.0", "")
    sets = [Manifest(name="colours", task="vqa", splits={"train": info}, license=each) for each in licences]
    card = card_text(
        config, get_family("phi3v"), task="vqa", data=sets, base="x/y", trained={}, steps=1, samples=8,
        before=None, after=None, last=None, ending={},
    )  # fmt: skip
    assert yaml.safe_load(card.split("---")[1])["license"] == ["apache-2.0", "cc-by-4.0", "mit", "openrail"]


@pytest.mark.parametrize(
    ("base", "entry", "title"),
    [
        ("microsoft/Phi-3.5-vision-instruct", ("base_model", "microsoft/Phi-3.5-vision-instruct"), None),
        ("tiny", ("base_name", "tiny"), "tiny"),
        ("/home/me/models/Phi-3.5", ("base_name", "Phi-3.5"), "Phi-3.5"),
        ("../runs/shapes/model", ("base_name", "shapes"), "shapes"),
        ("here/base", ("base_name", "base"), "base"),  # a directory
    ],
)
def test_the_header_of_a_card_is_one_that_the_hub_takes(
    data_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    base: str,
    entry: tuple[str, str],
    title: str | None,
) -> None:
    """A base that is not a name on the Hub is not called one, and a licence that the Hub does not know is another."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here/base").mkdir(parents=True)
    info = SplitInfo(rows=8, images=6, files={"colours_train.jsonl": f"sha256:{'0' * 64}"})
    licences = ("MIT", "Ours: ask Kim")
    sets = [Manifest(name="colours", task="vqa", splits={"train": info}, license=each) for each in licences]
    card = card_text(
        resolve(settings_for(data_dir, tmp_path / "out")).config, get_family("phi3v"), task="vqa", data=sets,
        base=base, trained={}, steps=1, samples=8, before=None, after=None, last=None, ending={},
    )  # fmt: skip
    header = yaml.safe_load(card.split("---")[1])
    found = [(key, header[key]) for key in ("base_model", "base_name") if key in header]
    assert found == [entry]
    assert (header["license"], header["license_name"]) == ("other", "mit-and-ours-ask-kim")
    if title:
        assert f"\n# {title} tuned on vqa\n" in card
    assert "/home/me" not in card.partition("## Use")[0]


def test_a_plot_that_cannot_be_written_is_a_warning(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    constant = {"lr_scheduler": "constant", "warmup_steps": 0}
    run(resolve(settings_for(data_dir, tmp_path / "out", max_steps=1, **constant)), quiet=True)
    (tmp_path / "out" / "loss.png").unlink()
    (tmp_path / "out" / "loss.png").mkdir()
    run(resolve(settings_for(data_dir, tmp_path / "out", max_steps=2, **constant)), quiet=True)
    assert f"warning: {tmp_path / 'out' / 'loss.png'} cannot be drawn: Is a directory" in capsys.readouterr().err
    assert (tmp_path / "out" / "README.md").is_file()


def test_training_from_python_is_the_command_s(data_dir: Path, tmp_path: Path) -> None:
    settings = settings_for(data_dir, tmp_path / "a", max_steps=2)
    one = run(resolve(settings), quiet=True)
    del settings["data_dir"], settings["output_dir"]
    two = phi3v_train.fine_tune(data_dir, tmp_path / "b", quiet=True, **settings)
    assert (one.step, two.step, two.output_dir) == (2, 2, tmp_path / "b")
    lines = [without_times(read_lines(tmp_path / name / "metrics.jsonl")) for name in "ab"]
    assert lines[0] == lines[1]
    assert phi3v_train.fine_tune([data_dir], tmp_path / "b", quiet=True, **settings).already_complete
    with pytest.raises(phi3v_data.UserError, match="did you mean 'learning_rate'"):
        phi3v_train.fine_tune(data_dir, tmp_path / "c", lerning_rate=1)


def supervised_tokens(data_dir: Path) -> int:
    """Of an epoch: each answer and its end marker; "▁", line feed and end of text after the last answer."""
    tokenizer = tiny_tokenizer()
    count = 0
    for row in read_lines(data_dir / "colours_train.jsonl"):
        for turn in row["conversations"]:
            count += len(tokenizer(turn["assistant"], add_special_tokens=False)["input_ids"]) + 1
        count += 3
    return count


def test_every_step_is_logged_once_with_its_numbers(finished: tuple[Path, str, str], data_dir: Path) -> None:
    lines = read_lines(finished[0] / "metrics.jsonl")
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert {"eval_loss", "step", "epoch"} <= set(lines[0])
    for line in lines[1:]:
        assert {"loss", "lr", "grad_norm", "epoch", "tokens_per_second", "images_per_second"} <= set(line)
    assert [line["epoch"] for line in lines] == [0.0, 0.5, 1.0, 1.5, 2.0]
    assert [line["lr"] for line in lines[1:]] == pytest.approx([0.0, 1e-3, 6.6667e-4, 3.3333e-4], rel=1e-4)
    assert [line["samples"] for line in lines[1:]] == [4, 4, 4, 4]
    for epoch in (lines[1:3], lines[3:]):
        assert sum(line["supervised_tokens"] for line in epoch) == supervised_tokens(data_dir)
    for line in lines[1:]:
        assert 6 < line["loss"] < 9  # random weights over 2,003 pieces: about ln(2003) = 7.6
        assert line["grad_norm"] > 0
        assert line["seconds"] > 0
        assert line["tokens_per_second"] > line["supervised_tokens"]
    assert lines[1]["loss"] == pytest.approx(lines[0]["eval_loss"], rel=0.2)
    before, after = (json.loads((finished[0] / f"eval_{name}.json").read_text()) for name in ("before", "after"))
    assert (before["split"], before["num_samples"], before["step"], after["step"]) == ("val", 3, 0, 4)
    assert lines[-1]["eval_loss"] == after["metrics"]["loss"]


def test_the_plan_comes_first_and_says_where_settings_come_from(finished: tuple[Path, str, str]) -> None:
    stderr = finished[2]
    order = [stderr.index(word) for word in ("run ", "data ", "eval ", "steps ", "tokens ", "method ", "step 1/4")]
    assert order == sorted(order)
    assert "batch_size 4 (option)" in stderr
    assert "LoRA rank 4" in stderr
    assert "attention sdpa (no flash: it needs a GPU)" in stderr
    assert "tokens/s" in stderr
    assert "left" in stderr
    assert "Warning" not in stderr


def test_the_plan_says_why_nothing_is_evaluated_and_what_decides_the_steps(data_dir: Path, tmp_path: Path) -> None:
    def lines(directory: Path, **changes: Any) -> dict[str, str]:
        return dict(plan_lines(make_plan(resolve(settings_for(directory, tmp_path, **changes))), run_state=""))

    assert lines(data_dir)["eval"] == "none: switched off by --no_eval_before and --no_eval_after"
    assert lines(data_dir)["steps"] == "2 = 8 samples x 1 epochs / 4 (2 x 2 accumulated)"
    only = colour_directory(tmp_path / "only", rows=4, held_out=0)
    (only / "colours_val.jsonl").unlink()
    found = lines(only, max_steps=3, eval_after=True)
    assert found["eval"] == "none: no split val, dev, dev_seen or test with answers, and no --eval_split"
    assert found["steps"] == "3 (--max_steps) of 4 (2 x 2 accumulated) samples: 3 epochs of 4 samples"
    settings = [
        text
        for name, text in plan_lines(make_plan(resolve(settings_for(only, tmp_path, max_steps=3))), run_state="")
        if name == "setting"
    ]
    assert not [text for text in settings if text.startswith("num_train_epochs")]


def test_a_complete_run_prints_its_results_again(
    finished: tuple[Path, str, str], data_dir: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, stdout, _ = finished
    settings = settings_for(data_dir, out, num_train_epochs=2, use_lora=True, lora_rank=4, max_new_tokens=2)
    for name in ("eval_before", "eval_after", "report_to"):
        del settings[name]
    with pytest.raises(SystemExit) as stop:
        run_program(make_group("phi3v-train", HELP, COMMANDS), ["run", *arguments(settings), "--quiet"])
    assert stop.value.code == 0
    assert capfd.readouterr().out == stdout
    assert [line.split()[0] for line in stdout.splitlines()[1:]] == ["before", "after", "answers", "model", "plot"]


def test_dry_run_stops_after_the_plan(data_dir: Path, tmp_path: Path) -> None:
    result = command("run", *arguments(settings_for(data_dir, tmp_path / "out")), "--dry_run", "--json")
    assert result.returncode == 0, result.stderr
    plan = json.loads(result.stdout)
    assert plan["total_steps"] == 2
    assert plan["settings"]["batch_size"] == {"value": 4, "from": "option"}
    assert plan["settings"]["wd"] == {"value": 0.01, "from": "default"}
    assert plan["memory"]["total"] > 0
    assert not (tmp_path / "out").exists()


def test_plan_says_what_fits(data_dir: Path, tmp_path: Path) -> None:
    arguments_ = arguments(settings_for(data_dir, tmp_path / "out"))
    plan = json.loads(command("plan", *arguments_, "--json", "--memory", "1").stdout)
    assert {name for row in plan["fits"] for name in row["recipes"]} == {"demo-ucf101-tiny"}
    assert all(row["fits"] for row in plan["fits"] if row["method"] == "QLoRA rank 64")
    none = json.loads(command("plan", *arguments_, "--json", "--memory", "0.001").stdout)
    assert not any(row["fits"] for row in none["fits"])


def test_the_plan_of_a_cpu_says_that_its_memory_is_a_lower_limit(data_dir: Path, tmp_path: Path) -> None:
    """The estimate is of a GPU's tensors; a process on a CPU was measured with up to 1.6 GB more."""
    arguments_ = arguments(settings_for(data_dir, tmp_path / "out"))
    done = command("plan", *arguments_)
    assert re.search(
        r"^memory   at least [\d.]+ GB of [\d,.]+ GB \(weights .*\); a run on a CPU also holds its libraries and "
        r"copies, 0\.4 to 1\.6 GB where it was measured$",
        done.stderr,
        re.MULTILINE,
    )
    assert re.match(r"method +at least GB +fits [\d,.]+ GB of this CPU +recipes", done.stdout)
    assert done.stderr.endswith("note     --memory GB tells what fits a GPU, in bf16\n")
    gpu = command("plan", *arguments_, "--memory", "24")
    assert re.match(r"method +GB +fits 24\.0 GB +recipes", gpu.stdout)
    assert "tells what fits a GPU" not in gpu.stderr


def test_several_directories_with_weights(data_dir: Path, tmp_path: Path) -> None:
    other = colour_directory(tmp_path / "other", rows=4, held_out=1)
    settings = {
        **settings_for(data_dir, tmp_path / "out", max_steps=2),
        "data_dir": [str(data_dir), str(other)],
        "mix": [1, 3],
    }
    plan = make_plan(resolve(settings))
    assert plan.order.shares == (3, 9)
    assert run(resolve(settings), quiet=True).step == 2
    assert [data["rows"] for data in json.loads((tmp_path / "out" / "data.json").read_text())] == [8, 4]


def test_the_plan_says_what_set_the_tile_budget(data_dir: Path, tmp_path: Path) -> None:
    given = {"data_dir": [str(data_dir)], "output_dir": str(tmp_path), "model_name_or_path": "tiny"}
    for option, origin in (({}, "recipe demo-ucf101-tiny"), ({"num_crops": 2}, "option")):
        plan = make_plan(resolve({**given, **option}, recipe="demo-ucf101-tiny"))
        lines = dict(plan_lines(plan, run_state="begins"))
        assert f"num_crops {option.get('num_crops', 1)} ({origin})" in lines["data"]
