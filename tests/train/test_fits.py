"""The table of methods and recipes that fit a device."""

from dataclasses import replace
from pathlib import Path

import pytest
from colour_sets import colour_directory
from run_dirs import settings_for

from phi3v_train.fits import fit_table
from phi3v_train.models.registry import get_family
from phi3v_train.plan import Plan, make_plan
from phi3v_train.settings import resolve


def recipes(plan: Plan) -> set[str]:
    """All recipes in the table."""
    return {name for row in fit_table(plan, 10**12) for name in row.recipes}


def test_recipes_are_listed_for_the_models_that_they_are_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(resolve(settings_for(colour_directory(tmp_path / "data", rows=4), tmp_path / "out")))
    assert recipes(plan) == {"demo-ucf101-tiny"}
    published = recipes(replace(plan, files=replace(plan.files, directory=Path("Phi-3.5-vision-instruct"))))
    assert {"docvqa-full-bf16", "hateful-memes-qlora-fp16", "nlvr2-full-bf16"} < published
    assert "demo-ucf101-tiny" not in published
    other = replace(plan.files, family=get_family("qwen2_5_vl"))
    assert recipes(replace(plan, files=other)) == set()
    assert recipes(replace(plan, files=replace(other, directory=Path("Qwen2.5-VL")))) == set()
