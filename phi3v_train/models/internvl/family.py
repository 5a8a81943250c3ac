"""InternVL."""

from typing import TYPE_CHECKING, Any

from phi3v_data.tokens.internvl import INTERNVL
from phi3v_train.models.family import ModuleNames
from phi3v_train.models.huggingface.base import HubFamily
from phi3v_train.models.internvl.renderer import InternVLRenderer
from phi3v_train.models.internvl.tiny import tiny_internvl

if TYPE_CHECKING:
    from torch import Tensor


class InternVLFamily(HubFamily):
    """InternVL3 and InternVL3.5 in transformers' layout (`-HF`)."""

    name = "internvl"
    title = "InternVL3 and InternVL3.5"
    family_tokens = INTERNVL
    template_origin = "transformers 015d3b2, convert_internvl_weights_to_hf.py"
    modules = ModuleNames(
        language=("model.language_model",),
        head=("lm_head",),
        tower=("model.vision_tower",),
        projector=("model.multi_modal_projector",),
    )
    image_processors = ("GotOcr2ImageProcessor",)
    renderer_class = InternVLRenderer
    budget_keys = ("max_patches",)
    no_packing = ""
    card_tags = ("internvl",)

    def tile(self, config: Any) -> tuple[int, int]:
        """Patches and a class token of a tile, and its image tokens."""
        size, patch = config.vision_config.image_size, config.vision_config.patch_size
        return (size[0] // patch[0]) * (size[1] // patch[1]) + 1, config.image_seq_length

    def blank_inputs(self, model: Any) -> "dict[str, Tensor]":
        """One tile."""
        import torch

        height, width = model.config.vision_config.image_size
        device = next(model.model.vision_tower.parameters()).device
        return {"pixel_values": torch.zeros((1, 3, height, width), device=device)}

    tiny = staticmethod(tiny_internvl)


FAMILIES = (InternVLFamily(),)
