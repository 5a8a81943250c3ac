"""Qwen2.5-VL's processor without its video processor, which needs torchvision."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.models.qwen2_5_vl import Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil


class ImagesOnly(Qwen2_5_VLProcessor):  # type: ignore[misc]
    """Takes images and texts."""

    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        return type(argument)


def images_only(model: str) -> ImagesOnly:
    """The processor of a directory."""
    return ImagesOnly(
        image_processor=Qwen2VLImageProcessorPil.from_pretrained(model),
        tokenizer=AutoTokenizer.from_pretrained(model),
        video_processor=None,
        chat_template=Path(model, "chat_template.jinja").read_text(encoding="utf-8"),
    )
