"""The keys of a model's tensors in its directory's files, by transformers' own renaming."""

from collections.abc import Iterable
from typing import Any

ROW_PRESERVING = ("Conv3dToLinear",)
"""transformers' conversions of a tensor that only change the shape of each row."""


def stored_keys(model: Any, stored: Iterable[str]) -> tuple[dict[str, str], set[str]]:
    """Keys of stored tensors by the names that transformers gives them when it loads a model, and those of them whose
    rows it gives another shape; a tensor that it changes otherwise is left out.

    The model remembers the names as `from_pretrained` lets it, so that it is saved under them again.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    transforms = get_model_conversion_mapping(model)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = [each for each in transforms if isinstance(each, WeightConverter)]
    state, prefix = model.state_dict(), model.base_model_prefix
    keys, converted = {}, set()
    for key in stored:
        name, pattern = rename_source_key(key, renamings, converters, prefix, state)
        if name not in state and key in state:
            name, pattern = key, None
        if pattern is not None:
            used = [each for each in converters if pattern in each.source_patterns]
            if any(type(each).__name__ not in ROW_PRESERVING for converter in used for each in converter.operations):
                continue
            converted.add(key)
        keys[name] = key
    model._weight_conversions = [each for each in transforms if each.was_used()]
    return keys, converted
