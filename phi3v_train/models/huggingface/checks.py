"""Checks of a model directory's processor against its family, before anything is trained with it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from phi3v_data.errors import UserError
from phi3v_data.schema import Turn
from phi3v_data.tokens.chat import ChatFormat
from phi3v_data.tokens.model_files import read_values
from phi3v_train.models.family import OtherFamilyError
from phi3v_train.models.huggingface.processor import HubProcessor
from phi3v_train.models.huggingface.texts import ChatTexts, Segment, TemplateTexts
from phi3v_train.models.renderer import PromptError, Renderer

ONE_IMAGE = (Turn(images=("a.png",), user="Which colour?", assistant="Blue."),)
IMAGE_INSIDE = (Turn(images=("a.png", "b.png"), user="Same as here?", assistant="No.", image_offsets=(0, 8)),)
TWO_TURNS = (
    Turn(images=("a.png",), user="Which colour?", assistant="Blue."),
    Turn(images=("b.png",), user="And this?", assistant="Red, I think."),
)
TEXT_ONLY = (Turn(user="Say yes.", assistant="Yes."),)
CONVERSATIONS = ((ONE_IMAGE, ""), (TEXT_ONLY, ""), (IMAGE_INSIDE, ""), (TWO_TURNS, ""), (ONE_IMAGE, "Be brief."))
"""Conversations and their system messages, on which chat templates are compared."""


def agrees(processor: HubProcessor, chat: ChatFormat, *, several_turns: bool = True) -> bool:
    """Whether a directory's chat template writes conversations as a chat format does, those of several turns too."""
    by_chat = ChatTexts(chat)
    by_template = TemplateTexts(processor.tokenizer, processor.chat_template, chat.end_of_turn)
    for turns, system in CONVERSATIONS:
        if len(turns) > 1 and not several_turns:
            continue
        answers = [turn.assistant for turn in turns]
        try:
            found = by_template(turns, answers, system)
        except PromptError:
            return False
        if texts(found) != texts(by_chat(turns, answers, system)):
            return False
    return True


def texts(segments: list[Segment]) -> list[tuple[str, str | None]]:
    """Prompts and answers alone."""
    return [(segment.prompt, segment.answer) for segment in segments]


def check_parts(
    processor: HubProcessor, directory: Path, family: str, chat: ChatFormat, image_processors: Sequence[str]
) -> None:
    """Refuse a processor that is another family's.

    Args:
        family: its name.
        chat: its chat format.
        image_processors: names of its image processors' classes, without an ending that tells the library; empty: any.

    Raises:
        UserError: what shows it.
    """
    token = chat.image_token or chat.image_tag
    known = processor.tokenizer.get_vocab().get(token)
    other = f"its processor belongs to another model family than its config.json ({family})"
    if known is None:
        raise OtherFamilyError(f"{directory}: {other}: the tokenizer has no token {token}; copy the model's own files")
    wanted = image_token_id(directory)
    if wanted is not None and wanted != known:
        raise UserError(
            f"{directory}: the tokenizer's {token} is token {known}, and config.json says {wanted}; copy the model's "
            "own tokenizer.json and config.json"
        )
    vocabulary = vocabulary_size(directory)
    if vocabulary is not None and known >= vocabulary:
        raise UserError(
            f"{directory}: the tokenizer's {token} is token {known:,}, and config.json has embeddings for "
            f"{vocabulary:,} tokens; copy the model's own tokenizer files and config.json"
        )
    check_sizes(processor, directory)
    kind = type(processor.image_processor).__name__.removesuffix("Pil").removesuffix("Fast")
    if image_processors and kind not in image_processors:
        raise OtherFamilyError(f"{directory}: {other}: the image processor is a {kind}; copy preprocessor_config.json")
    if processor.chat_template:
        check_template(processor, directory, chat)


