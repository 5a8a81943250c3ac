"""Files of a model directory that are damaged or another model's: one sentence before anything is trained."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from phi3v_data.errors import UserError
from phi3v_data.tokens.family import BudgetError
from phi3v_data.tokens.qwen_vl import QWEN3_VL
from phi3v_train.models.loading import load_processor
from phi3v_train.models.locate import locate
from phi3v_train.models.registry import get_family, make_renderer


@pytest.fixture(scope="module", params=["qwen3_vl", "smolvlm"])
def model_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory without weights."""
    family: Any = get_family(request.param)
    directory = tmp_path_factory.mktemp(request.param)
    family.tiny().config.save_pretrained(directory)
    family.tiny_processor().save_pretrained(directory)
    return directory


def change(file: str, **values: Any) -> Callable[[Path], None]:
    """Other values in a JSON file; None takes a key away."""

    def write(directory: Path) -> None:
        path = directory / file
        found = {**json.loads(path.read_text()), **values}
        path.write_text(json.dumps({key: value for key, value in found.items() if value is not None}))

    return write


def read(directory: Path) -> None:
    """All that a run reads before weights."""
    files = locate(str(directory), weights=False)
    make_renderer(files.family, load_processor(files))


def replaced(file: str, text: str) -> Callable[[Path], None]:
    """Another content of a file."""

    def write(directory: Path) -> None:
        (directory / file).write_text(text)

    return write


BOTH = ("qwen3_vl", "smolvlm")
DAMAGE: list[tuple[tuple[str, ...], Callable[[Path], None], str]] = [
    (BOTH, change("config.json", text_config=None), "config.json: text_config is missing (the model's sizes)"),
    (BOTH, change("config.json", vision_config=None), "config.json: vision_config is missing (the model's sizes)"),
    (BOTH, replaced("tokenizer.json", "{}"), "the processor cannot be loaded ("),
    (BOTH, replaced("preprocessor_config.json", "[1]"), "must be a JSON object"),
    (BOTH, replaced("processor_config.json", "{oops"), "cannot be read: it is not JSON"),
    (
        BOTH,
        change("preprocessor_config.json", image_mean=[[0.5, 0.5, 0.5]]),
        "the image processor fails on an image of 96 x 64 pixels: ValueError: mean must have 3 elements",
    ),
    (BOTH, change("preprocessor_config.json", image_std=[0, 0, 0]), "makes pixel_values that are not numbers"),
    (
        ("qwen3_vl",),
        change("preprocessor_config.json", temporal_patch_size=3),
        "the processor's temporal_patch_size is 3, and config.json needs 2",
    ),
    (
        ("qwen3_vl",),
        change("preprocessor_config.json", size={"shortest_edge": 9000, "longest_edge": 5000}),
        "the image processor's min_pixels is 9,000, over max_pixels 5,000",
    ),
    (
        ("smolvlm",),
        change("processor_config.json", image_seq_len=99),
        "the processor's image_seq_len is 99, and config.json needs 4",
    ),
    (
        BOTH,
        replaced(
            "chat_template.jinja",
            "{% for m in messages %}{% if m.role == 'user' %}# {% endif %}{% for c in m.content %}"
            "{% if c.type == 'image' %}<image><|image_pad|>{% else %}{{ c.text }}{% endif %}{% endfor %}\n{% endfor %}",
        ),
        "its chat template ends an answer with none of the tokens at which the model stops",
    ),
]


@pytest.mark.parametrize(("families", "damage", "message"), DAMAGE)
def test_damage_is_one_sentence(
    model_dir: Path, tmp_path: Path, families: tuple[str, ...], damage: Callable[[Path], None], message: str
) -> None:
    name = model_dir.name.rstrip("0123456789")
    if name not in families:
        return
    directory = tmp_path / "model"
    shutil.copytree(model_dir, directory)
    damage(directory)
    with pytest.raises(UserError) as caught:
        read(directory)
    assert message in str(caught.value)
    assert str(directory) in str(caught.value)


def test_a_directory_without_a_template_is_used_and_said(model_dir: Path, tmp_path: Path) -> None:
    directory = tmp_path / "model"
    shutil.copytree(model_dir, directory)
    (directory / "chat_template.jinja").unlink()
    files = locate(str(directory), weights=False)
    processor = load_processor(files)
    assert files.family.processor_notes(processor) == [
        f"it has no chat template; conversations are written as for {files.family.title}"
    ]


def test_the_bounds_of_an_image_must_be_in_order() -> None:
    with pytest.raises(BudgetError, match="--min_pixels 9000: is over the largest area of an image, 5,000 pixels"):
        QWEN3_VL.with_options({"max_pixels": 5000, "min_pixels": 9000})
    family, budget = QWEN3_VL.with_options({"max_pixels": 9000, "min_pixels": 5000})
    assert (family.min_pixels, budget) == (5000, 9000)
