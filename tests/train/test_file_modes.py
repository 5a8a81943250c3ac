"""Modes of the files of a checkpoint or a model."""

import os
from pathlib import Path

import pytest
import torch

from phi3v_train.distributed.group import SingleProcess
from phi3v_train.models.phi3v.tiny import tiny_model
from phi3v_train.training.checkpoints import write_folder
from phi3v_train.training.saving import write_model_directory


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_weights_have_the_mode_of_their_siblings_by_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    def write(folder: Path) -> None:
        write_model_directory(tiny_model(0), folder, torch.float32)
        (folder / "sub").mkdir()
        (folder / "sub" / "text").touch(0o600)

    before = os.umask(umask)
    try:
        write_folder(SingleProcess(torch.device("cpu")), tmp_path / "staging", tmp_path / "model", write)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").rglob("*") if path.is_file()}
    assert {"model.safetensors", "config.json", "text"} <= modes.keys()
    assert set(modes.values()) == {mode}
