"""Second ways to a family's texts, ids and image tokens: transformers' processors, the checkpoints' templates.

Templates of seven families are those that trl ships (the checkpoint's own, and one with `{% generation %}` marks). The
other two come from the scripts in transformers' repository that wrote the checkpoints:

- LLaVA-OneVision: `src/transformers/models/llava_onevision/convert_llava_onevision_weights_to_hf.py`, commit
  d058e0f712f346209059c8bbdcaaf5d9cd762075. It has marks, around the words of an answer alone.
- InternVL: `src/transformers/models/internvl/convert_internvl_weights_to_hf.py`, commit
  015d3b273cbc4a72f2feb1da386896655a23b3da, with the image tag that later versions of that script and of
  `InternVLProcessor` have, `<IMG_CONTEXT>` for `<image>`. It has no marks.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from phi3v_data.schema import Sample, Turn
from phi3v_train.models.huggingface.processor import HubProcessor
from phi3v_train.models.registry import get_family, make_renderer
from phi3v_train.models.renderer import Renderer

NAMES = (
    *("qwen2_5_vl", "qwen3_vl", "qwen3_5", "idefics3", "smolvlm", "gemma3", "llava_next", "llava_onevision"),
    "internvl",
)
TRL_NAMES = {name: "qwen3_5_nothink" if name == "qwen3_5" else name for name in NAMES[:-2]}
"""Names of trl's templates."""

ONEVISION_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}{# Render all images first #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}"
    "{# Render all video then #}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>\n' }}{% endfor %}"
    "{# Render all text next #}{% if message['role'] != 'assistant' %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}{{ content['text'] }}{% endfor %}"
    "{% else %}{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{% generation %}{{ content['text'] }}{% endgeneration %}{% endfor %}{% endif %}{{'<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
INTERNVL_TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n'}}{% if message['content'] is string %}"
    "{{ message['content'] }}{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' %}"
    "{{ '<IMG_CONTEXT>\n' }}{% elif content['type'] == 'video' %}{{ '<video>\n' }}{% elif content['type'] == 'text' %}"
    "{{ content['text'] }}{% endif %}{% endfor %}{% endif %}{{'<|im_end|>\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{'<|im_start|>assistant\n' }}{% endif %}"
)


def trl_template(file: str) -> str:
    """The text of a template of the installed trl."""
    import trl

    return (Path(trl.__file__).parent / "chat_templates" / f"{file}.jinja").read_text(encoding="utf-8")


def checkpoint_template(name: str) -> str:
    """The chat template of a family's checkpoints."""
    own = {"llava_onevision": ONEVISION_TEMPLATE, "internvl": INTERNVL_TEMPLATE}
    return own[name] if name in own else trl_template(TRL_NAMES[name])


def training_template(name: str) -> str:
    """The same with marks around what is trained, where trl ships one."""
    return trl_template(f"{TRL_NAMES[name]}_training")


class Written(NamedTuple):
    """A text, and the starts and ends of what `{% generation %}` marks."""

    text: str
    marks: list[tuple[int, int]]


def write(template: str, messages: Sequence[dict[str, Any]], *, generation: bool = False) -> Written:
    """Messages by a template, of which that of Gemma 3 alone asks for BOS."""
    from transformers.utils.chat_template_utils import render_jinja_template

    (text,), (marks,) = render_jinja_template(
        conversations=[list(messages)],
        chat_template=template,
        add_generation_prompt=generation,
        return_assistant_tokens_mask=True,
        bos_token="<bos>",
    )
    return Written(text, [tuple(each) for each in marks])


def messages_of(sample: Sample) -> list[dict[str, Any]]:
    """A sample as chat messages, images at their offsets."""
    found = [said("system", [words(sample.system)])] if sample.system else []
    for turn in sample.conversations:
        blocks: list[dict[str, Any]] = []
        before = 0
        for offset in turn.image_offsets or (0,) * len(turn.images):
            blocks += [words(turn.user[before:offset])] if offset > before else []
            blocks.append({"type": "image"})
            before = offset
        blocks += [words(turn.user[before:])] if turn.user[before:] else []
        found += [said("user", blocks), said("assistant", [words(turn.assistant)])]
    return found


def said(role: str, blocks: list[dict[str, Any]]) -> dict[str, Any]:
    return {"role": role, "content": blocks}


