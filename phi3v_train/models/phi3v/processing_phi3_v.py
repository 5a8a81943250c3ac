"""Phi-3-vision's processor: converts texts with image tags and their images to model inputs, in batches.

Unlike the released processor, it accepts several texts and rejects invalid tags (`prompts.check_image_tags`). For one
text with its images, ids, pixels and sizes are the same.
"""

import json
import os
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from transformers.feature_extraction_utils import BatchFeature
from transformers.image_utils import is_valid_image
from transformers.processing_utils import ProcessingKwargs, ProcessorMixin
from transformers.utils.chat_template_utils import render_jinja_template
from transformers.utils.generic import to_py_obj

from phi3v_data.files import write_text
from phi3v_data.tokens.chat import NUMBER, ChatFormat
from phi3v_data.tokens.phi3v import CHAT
from phi3v_train.models.phi3v.image_processing_phi3_v import Phi3VImageProcessor, Phi3VImagesKwargs
from phi3v_train.models.phi3v.prompts import (
    IMAGE_TAG,
    ImageTagError,
    check_image_tags,
    encode_prompt,
    image_tag,
    prompt_offsets,
)
from phi3v_train.models.phi3v.tokenization_phi3_v import Phi3VTokenizer, without_negatives

OF_TOKENIZING = ("tokenize", "return_dict", "return_tensors", "sanitize_control_tokens", "load_audio_from_video")
"""Arguments of `apply_chat_template` that are not passed to the template."""

NUM_LISTED_TAGS = 1000
"""Image tags that `Phi3VProcessor.img_tokens` lists: more images than fit into 131,072 tokens."""


class Phi3VProcessorKwargs(ProcessingKwargs, total=False):  # type: ignore[misc, call-arg]  # transformers is untyped
    """Keyword arguments of a call; tensors are returned by default, as in the original."""

    images_kwargs: Phi3VImagesKwargs
    _defaults = {"common_kwargs": {"return_tensors": "pt"}}  # noqa: RUF012  # transformers' own form


@cache
def default_chat_template(chat: ChatFormat = CHAT) -> str:
    """The Jinja template of a conversation: `chat_template.jinja` with the markers of `chat` filled in.

    Every message is `<|ROLE|>`, newline, content, end of turn, newline. Content may be a text as it is, or blocks:
    image tags are numbered over the conversation; if images come first, all tags are followed by one newline. Answers
    are marked by `{% generation %}` for masks, which transformers supports since 4.43.
    """
    source = resources.files("phi3v_train.models.phi3v").joinpath("chat_template.jinja").read_text(encoding="utf-8")
    before_number, after_number = chat.image_tag.split(NUMBER)
    return Template(source).substitute(
        end_of_turn=chat.end_of_turn,
        assistant=chat.assistant,
        before_number=before_number,
        after_number=after_number,
    )


