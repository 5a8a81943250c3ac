"""Gemma 3."""

from typing import TYPE_CHECKING, Any

from phi3v_data.tokens.gemma3 import GEMMA3
from phi3v_train.models.family import ModuleNames
from phi3v_train.models.gemma3.renderer import Gemma3Renderer
from phi3v_train.models.gemma3.tiny import tiny_gemma3
from phi3v_train.models.huggingface.base import HubFamily

if TYPE_CHECKING:
    from torch import Tensor


class Gemma3Family(HubFamily):
    """Gemma 3 with images."""

    name = "gemma3"
    title = "Gemma 3"
    family_tokens = GEMMA3
    template_origin = "trl 1.16.0, gemma3.jinja"
    modules = ModuleNames(
        language=("model.language_model",),
        head=("lm_head",),
        tower=("model.vision_tower",),
        projector=("model.multi_modal_projector",),
    )
    image_processors = ("Gemma3ImageProcessor",)
    renderer_class = Gemma3Renderer
    unreached = r"model\.vision_tower\.(vision_model\.)?head\."
    no_packing = (
        "in Gemma 3, image tokens attend forwards too, which its masks do not keep within a sample of a packed row"
    )
    card_tags = ("gemma3",)
    processor_packages = ()

    def tile(self, config: Any) -> tuple[int, int]:
        """Patches and tokens of an image."""
        return (config.vision_config.image_size // config.vision_config.patch_size) ** 2, config.mm_tokens_per_image

    def blank_inputs(self, model: Any) -> "dict[str, Tensor]":
        """One image."""
        import torch

        edge = model.config.vision_config.image_size
        device = next(model.model.vision_tower.parameters()).device
        return {"pixel_values": torch.zeros((1, 3, edge, edge), device=device)}

    def tiny_model(self, seed: int) -> Any:
        """A small random model; transformers leaves the projection at zero, so no image would say anything."""
        import torch

        model = super().tiny_model(seed)
        weight = model.model.multi_modal_projector.mm_input_projection_weight
        with torch.no_grad():
            weight.normal_(std=0.1, generator=torch.Generator().manual_seed(seed))
        return model

    tiny = staticmethod(tiny_gemma3)


FAMILIES = (Gemma3Family(),)
