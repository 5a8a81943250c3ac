"""Random numbers as a function of where a run is, so that resuming needs no saved generator states."""

import hashlib
import random

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed out of the run's seed and a place in it, such as (seed, "step", 12, "micro", 3, "rank", 0)."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def seed_everything(*parts: int | str) -> None:
    """Seed torch on all devices, NumPy and Python."""
    seed = derive_seed(*parts)
    torch.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # libraries draw from the global generator
    random.seed(seed)
