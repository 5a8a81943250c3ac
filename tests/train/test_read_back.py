"""The training forward and backward pass of Phi-3-vision reads no values of tensors."""

from pathlib import Path
from typing import Any

import torch
from colour_sets import colour_directory
from run_dirs import settings_for
from torch.utils._python_dispatch import TorchDispatchMode

from phi3v_train.data.loader import TrainLoader
from phi3v_train.device import to_device
from phi3v_train.models.phi3v.family import PHI3V
from phi3v_train.models.phi3v.tiny import tiny_model
from phi3v_train.plan import make_plan
from phi3v_train.settings import resolve

READS = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal")


class Seen(TorchDispatchMode):
    """Names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def test_a_prepared_batch_is_trained_on_without_reading_values(tmp_path: Path) -> None:
    directory = colour_directory(tmp_path, rows=4)
    for pack in (False, True):
        plan = make_plan(resolve(settings_for(directory, tmp_path / "out", batch_size=2, pack=pack, warmup_steps=0)))
        model = tiny_model().train()
        raw, made = (
            next(iter(next(iter(loader.steps(0, 1))))).inputs
            for loader in (
                TrainLoader(plan.reader(), plan.order, micro_batch_size=2, pack=pack, prepare=prepare)
                for prepare in (None, PHI3V.prepare)
            )
        )
        expected = model(**raw, num_items_in_batch=5.0).loss
        prepared = to_device(made, torch.device("cpu"))
        with Seen() as seen:
            loss, _ = PHI3V.loss(model, prepared, 5.0)
            loss.backward()
        assert len(seen.names) > 100
        assert [name for name in seen.names if name.startswith(READS)] == []
        assert torch.equal(loss, expected)
