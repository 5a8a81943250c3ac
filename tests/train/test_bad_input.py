"""Mistakes that can be seen before anything heavy is loaded: one sentence each, exit code 2."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from colour_sets import colour_directory
from run_dirs import arguments, command, settings_for

from phi3v_data.errors import UserError
from phi3v_train import build
from phi3v_train.models import machine
from phi3v_train.models.adapters import attach_adapter
from phi3v_train.models.loading import load_model
from phi3v_train.models.locate import locate
from phi3v_train.models.phi3v.tiny import tiny_model, tiny_processor
from phi3v_train.run import run
from phi3v_train.settings import resolve
from phi3v_train.training.checkpoints import open_checkpoint


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_directory(tmp_path_factory.mktemp("colours"))


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("model") / "phi3v"
    tiny_model().save_pretrained(directory)
    tiny_processor().save_pretrained(directory)
    return directory


@pytest.fixture(autouse=True)
def _nothing_heavy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("a model was loaded before the mistake was found")

    monkeypatch.setattr(build, "load_base", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def refused(directory: Path, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        run(resolve({**settings_for(directory, directory / "out"), **changes}), quiet=True)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data_dir": []}, "give --data_dir"),
        ({"data_dir": ["nowhere"]}, "no such directory"),
        ({"data_dir": ["nowhere"], "model_name_or_path": "owner/not-asked-for"}, "nowhere: no such directory"),
        ({"train_split": "trian"}, "did you mean 'train'"),
        ({"eval_split": "exam", "eval_after": True}, "no split 'exam'"),
        ({"metric": ["accurracy"], "eval_after": True}, "accurracy"),
        (
            {"batch_size": 5},
            "--batch_size 5 does not divide into --batch_size_per_gpu 2 on 1 process: use --batch_size 4 or 6",
        ),
        ({"device": "cuda"}, "--device cuda: "),
        ({"attn": "flash"}, "--attn flash: it needs a GPU; use --attn sdpa"),
        ({"model_name_or_path": "nobody/no-such-model"}, "the Hub cannot be reached and this machine has no copy"),
        ({"model_name_or_path": "./nowhere"}, "no such directory; give a model directory, a Hub id"),
        ({"parallel": "zero3"}, "--parallel zero3"),
        ({"max_length": 20}, "over --max_length 20"),
    ],
)
def test_refused_in_one_sentence(data_dir: Path, changes: dict[str, Any], words: str) -> None:
    assert words in refused(data_dir, **changes)


def test_a_directory_with_errors(data_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(data_dir, tmp_path / "data")
    (tmp_path / "data" / "images" / "train0.png").unlink()
    words = refused(tmp_path / "data")
    assert "image-missing" in words
    assert "colours_train.jsonl:1" in words
    assert "phi3v-data validate" in words


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "preprocessor_config.json", "model.safetensors"])
def test_a_model_directory_that_lacks_a_file(data_dir: Path, model_dir: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(model_dir, tmp_path / "model")
    (tmp_path / "model" / name).unlink()
    assert f"{name} is missing" in refused(data_dir, model_name_or_path=str(tmp_path / "model"))


def test_a_shard_that_is_missing(data_dir: Path, model_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(model_dir, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model" / "model-00001-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    words = refused(data_dir, model_name_or_path=str(tmp_path / "model"))
    assert "model-00002-of-00002.safetensors is missing" in words


@pytest.mark.parametrize("name", ["../model.safetensors", "/model.safetensors", "a/../../model.safetensors", 3])
def test_an_index_that_names_files_elsewhere(data_dir: Path, model_dir: Path, tmp_path: Path, name: object) -> None:
    shutil.copytree(model_dir, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "model.safetensors")
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    words = refused(data_dir, model_name_or_path=str(tmp_path / "model"))
    assert ("the name" if isinstance(name, str) else "expected `weight_map`") in words


@pytest.mark.parametrize(("change", "words"), [
    ("half", "model.safetensors: cannot be read as safetensors (Error while deserializing header: incomplete metadata"),
    ("pointer", "model.safetensors: cannot be read as safetensors ("),
    ({"num_hidden_layers": 1000}, "config.json: num_hidden_layers is 1,000, but the weights have "),
    ({"vision_config": {"num_hidden_layers": 1000}}, "config.json: vision_config.num_hidden_layers is 1,000, but"),
    ({"num_attention_heads": 0}, "config.json and the weights do not make a model: ZeroDivisionError"),
    ({"vocab_size": "x"}, "config.json and the weights do not make a model: StrictDataclassFieldValidationError"),
    ({"num_key_value_heads": 3}, "do not make a model: tensors have other sizes than it says"),
])  # fmt: skip
def test_a_half_written_or_false_model_directory_is_not_loaded(
    model_dir: Path, tmp_path: Path, change: Any, words: str
) -> None:
    """A stranger's config.json may name any number of layers, each of which would be made, here in a few seconds."""
    directory = tmp_path / "model"
    shutil.copytree(model_dir, directory)
    if isinstance(change, str):
        weights = (directory / "model.safetensors").read_bytes()
        content = weights[: len(weights) // 2] if change == "half" else b"version https://git-lfs.github.com/spec/v1\n"
        (directory / "model.safetensors").write_bytes(content)
    else:
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps({**config, **change}))
    files = locate(str(directory))
    with pytest.raises(UserError) as caught:
        load_model(files, machine.choose_compute(settings_of(directory)))
    assert words in str(caught.value)


