"""Which methods and recipes fit a device's memory, at the sizes of a planned run."""

from functools import partial
from typing import NamedTuple

from phi3v_train.config import MethodConfig
from phi3v_train.models.directory import ModelFiles
from phi3v_train.models.meant import TINY
from phi3v_train.plan import Plan
from phi3v_train.recipes import FAMILY, Recipe, load_recipe, recipe_names
from phi3v_train.training.memory import estimate, fits


class Fit(NamedTuple):
    """Whether a method fits a device's memory, and the recipes that use it."""

    method: str
    bytes: int
    fits: bool
    recipes: tuple[str, ...]


def fit_table(plan: Plan, available: int, *, dtype: str | None = None) -> list[Fit]:
    """Every method, at this run's sizes and dtype (or another), against `available` bytes.

    Recipes for this model are listed with the method and rank that they use.
    """
    base = [
        {},
        {"freeze_vision_model": True},
        {"use_lora": True, "lora_rank": plan.config.method.lora_rank},
        {"use_qlora": True, "lora_rank": plan.config.method.lora_rank},
    ]
    methods = {method.name: method for method in (MethodConfig.model_validate(values) for values in base)}
    names: dict[str, list[str]] = {name: [] for name in methods}
    for recipe in filter(partial(_is_for, plan.files), map(load_recipe, recipe_names())):
        values = {k: v for k, v in recipe.settings.items() if k in MethodConfig.model_fields}
        method = MethodConfig.model_validate(values)
        methods.setdefault(method.name, method)
        names.setdefault(method.name, []).append(recipe.name)
    rows = []
    for name, method in methods.items():
        memory = estimate(
            plan.size,
            method,
            dtype=dtype or plan.compute.dtype.value,
            tokens=plan.probe.max_tokens,
            tiles=plan.probe.max_tiles,
            labels=plan.probe.max_labels,
            batch_size=plan.config.optim.batch_size_per_gpu,
            checkpointing=plan.config.model.gradient_checkpointing,
            optim=plan.config.optim.optim,
        )
        rows.append(Fit(name, memory.total, fits(memory, available), tuple(names[name])))
    return sorted(rows, key=lambda row: -row.bytes)


def _is_for(files: ModelFiles, recipe: Recipe) -> bool:
    """Whether a recipe is for such a model: the tiny one, or those of the family as they are published."""
    tiny = recipe.settings.get("model_name_or_path") == TINY
    return files.family.name == FAMILY and tiny == (files.directory is None)
