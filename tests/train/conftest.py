"""Fixtures of several tests of training."""

from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model in a directory, as a user has it."""
    from phi3v_train.models.phi3v.tiny import tiny_model, tiny_processor

    directory = tmp_path_factory.mktemp("base") / "model"
    tiny_model(seed=3).save_pretrained(directory)
    tiny_processor(num_crops=1).save_pretrained(directory)
    return directory
