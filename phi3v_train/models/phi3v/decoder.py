"""Phi-3's decoder layers, with the official key names and attention within each sample.

The arithmetic is transformers' own (`Phi3MLP`, `Phi3RMSNorm`, `apply_rotary_pos_emb`, its attention functions); the
layer is our own because packed rows change attention, and because transformers renamed the cache argument
(`past_key_values`, since 5.2x `cache`) between the versions supported.
"""

from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.phi3.modeling_phi3 import Phi3MLP, Phi3RMSNorm, apply_rotary_pos_emb, eager_attention_forward

from phi3v_train.models.phi3v.configuration_phi3_v import Phi3VConfig
from phi3v_train.models.phi3v.packing import Segments, segment_attention


class Phi3VAttention(nn.Module):
    """Self-attention with one projection for queries, keys and values."""

    def __init__(self, config: Phi3VConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        self.num_heads = int(config.num_attention_heads)
        self.num_key_value_heads = int(config.num_key_value_heads)
        self.num_key_value_groups = self.num_heads // self.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        size = (self.num_heads + 2 * self.num_key_value_heads) * self.head_dim
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, config.hidden_size, bias=False)
        self.qkv_proj = nn.Linear(config.hidden_size, size, bias=False)

    def forward(
        self,
        hidden: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        segments: Segments | None,
        cache: Cache | None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | list[Tensor] | None]:
        """(b, s, hidden) -> (b, s, hidden); with `segments`, b is 1 and the row contains concatenated samples.

        The second value is the attention weights (b, heads, s, cached + s), if asked for, or those of each segment.
        """
        heads = self.qkv_proj(hidden).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        query, key, value = heads.split([self.num_heads, self.num_key_value_heads, self.num_key_value_heads], dim=1)
        query, key = apply_rotary_pos_emb(query, key, *position_embeddings)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        implementation = self.config._attn_implementation or "eager"
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        weights: Tensor | list[Tensor] | None
        if segments is not None:
            seen: list[Tensor] | None = [] if output_attentions else None
            mixed = segment_attention(
                attend, implementation, self, query, key, value, segments,
                dropout=dropout, scaling=self.scaling, weights=seen,
            )  # fmt: skip
            weights = seen
        else:
            mixed, weights = attend(self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling)
        projected: Tensor = self.o_proj(mixed.flatten(2))
        return projected, weights if output_attentions else None


class Phi3VDecoderLayer(GradientCheckpointingLayer):  # type: ignore[misc]  # transformers is untyped for mypy
    """Pre-norm layer: attention, then a gated MLP."""

    def __init__(self, config: Phi3VConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = Phi3VAttention(config, layer_idx)
        self.mlp = Phi3MLP(config)
        self.input_layernorm = Phi3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.post_attention_layernorm = Phi3RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.resid_attn_dropout = nn.Dropout(config.resid_pdrop)
        self.resid_mlp_dropout = nn.Dropout(config.resid_pdrop)

    def forward(
        self,
        hidden: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        segments: Segments | None = None,
        cache: Cache | None = None,
        output_attentions: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor | list[Tensor] | None]:
        """(b, s, hidden) -> (b, s, hidden); the first argument is the one that gradients pass through.

        With `output_attentions` the attention weights come second, see `Phi3VAttention.forward`.
        """
        mixed, weights = self.self_attn(
            self.input_layernorm(hidden), position_embeddings, attention_mask, segments, cache, output_attentions
        )
        hidden = hidden + self.resid_attn_dropout(mixed)
        output: Tensor = hidden + self.resid_mlp_dropout(self.mlp(self.post_attention_layernorm(hidden)))
        return (output, weights) if output_attentions else output
