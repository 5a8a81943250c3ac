"""Host memory that FSDP takes to load a model: `python benchmarks/fsdp_loading.py`.

A random model of 0.34 billion parameters, two processes over gloo on this machine, in bf16: the peak of each process,
once as it loads the whole model, once as it reads its rows of the weights (pages of the mapped files count too).
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from common import machine, peak_bytes, save

from phi3v_train.config import MethodConfig, OptimConfig
from phi3v_train.distributed.group import make_group
from phi3v_train.distributed.rank_info import RankInfo
from phi3v_train.models.phi3v.family import PHI3V
from phi3v_train.models.phi3v.modeling_phi3_v import Phi3VForConditionalGeneration
from phi3v_train.precision import Precision
from phi3v_train.training.methods import apply_method
from phi3v_train.training.parallel.fsdp import FSDPEngine

PROCESSES = 2


def write_model(folder: Path) -> int:
    """A random model in bf16; its number of parameters."""
    sys.path.insert(0, str(Path(__file__).parent / "model"))
    from inputs import long_context

    from phi3v_train.models.phi3v.configuration_phi3_v import Phi3VConfig

    config = Phi3VConfig(
        vocab_size=32064,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=16,
        **long_context(32),
        img_processor={
            "image_dim_out": 256,
            "vision_config": {
                "hidden_size": 256,
                "intermediate_size": 1024,
                "num_hidden_layers": 6,
                "num_attention_heads": 4,
            },
        },
    )
    model = Phi3VForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def load(folder: Path, rows: bool) -> None:
    """Load on this process, and print how its peak grew."""
    group = make_group(RankInfo.from_environment(), torch.device("cpu"))
    before = peak_bytes()
    more = {"device_map": "meta"} if rows else {}
    model = PHI3V.load_model(folder, dtype=torch.bfloat16, attn_implementation="sdpa", **more)
    precision = Precision("bf16", "cpu")
    trained = apply_method(model, MethodConfig(), precision, seed=0, device=torch.device("meta" if rows else "cpu"))
    engine = FSDPEngine(group, trained, precision, OptimConfig(), rows_from=folder if rows else None)
    group.barrier()
    print(json.dumps({"grown": peak_bytes() - before, "shards": len(engine.names)}), flush=True)
    os._exit(0)


def measure(folder: Path, rows: bool) -> list[int]:
    """Bytes by which each process grew."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {"WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), "rows" if rows else "whole"],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {name: str(value) for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()},
        )
        for rank in range(PROCESSES)
    ]
    return [int(json.loads(process.communicate()[0].splitlines()[-1])["grown"]) for process in running]


def main() -> None:
    """Both ways; benchmarks/results/fsdp_loading.json."""
    if len(sys.argv) > 1:
        load(Path(sys.argv[1]), sys.argv[2] == "rows")
    with tempfile.TemporaryDirectory() as scratch:
        parameters = write_model(Path(scratch))
        found = {name: measure(Path(scratch), name == "rows") for name in ("whole", "rows")}
    save("fsdp_loading", {"machine": machine("torch"), "parameters": parameters, "bytes_per_process": found})


if __name__ == "__main__":
    main()
