"""The processor of any model of transformers, made of its parts, as transformers' own class for it."""

import inspect
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from phi3v_data.tokens.model_files import PROCESSOR_CONFIG, read_values
from phi3v_data.tokens.other import OtherTokens
from phi3v_train.models.huggingface.processor import HubProcessor


class OtherProcessor(HubProcessor):
    """The parts of a processor and the whole one; `tokens` has its image tag, `type_inputs` are inputs by token."""

    whole: Any
    tokens: OtherTokens
    type_inputs: tuple[str, ...] = ()


def make_whole(directory: Path, parts: HubProcessor) -> Any:
    """The processor of transformers for a directory's model_type, without its part for videos."""
    import transformers
    from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

    values = read_values(directory / PROCESSOR_CONFIG)
    model_type = read_values(directory / "config.json").get("model_type")
    name = PROCESSOR_MAPPING_NAMES.get(model_type) or values.get("processor_class")
    if not isinstance(name, str) or not hasattr(transformers, name):
        raise ValueError(f"transformers has no processor for the model_type {model_type!r}")
    kind = image_only(getattr(transformers, name))
    known = inspect.signature(kind).parameters
    given = {key: value for key, value in {**parts.settings, **values}.items() if key in known}
    for key, part in (("image_processor", parts.image_processor), ("tokenizer", parts.tokenizer)):
        given[key] = part
    if "video_processor" in known:
        given["video_processor"] = None
    given.pop("chat_template", None)
    return kind(**given)


@cache
def image_only(kind: type) -> type:
    """A processor class that can be made without its part for videos, which needs torchvision."""
    base: Any = kind

    class ImageOnly(base):  # type: ignore[misc]  # a class that is only known at run time
        def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
            if name == "video_processor" and argument is None:
                return type(None)
            return super().check_argument_for_proper_class(name, argument)

    ImageOnly.__name__ = kind.__name__  # transformers finds the classes of its parts by this name
    return ImageOnly


def blank(width: int, height: int) -> Image.Image:
    """A grey image."""
    return Image.new("RGB", (width, height), (120, 120, 120))