def words(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def talk(*turns: Turn, system: str = "") -> Sample:
    """A sample of some turns."""
    return Sample(id="a", source="s", conversations=turns, system=system)


CONVERSATIONS = {
    "one image": talk(Turn(images=("a",), user="What is it?", assistant="A cat.")),
    "images in the text": talk(
        Turn(images=("a", "b"), image_offsets=(8, 12), user="Compare  and  now.", assistant="One is red.")
    ),
    "first and inside": talk(Turn(images=("a", "b"), image_offsets=(0, 8), user="Same as here?", assistant="No.")),
    "at the end": talk(Turn(images=("a",), image_offsets=(5,), user="This:", assistant="That.")),
    "two turns, two images": talk(
        Turn(images=("a",), user="Which colour?", assistant="Blue."),
        Turn(images=("b",), user="And this?", assistant="Red, I think."),
    ),
    "an image late": talk(
        Turn(user="Hello", assistant="Hi"),
        Turn(images=("a",), user="And this?", assistant="Red."),
        Turn(user="Sure?", assistant="Yes."),
    ),
    "system": talk(Turn(images=("a",), user="Well?", assistant="No"), system="Be brief."),
    "text alone": talk(Turn(user="Say yes.", assistant="Yes.")),
    "not ASCII": talk(
        Turn(images=("a",), user="Où est-ce? \U0001f600 日本", assistant="Ärger über ß, e\u0301."), system="Größe — ja."
    ),
    "white space": talk(
        Turn(images=("a",), user=" \n\n What  is\tit? \n\n", assistant="  A\n\n cat. \n\n"),
        Turn(user="\n\nAnd?\n", assistant="\n\nTwo\n"),
        system=" \n Be brief. \n\n",
    ),
    "white space between images": talk(
        Turn(images=("a", "b", "c"), image_offsets=(2, 5, 5), user="  x \n\n y ", assistant="z")
    ),
}
PIXELS = [Image.new("RGB", size, (200, 30, 40)) for size in ((90, 60), (50, 120), (140, 30))]


def pixels(sample: Sample) -> list[Image.Image]:
    """Images of a sample of `CONVERSATIONS`."""
    return PIXELS[: len(sample.images)]


@cache
def parts(name: str) -> HubProcessor:
    """The tiny processor of a family with the checkpoint's own chat template."""
    return replace(get_family(name).tiny_processor(), chat_template=checkpoint_template(name))


@cache
def renderer_of(name: str) -> Renderer:
    """The encoder under test, as for a directory that has the checkpoint's own chat template."""
    return make_renderer(get_family(name), parts(name))


class _NoVideo:
    """Without torchvision, transformers cannot make a processor that has a place for a video processor."""

    def check_argument_for_proper_class(self, name: str, argument: Any) -> Any:
        if name == "video_processor" and argument is None:
            return type(None)
        return super().check_argument_for_proper_class(name, argument)  # type: ignore[misc]


def real_processor(name: str, processor: HubProcessor) -> Any:
    """transformers' processor with the tokenizer, the image processor and the settings of a processor of phi3v.

    That of SmolVLM needs a video processor in order to write texts: Idefics3's makes the same text of an image.
    """
    import transformers

    given: dict[str, Any] = {
        "llava_next": {"patch_size": 14, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1},
        "llava_onevision": {"vision_feature_select_strategy": "full", "vision_aspect_ratio": "anyres_max_9"},
    }.get(name, {})
    names = ("image_seq_len", "image_seq_length", "num_image_tokens")
    given |= {key: processor.settings[key] for key in names if key in processor.settings}
    classes = {
        "qwen2_5_vl": "Qwen2_5_VLProcessor",
        "qwen3_vl": "Qwen3VLProcessor",
        "qwen3_5": "Qwen3VLProcessor",
        "idefics3": "Idefics3Processor",
        "smolvlm": "Idefics3Processor",
        "gemma3": "Gemma3Processor",
        "llava_next": "LlavaNextProcessor",
        "llava_onevision": "LlavaOnevisionProcessor",
        "internvl": "InternVLProcessor",
    }
    base = getattr(transformers, classes[name])
    if name not in ("idefics3", "smolvlm", "gemma3", "llava_next"):
        base = type(base.__name__, (_NoVideo, base), {"__module__": base.__module__})
        given["video_processor"] = None
    return base(image_processor=processor.image_processor, tokenizer=processor.tokenizer, **given)
