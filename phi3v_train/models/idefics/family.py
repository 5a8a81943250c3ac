"""Idefics3 and SmolVLM."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3v_data.errors import UserError
from phi3v_data.tokens.idefics import IDEFICS3, SMOLVLM
from phi3v_train.models.family import ModuleNames
from phi3v_train.models.huggingface.base import HubFamily
from phi3v_train.models.huggingface.checks import tokens_per_tile
from phi3v_train.models.idefics.renderer import IdeficsRenderer
from phi3v_train.models.idefics.tiny import tiny_idefics3, tiny_smolvlm

if TYPE_CHECKING:
    from torch import Tensor


class IdeficsFamily(HubFamily):
    """Everything that both have in common."""

    modules = ModuleNames(
        language=("model.text_model",),
        head=("lm_head",),
        tower=("model.vision_model",),
        projector=("model.connector",),
    )
    budget_keys = ("size", "longest_edge")
    no_packing = ""
    renderer_class = IdeficsRenderer

    def tile(self, config: Any) -> tuple[int, int]:
        """Patches of a tile, and its image tokens."""
        patches = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        return patches, patches // config.scale_factor**2

    def blank_inputs(self, model: Any) -> "dict[str, Tensor]":
        """One tile that is not padding: not all zeros, which the model leaves out."""
        import torch

        edge = model.config.vision_config.image_size
        device = next(model.model.vision_model.parameters()).device
        return {"pixel_values": torch.ones((1, 1, 3, edge, edge), device=device)}


class Idefics3Family(IdeficsFamily):
    """Idefics3."""

    name = "idefics3"
    title = "Idefics3"
    family_tokens = IDEFICS3
    template_origin = "trl 1.16.0, idefics3.jinja"
    image_processors = ("Idefics3ImageProcessor",)
    card_tags = ("idefics3",)
    processor_packages = ()
    tiny = staticmethod(tiny_idefics3)


class SmolVLMFamily(IdeficsFamily):
    """SmolVLM and SmolVLM2."""

    name = "smolvlm"
    title = "SmolVLM and SmolVLM2"
    family_tokens = SMOLVLM
    template_origin = "trl 1.16.0, smolvlm.jinja"
    image_processors = ("SmolVLMImageProcessor", "Idefics3ImageProcessor")
    card_tags = ("smolvlm",)
    processor_packages = ("torchvision", "num2words")
    tiny = staticmethod(tiny_smolvlm)

    def check_config(self, config: Mapping[str, Any], path: Path) -> None:
        """Refuse sizes, too, that the installed transformers cannot compute.

        Before 5.21 it cuts the image tokens of SmolVLM into pieces of `patch_size`: right for the 64 tokens and the
        patches of 16 pixels of the small models, an exception within the model for the 81 and 14 of the 2.2B ones.
        """
        super().check_config(config, path)
        vision = config["vision_config"]
        tokens = tokens_per_tile(config, vision)
        installed = version("transformers")
        if tokens and tokens % vision["patch_size"] and tuple(map(int, installed.split(".")[:2])) < (5, 21):
            raise UserError(
                f"{path}: transformers {installed} cannot compute a SmolVLM with {tokens} image tokens per tile and "
                f"patches of {vision['patch_size']} pixels; use transformers 5.21 or later"
            )


FAMILIES = (Idefics3Family(), SmolVLMFamily())
