"""The lines of phi3v_train that run on a CUDA GPU only, each with the check of `gpu_checks.py` that runs it.

tests/gpu/test_gpu_checks.py fails for a line that is not here, for an entry that no line has, and for an unknown check.
"""

import re
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "phi3v_train"
GPU_ONLY = re.compile(
    r'is_cuda|torch\.cuda\.|[!=]= "cuda"|\["cuda"\]|device\("cuda"|"nccl"|\bon_gpu\b|\.pin_memory\b|capability [<>]'
    r'|\("flash_attention|Chosen\("flash"|varlen_attn|return varlen\(|PagedAdamW|\.is_fused|get\("fused"\)'
)

LINES: dict[str, tuple[str, ...]] = {
    "attention": (
        "models/phi3v/packing.py: return query.is_cuda and query.dtype in",
        'models/phi3v/packing.py: if implementation.startswith("flash_attention"):',
        "models/phi3v/packing.py: return varlen(",
        "models/phi3v/packing.py: from torch.nn.attention.varlen import varlen_attn",
        "models/phi3v/packing.py: kernel: Callable[..., Any] = varlen_attn",
    ),
    "resume": (
        'build.py: on_gpu = plan.compute.device.value == "cuda"',
        'build.py: device = torch.device("cuda", rank_info.local_rank)',
        "build.py: loader = stack.enter_context(make_loader(plan, rank_info.rank, rank_info.world_size, pin_memory=",
        "data/loader.py: self.pin_memory = pin_memory",
        "data/loader.py: if self.pin_memory:",
        "data/loader.py: inputs = change_tensors(inputs, torch.Tensor.pin_memory)",
        "data/loader.py: token_sources = token_sources.pin_memory()",
        "device.py: return tensor.pin_memory().to(device, non_blocking=True)",
        "launch.py: gpus = torch.cuda.device_count()",
        "models/machine.py: if capability >= AMPERE:",
        "models/machine.py: if capability < AMPERE:",
        'device.py: return tensor.to(device, non_blocking=device.type == "cuda")',
        'device.py: if device.type == "cuda" and tensor.device.type == "cpu"',
        'device.py: if device.type == "cuda":',
        "device.py: return int(torch.cuda.max_memory_allocated(device))",
        'evaluation/evaluate.py: pin_memory=group.device.type == "cuda"',
        'plan.py: if compute.device.value == "cuda":',
        'training/folder.py: if device == "cuda":',
        'training/folder.py: result["gpu"] = torch.cuda.get_device_name()',
        'training/folder.py: result["cuda"] = torch.version.cuda',
        "training/optimizer.py: fused = fused or parameter.is_cuda",
        "training/parallel/torch_engine.py: return rows.to(parameter.device) if self.is_fused",
        'training/parallel/torch_engine.py: return bool(self.optimizer.defaults.get("fused"))',
        'models/machine.py: return Chosen("flash", "asked for")',
        'models/machine.py: return Chosen("sdpa", f"no flash: {obstacle}") if obstacle else Chosen("flash"',
        'models/machine.py: capability = torch.cuda.get_device_capability() if device.value == "cuda"',
        'models/machine.py: card = torch.cuda.get_device_name() if device.value == "cuda"',
        "models/machine.py: if torch.cuda.is_available():",
        'models/machine.py: return Chosen("cuda", torch.cuda.get_device_name())',
        'models/machine.py: if wanted == "cuda":',
        'models/machine.py: if device == "cuda" and capability < AMPERE and wanted == "bf16":',
        'models/machine.py: if device != "cuda":',
        'models/machine.py: if device == "cuda":',
        "models/machine.py: properties: Any = torch.cuda.get_device_properties(0)",
        'distributed/group.py: if device.type == "cuda":',
        "distributed/group.py: refuse_missing_gpu(rank_info, torch.cuda.device_count())",
        "distributed/group.py: torch.cuda.set_device(device)",
    ),
    "syncs": (
        'device.py: if not mode or device.type != "cuda":',
        "device.py: before = torch.cuda.get_sync_debug_mode()",
        "device.py: torch.cuda.set_sync_debug_mode(mode)",
        "device.py: torch.cuda.set_sync_debug_mode(before)",
    ),
    "group": (
        'distributed/group.py: on_gpu = device.type == "cuda"',
        'distributed/group.py: "nccl" if on_gpu else "gloo",',
        "distributed/group.py: device_id=device if on_gpu else None,",
    ),
    "qlora": (
        "training/eight_bit.py: make = bnb.optim.PagedAdamW8bit if",
        "training/eight_bit.py: if parameter.is_cuda:",
        "training/eight_bit.py: torch.cuda.synchronize(parameter.device)",
    ),
    "answers": (
        'evaluation/job.py: device = torch.device(kind, rank_info.local_rank) if kind == "cuda"',
        'evaluation/generate.py: "cuda": torch.cuda.get_rng_state_all()',
        'evaluation/generate.py: if generators["cuda"]:',
        'evaluation/generate.py: torch.cuda.set_rng_state_all(generators["cuda"])',
    ),
}
"""Check -> `FILE: beginning of a line`."""

NOT_RUN: dict[str, str] = {
    'training/parallel/zero.py: on_device = bool(self.adam.defaults.get("fused"))': "the script needs no DeepSpeed",
}
"""Lines that no check runs -> why."""


def gpu_lines() -> Iterator[str]:
    """Yield `FILE: line` of each line of code in phi3v_train that asks for a CUDA GPU."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for line in path.read_text(encoding="utf-8").splitlines():
            text = line.strip()
            if GPU_ONLY.search(text) and not text.startswith(("#", '"""')):
                yield f"{path.relative_to(PACKAGE).as_posix()}: {text}"
