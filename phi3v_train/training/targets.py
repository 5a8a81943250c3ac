"""Linear layers that get LoRA adapters or 4-bit weights: patterns over their full names, made from a family's table."""

import re
from collections.abc import Collection, Iterable, Sequence

from phi3v_data.errors import UserError
from phi3v_data.messages import join_words, shown
from phi3v_train.config import ALL_LINEAR, MethodConfig
from phi3v_train.models.size import Component, LinearGroup, ModelSize

NAMES = re.compile(r"[\w.]+(,[\w.]+)*")
"""A list of names, as opposed to a regular expression."""


def lora_targets(method: MethodConfig, size: ModelSize) -> str:
    """PEFT's `target_modules`, a regular expression over full names.

    `--lora_targets` chooses among the linear layers that are not frozen and that a loss reaches. Without it all of them
    get adapters, the head among them, as the Phi-3.5-vision sample does it.
    """
    wanted = method.lora_targets
    language: list[Component] = ["language"] if wanted == ALL_LINEAR else ["language", "head"]
    components: list[list[Component]] = [] if method.freeze_language_model else [[each] for each in language]
    if not method.freeze_vision_model:
        components.append(["vision", "projector"])
    groups = [[group for group in size.table if group.component in each] for each in components]
    reached = "|".join(pattern(each) for each in groups if each)
    if wanted is None or wanted == ALL_LINEAR:
        return reached
    if NAMES.fullmatch(wanted):
        wanted = rf"(.*\.)?({'|'.join(re.escape(name) for name in wanted.split(','))})"
    return rf"(?=({wanted})$)({reached})"


def nf4_targets(size: ModelSize) -> str:
    """A regular expression over the full names of the linear layers that QLoRA keeps in 4 bits."""
    return pattern([group for group in size.table if group.nf4])


def targeted(method: MethodConfig, size: ModelSize) -> list[str]:
    """Full names of the linear layers that get an adapter.

    Raises:
        UserError: `--lora_targets` names none of them, or only frozen ones.
    """
    compiled = re.compile(lora_targets(method, size))
    found = [name for group in size.table for name, _ in group.named() if compiled.fullmatch(name)]
    if not found:
        frozen = " that is not frozen" if method.freeze_language_model or method.freeze_vision_model else ""
        raise UserError(
            f"--lora_targets {method.lora_targets}: matches no linear layer{frozen}; examples: {examples(size.table)}"
        )
    return found


def check_names(family: str, size: ModelSize, targets: str, modules: Collection[str]) -> None:
    """Verify that a model has the linear layers that the table of its family names and `targets` matches.

    Without this check, layers under a wrong name or prefix would train without adapters, or stay in 16 bits, silently.

    Args:
        family: name of the family, for the error.
        targets: a regular expression over full names.
        modules: full names of the model's modules.

    Raises:
        UserError: none of the layers of a group has such a linear layer.
    """
    compiled = re.compile(targets)
    for group in size.table:
        asked: dict[str, list[str]] = {}
        for name, linear in group.named():
            if compiled.fullmatch(name):
                asked.setdefault(linear.name, []).append(name)
        absent = [linear for linear, names in asked.items() if not any(name in modules for name in names)]
        if absent:
            listed = join_words(absent, 4, each=shown)
            raise UserError(
                f"the model family {family}: the group {group.component} of its table names {listed} under "
                f"{shown(group.prefix)}, where the model has no such modules: correct `size` of the family"
            )


def examples(table: Sequence[LinearGroup]) -> str:
    """Values of `--lora_targets` that fit a model: names, a regular expression, everything."""
    found = []
    for group in table:
        leaves = [linear.name.rpartition(".")[2] for linear in group.linears]
        if group.component in ("language", "head"):
            found.append(",".join(leaves[:2]))
        elif group.component == "vision":
            found.append(",".join(leaves[-2:]))
    layers = next(group for group in table if group.component == "language")
    module = layers.linears[-1].name.partition(".")[0]
    found.append(rf"{re.escape(layers.prefix)}\.\d+\.{module}\..*")
    return "; ".join([*found, ALL_LINEAR])


def pattern(groups: Iterable[LinearGroup]) -> str:
    """A short regular expression that matches the full names of the groups' linear layers and no other."""
    tree: dict[str, dict[str, object]] = {}
    for group in groups:
        layers = [] if group.num_layers is None else [numbers(group)]
        for linear in group.linears:
            parts = [re.escape(part) for part in group.prefix.split(".") if part]
            node: dict[str, object] = tree  # type: ignore[assignment]  # a tree of trees
            for part in [*parts, *layers, *(re.escape(each) for each in linear.name.split("."))]:
                node = node.setdefault(part, {})  # type: ignore[assignment]
    return alternatives(tree)


def numbers(group: LinearGroup) -> str:
    """A regular expression for the numbers of a group's layers."""
    if not (group.has_unused_layers or group.layers):
        return r"\d+"
    return "(" + "|".join(map(str, group.numbers)) + ")"


def alternatives(tree: object) -> str:
    """The branches of a tree of escaped name parts as one regular expression, in brackets where there are several."""
    assert isinstance(tree, dict)
    leaves = [part for part, below in tree.items() if not below]
    branches = [f"{part}\\.{alternatives(below)}" for part, below in tree.items() if below]
    if leaves:
        branches.append(shortened(leaves))
    return branches[0] if len(branches) == 1 else f"({'|'.join(branches)})"


def shortened(names: Sequence[str]) -> str:
    """Several names with what they have in common written once: `(q|k)_proj`, `fc[12]`."""
    if len(names) == 1:
        return names[0]
    shortest = min(map(len, names))
    start = next((n for n in range(shortest) if len({name[n] for name in names}) > 1), shortest)
    rest = [name[start:] for name in names]
    shortest = min(map(len, rest))
    end = next((n for n in range(shortest) if len({name[-1 - n] for name in rest}) > 1), shortest)
    middles = [name[: len(name) - end] for name in rest]
    choice = f"[{''.join(middles)}]" if all(len(each) == 1 for each in middles) else f"({'|'.join(middles)})"
    return names[0][:start] + choice + rest[0][len(rest[0]) - end :]
