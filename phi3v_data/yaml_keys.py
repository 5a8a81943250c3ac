"""Finds a key that a YAML file has twice: its readers keep the last value, in silence."""

from typing import Any

import yaml


def repeated_key(text: str) -> tuple[int, str] | None:
    """Line (from 1) and name of the first key that a mapping has twice; None if there is none.

    Raises:
        yaml.YAMLError: not YAML.
    """
    waiting: list[Any] = [yaml.compose(text, Loader=yaml.SafeLoader)]
    seen: set[int] = set()  # an alias leads to the node of its anchor
    while waiting:
        node = waiting.pop()
        if id(node) in seen or not isinstance(node, yaml.MappingNode | yaml.SequenceNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += reversed(node.value)
            continue
        names: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in names and key.tag != "tag:yaml.org,2002:merge":
                    return key.start_mark.line + 1, str(key.value)
                names.add(key.value)
            waiting.append(value)
    return None
