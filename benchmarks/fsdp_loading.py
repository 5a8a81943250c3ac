"""Host memory that FSDP takes to load a model: `python benchmarks/fsdp_loading.py`.

Random models of 0.3 billion parameters, two processes over gloo on this machine, in bf16: by how much the peak of each
process grows, once as it loads the whole model, once as it reads its rows of the weights. The peak counts pages of the
mapped files too, which processes share and the system can drop; `private` is without them, after loading.
"""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import machine, peak_bytes, save

from phi3v_train.config import MethodConfig, ModelConfig, OptimConfig
from phi3v_train.distributed.group import make_group
from phi3v_train.distributed.rank_info import RankInfo
from phi3v_train.models.loading import load_base, model_without_weights
from phi3v_train.models.locate import locate
from phi3v_train.models.machine import choose_compute
from phi3v_train.models.phi3v.modeling_phi3_v import Phi3VForConditionalGeneration
from phi3v_train.models.phi3v.tiny.model import Sizes, config_by_sizes
from phi3v_train.models.registry import get_family
from phi3v_train.precision import Precision
from phi3v_train.training.methods import apply_method
from phi3v_train.training.parallel.fsdp import FSDPEngine
from phi3v_train.training.parallel.row_source import find_rows

PROCESSES = 2
METHODS: dict[str, dict[str, Any]] = {
    "full": {},
    "frozen vision": {"freeze_vision_model": True},
    "LoRA rank 32": {"use_lora": True, "lora_rank": 32},
}
CASES = (("phi3v", "full"), ("phi3v", "frozen vision"), ("phi3v", "LoRA rank 32"), ("internvl", "full"),
         ("internvl", "LoRA rank 32"))  # fmt: skip
"""Families and methods; the files of internvl have other names than its model."""


def write_model(family: str, folder: Path) -> int:
    """A random model in bf16; its number of parameters."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    torch.manual_seed(0)
    if family == "phi3v":
        sys.path.insert(0, str(Path(__file__).parent / "model"))
        from inputs import long_context

        decoder, tower = Sizes(width=1024, inner=4096, layers=16, heads=16), Sizes(256, 1024, 6, 4)
        config = config_by_sizes(decoder, tower, vocab_size=32064, **long_context(32))
        model: Any = Phi3VForConditionalGeneration._from_config(config, dtype=torch.bfloat16)
    else:
        values = get_family(family).tiny_config()
        sizes = {
            "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 16, "num_attention_heads": 16,
            "num_key_value_heads": 16, "max_window_layers": 16, "layer_types": None, "vocab_size": 32064,
        }  # fmt: skip
        values["text_config"] = {**values["text_config"], **sizes}
        model = AutoModelForImageTextToText.from_config(AutoConfig.for_model(**values), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    get_family(family).tiny_processor().save_pretrained(folder)
    return sum(parameter.numel() for parameter in model.parameters())


def private_bytes() -> int:
    """Memory of this process that is not of a file."""
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    return int(found[1]) * 1024 if found else 0


def load(folder: Path, method: MethodConfig, rows: bool) -> None:
    """Load on this process, and print how its memory grew."""
    group = make_group(RankInfo.from_environment(), torch.device("cpu"))
    files, compute = locate(str(folder)), choose_compute(ModelConfig(device="cpu", dtype="bf16"))
    source = find_rows(files, method)
    assert source.directory is not None, source.reason
    before, private = peak_bytes(), private_bytes()
    model = model_without_weights(files, compute) if rows else load_base(files, compute)
    precision = Precision("bf16", "cpu")
    trained = apply_method(model, method, precision, seed=0, device=None if rows else torch.device("cpu"))
    FSDPEngine(group, trained, precision, OptimConfig(), rows=source if rows else None)
    group.barrier()
    print(json.dumps({"peak": peak_bytes() - before, "private": private_bytes() - private}), flush=True)
    os._exit(0)


def measure(folder: Path, method: str, way: str) -> list[dict[str, int]]:
    """Bytes by which each process grew."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    shared = {"WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = [
        subprocess.Popen(
            [sys.executable, __file__, str(folder), method, way],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {name: str(value) for name, value in {**shared, "RANK": rank, "LOCAL_RANK": rank}.items()},
        )
        for rank in range(PROCESSES)
    ]
    return [json.loads(process.communicate()[0].splitlines()[-1]) for process in running]


def main() -> None:
    """All cases both ways; benchmarks/results/fsdp_loading.json."""
    if len(sys.argv) > 1:
        load(Path(sys.argv[1]), MethodConfig(**METHODS[sys.argv[2]]), sys.argv[3] == "rows")
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        parameters = {name: write_model(name, Path(scratch) / name) for name in sorted({family for family, _ in CASES})}
        for family, method in CASES:
            ways = ("whole", "rows")
            results[f"{family}, {method}"] = {way: measure(Path(scratch) / family, method, way) for way in ways}
            print(json.dumps({f"{family}, {method}": results[f"{family}, {method}"]}), flush=True)
    found = {"machine": machine("torch", "transformers", "peft"), "parameters": parameters}
    save("fsdp_loading", {**found, "bytes_per_process": results})


if __name__ == "__main__":
    main()
