"""Qwen2.5-VL, Qwen3-VL and Qwen3.5."""

from typing import TYPE_CHECKING, Any

from phi3v_data.tokens.qwen_vl import QWEN2_5_VL, QWEN3_5, QWEN3_VL, QwenTokens
from phi3v_train.models.family import ModuleNames
from phi3v_train.models.huggingface.base import HubFamily, set_value
from phi3v_train.models.qwen_vl.renderer import QwenRenderer
from phi3v_train.models.qwen_vl.tiny import tiny_qwen2_5_vl, tiny_qwen3_5, tiny_qwen3_vl

if TYPE_CHECKING:
    from torch import Tensor


class QwenFamily(HubFamily):
    """Everything that the three have in common."""

    modules = ModuleNames(
        language=("model.language_model",),
        head=("lm_head",),
        tower=("model.visual",),
        projector=("model.visual.merger", "model.visual.deepstack_merger_list"),
    )
    budget_keys = ("size", "longest_edge")
    image_processors = ("Qwen2VLImageProcessor",)
    renderer_class = QwenRenderer
    no_packing = ""

    def set_budget(self, processor: Any, value: int | None) -> None:
        """Let images have this area at most; the smallest area is lowered to it where it is larger."""
        if value is not None:
            self.set_areas(processor, min(self.areas(processor)[0], value), value)

    def set_option(self, processor: Any, name: str, value: int) -> None:
        """Let images have this area at least: `min_pixels` is the one further option."""
        self.set_areas(processor, value, self.areas(processor)[1])

    def areas(self, processor: Any) -> tuple[int, int]:
        """The smallest and the largest area of an image by a processor's values."""
        tokens = self.configured(processor)
        assert isinstance(tokens, QwenTokens)
        return tokens.min_pixels, tokens.max_pixels

    def set_areas(self, processor: Any, least: int, most: int) -> None:
        """Write both, and over `min_pixels` and `max_pixels` where a file has them: they go before `size`."""
        for own, edge, value in (("min_pixels", "shortest_edge", least), ("max_pixels", "longest_edge", most)):
            keys = ("size", edge)
            processor.set(*keys, value=value)
            set_value(processor.image_processor, keys, value)
            if processor.settings.get(own) is not None:
                processor.set(own, value=value)

    def tile(self, config: Any) -> tuple[int, int]:
        """An input of the tower is counted as the patches of one token."""
        return config.vision_config.spatial_merge_size**2, 1

    def blank_inputs(self, model: Any) -> "dict[str, Tensor]":
        """One token's patches."""
        import torch

        vision = model.config.vision_config
        merge, weight = vision.spatial_merge_size, model.model.visual.patch_embed.proj.weight
        features = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        return {
            "pixel_values": torch.zeros((merge**2, features), device=weight.device),
            "image_grid_thw": torch.tensor([[1, merge, merge]], device=weight.device),
        }


class Qwen3VLFamily(QwenFamily):
    """Qwen3-VL."""

    name = "qwen3_vl"
    title = "Qwen3-VL"
    family_tokens = QWEN3_VL
    template_origin = "trl 1.16.0, qwen3_vl.jinja"
    card_tags = ("qwen3-vl",)
    tiny = staticmethod(tiny_qwen3_vl)


class Qwen25VLFamily(QwenFamily):
    """Qwen2.5-VL."""

    name = "qwen2_5_vl"
    title = "Qwen2.5-VL"
    family_tokens = QWEN2_5_VL
    template_origin = "trl 1.16.0, qwen2_5_vl.jinja"
    card_tags = ("qwen2.5-vl",)
    tiny = staticmethod(tiny_qwen2_5_vl)


class Qwen35Family(QwenFamily):
    """Qwen3.5, without thinking."""

    name = "qwen3_5"
    title = "Qwen3.5"
    family_tokens = QWEN3_5
    template_origin = "trl 1.16.0, qwen3_5_nothink.jinja"
    card_tags = ("qwen3.5",)
    no_packing = "the linear attention of Qwen3.5 carries its state from one sample of a packed row into the next"
    templates = (
        "the chat template of Qwen3.5 writes an empty block of thoughts only into the last answer; in training every "
        "answer of a conversation has one, as its generation prompt has"
    )
    tiny = staticmethod(tiny_qwen3_5)


FAMILIES = (Qwen3VLFamily(), Qwen25VLFamily(), Qwen35Family())
