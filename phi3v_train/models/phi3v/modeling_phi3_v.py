"""Phi-3-vision and Phi-3.5-vision on current transformers.

    input_ids (-N is a token of image N) + images -> embeddings -> decoder -> logits, or a loss without them

Differences from the original code are described in docs/model.md. Modules: `backbone` (embeddings and decoder),
`vision` (tower, projector and positions of image tokens), `rope`, `packing` (attention within samples), `decoder`,
`generation`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn
from torch.nn import functional
from transformers.cache_utils import Cache
from transformers.generation import GenerationConfig, GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from phi3v_train.device import divisor, with_fp64
from phi3v_train.models.labelled import Labelled
from phi3v_train.models.phi3v.backbone import Phi3VModel, Phi3VPreTrainedModel, wants_dict
from phi3v_train.models.phi3v.configuration_phi3_v import Phi3VConfig
from phi3v_train.models.phi3v.generation import (
    CACHE_NAME,
    OFFICIAL_STOP_IDS,
    OFFICIAL_VOCAB_SIZE,
    Phi3VGeneration,
    stop_ids_in,
    stop_ids_of,
)
from phi3v_train.models.phi3v.packing import plan_layout, shifted_labels
from phi3v_train.models.phi3v.prepared import Prepared


# GenerationMixin is named once more because transformers looks for it among the direct bases.
class Phi3VForConditionalGeneration(Phi3VPreTrainedModel, Phi3VGeneration, GenerationMixin):  # type: ignore[misc]
    """The whole model; `Phi3VForCausalLM` in config.json, as in the official files."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__(config)
        self.model = Phi3VModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
        # Buffers are never trained: DistributedDataParallel need not broadcast them at every step.
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]
        if config.vocab_size == OFFICIAL_VOCAB_SIZE:
            self.set_stop_ids(OFFICIAL_STOP_IDS)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path | None, *args: Any, **kwargs: Any) -> Self:
        """Load like every transformers model; stop ids come from generation_config.json, else from the tokenizer."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model: Self = loaded[0] if isinstance(loaded, tuple) else loaded
        if not isinstance(model.generation_config.eos_token_id, list):
            stop_ids = OFFICIAL_STOP_IDS if model.config.vocab_size == OFFICIAL_VOCAB_SIZE else []
            if not stop_ids and pretrained_model_name_or_path is not None:
                stop_ids = stop_ids_in(pretrained_model_name_or_path)
            model.set_stop_ids(stop_ids)
        return loaded  # type: ignore[no-any-return]  # the pair that output_loading_info asks for, or the model

    def set_stop_ids(self, stop: Any) -> None:
        """Let generation stop at these ids, or at a tokenizer's ids of the chat format's stop strings."""
        stop_ids = stop if isinstance(stop, list) else stop_ids_of(stop)
        if stop_ids:
            settings: dict[str, Any] = self.generation_config.to_dict()
            settings.pop("_from_model_config", None)
            self.generation_config: Any = GenerationConfig.from_dict(settings | {"eos_token_id": list(stop_ids)})

    def get_input_embeddings(self) -> nn.Module:
        """The text embedding."""
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the text embedding."""
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        """The head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the head."""
        self.lm_head = new_embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_sizes: Tensor | None = None,
        canvases: Tensor | None = None,
        labels: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_logits: bool | None = None,
        return_token_losses: bool = False,
        num_items_in_batch: Tensor | float | None = None,
        cu_seq_lens_q: Tensor | None = None,
        prepared: Prepared | None = None,
        output_hidden_states: bool | int | Sequence[int] | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple[Any, ...]:
        """Logits, a loss, or both.

        `input_ids` (rows, columns): text ids, and -N for each token of image N of its sample. Images: either
        `pixel_values` (n, tiles, 3, 336, 336) or `canvases` (flat uint8), with `image_sizes` (n, 2), in the order of
        the samples. `attention_mask` (rows, columns): 0 at padding. `position_ids` (rows, columns) that restart, or
        `cu_seq_lens_q` (n + 1,) for one row, mean several samples per row; attention is within each sample.

        `labels` (rows, columns), not shifted; negative labels are ignored. The loss is the mean over labelled
        tokens, or their sum over `num_items_in_batch`; 0 for a batch without labels. In training, logits are then
        computed at labelled tokens only and not returned (`return_logits=True` returns all). `shift_labels` are labels
        already shifted, given instead of `labels`. `return_token_losses` adds `token_losses`: the cross-entropy of
        each labelled token, without a gradient, in the order of rows and columns. `prepared` (see `prepared.prepare`)
        replaces labels, masks, positions and `image_sizes`; nothing is then read back from the device.
        `output_hidden_states` (all, or some
        by their indices) and `output_attentions` (eager attention only) default to the configuration.
        """
        given = input_ids if input_ids is not None else inputs_embeds
        # Not a named argument: transformers' Trainer treats every `label` in the signature as a required label.
        targets: Tensor | None = kwargs.get("shift_labels")
        layout = prepared.layout if prepared is not None else None
        wants_loss = prepared is not None or labels is not None or targets is not None
        if wants_loss and given is not None:
            if past_key_values is not None or cache is not None:
                raise ValueError("a loss on top of a cache is not defined: pass labels without past_key_values")
            use_cache = False
            if layout is None:
                layout = plan_layout(
                    given.shape[0],
                    given.shape[1],
                    given.device,
                    attention_mask=attention_mask,
                    position_ids=position_ids,
                    bounds=cu_seq_lens_q,
                )
            if targets is None and labels is not None:
                targets = shifted_labels(labels, layout)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            pixel_values=pixel_values,
            image_sizes=image_sizes,
            canvases=canvases,
            past_key_values=past_key_values,
            cache=cache,
            use_cache=use_cache,
            cu_seq_lens_q=cu_seq_lens_q,
            layout=layout,
            prepared=prepared,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        hidden = outputs.last_hidden_state
        loss = token_losses = None
        if wants_loss:
            labelled = prepared.labelled if prepared is not None else None
            if labelled is None and targets is not None:
                labelled = Labelled.by_targets(targets.to(hidden.device))
            if labelled is not None:
                loss, token_losses = self._loss(hidden, labelled, num_items_in_batch)
        logits = None
        if return_logits if return_logits is not None else not wants_loss or not self.training:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden[:, kept])
        output = CausalLMOutputWithPast(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )
        if return_token_losses:
            output["token_losses"] = token_losses
        if CACHE_NAME in outputs:
            output[CACHE_NAME] = outputs[CACHE_NAME]
        return output if wants_dict(self.config, return_dict) else output.to_tuple()

    def get_image_features(self, *args: Any, **kwargs: Any) -> Any:
        """See `Phi3VModel.get_image_features`."""
        return self.model.get_image_features(*args, **kwargs)

    def _loss(
        self, hidden: Tensor, labelled: Labelled, num_items_in_batch: Tensor | float | None
    ) -> tuple[Tensor, Tensor]:
        """The loss, and the cross-entropy of each labelled token, in fp32; the head sees no other token."""
        logits = self.lm_head(hidden.flatten(0, 1).index_select(0, labelled.places)).float()
        if not len(labelled):
            nothing: Tensor = logits.sum()
            return nothing, nothing.new_zeros(0)
        # Summed in fp64: in fp32 the last digits of a long batch's sum depend on how the batch is divided.
        token_losses = functional.cross_entropy(logits, labelled.targets, reduction="none")
        total = with_fp64(token_losses).double().sum()
        count = len(labelled) if num_items_in_batch is None else num_items_in_batch
        return (total / divisor(count, total.device)).float(), token_losses.detach()