def check_template(processor: HubProcessor, directory: Path, chat: ChatFormat) -> None:
    """Refuse a chat template that writes no image tag of a family's chat format.

    Raises:
        UserError: it does not, or it fails.
    """
    write = TemplateTexts(processor.tokenizer, processor.chat_template, chat.end_of_turn)
    try:
        (segment,) = write(ONE_IMAGE, [ONE_IMAGE[0].assistant])
    except PromptError as error:
        raise UserError(f"{directory}: {error}") from None
    if segment.prompt.count(chat.image_tag) != 1:
        raise UserError(
            f"{directory}: its chat template belongs to another model family: it writes "
            f"{segment.prompt.count(chat.image_tag)} tags {chat.image_tag} for one image; copy chat_template.jinja "
            "from the model's original files"
        )
    answer = segment.answer or ""
    if not answer.strip().startswith(ONE_IMAGE[0].assistant):
        raise UserError(f"{directory}: its chat template does not write the answer at its generation prompt")
    ids = processor.tokenizer(answer, add_special_tokens=False)["input_ids"]
    end = processor.tokenizer.get_vocab().get(chat.end_of_turn.strip())
    if not set(ids) & {*stop_ids(processor, directory), end}:
        raise UserError(
            f"{directory}: its chat template ends an answer with none of the tokens at which the model stops, so that "
            "a tuned model would never stop; copy chat_template.jinja from the model's original files"
        )


def stop_ids(processor: HubProcessor, directory: Path) -> set[int]:
    """Ids at which generation stops: the tokenizer's, and those of generation_config.json and config.json."""
    found: list[Any] = [processor.tokenizer.eos_token_id]
    for name in ("generation_config.json", "config.json"):
        value = read_values(directory / name).get("eos_token_id")
        found += value if isinstance(value, list) else [value]
    return {each for each in found if isinstance(each, int)}


def check_sizes(processor: HubProcessor, directory: Path) -> None:
    """Refuse sizes of the image processor that are not those of the model.

    Raises:
        UserError: which one.
    """
    config = read_values(directory / "config.json")
    vision = config.get("vision_config")
    within = vision if isinstance(vision, dict) else {}
    pairs = (
        ("patch_size", within.get("patch_size")),
        ("temporal_patch_size", within.get("temporal_patch_size")),
        ("merge_size", within.get("spatial_merge_size")),
        ("image_seq_length", config.get("image_seq_length", config.get("mm_tokens_per_image"))),
        ("image_seq_len", tokens_per_tile(config, within)),
    )
    for name, wanted in pairs:
        found = processor.settings.get(name)
        if isinstance(wanted, int) and found is not None and found != wanted:
            raise UserError(
                f"{directory}: the processor's {name} is {str(found)[:20]}, and config.json needs {wanted}; copy the "
                "model's own processor files and config.json"
            )


def tokens_per_tile(config: Mapping[str, Any], vision: Mapping[str, Any]) -> int | None:
    """Image tokens of a tile of Idefics3 by a parsed config.json; None for other models."""
    sizes = (vision.get("image_size"), vision.get("patch_size"), config.get("scale_factor"))
    if not all(isinstance(each, int) and each > 0 for each in sizes):
        return None
    image, patch, scale = (int(each) for each in sizes if each is not None)
    return (image // patch) ** 2 // scale**2


def check_images(renderer: Renderer, directory: Path) -> None:
    """Refuse an image processor that fails on an image, or makes numbers that are none.

    Raises:
        UserError: what happens.
    """
    import numpy as np
    from PIL import Image

    image = Image.new("RGB", (96, 64), (120, 60, 200))
    what = f"{directory}: the image processor"
    try:
        (layout,) = renderer.layouts([image.size], None)
        arrays = renderer.image_arrays(image, layout, None)
        with np.errstate(all="ignore"):
            wrong = [name for name, array in arrays.items() if not np.isfinite(np.asarray(array, np.float64)).all()]
    except Exception as error:  # a processor with odd values can raise anything
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:100]}"
        raise UserError(f"{what} fails on an image of 96 x 64 pixels: {reason}; copy its original files") from None
    if wrong:
        raise UserError(f"{what} makes {wrong[0]} that are not numbers; copy its original files")


def vocabulary_size(directory: Path) -> int | None:
    """Number of embeddings by a directory's config.json; None if it says nothing."""
    config = read_values(directory / "config.json")
    text = config.get("text_config")
    found = (text if isinstance(text, dict) else config).get("vocab_size")
    return found if isinstance(found, int) else None


def image_token_id(directory: Path) -> int | None:
    """The id of image tokens in a directory's config.json; None if it says nothing."""
    config = read_values(directory / "config.json")
    for key in ("image_token_id", "image_token_index"):
        if isinstance(config.get(key), int):
            return int(config[key])
    return None
