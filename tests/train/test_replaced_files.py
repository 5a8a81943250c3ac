"""A base that is another model now, a processor's file that is missing, the image budget in a processor's files."""

import json
import shutil
from functools import partial
from pathlib import Path

import pytest
from colour_sets import colour_directory
from in_process import Cli, make_cli
from run_dirs import settings_for

from phi3v_train.cli.app import main
from phi3v_train.models.registry import get_family
from phi3v_train.run import run
from phi3v_train.settings import resolve


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_directory(tmp_path_factory.mktemp("colours"), rows=4)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return partial(make_cli(capsys, monkeypatch), main=main)


def save(name: str, directory: Path) -> Path:
    """A small model's directory; what was there is gone."""
    shutil.rmtree(directory, ignore_errors=True)
    get_family(name).tiny_model(3).save_pretrained(directory)
    get_family(name).tiny_processor().save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def tuned(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A directory with Qwen3-VL, and an adapter tuned on it."""
    work = tmp_path_factory.mktemp("tuned")
    base = save("qwen3_vl", work / "base")
    options = {"use_lora": True, "lora_rank": 4, "warmup_steps": 0, "max_steps": 1, "eval_after": False}
    settings = settings_for(data_dir, work / "run", model_name_or_path=str(base), **options)
    del settings["num_crops"]
    run(resolve(settings), quiet=True)
    return base, work / "run" / "model"


@pytest.mark.parametrize(("command", "name", "reason"), [
    ("merge", "qwen2_5_vl", "the model has nothing for 'model.visual.blocks.0.mlp.linear_fc1'"),
    ("predict", "qwen2_5_vl", "the model has nothing for 'model.visual.blocks.0.mlp.linear_fc1'"),
    ("merge", "qwen3_5", "it has layers of other sizes"),
    ("inspect", "idefics3", "the adapter's processor is not one of Idefics3"),
    ("inspect", "qwen2_5_vl", "its processor is 'Qwen2_5_VLProcessor', that of the adapter 'Qwen3VLProcessor'"),
    ("merge", "idefics3", "the adapter's processor is not one of Idefics3"),
])  # fmt: skip
def test_an_adapter_whose_base_is_another_model_now_is_refused(
    tuned: tuple[Path, Path], data_dir: Path, tmp_path: Path, cli: Cli, command: str, name: str, reason: str
) -> None:
    base, adapter = tuned
    save(name, base)
    given: dict[str, tuple[object, ...]] = {
        "merge": (adapter, tmp_path / "merged"),
        "inspect": (data_dir, "--model_name_or_path", adapter),
        "predict": (
            *("--data_dir", data_dir, "--eval_split", "val", "--model_name_or_path", adapter, "--device", "cpu"),
            *("--num_workers", "0", "--output_dir", tmp_path / "out"),
        ),
    }
    code, _, err = cli(command, *given[command])
    assert code == 2
    assert err.splitlines()[-1] == (
        f"error: {adapter}: was not tuned on the model that is now in '{base}': {reason}; give the model that it was "
        "tuned on with --base"
    )
    assert not (tmp_path / "merged").exists()
    other = save("qwen3_vl", tmp_path / "moved")
    assert cli("merge", adapter, tmp_path / "merged", "--base", other)[0] == 0


@pytest.mark.parametrize(("file", "part"), [
    ("preprocessor_config.json", "the image processor"), ("tokenizer.json", "the tokenizer"),
])  # fmt: skip
def test_a_missing_file_of_a_processor_is_named(
    tuned: tuple[Path, Path], data_dir: Path, tmp_path: Path, cli: Cli, file: str, part: str
) -> None:
    """Also where `processor_config.json` is there, with the name of the processor's class alone."""
    model = save("qwen3_vl", tmp_path / "model")
    assert (model / "processor_config.json").is_file()
    (model / file).unlink()
    code, _, err = cli("inspect", data_dir, "--model_name_or_path", model)
    assert code == 2
    assert err.splitlines()[-1] == (
        f"error: {model}: {file} is missing ({part}); copy it from the model's original files"
    )
    if file == "preprocessor_config.json":
        adapter = tmp_path / "adapter"
        shutil.copytree(tuned[1], adapter)
        (adapter / file).unlink()
        err = cli("inspect", data_dir, "--model_name_or_path", adapter, "--base", save("qwen3_vl", tmp_path / "base"))[
            2
        ]
        assert err.splitlines()[-1] == (
            f"error: {adapter}: {file} is missing ({part}); copy it from the model's original files"
        )


@pytest.mark.parametrize(("name", "budget", "shown"), [
    ("qwen3_vl", 40000, "max_pixels 40000 (processor)"),
    ("idefics3", 168, "longest_edge 168 (processor)"),
    ("internvl", 2, "num_crops 2 (processor)"),
    ("llava_next", 2, "num_crops 2 (processor)"),
    ("gemma3", None, "no image budget"),
])  # fmt: skip
def test_the_image_budget_of_a_tuned_model_is_shown(
    data_dir: Path, tmp_path: Path, cli: Cli, name: str, budget: int | None, shown: str
) -> None:
    """By `inspect`, as text, page and JSON, and by the plan, although no option gives it."""
    family = get_family(name)
    processor = family.tiny_processor()
    family.set_budget(processor, budget)
    family.tiny_model(3).save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    given = ("--model_name_or_path", tmp_path)
    cli("inspect", data_dir, *given)  # what libraries print at first
    assert cli("inspect", data_dir, *given)[1].splitlines()[1].endswith(f"; {shown}")
    view = json.loads(cli("inspect", data_dir, *given, "--json")[1])
    assert (view["num_crops"], view["num_crops_from"]) == (budget, "processor" if budget else "none")
    page = tmp_path / "page.html"
    assert cli("inspect", data_dir, *given, "--html", page)[0] == 0
    assert (f", {shown}" in page.read_text()) == (budget is not None)
    (line,) = [each for each in cli("plan", "--data_dir", data_dir, *given)[2].splitlines() if each.startswith("data ")]
    assert line.endswith(f"rows, {shown}" if budget else "rows")


@pytest.mark.parametrize(("files", "reason"), [
    (("preprocessor_config.json",), "the image processor is a 'Qwen2VLImageProcessor'; copy preprocessor_config.json "
     "from the model's original files"),
    (("tokenizer.json",), "its tokenizer begins a text with the token 277, and config.json says 1; copy the model's "
     "own tokenizer files"),
])  # fmt: skip
def test_phi3v_refuses_files_of_another_family(
    data_dir: Path, tmp_path: Path, cli: Cli, files: tuple[str, ...], reason: str
) -> None:
    model, other = save("phi3v", tmp_path / "model"), save("qwen3_vl", tmp_path / "other")
    for file in files:
        shutil.copyfile(other / file, model / file)
    code, _, err = cli("inspect", data_dir, "--model_name_or_path", model)
    assert code == 2
    assert err.splitlines()[-1] == (
        f"error: {model}: its processor belongs to another model family than its config.json (phi3v): {reason}"
    )
