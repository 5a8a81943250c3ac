"""A merged model equals base and adapter, and loads wherever a base does."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from colour_sets import colour_directory
from processes import finish, start
from run_dirs import command, settings_for
from sample_dirs import make_image

from phi3v_data.errors import UserError
from phi3v_data.lock import lock_file
from phi3v_train.models.loading import load_model, load_processor
from phi3v_train.models.locate import locate
from phi3v_train.models.machine import Chosen, Compute
from phi3v_train.models.phi3v.tiny import tiny_model, tiny_processor
from phi3v_train.run import run
from phi3v_train.settings import resolve
from phi3v_train.training.merging import merge_to

FP32 = Compute(Chosen("cpu", ""), Chosen("fp32", ""), Chosen("sdpa", ""), 0)

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"use_lora": True},
    "language": {"use_lora": True, "freeze_vision_model": True},
    "dora": {"use_lora": True, "use_dora": True},
    "rslora": {"use_lora": True, "use_rslora": True},
    "pissa": {"use_lora": True, "lora_init": "pissa"},
    "olora": {"use_lora": True, "lora_init": "olora"},
    "qlora": {"use_qlora": True},
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_directory(tmp_path_factory.mktemp("colours"), rows=4)


def train(data_dir: Path, base: Path, out: Path, **changes: Any) -> Path:
    run(
        resolve(
            settings_for(
                data_dir, out, model_name_or_path=str(base), lora_rank=4, warmup_steps=0, max_steps=2, **changes
            )
        ),
        quiet=True,
    )
    return out / "model"


def logits(model: Any) -> torch.Tensor:
    inputs = tiny_processor(num_crops=1)("<|user|>\n<|image_1|>\nWhich colour?<|end|>\n<|assistant|>\n", make_image(0))
    with torch.no_grad():
        result: torch.Tensor = model.eval()(**inputs).logits
    return result


@pytest.mark.parametrize("method", METHODS)
def test_merged_equals_base_with_adapter(data_dir: Path, base: Path, tmp_path: Path, method: str) -> None:
    adapter = train(data_dir, base, tmp_path / "out", **METHODS[method])
    place = locate(str(adapter))
    assert place.adapter == adapter
    assert place.directory == base
    with_adapter = logits(load_model(place, FP32))
    before = logits(load_model(locate(str(base)), FP32))
    assert (with_adapter - before).abs().max() > 1e-3
    merge_to(place, tmp_path / "merged")
    merged = locate(str(tmp_path / "merged"))
    assert merged.adapter is None
    torch.testing.assert_close(logits(load_model(merged, FP32)), with_adapter, rtol=0, atol=1e-4)
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {path.name for path in base.iterdir()} <= names
    assert load_processor(merged).tokenizer.get_vocab() == load_processor(locate(str(base))).tokenizer.get_vocab()


def test_a_merged_model_is_a_base_again(data_dir: Path, base: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    adapter = train(data_dir, base, tmp_path / "out", use_lora=True)
    merge_to(locate(str(adapter)), tmp_path / "merged")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "merged")
    AutoProcessor.from_pretrained(tmp_path / "merged")
    assert set(model.state_dict()) == set(tiny_model().state_dict())
    assert train(data_dir, tmp_path / "merged", tmp_path / "again", freeze_vision_model=True).is_dir()


def test_the_adapter_is_in_pefts_own_layout(data_dir: Path, base: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    adapter = train(data_dir, base, tmp_path / "out", use_lora=True)
    model = PeftModel.from_pretrained(tiny_model(seed=3), adapter)
    torch.testing.assert_close(
        logits(model.base_model.model), logits(load_model(locate(str(adapter)), FP32)), rtol=0, atol=1e-6
    )
    size = sum(path.stat().st_size for path in adapter.glob("adapter_model.*"))
    assert size < 200_000, "the base's head is not part of an adapter"


def test_from_the_command_line(data_dir: Path, base: Path, tmp_path: Path) -> None:
    adapter = train(data_dir, base, tmp_path / "out", use_lora=True, save_steps=1)
    result = command("merge", str(tmp_path / "out" / "checkpoint-000002"), str(tmp_path / "bf16"), "--dtype", "bf16")
    assert result.returncode == 0, result.stderr
    assert result.stdout == f"{tmp_path / 'bf16'}: a model directory in bf16\n"
    assert result.stderr == ""
    assert locate(str(tmp_path / "bf16")).config()["dtype"] == "bfloat16"
    with pytest.raises(UserError, match="exists already"):
        merge_to(locate(str(adapter)), tmp_path / "bf16")
    moved = base.rename(base.with_name("elsewhere"))
    try:
        missing = command("merge", str(adapter), str(tmp_path / "moved"))
        assert missing.returncode == 2
        assert str(base) in missing.stderr
        assert command("merge", str(adapter), str(tmp_path / "moved"), "--base", str(moved)).returncode == 0
    finally:
        moved.rename(base)


def test_a_full_checkpoint_becomes_one_dtype(data_dir: Path, base: Path, tmp_path: Path) -> None:
    train(data_dir, base, tmp_path / "out", freeze_vision_model=True, dtype="bf16")
    checkpoint = tmp_path / "out" / "checkpoint-000002"
    from safetensors.torch import load_file

    mixed = {tensor.dtype for tensor in load_file(checkpoint / "model.safetensors").values()}
    assert mixed == {torch.float32, torch.bfloat16}
    merge_to(locate(str(checkpoint)), tmp_path / "plain", dtype="bf16")
    one, final = (load_file(path / "model.safetensors") for path in (tmp_path / "plain", tmp_path / "out" / "model"))
    assert {tensor.dtype for tensor in one.values()} == {torch.bfloat16}
    assert all(torch.equal(one[name], final[name]) for name in final)


def test_a_bf16_base_is_merged_in_fp32_and_rounded_once(data_dir: Path, tmp_path: Path) -> None:
    """Bit by bit (W.float() + scaling * B @ A).bfloat16() of every adapted layer, everything else untouched."""
    from safetensors.torch import load_file

    base = tmp_path / "base"
    tiny_model(seed=3).to(torch.bfloat16).save_pretrained(base)
    tiny_processor(num_crops=1).save_pretrained(base)
    adapter = train(data_dir, base, tmp_path / "out", use_lora=True, lora_alpha_ratio=2.0, learning_rate=1e-2)
    merge_to(locate(str(adapter)), tmp_path / "merged")
    before, merged = (load_file(path / "model.safetensors") for path in (base, tmp_path / "merged"))
    low_rank = load_file(adapter / "adapter_model.safetensors")
    adapted = set()
    for name, weight in merged.items():
        prefix = f"base_model.model.{name.removesuffix('.weight')}"
        expected = before[name]
        if f"{prefix}.lora_A.weight" in low_rank:
            adapted.add(name)
            a, b = (low_rank[f"{prefix}.lora_{letter}.weight"].float() for letter in "AB")
            expected = (expected.float() + 2.0 * (b @ a)).bfloat16()
        assert torch.equal(weight, expected), name
    assert len(adapted) == len(low_rank) // 2 > 10
    assert any(not torch.equal(merged[name], before[name]) for name in adapted)


def test_of_two_merges_into_one_place_one_writes_it(data_dir: Path, base: Path, tmp_path: Path) -> None:
    adapter = train(data_dir, base, tmp_path / "run", use_lora=True)
    out = tmp_path / "merged"
    done = finish([start("-m", "phi3v_train", "merge", adapter, out) for _ in range(2)])
    assert sorted(code for code, _, _ in done) == [0, 2]
    refused = next(err for code, _, err in done if code == 2)
    assert re.fullmatch(
        r"error: \S+/merged: (another merge writes to it; wait for it, or choose another directory|exists already; .*)",
        refused.splitlines()[-1],
    )
    merge_to(locate(str(adapter)), tmp_path / "alone")
    names = sorted(path.name for path in (tmp_path / "alone").iterdir())
    assert sorted(path.name for path in out.iterdir()) == names
    assert all((out / name).read_bytes() == (tmp_path / "alone" / name).read_bytes() for name in names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "merged", "run"]


def test_a_place_that_is_being_written_is_refused(base: Path, tmp_path: Path) -> None:
    files = locate(str(base))
    with (
        lock_file(tmp_path / ".merged.merge.lock", "busy"),
        pytest.raises(UserError, match="merged: another merge writes to it"),
    ):
        merge_to(files, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
