"""Saving and loading: ids survive, files have the names others read, a directory without config.json can be read."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from golden_files import GOLDEN, golden_image, golden_json, golden_processor
from transformers import AutoProcessor, AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import phi3v_train  # noqa: F401  # makes the Auto classes know the model
from phi3v_train.models.phi3v import Phi3VImageProcessor, Phi3VProcessor, Phi3VTokenizer
from phi3v_train.models.phi3v.processing_phi3_v import default_chat_template
from phi3v_train.models.phi3v.tiny import tiny_processor

PROMPTS = sorted({case["prompt"] for case in golden_json("official_tokenizer_ids.json")["cases"].values()})
NEWLINE_AFTER_USER = "<|user|>\nhi"


def ids_of(tokenizer: Any) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(PROMPTS)["input_ids"]
    return ids


EXPECTED = ids_of(Phi3VTokenizer.from_pretrained(GOLDEN / "tiny_tokenizer"))


@pytest.fixture
def official(tmp_path: Path) -> Path:
    """A directory laid out like a released one: its auto_map, its flash attention, its LlamaTokenizer."""
    folder = tmp_path / "official"
    shutil.copytree(GOLDEN / "tiny_tokenizer", folder)
    config = json.loads((GOLDEN / "checkpoint" / "config.json").read_text())
    config["auto_map"] = {
        "AutoConfig": "configuration_phi3_v.Phi3VConfig",
        "AutoModelForCausalLM": "modeling_phi3_v.Phi3VForCausalLM",
    }
    tower = json.loads((GOLDEN / "checkpoint" / "vision_config.json").read_text())["tiny_clip_config"]
    config["img_processor"]["vision_config"] = tower
    config["_attn_implementation"] = "flash_attention_2"
    (folder / "config.json").write_text(json.dumps(config))
    preprocessor = json.loads((GOLDEN / "checkpoint" / "preprocessor_config.json").read_text())
    preprocessor["auto_map"] = {
        "AutoImageProcessor": "image_processing_phi3_v.Phi3VImageProcessor",
        "AutoProcessor": "processing_phi3_v.Phi3VProcessor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


@pytest.mark.parametrize("trust_remote_code", [None, False, True])
def test_official_directory(official: Path, trust_remote_code: bool | None) -> None:
    processor = AutoProcessor.from_pretrained(official, trust_remote_code=trust_remote_code)
    assert type(processor) is Phi3VProcessor
    assert type(processor.image_processor) is Phi3VImageProcessor
    assert processor.image_processor.num_crops == 4
    assert processor.chat_template == default_chat_template()
    assert ids_of(processor.tokenizer) == EXPECTED
    assert ids_of(AutoTokenizer.from_pretrained(official)) == EXPECTED
    assert type(AutoImageProcessor.from_pretrained(official)) is Phi3VImageProcessor


def test_num_crops_when_loading(official: Path) -> None:
    assert AutoProcessor.from_pretrained(official, num_crops=9).image_processor.num_crops == 9
    assert Phi3VProcessor.from_pretrained(official, num_crops=9).image_processor.num_crops == 9


def test_saved_directory_without_config(official: Path, tmp_path: Path) -> None:
    """A saved processor, then the same saved again: ids, budget, template and the mean stay; every loader agrees."""
    first = AutoProcessor.from_pretrained(official, num_crops=7)
    folder = tmp_path / "saved"
    first.save_pretrained(folder)
    again = tmp_path / "again"
    AutoProcessor.from_pretrained(folder).save_pretrained(again)
    for place in (folder, again):
        processor = AutoProcessor.from_pretrained(place)
        assert type(processor) is Phi3VProcessor
        assert processor.image_processor.to_dict() == first.image_processor.to_dict()
        assert processor.image_processor.num_crops == 7
        assert processor.chat_template == processor.tokenizer.chat_template == default_chat_template()
        for tokenizer in (processor.tokenizer, AutoTokenizer.from_pretrained(place)):
            assert ids_of(tokenizer) == EXPECTED
            assert tokenizer.pad_token == tokenizer.eos_token == "<|endoftext|>"
            assert tokenizer.padding_side == "right"
            assert tokenizer.convert_tokens_to_ids("<|image|>") == 473
            assert set(tokenizer.all_special_tokens) >= {"<|user|>", "<|end|>", "<|system|>"}
    contents = [{path.name: path.read_bytes() for path in place.iterdir()} for place in (folder, again)]
    assert contents[0] == contents[1]


def test_the_trap_is_real_and_avoided(official: Path) -> None:
    """A directory of adapters: LlamaTokenizer is named and there is no config.json beside it."""
    (official / "config.json").unlink()
    right = Phi3VTokenizer.from_pretrained(official)(NEWLINE_AFTER_USER)["input_ids"]
    assert AutoProcessor.from_pretrained(official).tokenizer(NEWLINE_AFTER_USER)["input_ids"] == right
    assert right == golden_processor().tokenizer(NEWLINE_AFTER_USER)["input_ids"]
    space, newline = golden_processor().tokenizer.convert_tokens_to_ids(["▁", "<0x0A>"])
    assert right[2:4] == [space, newline]


def test_saved_files_are_those_others_read(tmp_path: Path) -> None:
    """Names and forms that the released code (transformers 4.43) and vLLM look for."""
    golden_processor().save_pretrained(tmp_path / "first")
    AutoProcessor.from_pretrained(tmp_path / "first", num_crops=4).save_pretrained(tmp_path)
    preprocessor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    reference = json.loads((GOLDEN / "checkpoint" / "preprocessor_config.json").read_text())
    assert preprocessor == reference
    # Anything more would reach the released processor's constructor, which takes two arguments.
    assert json.loads((tmp_path / "processor_config.json").read_text()) == {"processor_class": "Phi3VProcessor"}
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["additional_special_tokens"] == ["<|system|>", "<|end|>", "<|user|>"]
    assert "extra_special_tokens" not in config
    assert "num_crops" not in config
    assert config["chat_template"] == (tmp_path / "chat_template.jinja").read_text() == default_chat_template()
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    original = json.loads((GOLDEN / "tiny_tokenizer" / "tokenizer.json").read_text())
    assert tokenizer["model"] == original["model"]
    assert tokenizer["added_tokens"] == original["added_tokens"]
    assert tokenizer["post_processor"] == original["post_processor"]


def test_own_chat_template_survives(tmp_path: Path) -> None:
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    base = golden_processor()
    Phi3VProcessor(base.image_processor, base.tokenizer, chat_template=template).save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert processor.chat_template == processor.tokenizer.chat_template == template


def test_reloaded_processor_makes_the_same_inputs(tmp_path: Path) -> None:
    tiny_processor(num_crops=4).save_pretrained(tmp_path)
    text, images = "<|user|>\n<|image_1|>\nWhat?<|end|>\n", [golden_image("wide")]
    one, other = tiny_processor(num_crops=4)(text, images), AutoProcessor.from_pretrained(tmp_path)(text, images)
    assert all((one[name] == other[name]).all() for name in one)


BOTH_ORDERS = [
    "import phi3v_train, importlib.util\n"
    "assert not {'torch', 'transformers'} & set(sys.modules)\n"
    "assert importlib.util.find_spec('transformers')\n"
    "import transformers",
    "import transformers\nimport phi3v_train",
    "import phi3v_train\nfrom transformers import AutoConfig",
    "import phi3v_train.models.phi3v.processing_phi3_v",
]


@pytest.mark.parametrize("first_lines", BOTH_ORDERS)
def test_import_makes_auto_classes_know_the_model(official: Path, first_lines: str) -> None:
    """In a fresh interpreter, offline, in either order, without a warning."""
    script = f"""
import sys
{first_lines}
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor
processor = AutoProcessor.from_pretrained({str(official)!r})
config = AutoConfig.from_pretrained({str(official)!r})
assert type(processor).__module__.startswith("phi3v_train"), processor
for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
    model = auto.from_config(config)
    assert type(model).__name__ == "Phi3VForConditionalGeneration"
import phi3v_train
from phi3v_train.models.phi3v.register import register
register()
"""
    run = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""


def test_public_names() -> None:
    from phi3v_train.models import phi3v

    for name in phi3v.__all__:
        assert getattr(phi3v, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Phi4'"):
        _ = phi3v.Phi4
