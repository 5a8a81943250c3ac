"""Models that are no family of their own: what passes the checks is trained, the rest is refused by a sentence."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colour_sets import colour_directory
from in_process import make_cli
from PIL import Image
from run_dirs import read_lines

from phi3v_data.errors import UserError
from phi3v_data.schema import Sample, Turn
from phi3v_train.cli.app import main
from phi3v_train.data.encode import Encoder, Provenance
from phi3v_train.models.huggingface.tiny import TEXT, byte_tokenizer
from phi3v_train.models.loading import load_processor
from phi3v_train.models.locate import locate
from phi3v_train.models.registry import make_renderer

TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}USER: {% for c in m.content %}"
    "{% if c.type == 'image' %}{{ '<image>\n' }}{% else %}{{ c.text }}{% endif %}{% endfor %} ASSISTANT:"
    "{% else %} {{ m.content[0].text }}</s>{% endif %}{% endfor %}"
)


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA 1.5, which is not among the verified families: 16 tokens per image."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    directory = tmp_path_factory.mktemp("llava")
    tokens = byte_tokenizer(["</s>"], {"image_token": "<image>"}, eos_token="</s>")
    vision = {
        "model_type": "clip_vision_model",
        **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"image_size": 28, "patch_size": 7},
    }
    config = LlavaConfig(
        vision_config=vision,
        text_config={**TEXT, "model_type": "llama", "vocab_size": len(tokens), "eos_token_id": tokens.eos_token_id},
        image_token_index=tokens.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default",
    )
    LlavaForConditionalGeneration(config).save_pretrained(directory)
    tokens.save_pretrained(directory)
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(directory)
    values = {"patch_size": 7, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    (directory / "processor_config.json").write_text(json.dumps({"processor_class": "LlavaProcessor", **values}))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


@pytest.fixture
def changed(llava: Path, tmp_path: Path) -> Callable[..., Path]:
    """The same model with other files."""

    def change(**files: str | None) -> Path:
        directory = tmp_path / "changed"
        shutil.copytree(llava, directory)
        for name, text in files.items():
            path = directory / {"template": "chat_template.jinja"}.get(name, f"{name}.json")
            path.unlink() if text is None else path.write_text(text)
        return directory

    return change


def test_its_prompts_and_image_tokens_are_the_processors_own(llava: Path) -> None:
    files = locate(str(llava))
    processor = load_processor(files)
    sample = Sample(
        id="a", source="s",
        conversations=(
            Turn(images=("x", "y"), user="Same as here?", assistant="No.", image_offsets=(0, 8)),
            Turn(user="Sure?", assistant="Yes."),
        ),
    )  # fmt: skip
    images = [Image.new("RGB", size, (9, 120, 40)) for size in ((90, 60), (50, 120))]
    encoder = Encoder(make_renderer(files.family, processor))
    found = encoder.encode(sample, images, num_crops=None, provenance=Provenance("d", "s", 0, "a"))
    text = "USER: <image>\nSame as <image>\nhere? ASSISTANT: No.</s>USER: Sure? ASSISTANT: Yes.</s>"
    expected = processor.whole(text=[text], images=[images], return_tensors="np", add_special_tokens=False)
    assert encoder.renderer.model_ids(found.input_ids).tolist() == expected["input_ids"][0].tolist()
    assert int((found.input_ids < 0).sum()) == 32
    assert processor.tokenizer.decode([each for each in found.labels if each >= 0]) == " No.</s> Yes.</s>"
    pixels = np.concatenate([image["pixel_values"] for image in found.images])
    np.testing.assert_array_equal(pixels, expected["pixel_values"])


def test_it_is_trained_and_asked_and_every_command_says_that_it_is_not_verified(
    llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = partial(make_cli(capsys, monkeypatch), main=main)
    data_dir = colour_directory(tmp_path / "colours", rows=5)
    options = ("--data_dir", data_dir, "--device", "cpu", "--num_workers", "0")
    code, out, err = call(
        "run", *options, "--model_name_or_path", llava, "--output_dir", tmp_path / "run", "--batch_size", "2",
        "--max_steps", "2", "--warmup_steps", "0", "--report_to", "none", "--no_tqdm", "--no_eval_before",
        "--no_eval_after", "--skip_validation",
    )  # fmt: skip
    assert code == 0, err
    assert "is not among the verified families (`phi3v-train models`): its prompts" in out + err
    assert [line["step"] for line in read_lines(tmp_path / "run" / "metrics.jsonl")] == [1, 2]
    for name in ("preprocessor_config.json", "processor_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "run" / "model" / name).read_bytes() == (llava / name).read_bytes()
    model = ("--model_name_or_path", tmp_path / "run" / "model")
    code, _, err = call("predict", *options, *model, "--output_dir", tmp_path / "p", "--eval_split", "val", "--quiet")
    assert code == 0, err
    assert len(read_lines(tmp_path / "p" / "predictions.jsonl")) == 3


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"template": None}, "it has no chat template, so its prompts are not known"),
        (
            {"template": TEMPLATE.replace("</s>", "")},
            "its chat template ends an answer with none of the tokens at which the model stops, so that a tuned model "
            "would never stop",
        ),
        ({"template": TEMPLATE.replace("<image>", "<img>")}, "its chat template does not write <image> once for one"),
        ({"template": "{{ raise_exception('no') }}"}, "the chat template fails: no"),
        (
            {"template": TEMPLATE.replace("USER", "USER{{ messages | length }}")},
            "the chat template writes an answer that does not follow its generation prompt",
        ),
        (
            {"template": TEMPLATE.replace("{{ '<image>\n' }}", "<image><image>")},
            "its chat template does not write <image> once for one image",
        ),
    ],
)
def test_a_check_that_fails_is_named(changed: Callable[..., Path], files: dict[str, str | None], message: str) -> None:
    with pytest.raises(UserError) as caught:
        load_processor(locate(str(changed(**files))))
    assert message in str(caught.value)
    assert "not among the verified families" in str(caught.value)


def test_a_processor_that_encodes_otherwise_than_it_says_is_refused(
    llava: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import LlavaProcessor

    def fewer(self: Any, image_inputs: Any, image_idx: int, **_: Any) -> str:
        return "<image>" * (15 if len(image_inputs["pixel_values"]) > 1 else 16)

    monkeypatch.setattr(LlavaProcessor, "replace_image_token", fewer)
    with pytest.raises(UserError, match="its processor encodes a conversation otherwise than its chat template says"):
        load_processor(locate(str(llava)))


def test_packing_sharding_budgets_and_a_small_model_are_refused(
    llava: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = partial(make_cli(capsys, monkeypatch), main=main)
    data_dir = colour_directory(tmp_path / "colours", rows=3)
    for model, option, message in (
        (llava, ("--pack",), "packing was verified for none of the models that are no family of their own"),
        (llava, ("--num_crops", "4"), "--num_crops 4: the model family other has no image budget: leave num_crops out"),
        ("tiny:other", (), "tiny:other: there is no small model of an unknown family"),
    ):
        code, _, err = call("plan", "--data_dir", data_dir, "--model_name_or_path", model, *option)
        assert code == 2
        assert message in " ".join(err.split())


def test_a_model_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="model_type is 'bert'; those that can be trained are phi3_v, gemma3, "):
        locate(str(tmp_path))


def test_models_lists_the_families_with_their_options(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    call = partial(make_cli(capsys, monkeypatch), main=main)
    code, out, _ = call("models", "--json")
    assert code == 0
    families = {each["name"]: each for each in json.loads(out)["families"]}
    assert families["qwen3_vl"]["image_options"] == ["max_pixels", "min_pixels"]
    assert families["gemma3"]["image_options"] == []
    assert families["llava_next"]["model_types"] == ["llava_next"]
    assert "other" not in families
    code, out, _ = call("models")
    assert "--longest_edge" in out
    assert "Verified with transformers 5.24.0" in out
