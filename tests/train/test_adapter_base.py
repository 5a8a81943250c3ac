"""An adapter finds its base from any folder, in PEFT too; a base that has moved is named and given with --base."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from colour_sets import colour_directory
from run_dirs import settings_for

from phi3v_data.cli.base import run as run_app
from phi3v_train.cli.app import COMMANDS, HELP, make_group
from phi3v_train.models.loading import load_model
from phi3v_train.models.locate import locate
from phi3v_train.models.machine import Chosen, Compute
from phi3v_train.models.phi3v.tiny import save_tiny, tiny_model
from phi3v_train.run import run
from phi3v_train.settings import resolve

FP32 = Compute(Chosen("cpu", ""), Chosen("fp32", ""), Chosen("sdpa", ""), 0)

LOAD = """
import sys
import torch
import phi3v_train
from peft import AutoPeftModelForCausalLM
model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1]).eval()
print(type(model).__name__, type(model.base_model.model).__name__)
print(model(input_ids=torch.arange(5, 25)[None]).logits.double().sum().item())
"""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_directory(tmp_path_factory.mktemp("colours"), rows=4)


Call = Callable[..., tuple[int, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Call:
    """Exit code and stderr of `phi3v-train ARGS`, run within this process."""

    def run_here(*args: object) -> tuple[int, str]:
        with pytest.raises(SystemExit) as stop:
            run_app(make_group("phi3v-train", HELP, COMMANDS), [str(each) for each in args])
        return int(stop.value.code or 0), capsys.readouterr().err

    return run_here


def train(data_dir: Path, out: Path, model: str, **changes: Any) -> Path:
    options = {"model_name_or_path": model, "use_lora": True, "lora_rank": 4, "warmup_steps": 0, "max_steps": 1}
    run(resolve(settings_for(data_dir, out, **options, **changes)), quiet=True)
    return out / "model"


def total(model: Any) -> float:
    with torch.no_grad():
        return float(model(input_ids=torch.arange(5, 25)[None]).logits.double().sum())


@pytest.fixture(scope="module")
def tuned(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base, and an adapter on it, whose run was given the base by a relative path."""
    folder = tmp_path_factory.mktemp("tuned")
    save_tiny(folder / "base", seed=3)
    here = Path.cwd()
    os.chdir(folder)
    try:
        return folder / "base", train(data_dir, folder / "out", "base")
    finally:
        os.chdir(here)


def test_the_adapter_names_its_task_and_where_its_base_is(tuned: tuple[Path, Path]) -> None:
    base, adapter = tuned
    for folder in (adapter, *adapter.parent.glob("checkpoint-*")):
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        assert config["task_type"] == "CAUSAL_LM"
        assert config["base_model_name_or_path"] == str(base)
        assert config["revision"] is None


@pytest.mark.slow
def test_peft_loads_it_from_another_folder(tuned: tuple[Path, Path], tmp_path: Path) -> None:
    """A process of its own, elsewhere, that imports nothing of this project but `phi3v_train`."""
    _, adapter = tuned
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(adapter)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=240,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    kinds, logits = done.stdout.splitlines()
    assert kinds == "PeftModelForCausalLM Phi3VForConditionalGeneration"
    assert float(logits) == pytest.approx(total(load_model(locate(str(adapter)), FP32)), abs=1e-3)


def test_a_moved_base_is_named_in_one_sentence_and_given_with_base(
    tuned: tuple[Path, Path], data_dir: Path, tmp_path: Path, command: Call
) -> None:
    base, adapter = tuned
    moved = base.rename(base.with_name("elsewhere"))
    model = ["--model_name_or_path", adapter]
    small = ["--data_dir", data_dir, "--eval_split", "val", "--eval_limit", 1, "--max_new_tokens", 2, "--device", "cpu"]
    commands: dict[str, list[object]] = {
        "eval": [*model, *small, "--metric", "accuracy", "--output_dir", tmp_path / "eval"],
        "predict": [*model, *small, "--output_dir", tmp_path / "predict"],
        "inspect": [data_dir, *model],
        "merge": [adapter, tmp_path / "merged"],
    }
    sentence = (
        f"{adapter / 'adapter_config.json'}: its base model {base} is not there; give the directory where it is now "
        "with --base"
    )
    try:
        for name, options in commands.items():
            code, said = command(name, *options)
            assert (code, sentence in said, "Traceback" in said) == (2, True, False), (name, said)
            code, said = command(name, *options, "--base", tmp_path / "nowhere")
            assert (code, f"{tmp_path / 'nowhere'}: no such directory" in said) == (2, True), (name, said)
            code, said = command(name, *options, "--base", moved)
            assert code == 0, (name, said)
    finally:
        moved.rename(base)


def test_training_on_an_adapter_says_to_merge_it_wherever_its_base_is(
    tuned: tuple[Path, Path], data_dir: Path, command: Call
) -> None:
    base, adapter = tuned
    moved = base.rename(base.with_name("elsewhere"))
    try:
        code, said = command("plan", "--data_dir", data_dir, "--model_name_or_path", adapter)
    finally:
        moved.rename(base)
    assert code == 2
    assert "is an adapter; merge it first (phi3v-train merge DIR OUT)" in said


def test_an_adapter_on_tiny_knows_the_seed_of_its_base(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`tiny` is nowhere on disk: it is made from the run's seed again, whatever seed an evaluation has."""
    from peft import AutoPeftModelForCausalLM, PeftModel

    adapter = train(data_dir, tmp_path / "out", "tiny", seed=7)
    config = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["base_model_name_or_path"], config["revision"]) == ("tiny", "seed-7")
    expected = total(PeftModel.from_pretrained(tiny_model(seed=7), adapter).eval())
    assert total(load_model(locate(str(adapter)), FP32, seed=0)) == pytest.approx(expected, abs=1e-6)
    # PEFT itself knows no model of that name; docs/model.md says so, and what to do instead.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="couldn't find them in the cached files"):
        AutoPeftModelForCausalLM.from_pretrained(adapter, local_files_only=True)
