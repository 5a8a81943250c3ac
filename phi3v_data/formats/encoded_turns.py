"""Questions and answers in turn, from the text of a foreign row's messages to that of a row, without values between.

msgspec writes every value in one way. So what is between the texts of messages of two fields is known byte for byte,
and as a quote inside of a text is written with a backslash, it is found nowhere else.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from phi3v_data.formats.chat import Role
from phi3v_data.json_text import count_quotes

_encode = msgspec.json.Encoder().encode

_START = b'[{"images": [], "user": "'
_NEXT = b'"}, {"images": [], "user": "'
_MIDDLE = b'", "assistant": "'
_END = b'"}]'

_QUOTES = 8
"""Quotes of a message with two fields, of which both are texts."""

_VISIBLE = frozenset(range(0x21, 0x7F)) - set(b"\\")


class EncodedTurns:
    """Rewrites messages of one format.

    Args:
        role_keys, content_keys: names of the two fields of a message.
        roles: the meaning of each name of a role.
        special: characters that a text must not have to be rewritten unseen.
    """

    def __init__(
        self,
        role_keys: Iterable[str],
        content_keys: Iterable[str],
        roles: Mapping[str, Role],
        special: Iterable[str],
    ) -> None:
        roles_in, contents_in = frozenset(role_keys), frozenset(content_keys)
        self._role_keys, self._content_keys = roles_in - contents_in, contents_in - roles_in
        self._roles = roles
        self._special = (b"\\u0000", *(each.encode() for each in special))
        self._known: dict[tuple[Any, ...], tuple[bytes, bytes, bytes] | None] = {}

    def rewrite(self, messages: list[Any]) -> bytes | None:
        """The value of `conversations` as `json.dumps` writes it; None if the messages need a closer look.

        They do unless they are questions and answers in turn without a weight, none of which begins with white space.
        """
        try:
            first, second = messages[0], messages[1]
            role_key, content_key = first
            known = role_key, content_key, first[role_key], second[role_key]
            if known not in self._known:
                self._known[known] = self._between(*known)
            between = self._known[known]
            if between is None:
                return None
            text = _encode(messages)
        except (LookupError, TypeError, ValueError):
            return None
        start, middle, following = between
        for each in self._special:
            if each in text:
                return None
        if not text.startswith(start) or not text.endswith(_END) or count_quotes(text) != _QUOTES * len(messages):
            return None
        turns = text[len(start) : -len(_END)].split(following)
        if 2 * len(turns) != len(messages):
            return None
        for turn in turns:
            question, _, answer = turn.partition(middle)
            if not answer or not question or question[0] not in _VISIBLE or answer[0] not in _VISIBLE:
                return None
        return _START + _NEXT.join(turns).replace(middle, _MIDDLE) + _END

    def _between(self, role_key: str, content_key: str, user: Any, assistant: Any) -> tuple[bytes, bytes, bytes] | None:
        """The bytes before the first text, between a question and its answer, and before the next question.

        None if these are no names of a format's roles and fields.
        """
        if role_key not in self._role_keys or content_key not in self._content_keys or len(self._known) > _MAX_KNOWN:
            return None
        if (self._roles.get(user), self._roles.get(assistant)) != ("user", "assistant"):
            return None
        asked, answered = (
            b'{%s:%s,%s:"' % tuple(map(_encode, (role_key, name, content_key))) for name in (user, assistant)
        )
        return b"[" + asked, b'"},' + answered, b'"},' + asked


_MAX_KNOWN = 1000
"""Names that are remembered, of files of any content."""