class Phi3VProcessor(ProcessorMixin):  # type: ignore[misc]  # transformers is untyped for mypy
    """Image processor and tokenizer of Phi-3-vision in one."""

    valid_processor_kwargs = Phi3VProcessorKwargs

    def __init__(self, image_processor: Any, tokenizer: Any, chat_template: str | None = None) -> None:
        template = chat_template or default_chat_template()
        super().__init__(image_processor, tokenizer, chat_template=template)
        # Both implement apply_chat_template and both are saved: one template for both.
        self.tokenizer.chat_template = template

    @property
    def img_tokens(self) -> list[str]:
        """The tags of images 1, 2, ..., under the released processor's name for them, which vLLM reads."""
        return [image_tag(number) for number in range(1, NUM_LISTED_TAGS + 1)]

    def calc_num_image_tokens_from_image_size(self, width: int, height: int) -> int:
        """Image tokens of an image of `width` x `height` pixels, under the released processor's name, as vLLM asks."""
        count: int = self.image_processor.num_image_tokens(width, height)
        return count

    def __call__(self, text: Any = None, images: Any = None, **kwargs: Any) -> BatchFeature:
        """Convert one text or a list of texts, with their images, to model inputs.

        `images` is one image, a list of images (in the order of the tags, over all texts), or a list of lists, one per
        text; None and [] mean none. Text and images may be given in either order. Returns `input_ids` and
        `attention_mask` (b, length), and with images `pixel_values` and `image_sizes`, or `canvases` and `image_sizes`
        with `return_canvas=True` (see `Phi3VImageProcessor`), images row by row. Several texts are padded to the
        longest by default, on the side `padding_side` (that of the tokenizer by default); the mask is computed from
        lengths, so a text may end in the padding token.

        Raises ImageTagError, a ValueError, if tags and images do not match, and ValueError if `truncation` would cut
        into an image.
        """
        if images is not None and is_text(images) and not is_text(text):
            text, images = images, text
        options = self._merge_kwargs(Phi3VProcessorKwargs, tokenizer_init_kwargs=self.tokenizer.init_kwargs, **kwargs)
        if text is None:
            features = self.image_processor(images, **options["images_kwargs"])
            return BatchFeature({name: features[name] for name in features if name != "num_img_tokens"})
        if not is_text(text):
            raise ValueError(f"text must be a string or a list of strings, not {type(text).__name__}")
        texts = [text] if isinstance(text, str) else list(text)
        groups = group_images(images, texts)
        for number, (one, group) in enumerate(zip(texts, groups, strict=True), 1):
            check_one_of_many(number, len(texts), one, len(group))
        flat = [image for group in groups for image in group]
        features = self.image_processor(flat, **options["images_kwargs"]) if flat else BatchFeature({})
        counts = iter(features.pop("num_img_tokens", []))
        bos = options["text_kwargs"].get("add_special_tokens") is not False
        tokens = [[next(counts) for _ in group] for group in groups]
        rows = [encode_prompt(self.tokenizer, one, each, bos=bos) for one, each in zip(texts, tokens, strict=True)]
        offsets = None
        if options["text_kwargs"].get("return_offsets_mapping"):
            offsets = [prompt_offsets(self.tokenizer, *each, bos=bos) for each in zip(texts, tokens, strict=True)]
        inputs = self._batch_rows(rows, options["text_kwargs"], offsets, single=isinstance(text, str))
        return BatchFeature({**inputs, **features})

    def _batch_rows(
        self,
        rows: list[list[int]],
        options: dict[str, Any],
        offsets: list[list[tuple[int, int]]] | None,
        *,
        single: bool,
    ) -> dict[str, Any]:
        """Truncate (never within an image), pad and convert rows of ids; return `input_ids` and `attention_mask`.

        With `offsets`, the characters of each id, also `offset_mapping`; padding has no characters.
        """
        for name in ("return_overflowing_tokens", "is_split_into_words", "text_pair"):
            if options.get(name):
                raise ValueError(f"{name} is not supported: the text is tokenized in pieces between its image tags")
        tensors = options.get("return_tensors")
        if options.get("truncation"):
            limit = options.get("max_length") or self.tokenizer.model_max_length
            side = self.tokenizer.truncation_side
            rows = [cut_row(row, limit, side) for row in rows]
            if offsets is not None:
                offsets = [row[:limit] if side == "right" else row[-limit:] for row in offsets]
        padding = options.get("padding")
        if padding is None:
            padding = tensors is not None and not single
        batch = self.tokenizer.pad(
            {"input_ids": rows},
            padding=padding,
            max_length=options.get("max_length"),
            pad_to_multiple_of=options.get("pad_to_multiple_of"),
            padding_side=options.get("padding_side"),
            return_attention_mask=True,
            return_tensors=None,
        )
        lengths = {len(row) for row in batch["input_ids"]}
        if tensors is not None and len(lengths) > 1:
            raise ValueError(f"texts of {sorted(lengths)} tokens do not make one tensor: leave padding=False out")
        names = ["input_ids", "attention_mask"]
        if offsets is not None:
            left = (options.get("padding_side") or self.tokenizer.padding_side) == "left"
            pads = [[(0, 0)] * (len(ids) - len(row)) for ids, row in zip(batch["input_ids"], offsets, strict=True)]
            batch["offset_mapping"] = [pad + row if left else row + pad for pad, row in zip(pads, offsets, strict=True)]
            names.append("offset_mapping")
        if single and tensors is None:
            batch = {name: batch[name][0] for name in batch}
        return dict(BatchFeature({name: batch[name] for name in names}, tensor_type=tensors))

    def apply_chat_template(self, conversation: Any, chat_template: str | None = None, **kwargs: Any) -> Any:
        """Apply the chat template like every processor of transformers, with two differences in tokenization.

        BOS is always first, for any `add_special_tokens`: callers that disable it (TRL) expect it in the template.
        `return_assistant_tokens_mask` also works with images, and marks the tokens that `data.encode` supervises:
        answers and their `<|end|>`, and the newline of the last answer. Text is then returned as lists instead of
        tensors, unless `return_tensors` is given.
        """
        if not kwargs.get("tokenize"):
            return super().apply_chat_template(conversation, chat_template, **kwargs)
        options = dict(kwargs.pop("processor_kwargs", None) or {})
        for given in (options, kwargs):
            given.pop("add_special_tokens", None)
        wants_mask = kwargs.pop("return_assistant_tokens_mask", False) and kwargs.get("return_dict")
        if not wants_mask:
            return super().apply_chat_template(conversation, chat_template, processor_kwargs=options, **kwargs)
        if kwargs.get("continue_final_message"):
            raise ValueError("continue_final_message is not compatible with return_assistant_tokens_mask")
        batched = isinstance(conversation[0], list | tuple)
        names = {**self.tokenizer.special_tokens_map, **{k: v for k, v in kwargs.items() if k not in OF_TOKENIZING}}
        _, spans = render_jinja_template(
            conversations=conversation if batched else [conversation],
            chat_template=chat_template or self.chat_template,
            return_assistant_tokens_mask=True,
            **names,
        )
        options["return_offsets_mapping"] = True
        inputs = super().apply_chat_template(conversation, chat_template, processor_kwargs=options, **kwargs)
        if "offset_mapping" not in inputs:
            raise ValueError("pass the processor's own options in processor_kwargs")
        offsets = to_py_obj(inputs.pop("offset_mapping"))
        nested = isinstance(offsets[0][0], list | tuple)
        masks = [spanned(*row) for row in zip(offsets if nested else [offsets], spans, strict=True)]
        inputs["assistant_masks"] = masks if nested else masks[0]
        if kwargs.get("return_tensors") in (None, "auto"):
            return BatchFeature(
                {**inputs, **{name: to_py_obj(inputs[name]) for name in ("input_ids", "attention_mask")}}
            )
        return inputs.convert_to_tensors(kwargs["return_tensors"])

    def decode(self, token_ids: Any, **kwargs: Any) -> Any:
        """Text of one sequence, or texts of several; negative ids (images, masked labels) are left out."""
        return self.tokenizer.decode(without_negatives(token_ids), **kwargs)

    def batch_decode(self, sequences: Any, **kwargs: Any) -> list[str]:
        """Texts of several sequences; negative ids (images, masked labels) are left out."""
        texts: list[str] = self.tokenizer.batch_decode(without_negatives(sequences), **kwargs)
        return texts

    def to_dict(self) -> dict[str, Any]:
        """Content of `processor_config.json`: the class name. The image processor has `preprocessor_config.json`.

        vLLM and the released code read the latter; transformers 5 reads it too if this file does not contain the
        values.
        """
        config: dict[str, Any] = super().to_dict()
        config.pop("image_processor", None)
        return config

    def save_pretrained(self, save_directory: str | os.PathLike[str], push_to_hub: bool = False, **kwargs: Any) -> Any:
        """Write `preprocessor_config.json`, `processor_config.json`, the chat template and the tokenizer's files."""
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        config = {**self.image_processor.to_dict(), "processor_class": type(self).__name__}
        path = directory / "preprocessor_config.json"
        write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")
        return [str(path), *super().save_pretrained(directory, push_to_hub=push_to_hub, **kwargs)]

    @classmethod
    def _get_arguments_from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], processor_dict: Any = None, **kwargs: Any
    ) -> list[Any]:
        """Load image processor and tokenizer with our own classes.

        transformers might choose another tokenizer (`tokenization_phi3_v`), and before 5.23 it requires torchvision.
        """
        images = set(Phi3VImagesKwargs.__annotations__)
        for_text = {name: value for name, value in kwargs.items() if name not in images}
        return [
            Phi3VImageProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs),
            Phi3VTokenizer.from_pretrained(pretrained_model_name_or_path, **for_text),
        ]


