"""`validate --model DIR` with the files of other families: image budgets, and values that cannot be used."""

import json
from pathlib import Path
from typing import Any

import pytest
from in_process import Cli, make_cli
from validate_builders import row, turn, write
from validate_images import encoded, make_image

from phi3v_data.validate import validate


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return make_cli(capsys, monkeypatch)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A row with one image of 640 x 480 pixels, and a row with two."""
    image = encoded(make_image(size=(640, 480)))
    other = encoded(make_image(1, size=(640, 480)))
    rows = [row("1", turn(images=("a.png",))), row("2", turn(images=("a.png", "b.png")))]
    return write(tmp_path / "set", {"images/a.png": image, "images/b.png": other, "x_train.jsonl": rows})


def model(path: Path, model_type: str, **values: Any) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": model_type}))
    (path / "preprocessor_config.json").write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(
    ("model_type", "values", "options", "alone"),
    [
        ("qwen3_vl", {}, {}, 20 * 15),
        ("qwen3_vl", {"patch_size": 8}, {}, 40 * 30),
        ("qwen3_vl", {}, {"max_pixels": 100_000, "min_pixels": 4}, 11 * 8),
        ("qwen2_5_vl", {}, {}, 23 * 17),
        ("gemma3", {}, {}, 260),
        ("idefics3", {}, {}, 13 * 171 + 3 + 1),
        ("smolvlm", {}, {"longest_edge": 512}, 66 + 1),
        ("internvl", {}, {"num_crops": 1}, 258),
        ("llava_next", {}, {"num_crops": 2}, 576 + 24 * 32 + 24),
        ("llava_onevision", {}, {"num_crops": 1}, 729 + 21 * 27 + 21),
    ],
    ids=str,
)  # fmt: skip
def test_image_tokens_under_a_budget(
    tmp_path: Path, data_dir: Path, model_type: str, values: Any, options: dict[str, int], alone: int
) -> None:
    directory = model(tmp_path / "model", model_type, **values)
    num_crops = options.pop("num_crops", None)
    report = validate(data_dir, level="quick", model=directory, num_crops=num_crops, image_options=options)
    several = 730 if model_type == "llava_onevision" else alone
    counts = report.stats["image_tokens"]
    assert (counts["min"], counts["max"]) == (alone, 2 * several)


@pytest.mark.parametrize(
    ("model_type", "values", "sentence"),
    [
        ("qwen3_vl", {"patch_size": "16"}, "the image processor's patch_size must be a whole number from 1 to"),
        ("qwen3_vl", {"size": {"longest_edge": -3}}, "the image processor's size.longest_edge must be a whole number"),
        (
            "gemma3",
            {"do_pan_and_scan": True},
            "the image processor's do_pan_and_scan is not supported: set it to false",
        ),
        ("llava_next", {"image_grid_pinpoints": [[1]]}, "the image processor's image_grid_pinpoints must be pairs of"),
    ],
    ids=str,
)
def test_a_value_that_cannot_be_used_ends_the_command(
    cli: Cli, tmp_path: Path, data_dir: Path, model_type: str, values: Any, sentence: str
) -> None:
    directory = model(tmp_path / "model", model_type, **values)
    code, out, err = cli("validate", data_dir, "--model", str(directory))
    assert (code, out) == (2, "")
    assert sentence in " ".join(err.split())
    assert "Traceback" not in err


def test_a_file_without_an_object_ends_the_command(cli: Cli, tmp_path: Path, data_dir: Path) -> None:
    directory = model(tmp_path / "model", "qwen3_vl")
    for text, reason in (("[]", "must be a JSON object"), ("{", "cannot be read: it is not JSON")):
        (directory / "preprocessor_config.json").write_text(text)
        code, _, err = cli("validate", data_dir, "--model", str(directory))
        assert code == 2
        assert reason in " ".join(err.split())


@pytest.mark.parametrize(
    ("name", "option", "sentence"),
    [
        ("qwen3_vl", "--longest_edge", "an image of qwen3_vl is limited by its area: give --max_pixels"),
        ("gemma3", "--max_pixels", "the model family gemma3 has no image budget: leave max_pixels out"),
        ("smolvlm", "--num_crops", "images of the model family smolvlm are limited by --longest_edge: give that"),
    ],
)
def test_a_budget_in_the_terms_of_another_family_is_refused(
    cli: Cli, data_dir: Path, name: str, option: str, sentence: str
) -> None:
    code, _, err = cli("validate", data_dir, "--model", name, option, "400")
    assert code == 2
    assert sentence in " ".join(err.split())
