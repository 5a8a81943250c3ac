"""Models of transformers that are not among the verified families: what passes the checks is trained."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from phi3v_data.errors import UserError
from phi3v_data.tokens.other import OTHER
from phi3v_train.models.family import ModuleNames
from phi3v_train.models.huggingface.base import HubFamily, is_sharded
from phi3v_train.models.huggingface.processor import HubProcessor
from phi3v_train.models.renderer import Renderer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor


class OtherFamily(HubFamily):
    """Any model that transformers loads as an image-text-to-text model."""

    name = "other"
    title = "other models of transformers"
    family_tokens = OTHER
    modules = ModuleNames(
        language=("model.language_model", "model.text_model"),
        head=("lm_head",),
        tower=("model.vision_tower", "model.visual", "model.vision_model", "model.vision_encoder", "model.image_tower"),
        projector=(
            *("model.multi_modal_projector", "model.connector", "model.projector", "model.visual.merger"),
            *("model.embed_vision", "model.aligner", "model.image_newline"),
        ),
    )
    no_packing = "packing was verified for none of the models that are no family of their own"
    no_sharding = "sharding was verified for none of the models that are no family of their own"
    note = (
        "is not among the verified families (`phi3v-train models`): its prompts and image tokens were compared with "
        "its own processor's, nothing else"
    )

    def load_processor(self, directory: Path) -> HubProcessor:
        """The processor, checked.

        Raises:
            UserError: a check that it does not pass.
        """
        from phi3v_train.models.other.checks import load_other

        return load_other(directory)

    def renderer(self, processor: Any) -> Renderer:
        """Encoder with the processor's own image tokens."""
        from phi3v_train.models.other.renderer import OtherRenderer

        return OtherRenderer(processor)

    def processor_notes(self, processor: Any) -> list[str]:
        """None beside the warning of `note`."""
        return []

    def tile(self, config: Any) -> tuple[int, int]:
        """The vision part's memory is not known."""
        return 1, 1

    def blank_inputs(self, model: Any) -> "dict[str, Tensor]":
        """None are known."""
        return {}

    def touch_vision(self, model: Any, inputs: "Mapping[str, Tensor]") -> "Callable[[], Tensor] | None":
        """A function that makes zero, with gradients of zero for every parameter of the vision part."""
        if any(name.startswith("pixel_values") for name in inputs) or not model.training:
            return None
        vision = [each for name, each in model.named_parameters() if self.part_of(name) != "language"]
        trained = [each for each in vision if each.requires_grad and not is_sharded(each)]

        def zero() -> Any:
            return sum(each.flatten()[0].float() * 0.0 for each in trained)

        return zero if trained else None

    def tiny(self) -> Any:
        """There is none.

        Raises:
            UserError: always.
        """
        raise UserError("tiny:other: there is no small model of an unknown family; `phi3v-train models` lists those")


FAMILIES = (OtherFamily(),)
