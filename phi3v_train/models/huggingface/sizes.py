"""Sizes of any model of transformers, counted on a model without weights."""

import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from phi3v_train.models.family import ModuleNames
from phi3v_train.models.size import Component, Linear, LinearGroup, ModelSize, Stack, kept_in_decoder, kept_in_tower

LAYER = re.compile(r"(?P<prefix>.+?)\.(?P<number>\d+)\.(?P<leaf>.+)")
"""Name of a module in a list of layers."""

Key = tuple[Component, str, tuple[int, ...]]


def config_object(config: Mapping[str, Any]) -> Any:
    """transformers' configuration object of a parsed `config.json`."""
    from transformers import AutoConfig

    return AutoConfig.for_model(**config)


def empty_by_config(config: Any) -> Any:
    """The model of a configuration, on the device `meta`: shapes without weights."""
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(config)


def size_by_config(
    config: Mapping[str, Any],
    modules: ModuleNames,
    *,
    tile_tokens: int,
    tile_features: int,
    is_reached: Callable[[str], bool],
) -> ModelSize:
    """Sizes of the model of a parsed `config.json`.

    Args:
        config: the parsed file.
        modules: names of its parts.
        tile_tokens: tokens of one input of the vision tower.
        tile_features: tokens that the projector makes of them.
        is_reached: whether a loss reaches the parameter or module of this name.
    """
    parts = (modules.language, modules.head, modules.tower, modules.projector)
    counts = counted(json.dumps(config, sort_keys=True, default=str), parts)
    groups: dict[Key, list[Linear]] = {}
    layers: dict[tuple[Component, str, Linear], list[int]] = {}
    parameters = {"language": 0, "vision": 0, "unused": 0}
    total_layers: dict[str, set[int]] = {"language": set(), "vision": set()}
    for name, inputs, outputs, bias in counts["linears"]:
        component = component_of(name, modules)
        found = LAYER.fullmatch(name) if component in ("language", "vision") else None
        if found is None:
            alone: Component = "projector" if component == "vision" else component
            prefix, _, leaf = name.rpartition(".")
            if is_reached(name):
                groups.setdefault((alone, prefix, ()), []).append(Linear(leaf, inputs, outputs, bias))
            continue
        number = int(found["number"])
        total_layers[component].add(number)
        if is_reached(name):
            each = Linear(found["leaf"], inputs, outputs, bias)
            layers.setdefault((component, found["prefix"], each), []).append(number)
    for (component, prefix, linear), numbers in layers.items():
        groups.setdefault((component, prefix, tuple(numbers)), []).append(linear)
    table = tuple(
        LinearGroup(
            component,
            prefix,
            tuple(linears),
            num_layers=len(numbers) if numbers else None,
            layers=numbers if numbers and numbers != tuple(range(len(numbers))) else (),
            has_unused_layers=bool(numbers) and len(numbers) < len(total_layers.get(component, ())),
            nf4=component == "language",
        )
        for (component, prefix, numbers), linears in groups.items()
    )
    for name, number in counts["parameters"]:
        part = modules.part_of(name)
        parameters["language" if part == "language" else "vision"] += number
        if part != "language" and not is_reached(name):
            parameters["unused"] += number
    text = counts["text"]
    hidden, attention = text["hidden_size"], text["attention"]
    kv, inner = text["kv"], text["intermediate_size"]
    language = sum(group.copies * group.parameters for group in table if group.component in ("language", "head"))
    tower_layers = max((group.numbers[-1] + 1 for group in table if group.component == "vision"), default=0)
    # A layer of the tower is counted as all linear layers that any of its layers has; the difference is in
    # `vision_other`.
    vision = tower_layers * sum(group.parameters for group in table if group.component == "vision")
    vision += sum(group.copies * group.parameters for group in table if group.component == "projector")
    tower = counts["vision"]
    return ModelSize(
        table,
        decoder=Stack(hidden, attention, kept=kept_in_decoder(hidden, attention, kv, inner)),
        vocab=text["vocab_size"],
        language_other=parameters["language"] - language,
        tower=Stack(
            tower["hidden_size"],
            tower["hidden_size"],
            kept=kept_in_tower(tower["hidden_size"], tower["intermediate_size"]),
        ),
        vision_other=parameters["vision"] - vision,
        unused_vision_other=parameters["unused"],
        tile_tokens=tile_tokens,
        tile_features=tile_features,
        patch_weights=counts["patch_weights"],
    )


def component_of(name: str, modules: ModuleNames) -> Component:
    """The component that a module belongs to."""
    if any(name == head or name.startswith(f"{head}.") for head in modules.head):
        return "head"
    return modules.part_of(name)


@cache
def counted(config: str, parts: tuple[tuple[str, ...], ...]) -> dict[str, Any]:
    """Counts of a model without weights: linear layers, parameters, and a few numbers of its configuration."""
    from torch import nn

    made = config_object(json.loads(config))
    model = empty_by_config(made)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    linears = [
        (name, module.in_features, module.out_features, module.bias is not None)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.weight" not in tied
    ]
    parameters = [(name, each.numel()) for name, each in model.named_parameters() if name not in tied]
    patches = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Conv3d) and "patch" in name
    )
    text = made.get_text_config()
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    vision = made.vision_config
    width = getattr(vision, "hidden_size", None) or vision.embed_dim
    return {
        "linears": linears,
        "parameters": parameters,
        "patch_weights": patches,
        "text": {
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "vocab_size": text.vocab_size,
            "attention": text.num_attention_heads * head,
            "kv": text.num_key_value_heads * head,
        },
        "vision": {"hidden_size": width, "intermediate_size": getattr(vision, "intermediate_size", 4 * width)},
    }