def spanned(offsets: Sequence[Sequence[int]], spans: Sequence[Sequence[int]]) -> list[int]:
    """1 for each token that begins within one of the `spans` of characters, else 0.

    A token that only ends in a span does not count: `<|assistant|>` includes the white space after it.
    """
    return [int(any(start <= begin < end and begin < stop for start, end in spans)) for begin, stop in offsets]


def is_text(value: Any) -> bool:
    """Whether `value` is a text or a list of texts."""
    return isinstance(value, str) or (isinstance(value, list | tuple) and all(isinstance(one, str) for one in value))


def group_images(images: Any, texts: Sequence[str]) -> list[list[Any]]:
    """The images of each text; a flat list is divided by the number of tags in each text.

    Raises ValueError if the numbers of lists and texts, or of images and tags, differ.
    """
    if images is None:
        return [[] for _ in texts]
    if isinstance(images, str) or is_valid_image(images):
        images = [images]
    images = list(images)
    if any(isinstance(entry, list | tuple) or entry is None for entry in images):
        if len(images) != len(texts):
            raise ValueError(f"{len(images)} lists of images for {len(texts)} texts: give one list for each text")
        return [
            list(entry) if isinstance(entry, list | tuple) else [] if entry is None else [entry] for entry in images
        ]
    if len(texts) == 1:
        return [images]
    counts = [len(IMAGE_TAG.findall(text)) for text in texts]
    if sum(counts) != len(images):
        raise ImageTagError(
            f"the {len(texts)} texts have {sum(counts)} image tags such as <|image_1|>, but {len(images)} images are "
            "given: give one tag for each image, or one list of images for each text"
        )
    rest = iter(images)
    return [[next(rest) for _ in range(count)] for count in counts]


def check_one_of_many(number: int, total: int, text: str, num_images: int) -> None:
    """Check the tags of one text of several; the error names the text."""
    try:
        check_image_tags(text, num_images)
    except ImageTagError as error:
        if total == 1:
            raise
        raise ImageTagError(f"text {number} of {total}: {error}") from None


def cut_row(row: list[int], limit: int, side: str) -> list[int]:
    """`row` truncated to `limit`; raises ValueError if this would cut into or lose an image."""
    lost = row[limit:] if side == "right" else row[: max(len(row) - limit, 0)]
    if any(token < 0 for token in lost):
        raise ValueError(
            f"a text of {len(row)} tokens cannot be cut to max_length {limit}: the cut would go through an image; "
            "use fewer crops (num_crops) or a larger max_length"
        )
    return row[:limit] if side == "right" else row[len(lost) :]
