"""Where each setting of a run comes from: option, config file, recipe, dataset.json, default, in this order.

The tile budget alone has a layer more, before the default: the one that an earlier run wrote into the model.

Every layer holds flat names; the first layer that has a name wins, and the plan shows which one that was.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from phi3v_data.errors import NotFoundError, UserError
from phi3v_data.messages import shown
from phi3v_train.config import RunConfig, home_groups
from phi3v_train.foreign_names import ADVICE, ALIASES, own_names, refusal
from phi3v_train.parse_config import parse_config
from phi3v_train.recipes import load_recipe
from phi3v_train.setting_group import spell_out


@dataclass(frozen=True, slots=True)
class Settings:
    """A resolved configuration and, for each setting, the layer that it came from."""

    config: RunConfig
    origins: Mapping[str, str]
    recipe: str | None = None

    def origin(self, name: str) -> str:
        """`option`, `config FILE`, `recipe NAME`, `dataset.json`, `model` or `default`."""
        return self.origins.get(name, "default")

    def budget_origin(self, origin: str) -> str:
        """Origin of an image budget: for `option`, where that was given: on the command line, in a file or a recipe."""
        given = [name for name in self.config.model.image_options if name != "min_pixels"]
        return self.origin(given[0]) if origin == "option" and given else origin

    def with_num_crops(self, num_crops: int, origin: str) -> "Settings":
        """The same with `num_crops` filled in where no option, config or recipe set it."""
        if self.config.model.num_crops is not None:
            return self
        model = self.config.model.model_copy(update={"num_crops": num_crops})
        origins = {**self.origins, "num_crops": origin}
        return Settings(self.config.model_copy(update={"model": model}), origins, self.recipe)


def resolve(options: Mapping[str, Any], *, config_file: Path | None = None, recipe: str | None = None) -> Settings:
    """Lay the options over the config file over the recipe.

    Raises:
        UserError: a file that cannot be read; unknown names and values that do not fit, all in one sentence.
    """
    layers: list[tuple[str, str, Mapping[str, Any]]] = [("option", "", options)]
    if config_file is not None:
        values = read_config_file(config_file)
        named = values.pop("recipe", None)
        recipe = recipe or named
        layers.append((f"config {config_file.name}", str(config_file), values))
    if recipe is not None:
        layers.append((f"recipe {recipe}", f"recipe {recipe}", load_recipe(recipe).settings))
    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    files: dict[str, str] = {}
    mistakes = []
    for origin, file, given in layers:
        where = f"{file}: " if file else ""
        mistakes += [f"{where}{refusal(name)}" for name in given if name in ADVICE]
        ours = {name: value for name, value in given.items() if name not in ADVICE}
        for name, value in spell_out_layer(where, ours).items():
            if name not in origins:
                merged[name], origins[name], files[name] = value, origin, file
    try:
        config = parse_config(merged, files)
    except UserError as error:
        mistakes.append(str(error))
    if mistakes:
        raise UserError("; ".join(mistakes))
    return Settings(config, origins, recipe)


def spell_out_layer(where: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """One layer in our own names, without short forms; the layer is named in an error."""
    try:
        return spell_out(own_names(values))
    except ValueError as error:
        raise UserError(f"{where}{error}") from None


def read_config_file(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings, grouped or flat, into flat names.

    Raises:
        UserError: not YAML, not a mapping, or a group that is not one.
    """
    import yaml

    from phi3v_data.yaml_keys import repeated_key

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFoundError(f"--config {path}: the file does not exist") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: cannot be read ({error})") from None
    try:
        values = yaml.safe_load(text)
        twice = repeated_key(text)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"--config {path}:{line}: not YAML ({error.problem})") from None
    if twice is not None:
        raise UserError(f"--config {path}:{twice[0]}: {shown(twice[1], 40)} is there twice; keep one of the two values")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"--config {path}: expected `name: value` lines, found a {type(values).__name__}")
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        grouped = key in RunConfig.GROUPS and isinstance(value, dict)
        if key in RunConfig.GROUPS and not grouped and key not in {*home_groups(), *ALIASES}:
            raise UserError(f"{path}: {key}: must be a group of `name: value` lines, not {shown(value)}")
        pairs += [(str(name), item) for name, item in (value.items() if grouped else [(key, value)])]
    found = dict(pairs)
    if len(found) < len(pairs):
        name = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise UserError(f"--config {path}: {shown(name, 40)} is there twice, in two groups; keep one of the two values")
    return found
