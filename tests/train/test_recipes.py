"""The recipes are the published tables."""

import json

import pytest
from run_dirs import command

from phi3v_data.errors import NotFoundError
from phi3v_train.recipes import load_recipe, recipe_names
from phi3v_train.settings import resolve

PHI3 = "microsoft/Phi-3-vision-128k-instruct"
PHI35 = "microsoft/Phi-3.5-vision-instruct"

PUBLISHED = {
    # name: model, learning rate, epochs, rank, alpha, result
    "nlvr2-full-bf16": (PHI35, 1e-5, 3, None, None, 89.40),
    "nlvr2-frozen-vision-bf16": (PHI35, 2e-5, 2, None, None, 89.20),
    "docvqa-full-bf16": (PHI3, 5e-6, 2, None, None, 83.65),
    "docvqa-full-fp16": (PHI3, 5e-6, 2, None, None, 82.60),
    "docvqa-frozen-vision-bf16": (PHI3, 1e-4, 2, None, None, 79.19),
    "docvqa-frozen-vision-fp16": (PHI3, 1e-4, 2, None, None, 78.74),
    "docvqa-lora-bf16": (PHI3, 2e-4, 2, 32, 16, 82.46),
    "docvqa-lora-fp16": (PHI3, 2e-4, 2, 32, 16, 82.34),
    "docvqa-qlora-bf16": (PHI3, 2e-4, 2, 32, 16, 81.85),
    "docvqa-qlora-fp16": (PHI3, 2e-4, 2, 32, 16, 81.85),
    "hateful-memes-full-bf16": (PHI3, 5e-5, 2, None, None, 86.4),
    "hateful-memes-full-fp16": (PHI3, 5e-5, 2, None, None, 85.4),
    "hateful-memes-frozen-vision-bf16": (PHI3, 1e-4, 3, None, None, 79.4),
    "hateful-memes-frozen-vision-fp16": (PHI3, 1e-4, 3, None, None, 78.6),
    "hateful-memes-lora-bf16": (PHI3, 2e-4, 2, 128, 256, 86.6),
    "hateful-memes-lora-fp16": (PHI3, 2e-4, 2, 128, 256, 85.2),
    "hateful-memes-qlora-bf16": (PHI3, 2e-4, 2, 128, 256, 84.0),
    "hateful-memes-qlora-fp16": (PHI3, 2e-4, 2, 128, 256, 83.8),
}


def test_every_published_row_has_a_recipe_and_no_recipe_claims_more() -> None:
    with_figure = {name for name in recipe_names() if load_recipe(name).published}
    assert with_figure == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_recipe_is_its_row(name: str) -> None:
    model, rate, epochs, rank, alpha, result = PUBLISHED[name]
    recipe = load_recipe(name)
    config = resolve({}, recipe=name).config
    assert config.model.model_name_or_path == model
    assert config.model.dtype == name.rsplit("-", 1)[1]
    assert config.optim.learning_rate == rate
    assert config.optim.num_train_epochs == epochs
    assert config.optim.batch_size == 64
    assert config.method.freeze_vision_model == ("frozen-vision" in name)
    assert config.method.use_lora == ("lora" in name)
    assert config.method.use_qlora == ("qlora" in name)
    if rank is not None and alpha is not None:
        assert (config.method.lora_rank, config.method.lora_rank * config.method.lora_alpha_ratio) == (rank, alpha)
    assert recipe.published is not None
    assert recipe.published.value == result
    assert "not measured with this code" in recipe.published.source


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(NotFoundError, match="did you mean 'docvqa-lora-bf16'"):
        load_recipe("docvqa-lora-bf6")


def test_listed_on_the_command_line() -> None:
    listed = command("recipes")
    assert listed.returncode == 0
    assert all(name in listed.stdout for name in recipe_names())
    assert "not measured with this code" in listed.stdout
    one = json.loads(command("recipes", "docvqa-lora-bf16", "--json").stdout)
    assert one["published"]["value"] == 82.46
