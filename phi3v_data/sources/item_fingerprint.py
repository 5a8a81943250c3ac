"""Digests of items and drafts that are the same in every process, to be compared on resume."""

from typing import Any

import msgspec
import xxhash

from phi3v_data.draft import Draft, Item
from phi3v_data.sources.fingerprint import fingerprint
from phi3v_data.sources.reads import Roots

_encode = msgspec.json.Encoder(order="deterministic").encode


def item_fingerprint(item: Item, roots: Roots) -> str:
    """Digest of a planned item; of its `path` only the part below one of `roots` is used."""
    name = roots.name(item.path) if item.path else None
    rejected = (item.reject, item.message) if item.reject else ()
    content = (item.split, item.key, name, item.group, item.size, item.label, item.data, *rejected)
    try:  # most items are plain, and there may be millions of them
        text = _encode(content)
    except (TypeError, ValueError, NotImplementedError, RecursionError):
        return fingerprint(content, roots)
    for label, start in roots.as_json:
        text = text.replace(start, label)
    return xxhash.xxh3_128_hexdigest(text)


def drawn_fingerprint(drawn: Draft | Item, split: str, roots: Roots, *, images: bool) -> str:
    """Digest of what a generator yielded: a draft, or an item for a rejected member of an archive."""
    if isinstance(drawn, Item):
        return item_fingerprint(drawn, roots)
    return draft_fingerprint(drawn, split, roots, images=images)


def draft_fingerprint(draft: Draft, split: str, roots: Roots, *, images: bool) -> str:
    """Digest of a draft. Of images given as paths only the path is used; their content is compared separately.

    Args:
        images: whether to include the content of images; False for a rejected draft.
    """
    turns = [
        (
            turn.user,
            turn.assistant,
            list(turn.image_offsets) if images else (),
            list(turn.images) if images else (),
            *(() if turn.weight == 1 else (turn.weight,)),  # journals of earlier versions have none
            *((list(turn.steps),) if turn.steps else ()),
        )
        for turn in draft.all_turns()
    ]
    rest: tuple[Any, ...] = (draft.system, draft.answers, draft.group, draft.meta, draft.notes)
    if draft.rejected or draft.tools:
        rest = (*rest, draft.rejected, draft.tools)
    return fingerprint((split, turns, rest), roots)
