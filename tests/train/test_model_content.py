"""A model in files is known by its content: it may move between two starts, and may not be replaced."""

import os
import re
import shutil
from pathlib import Path

import pytest
from colour_sets import colour_directory
from run_dirs import settings_for
from safetensors.torch import load_file, save_file

from phi3v_data.errors import UserError
from phi3v_train.evaluation.identity import model_identity
from phi3v_train.models import content
from phi3v_train.models.content import content_of
from phi3v_train.models.locate import locate
from phi3v_train.models.registry import get_family
from phi3v_train.run import run
from phi3v_train.settings import resolve


def save(seed: int, directory: Path) -> Path:
    shutil.rmtree(directory, ignore_errors=True)
    get_family("qwen3_vl").tiny_model(seed).save_pretrained(directory)
    get_family("qwen3_vl").tiny_processor().save_pretrained(directory)
    return directory


def test_a_run_resumes_on_the_same_base_under_any_path_and_on_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = colour_directory(tmp_path / "colours", rows=4)
    base = save(3, tmp_path / "base")

    def train(steps: int, model: "str | Path") -> int:
        options = {"use_lora": True, "lora_rank": 4, "max_steps": steps, "save_steps": 1}
        settings = settings_for(data, tmp_path / "run", model_name_or_path=str(model), **options)
        del settings["num_crops"]
        return run(resolve(settings), quiet=True).step

    assert train(1, base) == 1
    assert train(2, f"{base}/") == 2
    monkeypatch.chdir(tmp_path)
    assert train(3, "base") == 3
    os.rename(base, tmp_path / "moved")
    assert train(4, tmp_path / "moved") == 4
    save(4, base)
    with pytest.raises(
        UserError, match=r"/run\S* holds a run with other settings or data: the model at \S+/base has ot"
    ):
        train(5, base)
    assert train(5, "moved") == 5


def test_of_a_large_file_each_tensor_decides_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "WHOLE_BYTES", 0)
    monkeypatch.setattr(content, "PIECES", 2)
    monkeypatch.setattr(content, "PIECE_BYTES", 16)
    path = save(3, tmp_path / "base") / "model.safetensors"
    first = content_of(locate(str(path.parent)))
    shutil.copytree(path.parent, tmp_path / "copy")
    assert content_of(locate(str(tmp_path / "copy"))) == first
    tensors = load_file(path)
    seen = {first}
    for name in sorted(tensors)[::10]:
        changed = {each: value * 2 + 1 if each == name else value for each, value in tensors.items()}
        save_file(changed, path, metadata={"format": "pt"})
        seen.add(content_of(locate(str(path.parent))))
    assert len(seen) == 1 + len(sorted(tensors)[::10])
    path.write_bytes(b"\xff" * 100)
    assert content_of(locate(str(path.parent))) not in seen


def test_an_evaluation_knows_its_model_under_any_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save(3, tmp_path / "base")
    (tmp_path / "link").symlink_to(base)
    first = model_identity(locate(str(base)))
    assert re.fullmatch(r"base \(content [0-9a-f]{16}\)", first)
    monkeypatch.chdir(base)
    assert [model_identity(locate(path)) for path in (".", "../link", f"{base}/")] == [first] * 3
