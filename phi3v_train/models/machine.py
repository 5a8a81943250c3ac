"""Chooses device, dtype and attention for this machine, each with the reason."""

from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from phi3v_data.errors import UserError, how_to_install
from phi3v_train.config import ModelConfig

ATTENTION_NAMES = {"flash": "flash_attention_2", "sdpa": "sdpa", "eager": "eager"}
"""Our names -> transformers' names."""

NAMES = {"cpu": "the CPU", "mps": "the Apple GPU"}
"""Devices that torch has no name for, in sentences."""

AMPERE = (8, 0)
"""First CUDA compute capability with bf16 and FlashAttention 2."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A chosen value and the reason."""

    value: str
    reason: str

    def __str__(self) -> str:
        return f"{self.value} ({self.reason})"


@dataclass(frozen=True, slots=True)
class Compute:
    """Device, dtype and attention of a run."""

    device: Chosen
    dtype: Chosen
    attn: Chosen
    memory: int

    @property
    def attn_implementation(self) -> str:
        """transformers' name of the attention."""
        return ATTENTION_NAMES[self.attn.value]


def choose_compute(config: ModelConfig) -> Compute:
    """Device, dtype and attention for a configuration.

    Raises:
        UserError: the machine does not have what was requested.
    """
    import torch

    device = choose_device(config.device)
    capability = torch.cuda.get_device_capability() if device.value == "cuda" else (0, 0)
    card = torch.cuda.get_device_name() if device.value == "cuda" else NAMES.get(device.value, device.value)
    dtype = choose_dtype(config.dtype, device.value, capability, card)
    attn = choose_attention(config.attn, dtype.value, device.value, capability, card)
    return Compute(device, dtype, attn, device_memory(device.value))


def choose_device(wanted: str) -> Chosen:
    """A CUDA GPU if there is one, else the CPU; an Apple GPU only if it was asked for, as nothing was tested on one."""
    import torch

    if wanted == "cpu":
        return Chosen("cpu", "asked for")
    if wanted == "mps":
        if obstacle := mps_obstacle():
            raise UserError(f"--device mps: {obstacle}; use --device cpu")
        return Chosen("mps", "asked for; untested")
    if torch.cuda.is_available():
        return Chosen("cuda", torch.cuda.get_device_name())
    if wanted == "cuda":
        reason = "torch was built without CUDA" if torch.version.cuda is None else "torch sees no GPU"
        raise UserError(
            f"--device cuda: {reason}; check nvidia-smi, install a CUDA build of torch, or use --device cpu"
        )
    return Chosen("cpu", "no GPU found" if mps_obstacle() else "no CUDA GPU; --device mps is the Apple GPU, untested")


def mps_obstacle() -> str:
    """Why torch cannot compute on an Apple GPU here; empty if it can."""
    import torch

    if not torch.backends.mps.is_built():
        return "this torch was built without MPS, which its builds for Apple silicon have"
    if not torch.backends.mps.is_available():
        return "torch sees no Apple GPU"
    return ""


def choose_dtype(wanted: str, device: str, capability: tuple[int, int], card: str) -> Chosen:
    """bf16 if the GPU supports it, fp16 on older GPUs, fp32 on a CPU and on an Apple GPU."""
    if device == "cuda" and capability < AMPERE and wanted == "bf16":
        raise UserError(f"--dtype bf16: {card} has no bf16, which begins with Ampere (A100, RTX 30); use --dtype fp16")
    if device == "mps" and wanted == "fp16":
        raise UserError("--dtype fp16 needs loss scaling, which --device mps does not have here: use fp32 or bf16")
    if device == "mps" and wanted == "bf16" and not mps_has_bf16():
        raise UserError(f"--dtype bf16: {card} has it from macOS 14 on; use --dtype fp32")
    if wanted != "auto":
        return Chosen(wanted, "asked for")
    if device == "mps":
        return Chosen("fp32", "bf16, from macOS 14 on, is untested")
    if device == "cpu":
        return Chosen("fp32", "exact, and as fast as bf16 on most CPUs")
    if capability >= AMPERE:
        return Chosen("bf16", f"{card} has it")
    return Chosen("fp16", f"{card} has no bf16")


def mps_has_bf16() -> bool:
    """Whether this macOS computes in bf16 on its GPU."""
    import torch

    return bool(torch.backends.mps.is_macos_or_newer(14, 0))


def choose_attention(wanted: str, dtype: str, device: str, capability: tuple[int, int], card: str) -> Chosen:
    """FlashAttention 2 if it is installed and can run, else torch's own kernels."""
    obstacle = flash_obstacle(dtype, device, capability, card)
    if wanted == "flash":
        if obstacle:
            raise UserError(f"--attn flash: {obstacle}; use --attn sdpa")
        return Chosen("flash", "asked for")
    if wanted != "auto":
        return Chosen(wanted, "asked for")
    return Chosen("sdpa", f"no flash: {obstacle}") if obstacle else Chosen("flash", "flash-attn is installed")


def flash_obstacle(dtype: str, device: str, capability: tuple[int, int], card: str) -> str:
    """Why FlashAttention 2 cannot run; empty if it can."""
    if device != "cuda":
        return "it needs a GPU" if device == "cpu" else "it needs a CUDA GPU"
    if capability < AMPERE:
        return f"{card} is older than Ampere"
    if dtype != "bf16":
        return f"it needs bf16, not {dtype}"
    if find_spec("flash_attn") is None:
        return f"flash-attn is not installed ({how_to_install('flash')})"
    return ""


def device_memory(device: str) -> int:
    """Bytes of the GPU, or of the machine's memory that is available now."""
    if device == "cuda":
        import torch

        properties: Any = torch.cuda.get_device_properties(0)
        return int(properties.total_memory)
    if device == "mps":
        import torch

        return int(torch.mps.recommended_max_memory())
    return available_memory()


CGROUPS = (
    ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current", "sys/fs/cgroup/memory.stat", "inactive_file"),
    (
        "sys/fs/cgroup/memory/memory.limit_in_bytes",
        "sys/fs/cgroup/memory/memory.usage_in_bytes",
        "sys/fs/cgroup/memory/memory.stat",
        "total_inactive_file",
    ),
)
"""Files of a container's limit and use, the details of its use, and what of these the kernel gives back; v2, v1."""


def available_memory(system: Path = Path("/")) -> int:
    """Available memory in bytes, the machine's or, if less, the container's; 0 if Linux does not report it."""
    try:
        available = _field(system / "proc/meminfo", "MemAvailable:") * 1024
    except (OSError, KeyError, ValueError):
        return 0
    for limit, used, details, given_back in CGROUPS:
        with suppress(OSError, KeyError, ValueError):  # "max" means no limit
            free = int((system / limit).read_text()) - int((system / used).read_text())
            available = min(available, max(0, free + _field(system / details, given_back)))
    return available


def _field(file: Path, name: str) -> int:
    """A number in a file with lines `NAME NUMBER ...`."""
    return {words[0]: int(words[1]) for words in map(str.split, file.read_text().splitlines()) if words[1:]}[name]
