"""Real images are learned from scratch: table, conversion, training and evaluation of handwritten digits."""

from pathlib import Path

import pytest
from smollm2_model import benchmark


@pytest.mark.slow
def test_handwritten_digits_are_learned_from_scratch(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    assert benchmark("digits").accuracy(tmp_path, seed=0) >= 0.9
