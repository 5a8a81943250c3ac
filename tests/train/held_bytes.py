"""Bytes that one process of several holds of the tiny model, beside the arithmetic: `python held_bytes.py KIND`."""

import json
import sys
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from phi3v_train.cli.app import leave
from phi3v_train.distributed.group import make_group
from phi3v_train.distributed.rank_info import RankInfo
from phi3v_train.models.phi3v.family import PHI3V
from phi3v_train.models.phi3v.tiny import tiny_model
from phi3v_train.parse_config import parse_config
from phi3v_train.precision import Precision
from phi3v_train.training.memory import estimate
from phi3v_train.training.methods import apply_method
from phi3v_train.training.parallel.make_engine import make_engine


def held(tensors: Any) -> int:
    """Bytes of the shards that this process holds."""
    local = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return sum(tensor.numel() * tensor.element_size() for tensor in local)


def main(strategy: Any) -> None:
    """One step of text, then a look at every tensor."""
    group = make_group(RankInfo.from_environment(), torch.device("cpu"))
    config = parse_config({"device": "cpu", "dtype": "fp32"})
    model = tiny_model()
    size = PHI3V.size(model.config.to_dict())
    precision = Precision("fp32", "cpu")
    trained = apply_method(model, config.method, precision, seed=0, device=torch.device("cpu"))
    engine: Any = make_engine(strategy, group, trained, precision, config)
    engine.module.train()
    ids = torch.arange(8)[None]
    engine.accumulate({"input_ids": ids, "labels": ids}, 8.0, last=True)
    gradients = held(p.grad for p in engine.parameters if p.grad is not None)
    engine.update(1.0, 0.0)
    expected = estimate(
        size, config.method, dtype="fp32", tokens=8, tiles=0, parallel=strategy, world_size=group.world_size
    )
    moments = [value for state in engine.optimizer.state.values() for key, value in state.items() if key != "step"]
    found = {
        "weights": (held(model.state_dict().values()), expected.weights),
        "gradients": (gradients, expected.gradients),
        "moments": (held(moments), expected.moments),
    }
    print(json.dumps(found))
    group.barrier()
    group.close()
    leave(SystemExit(0))


if __name__ == "__main__":
    main(sys.argv[1])
