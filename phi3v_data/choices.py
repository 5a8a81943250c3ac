"""Values of options that a command and the function behind it share; loads nothing, as each command starts with it."""

from enum import StrEnum


class ImageMode(StrEnum):
    """Whether image files are linked or copied into a new set or an export; they are never moved."""

    link = "link"
    copy = "copy"


class ImageRefs(StrEnum):
    """How rows of an export refer to images."""

    path = "path"
    data = "data"
    url = "url"


class SplitBy(StrEnum):
    """The key of a row by which a set is split: rows with the same key stay together."""

    group = "group"
    image = "image"
    id = "id"


class Level(StrEnum):
    """How much is read of images: headers only, or all pixels."""

    quick = "quick"
    full = "full"
