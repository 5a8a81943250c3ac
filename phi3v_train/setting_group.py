"""The base of the groups of settings, and options that stand for a value of another one."""

from pathlib import Path
from typing import Any, get_origin

from pydantic import BaseModel, ConfigDict, model_validator

SHORT_FORMS = {"use_flash_attention": ("attn", "flash"), "bf16": ("dtype", "bf16")}
"""Options that stand for a value of another option; replaced by it before anything else reads them."""


def spell_out(values: dict[str, Any]) -> dict[str, Any]:
    """Replace the short forms among `values` (flat) by what they mean.

    Raises:
        ValueError: a short form beside another value of the same setting.
    """
    result = dict(values)
    for flag, (name, meaning) in SHORT_FORMS.items():
        if result.get(flag) is True:
            if result.get(name, meaning) not in (meaning, "auto"):
                raise ValueError(f"--{flag} contradicts --{name} {result[name]}: give one of them")
            del result[flag]
            result[name] = meaning
    return result


class Group(BaseModel):
    """Base of the groups: frozen, closed, JSON and YAML alike."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _take_single_values(cls, value: Any) -> Any:
        """One value of a setting that takes several needs no list: `report_to: none`, `metric: anls`."""
        if not isinstance(value, dict):
            return value
        several = {name for name, field in cls.model_fields.items() if get_origin(field.annotation) is tuple}
        return {
            name: (item,) if name in several and isinstance(item, str | Path | int | float) else item
            for name, item in value.items()
        }
