"""LLaVA-NeXT and LLaVA-OneVision."""

from typing import TYPE_CHECKING, Any

from phi3v_data.errors import UserError
from phi3v_data.tokens.family import BudgetError
from phi3v_data.tokens.llava import LLAVA_NEXT, LLAVA_ONEVISION, LlavaNextTokens
from phi3v_train.models.family import ModuleNames
from phi3v_train.models.huggingface.base import HubFamily, set_value
from phi3v_train.models.llava.renderer import LlavaRenderer, OnevisionRenderer
from phi3v_train.models.llava.tiny import tiny_llava_next, tiny_llava_onevision

if TYPE_CHECKING:
    from torch import Tensor

PINPOINTS = "image_grid_pinpoints"


class LlavaFamily(HubFamily):
    """Everything that both have in common."""

    modules = ModuleNames(
        language=("model.language_model",),
        head=("lm_head",),
        tower=("model.vision_tower",),
        projector=("model.multi_modal_projector", "model.image_newline"),
    )
    budget_keys = (PINPOINTS,)
    no_packing = ""

    def set_budget(self, processor: Any, value: int | None) -> None:
        """Keep the grids that the budget allows.

        Raises:
            UserError: it allows none.
        """
        if value is None:
            return
        tokens = self.configured(processor)
        assert isinstance(tokens, LlavaNextTokens)
        try:
            grids = [list(grid) for grid in tokens.allowed(value)]
        except BudgetError as error:
            raise UserError(f"--num_crops {value}: {error}") from None
        processor.set(PINPOINTS, value=grids)
        set_value(processor.image_processor, (PINPOINTS,), grids)

    def match_processor(self, model: Any, processor: Any) -> None:
        """The model needs the same grids as the processor."""
        model.config.image_grid_pinpoints = [list(grid) for grid in processor.image_processor.image_grid_pinpoints]

    def tile(self, config: Any) -> tuple[int, int]:
        """Patches of a tile."""
        side = config.vision_config.image_size // config.vision_config.patch_size
        return side**2, side**2

    def blank_inputs(self, model: Any) -> "dict[str, Tensor]":
        """A square image in the smallest grid."""
        import torch

        edge = model.config.vision_config.image_size
        grid = min(model.config.image_grid_pinpoints, key=lambda each: each[0] * each[1])
        tiles = (grid[0] // edge) * (grid[1] // edge) + 1
        device = next(model.model.vision_tower.parameters()).device
        return {
            "pixel_values": torch.zeros((1, tiles, 3, edge, edge), device=device),
            "image_sizes": torch.tensor([[grid[0], grid[1]]], device=device),
        }


class LlavaNextFamily(LlavaFamily):
    """LLaVA-NeXT (LLaVA 1.6)."""

    name = "llava_next"
    title = "LLaVA-NeXT"
    family_tokens = LLAVA_NEXT
    template_origin = "trl 1.16.0, llava_next.jinja"
    image_processors = ("LlavaNextImageProcessor",)
    renderer_class = LlavaRenderer
    unreached = r"model\.vision_tower\.(vision_model\.)?post_layernorm\."
    card_tags = ("llava-next",)
    processor_packages = ()
    tiny = staticmethod(tiny_llava_next)


class LlavaOnevisionFamily(LlavaFamily):
    """LLaVA-OneVision."""

    name = "llava_onevision"
    title = "LLaVA-OneVision"
    family_tokens = LLAVA_ONEVISION
    template_origin = "transformers d058e0f, convert_llava_onevision_weights_to_hf.py"
    image_processors = ("LlavaOnevisionImageProcessor",)
    renderer_class = OnevisionRenderer
    unreached = r"model\.vision_tower\.(vision_model\.)?(post_layernorm|head)\."
    card_tags = ("llava-onevision",)
    tiny = staticmethod(tiny_llava_onevision)


FAMILIES = (LlavaNextFamily(), LlavaOnevisionFamily())
