"""Checks of a model directory's processor against its family, before anything is trained with it."""

from pathlib import Path
from typing import TYPE_CHECKING

from phi3v_data.errors import UserError
from phi3v_data.schema import Turn
from phi3v_data.tokens.model_files import read_values
from phi3v_train.models.huggingface.processor import HubProcessor
from phi3v_train.models.huggingface.texts import ChatTexts, Segment, TemplateTexts
from phi3v_train.models.renderer import PromptError

if TYPE_CHECKING:
    from phi3v_train.models.huggingface.base import HubFamily

ONE_IMAGE = (Turn(images=("a.png",), user="Which colour?", assistant="Blue."),)
IMAGE_INSIDE = (Turn(images=("a.png", "b.png"), user="Same as here?", assistant="No.", image_offsets=(0, 8)),)
TWO_TURNS = (
    Turn(images=("a.png",), user="Which colour?", assistant="Blue."),
    Turn(images=("b.png",), user="And this?", assistant="Red, I think."),
)
TEXT_ONLY = (Turn(user="Say yes.", assistant="Yes."),)
CONVERSATIONS = ((ONE_IMAGE, ""), (TEXT_ONLY, ""), (IMAGE_INSIDE, ""), (TWO_TURNS, ""), (ONE_IMAGE, "Be brief."))
"""Conversations and their system messages, on which chat templates are compared."""


def agrees(family: "HubFamily", processor: HubProcessor) -> bool:
    """Whether a directory's chat template writes conversations as the family's chat format does.

    Conversations of several turns are left out where the family says why its template writes them otherwise.
    """
    by_chat = ChatTexts(family.tokens.chat)
    by_template = TemplateTexts(processor.tokenizer, processor.chat_template, family.tokens.chat.end_of_turn)
    for turns, system in CONVERSATIONS:
        if family.templates and len(turns) > 1:
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


def check_parts(family: "HubFamily", processor: HubProcessor, directory: Path) -> None:
    """Refuse a processor that is another family's.

    Raises:
        UserError: what shows it.
    """
    chat = family.tokens.chat
    token = chat.image_token or chat.image_tag
    known = processor.tokenizer.get_vocab().get(token)
    other = f"its processor belongs to another model family than its config.json ({family.name})"
    if known is None:
        raise UserError(f"{directory}: {other}: the tokenizer has no token {token}; copy the model's own files")
    wanted = image_token_id(directory)
    if wanted is not None and wanted != known:
        raise UserError(
            f"{directory}: the tokenizer's {token} is token {known}, and config.json says {wanted}; copy the model's "
            "own tokenizer.json and config.json"
        )
    vocabulary = vocabulary_size(directory)
    if vocabulary is not None and len(processor.tokenizer) > vocabulary:
        raise UserError(
            f"{directory}: the tokenizer has {len(processor.tokenizer):,} tokens, and config.json has embeddings for "
            f"{vocabulary:,}; copy the model's own tokenizer files and config.json"
        )
    kind = type(processor.image_processor).__name__.removesuffix("Pil").removesuffix("Fast")
    if family.image_processors and kind not in family.image_processors:
        raise UserError(f"{directory}: {other}: the image processor is a {kind}; copy preprocessor_config.json")
    if processor.chat_template:
        check_template(family, processor, directory)


def check_template(family: "HubFamily", processor: HubProcessor, directory: Path) -> None:
    """Refuse a chat template that writes no image tag of the family.

    Raises:
        UserError: it does not, or it fails.
    """
    chat = family.tokens.chat
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
    if not (segment.answer or "").strip().startswith(ONE_IMAGE[0].assistant):
        raise UserError(f"{directory}: its chat template does not write the answer at its generation prompt")


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