def test_a_half_written_adapter_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\x10")
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: cannot be read as safetensors"):
        attach_adapter(None, tmp_path)


def settings_of(directory: Path) -> Any:
    """Settings of a model on the CPU."""
    return resolve({"model_name_or_path": str(directory), "device": "cpu"}).config.model


def test_a_checkpoint_that_counts_files_elsewhere_is_not_complete(tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "checkpoint-000002"
    checkpoint.mkdir(parents=True)
    (tmp_path / "weights").write_bytes(b"12")
    (checkpoint / "inner").write_bytes(b"12")
    for name, whole in (("inner", True), ("../../weights", False), (str(tmp_path / "weights"), False)):
        (checkpoint / "COMPLETE.json").write_text(json.dumps({"files": {name: 2}}))
        assert (open_checkpoint(checkpoint) is not None) == whole


def test_another_kind_of_model(data_dir: Path, model_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(model_dir, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "bert"}')
    assert "model_type is 'bert'" in refused(data_dir, model_name_or_path=str(tmp_path / "model"))


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"use_qlora": True}, "--use_qlora"),
        ({"optim": "adamw_8bit"}, "--optim adamw_8bit"),
        ({"optim": "paged_adamw_8bit"}, "--optim paged_adamw_8bit"),
    ],
)
def test_without_bitsandbytes(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], option: str
) -> None:
    import importlib.util

    original = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "bitsandbytes" else original(name, *rest)
    )
    assert refused(data_dir, **changes) == (
        f"{option} needs the package bitsandbytes: pip install -c constraints.txt -e '.[qlora]' in a clone of phi3v"
    )


def test_paged_moments_without_a_gpu(data_dir: Path) -> None:
    assert refused(data_dir, optim="paged_adamw_8bit") == (
        "--optim paged_adamw_8bit pages from a GPU, and this run is on a CPU: use --optim adamw_8bit"
    )


def test_8_bit_moments_with_a_bitsandbytes_that_needs_a_gpu(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error of 0.49.2 at the first step."""
    bnb = pytest.importorskip("bitsandbytes")

    def needs_gpu(*_: Any) -> None:
        raise RuntimeError("All input tensors need to be on the same GPU, but found some tensors to not be on a GPU")

    monkeypatch.setattr(bnb.optim.AdamW8bit, "step", needs_gpu)
    assert refused(data_dir, optim="adamw_8bit") == (
        f"--optim adamw_8bit: bitsandbytes {bnb.__version__} cannot run it on a CPU: use bitsandbytes 0.50 or later, "
        "or --optim adamw"
    )


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda: machine.choose_dtype("bf16", "cuda", (7, 0), "Tesla V100"), "Tesla V100 has no bf16"),
        (lambda: machine.choose_attention("flash", "bf16", "cuda", (7, 5), "T4"), "T4 is older than Ampere"),
        (lambda: machine.choose_attention("flash", "fp16", "cuda", (8, 0), "A100"), "it needs bf16, not fp16"),
    ],
)
def test_what_a_card_cannot_do(function: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        function()


def test_automatic_choices_say_why() -> None:
    assert str(machine.choose_dtype("auto", "cuda", (7, 0), "V100")) == "fp16 (V100 has no bf16)"
    assert str(machine.choose_dtype("auto", "cuda", (8, 0), "A100")) == "bf16 (A100 has it)"
    assert (
        str(machine.choose_attention("auto", "fp16", "cuda", (7, 0), "V100"))
        == "sdpa (no flash: V100 is older than Ampere)"
    )


def test_the_command_line_exits_with_2_and_no_traceback(data_dir: Path, tmp_path: Path) -> None:
    for changes, words in (({"num_crops": 17}, "--num_crops"), ({"batch_size": 5}, "does not divide")):
        result = command("run", *arguments(settings_for(data_dir, tmp_path / "out", **changes)))
        assert result.returncode == 2
        assert result.stderr.startswith("error: ")
        assert words in result.stderr
        assert "Traceback" not in result.stderr
        assert result.stdout == ""
    assert not (tmp_path / "out").exists()
