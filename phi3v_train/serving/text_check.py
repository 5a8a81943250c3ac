"""Texts that a model must not be given as text: characters that no row may have, and its own control tokens."""

from phi3v_data.errors import UserError
from phi3v_data.json_text import invalid_character
from phi3v_data.messages import shown
from phi3v_data.tokens.family import TokenFamily
from phi3v_data.validate.control import build_control_tokens


class TextCheck:
    """Refuses such texts for the models of a family."""

    def __init__(self, tokens: TokenFamily) -> None:
        self._image_pattern = tokens.chat.image_pattern
        self._markers = build_control_tokens(tokens.special_strings, ()).own

    def check(self, text: str, *, num_images: int) -> None:
        """Refuse a text that no row may have, or that the model would read as more than text.

        The marker of a turn's end would end a question.

        Args:
            num_images: of the whole conversation; images need no tags.

        Raises:
            UserError: it has a lone surrogate, a NUL, a control token or an image tag of the model.
        """
        if (problem := invalid_character(text)) is not None:
            raise UserError(f"the text has {problem}")
        found = self._markers.search(text)
        if found is None:
            return
        if self._image_pattern.fullmatch(found[0]) is None:
            raise UserError(f"the text has {shown(found[0])}, a control token of the model: take it out")
        raise UserError(
            f"the text has {shown(found[0])}, which stands for an image, "
            + ("and images need no tag: take it out" if num_images else "but no image was given")
        )
