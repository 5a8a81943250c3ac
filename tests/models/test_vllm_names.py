"""The names that vLLM 0.33 asks of the processor, and the entry point that registers our classes there."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from PIL import Image

from phi3v_train.models.phi3v.tiny import save_tiny, tiny_processor

PLUG_IN = """
import sys
from importlib.metadata import entry_points
(point,) = entry_points(group="vllm.general_plugins", name="phi3v")
function = point.load()
function()
print(sorted({"torch", "transformers", "numpy", "PIL"} & set(sys.modules)))
from transformers import AutoConfig, AutoProcessor
function()
function()
print(type(AutoConfig.from_pretrained(sys.argv[1])).__name__, type(AutoProcessor.from_pretrained(sys.argv[1])).__name__)
"""


def test_tags_of_images_are_listed_from_1() -> None:
    tags = tiny_processor().img_tokens
    assert tags[:3] == ["<|image_1|>", "<|image_2|>", "<|image_3|>"]
    assert tags[999] == "<|image_1000|>"


# 313, 781 and 2,653 tokens are those of the released code for the image that vLLM measures its memory with, 50 x 8000.
@pytest.mark.parametrize(("num_crops", "tokens"), [(1, 313), (4, 781), (16, 2653)])
def test_tokens_of_an_image_by_its_size(num_crops: int, tokens: int) -> None:
    processor = tiny_processor(num_crops=num_crops)
    assert processor.calc_num_image_tokens_from_image_size(width=50, height=8000) == tokens
    ids = processor("<|image_1|>", Image.new("RGB", (50, 8000)))["input_ids"]
    assert int((ids < 0).sum()) == tokens


def test_neither_name_is_written_to_a_file(tmp_path: Path) -> None:
    tiny_processor().save_pretrained(tmp_path)
    assert not [
        path.name
        for path in tmp_path.iterdir()
        if 'img_tokens"' in path.read_text(encoding="utf-8").replace('num_img_tokens"', "")
    ]


def test_the_plug_in_registers_the_classes_and_imports_nothing_heavy(tmp_path: Path) -> None:
    if not entry_points(group="vllm.general_plugins", name="phi3v"):
        pytest.skip("the installed metadata of phi3v are older than the entry point: install the package again")
    save_tiny(tmp_path)
    done = subprocess.run([sys.executable, "-c", PLUG_IN, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\nPhi3VConfig Phi3VProcessor\n"
