"""Model families of other packages: their entry points by name, their objects, and what is wrong with either."""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points

from phi3v_data.errors import UserError
from phi3v_data.messages import escaped, join_words, shown
from phi3v_data.tokens.chat import ChatFormat
from phi3v_data.tokens.family import TokenFamily

PACKAGE = "phi3v"
"""Distribution of the built-in families."""

EntryPoints = tuple[EntryPoint, ...]
"""All entry points of one name, at least one; more than one is an error."""


def entry_points_by_name(group: str) -> Mapping[str, EntryPoints]:
    """Entry points of a group by name, those of several packages under one name together."""
    found: dict[str, dict[tuple[str, str], EntryPoint]] = {}
    for point in entry_points(group=group):
        found.setdefault(point.name, {}).setdefault((owner(point), point.value), point)
    return {name: tuple(points.values()) for name, points in sorted(found.items())}


def owner(point: EntryPoint) -> str:
    """`the package NAME`, by the distribution of an entry point."""
    return f"the package {point.dist.name}" if point.dist else "an installed package"


def described(points: EntryPoints) -> str:
    """`the model family NAME of the package NAME`, to begin a sentence with."""
    return f"the model family {points[0].name} of {' and '.join(dict.fromkeys(map(owner, points)))}"


def the_only(points: EntryPoints) -> EntryPoint:
    """The entry point of a name.

    Raises:
        UserError: there are several.
    """
    if len(points) > 1:
        values = join_words(points, 3, each=lambda point: shown(point.value, 40))
        raise UserError(f"{described(points)} is defined {len(points)} times ({values}): uninstall all but one")
    return points[0]


def ignored(points: EntryPoints) -> str:
    """The sentence about entry points that have the name of a built-in family."""
    return (
        f"{described(points)} is ignored, because the package {PACKAGE} has a family of that name: uninstall the "
        "former, or rename its family"
    )


def problem_of(family: TokenFamily) -> str:
    """The reason why a token family cannot be used, to end a sentence with; empty if there is none."""
    for field in ("model_types", "other_special"):
        value = getattr(family, field, None)
        if not isinstance(value, tuple) or not all(isinstance(text, str) and text for text in value):
            return f"{field} must be a tuple of strings, not {escaped(repr(value)[:60])}"
    chat: object = family.chat
    if not isinstance(chat, ChatFormat):
        return f"chat must be a ChatFormat, not {type(chat).__name__}"
    return ""
