"""Rotary positions with two sets of factors: one up to the length of pretraining, one beyond it.

    inv_freq[i] = 1 / (factor[i] * theta ** (2 i / d));  cos and sin times sqrt(1 + ln(max / original) / ln(original))

The released code uses the longest sequence of a batch for all of it, so that the logits of a sample depend on the other
samples. Here every token is rotated according to the length of its own sample.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from phi3v_train.device import constant_on
from phi3v_train.models.phi3v.configuration_phi3_v import Phi3VConfig, rope_kind


class Phi3VRotary(nn.Module):
    """cos and sin of each token, in fp32.

    The frequencies are not buffers, so casting the model to half precision cannot round them (a bf16 frequency is off
    by up to 0.4 %, which rotates a far position by whole radians).
    """

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        rope: dict[str, Any] = config.rope_parameters
        head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        self.rotary_dim = int(head_dim * rope.get("partial_rotary_factor", 1.0))
        self.theta = float(rope["rope_theta"])
        scaled = has_factors(rope)
        ones = [1.0] * (self.rotary_dim // 2)
        self.short_factor = [float(factor) for factor in (rope["short_factor"] if scaled else ones)]
        self.long_factor = [float(factor) for factor in (rope["long_factor"] if scaled else ones)]
        self.original_length = int(config.original_max_position_embeddings)
        self.scale = 1.0
        if scaled:
            self.scale = attention_scale(
                int(config.max_position_embeddings) / self.original_length, self.original_length, rope_kind(rope)
            )
        self._tables: dict[torch.device, Tensor] = {}

    def inv_freq(self, device: torch.device) -> Tensor:
        """Inverse frequencies (2, d / 2) fp32: short factors, long factors."""
        table = self._tables.get(device)
        if table is None:
            exponents = torch.arange(0, self.rotary_dim, 2, dtype=torch.int64).float() / self.rotary_dim
            factors = torch.tensor([self.short_factor, self.long_factor], dtype=torch.float32)
            table = constant_on(1.0 / (factors * self.theta**exponents), device)
            self._tables[device] = table
        return table

    def forward(self, position_ids: Tensor, lengths: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Positions (b, s) and the lengths of the samples they belong to (b, s) or (b, 1) -> cos and sin (b, s, d)."""
        short, long = self.inv_freq(position_ids.device)
        beyond = (lengths > self.original_length)[..., None]
        with torch.autocast(device_type=position_ids.device.type, enabled=False):
            angles = position_ids[..., None].float() * torch.where(beyond, long, short)
            angles = torch.cat((angles, angles), dim=-1)
            return (angles.cos() * self.scale).to(dtype), (angles.sin() * self.scale).to(dtype)


def has_factors(rope: dict[str, Any]) -> bool:
    """Whether positions are rotated with the two sets of factors, instead of plain rotary positions.

    Raises:
        ValueError: another type of rotary positions, which this model does not support.
    """
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return False
    if kind not in ("longrope", "su", "yarn") or rope.get("long_factor") is None or rope.get("short_factor") is None:
        raise ValueError(
            f"rope_scaling of type {kind!r} is not part of this model: give 'su' or 'yarn' with short_factor and "
            "long_factor, or none"
        )
    return True


def attention_scale(stretch: float, original_length: int, kind: str) -> float:
    """Factor of cos and sin for a context `stretch` times the pretrained one; the same below and above the switch."""
    if stretch <= 1.0:
        return 1.0
    if kind == "yarn":
        return 0.1 * math.log(stretch) + 1.0
    return math.sqrt(1.0 + math.log(stretch) / math.log(original_length))
