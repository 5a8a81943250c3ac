"""A directory of each family: trained, saved, merged, loaded without this project, or refused in one sentence."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colour_sets import colour_directory
from in_process import Cli, make_cli
from PIL import Image
from run_dirs import settings_for

from phi3v_data.errors import UserError
from phi3v_data.schema import Sample, Turn
from phi3v_train.cli.app import main
from phi3v_train.data.collate import collate
from phi3v_train.data.encode import EncodedSample, Encoder, Provenance, SampleError
from phi3v_train.models.loading import load_model, load_processor
from phi3v_train.models.locate import locate
from phi3v_train.models.machine import Chosen, Compute
from phi3v_train.models.registry import get_family, make_renderer
from phi3v_train.run import run
from phi3v_train.settings import resolve
from phi3v_train.training.merging import merge_to

NAMES = (
    *("qwen2_5_vl", "qwen3_vl", "qwen3_5", "idefics3", "smolvlm", "gemma3", "llava_next", "llava_onevision"),
    "internvl",
)
WITHOUT_TORCHVISION = ("idefics3", "gemma3", "llava_next")
"""Families whose whole processor transformers loads without torchvision."""

FP32 = Compute(Chosen("cpu", ""), Chosen("fp32", ""), Chosen("sdpa", ""), 0)
SAMPLE = Sample(id="a", source="s", conversations=(Turn(images=("a.png",), user="Which?", assistant="It is red."),))
Bases = Callable[[str], Path]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small models on one thread: quick, and the same last bits on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return colour_directory(tmp_path_factory.mktemp("colours"), rows=4)


@pytest.fixture(scope="module")
def base_of(tmp_path_factory: pytest.TempPathFactory) -> Bases:
    """The directory of a base model, made when it is asked for, with files for videos and files written by hand."""
    root = tmp_path_factory.mktemp("bases")

    def make(name: str) -> Path:
        directory = root / name
        if not directory.exists():
            family = get_family(name)
            family.tiny_model(3).save_pretrained(directory)
            family.tiny_processor().save_pretrained(directory)
            (directory / "video_preprocessor_config.json").write_text('{"fps":   2}')
            values = json.loads((directory / "preprocessor_config.json").read_text())
            (directory / "preprocessor_config.json").write_text(json.dumps(values, indent=7))
        return directory

    return make


def noise_image(path: Path) -> Path:
    """A small image of noise."""
    pixels = np.random.default_rng(1).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def train(data_dir: Path, base: Path, out: Path, **changes: Any) -> Path:
    settings = settings_for(data_dir, out, model_name_or_path=str(base), warmup_steps=0, max_steps=2, **changes)
    del settings["num_crops"]
    run(resolve(settings), quiet=True)
    return out / "model"


def encoded(name: str, directory: Path, image: Path) -> EncodedSample:
    renderer = make_renderer(get_family(name), load_processor(locate(str(directory))))
    place = Provenance("d", "s", 0, "a")
    return Encoder(renderer).encode(SAMPLE, [image], num_crops=None, provenance=place)


def job(name: str, directory: Path, work: Path, *, base: Path | None = None) -> dict[str, Any]:
    """A directory to be loaded by another process, and beside it what this project makes of it."""
    work.mkdir(parents=True, exist_ok=True)
    image = noise_image(work / "image.png")
    files = locate(str(directory))
    renderer = make_renderer(files.family, load_processor(files))
    sample = encoded(name, directory, image)
    inputs = collate([sample], renderer)
    model = load_model(files, FP32)
    with torch.no_grad():
        logits = model(**inputs, use_cache=False).logits
    chat = files.family.tokens.chat
    text = chat.conversation_text([turn_text_of(SAMPLE)])
    torch.save(inputs, work / "inputs.pt")
    expected = {
        "logits": logits,
        "pixels": torch.tensor(sample.images[0]["pixel_values"]),
        "text_ids": torch.tensor([renderer.text_ids(text)]),
        "ids": [renderer.model_ids(sample.input_ids).tolist()],
        "prompt": chat.turn_prompt(turn_text_of(SAMPLE)),
    }
    torch.save(expected, work / "expected.pt")
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which?"}]}]
    return {
        "directory": str(directory),
        "inputs": str(work / "inputs.pt"),
        "logits": str(work / "found.pt"),
        "base": str(base) if base else None,
        "image": str(image),
        "image_options": {"crop_to_patches": True} if name == "internvl" else {},
        "text": text,
        "messages": messages,
        "has_processor": name in WITHOUT_TORCHVISION,
    }


def turn_text_of(sample: Sample) -> Any:
    from phi3v_train.models.renderer import turn_text

    return turn_text(sample.conversations[0])


def load_elsewhere(jobs: list[dict[str, Any]], work: Path) -> None:
    """All jobs in one process that has transformers and peft alone."""
    (work / "jobs.json").write_text(json.dumps(jobs))
    program = Path(__file__).with_name("plain_loads.py")
    done = subprocess.run(
        [sys.executable, program, work / "jobs.json"],
        capture_output=True, text=True, check=False, env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def assert_loaded(work: Path, name: str) -> None:
    expected, found = torch.load(work / "expected.pt"), torch.load(work / "found.pt")
    torch.testing.assert_close(found["logits"], expected["logits"], rtol=0, atol=0)
    assert found["text_ids"].tolist() == expected["text_ids"].tolist()
    torch.testing.assert_close(found["pixels"].reshape(expected["pixels"].shape).float(), expected["pixels"].float())
    if name in WITHOUT_TORCHVISION:
        assert [list(row) for row in found["ids"]] == expected["ids"]
        bos = "<bos>" if name == "gemma3" else ""
        assert found["prompt"] in (expected["prompt"], bos + expected["prompt"])


def processor_files(directory: Path) -> dict[str, bytes]:
    """All files but the model's."""
    own = ("config.json", "generation_config.json")
    found = {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}
    return {key: each for key, each in found.items() if key not in own and not key.endswith((".safetensors", ".md"))}


@pytest.fixture(scope="module")
def trained(data_dir: Path, base_of: Bases, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of each family after two steps, loaded by another process."""
    work = tmp_path_factory.mktemp("trained")
    jobs = [job(name, train(data_dir, base_of(name), work / name), work / name / "job") for name in NAMES]
    load_elsewhere(jobs, work)
    return work


@pytest.mark.parametrize("name", NAMES)
def test_a_trained_model_loads_with_transformers_alone(trained: Path, base_of: Bases, name: str) -> None:
    assert_loaded(trained / name / "job", name)
    before = load_model(locate(str(base_of(name))), FP32).state_dict()
    after = load_model(locate(str(trained / name / "model")), FP32).state_dict()
    config = json.loads((base_of(name) / "config.json").read_text())
    family = get_family(name)
    same = {key for key in before if torch.equal(before[key], after[key])}
    assert not {key for key in same if family.is_reached(key, config) and not key.endswith(("bias", "inv_freq"))}


@pytest.mark.parametrize("name", NAMES)
def test_the_processors_files_are_those_of_the_base_byte_for_byte(trained: Path, base_of: Bases, name: str) -> None:
    files = processor_files(base_of(name))
    assert files.keys() >= {"video_preprocessor_config.json", "preprocessor_config.json", "chat_template.jinja"}
    assert processor_files(trained / name / "model") == files


BUDGETS = {
    "qwen2_5_vl": ({"max_pixels": 50000, "min_pixels": 4000}, {"size": {"shortest_edge": 4000, "longest_edge": 50000}}),
    "qwen3_vl": ({"max_pixels": 50000}, {"size": {"shortest_edge": 4096, "longest_edge": 50000}}),
    "idefics3": ({"longest_edge": 112}, {"size": {"longest_edge": 112}}),
    "smolvlm": ({"longest_edge": 112}, {"size": {"longest_edge": 112}}),
    "llava_next": ({"num_crops": 2}, {"image_grid_pinpoints": [[56, 112], [112, 56]]}),
    "llava_onevision": ({"num_crops": 2}, {"image_grid_pinpoints": [[56, 112], [112, 56]]}),
    "internvl": ({"num_crops": 2}, {"max_patches": 2}),
}


@pytest.mark.parametrize("name", BUDGETS)
def test_an_image_budget_is_saved_and_changes_nothing_else(base_of: Bases, tmp_path: Path, name: str) -> None:
    options, changed = BUDGETS[name]
    files = locate(str(base_of(name)))
    budget = files.family.image_budget(options)
    processor = load_processor(files, budget=budget, options=options)
    processor.save_pretrained(tmp_path)
    before, after = processor_files(base_of(name)), processor_files(tmp_path)
    assert {key for key in before if before[key] != after[key]} == {"preprocessor_config.json"}
    assert after.keys() == before.keys()
    values = json.loads(before["preprocessor_config.json"])
    assert json.loads(after["preprocessor_config.json"]) == {**values, **changed}


@pytest.mark.parametrize(("budget", "least"), [(8000, 3136), (2000, 2000)])
def test_a_budget_is_saved_where_a_file_names_areas_as_qwen2_5_vl_was_released(
    base_of: Bases, tmp_path: Path, budget: int, least: int
) -> None:
    """`min_pixels` and `max_pixels` go before `size`; a largest area under the smallest one lowers that."""
    from transformers.models.auto.image_processing_auto import AutoImageProcessor

    released = tmp_path / "released"
    shutil.copytree(base_of("qwen2_5_vl"), released)
    path = released / "preprocessor_config.json"
    values = json.loads(path.read_text())
    del values["size"]
    path.write_text(json.dumps({**values, "min_pixels": 3136, "max_pixels": 50000}))
    files = locate(str(released), weights=False)
    processor = load_processor(files, budget=budget, options={"max_pixels": budget})
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    processor.save_pretrained(tuned)
    for made in (processor.image_processor, AutoImageProcessor.from_pretrained(tuned, backend="pil")):
        assert (made.size["shortest_edge"], made.size["longest_edge"]) == (least, budget)
    saved = json.loads((tuned / "preprocessor_config.json").read_text())
    assert (saved["min_pixels"], saved["max_pixels"]) == (least, budget)
    made = processor.image_processor(images=[Image.new("RGB", (140, 140))], return_tensors="np")
    assert make_renderer(files.family, processor).layouts([(140, 140)], None)[0].num_tokens * 4 == len(
        made["pixel_values"]
    )


def test_a_budget_of_a_run_is_in_the_model_that_it_saves(data_dir: Path, base_of: Bases, tmp_path: Path) -> None:
    settings = settings_for(data_dir, tmp_path / "out", model_name_or_path=str(base_of("llava_next")), max_steps=1)
    run(resolve({**settings, "num_crops": 2}), quiet=True)
    model = tmp_path / "out" / "model"
    for file in ("preprocessor_config.json", "config.json"):
        assert json.loads((model / file).read_text())["image_grid_pinpoints"] == [[56, 112], [112, 56]]


@pytest.fixture(scope="module")
def tuned(data_dir: Path, base_of: Bases, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of each family, alone and merged, loaded by another process."""
    work = tmp_path_factory.mktemp("tuned")
    jobs = []
    for name in NAMES:
        adapter = train(data_dir, base_of(name), work / name, use_lora=True, lora_rank=4, learning_rate=0.01)
        merge_to(locate(str(adapter)), work / name / "merged")
        jobs.append(job(name, adapter, work / name / "adapter_job", base=base_of(name)))
        jobs.append(job(name, work / name / "merged", work / name / "merged_job"))
    load_elsewhere(jobs, work)
    return work


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_loads_with_peft_alone_and_its_merged_model_with_transformers(
    tuned: Path, base_of: Bases, name: str
) -> None:
    assert_loaded(tuned / name / "adapter_job", name)
    assert_loaded(tuned / name / "merged_job", name)
    adapter = torch.load(tuned / name / "adapter_job" / "found.pt")["logits"]
    merged = torch.load(tuned / name / "merged_job" / "found.pt")["logits"]
    torch.testing.assert_close(merged, adapter, rtol=0, atol=1e-4)
    assert processor_files(tuned / name / "merged") == processor_files(base_of(name))
    inputs = torch.load(tuned / name / "merged_job" / "inputs.pt")
    with torch.no_grad():
        before = load_model(locate(str(base_of(name))), FP32)(**inputs, use_cache=False).logits
    assert (before - merged).abs().max() > 1e-3


def copy_of(base: Path, work: Path) -> Path:
    return Path(shutil.copytree(base, work / "model"))


def refusal(directory: Path) -> str:
    """The sentence about a directory whose processor is refused; no more than one line of 300 characters."""
    with pytest.raises(UserError) as caught:
        load_processor(locate(str(directory)))
    sentence = str(caught.value)
    assert sentence.startswith(f"{directory}: ")
    sentence = sentence.removeprefix(f"{directory}: ")
    assert len(sentence) < 300
    assert "\n" not in sentence
    return sentence


def test_a_tokenizer_of_another_family_is_refused(base_of: Bases, tmp_path: Path) -> None:
    model = copy_of(base_of("qwen3_vl"), tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base_of("idefics3") / file, model / file)
    assert refusal(model) == (
        "its processor belongs to another model family than its config.json (qwen3_vl): the tokenizer has no token "
        "<|image_pad|>; copy the model's own files"
    )


def test_an_image_processor_of_another_family_is_refused(base_of: Bases, tmp_path: Path) -> None:
    model = copy_of(base_of("qwen3_vl"), tmp_path)
    shutil.copy(base_of("gemma3") / "preprocessor_config.json", model)
    assert refusal(model) == (
        "its processor belongs to another model family than its config.json (qwen3_vl): the image processor is a "
        "Gemma3ImageProcessor; copy preprocessor_config.json"
    )


def test_another_id_of_image_tokens_is_refused(base_of: Bases, tmp_path: Path) -> None:
    model = copy_of(base_of("internvl"), tmp_path)
    config = json.loads((model / "config.json").read_text())
    known = config["image_token_id"]
    config["image_token_id"] = 7
    (model / "config.json").write_text(json.dumps(config))
    assert refusal(model) == (
        f"the tokenizer's <IMG_CONTEXT> is token {known}, and config.json says 7; copy the model's own tokenizer.json "
        "and config.json"
    )


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        (
            "{% for m in messages %}{{ m.role }}: {% for c in m.content %}{% if c.type == 'image' %}<image>"
            "{% else %}{{ c.text }}{% endif %}{% endfor %}\n{% endfor %}"
            "{% if add_generation_prompt %}assistant: {% endif %}",
            "its chat template belongs to another model family: it writes 0 tags <|image_pad|> for one image; copy "
            "chat_template.jinja from the model's original files",
        ),
        ("{{ raise_exception('not today') }}", "the chat template fails: not today"),
        (
            "{{ 'a' * 10**10 }}",
            "the chat template fails: it needs over 2 s or 256 MB for one conversation",
        ),
        ("{% for m in %}", "the chat template fails: Expected an expression, got 'end of statement block'"),
        (
            "<|image_pad|>{% if add_generation_prompt %}assistant{% endif %}",
            "the chat template writes an answer that does not follow its generation prompt",
        ),
        (
            "<|image_pad|>",
            "its chat template does not write the answer at its generation prompt",
        ),
    ],
)
def test_a_template_that_cannot_be_trained_with_is_refused(
    base_of: Bases, tmp_path: Path, template: str, sentence: str
) -> None:
    model = copy_of(base_of("qwen3_vl"), tmp_path)
    (model / "chat_template.jinja").write_text(template)
    assert refusal(model) == sentence


PLAIN = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n\n{% for c in m.content %}{% if c.type == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
"""A template of one's own, which refuses system messages."""


def test_a_template_of_ones_own_is_followed_and_its_refusal_is_that_of_the_sample(
    base_of: Bases, tmp_path: Path
) -> None:
    model = copy_of(base_of("qwen3_vl"), tmp_path)
    (model / "chat_template.jinja").write_text(PLAIN)
    renderer = make_renderer(get_family("qwen3_vl"), load_processor(locate(str(model))))
    tokens = Encoder(renderer).tokenize(SAMPLE, [(64, 64)], num_crops=None)
    text = renderer.tokenizer.decode(renderer.model_ids(tokens.input_ids))
    pads = "<|image_pad|>" * 4
    assert text == (
        f"<|im_start|>user\n\n<|vision_start|>{pads}<|vision_end|>Which?<|im_end|>\n<|im_start|>assistant\n\n"
        "It is red.<|im_end|>\n"
    )
    assert renderer.tokenizer.decode(tokens.labels[tokens.labels >= 0]) == "It is red.<|im_end|>"
    system = SAMPLE.model_copy(update={"system": "Be brief."})
    with pytest.raises(SampleError) as caught:
        Encoder(renderer).tokenize(system, [(64, 64)], num_crops=None)
    assert str(caught.value) == "conversations[0].user: the chat template fails: System role not supported"


TAGS = {
    "qwen3_vl": "<|image_pad|>",
    "idefics3": "<image>",
    "llava_next": "<image>",
    "internvl": "<IMG_CONTEXT>",
    "gemma3": "<image_soft_token>",
}


@pytest.mark.parametrize("name", TAGS)
def test_a_text_with_the_familys_image_token_is_refused(name: str) -> None:
    family, tag = get_family(name), TAGS[name]
    encoder = Encoder(make_renderer(family, family.tiny_processor()))
    turn = SAMPLE.conversations[0]
    reason = f"the text contains {tag}, which stands for"
    for changed in ({"user": f"Which {tag}?"}, {"assistant": f"It {tag} is."}):
        sample = SAMPLE.model_copy(update={"conversations": (turn.model_copy(update=changed),)})
        with pytest.raises(SampleError) as caught:
            encoder.tokenize(sample, [(90, 60)], num_crops=None)
        assert reason in str(caught.value)
    with pytest.raises(SampleError) as caught:
        encoder.tokenize(SAMPLE.model_copy(update={"system": f"{tag}."}), [(90, 60)], num_crops=None)
    assert tag in str(caught.value)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    return partial(make_cli(capsys, monkeypatch), main=main)


@pytest.mark.parametrize(
    ("name", "option", "sentence"),
    [
        ("qwen3_vl", "longest_edge", "an image of qwen3_vl is limited by its area: give --max_pixels, a number of"),
        ("gemma3", "num_crops", "the model family gemma3 has no image budget: leave num_crops out"),
        ("gemma3", "max_pixels", "the model family gemma3 has no image budget: leave max_pixels out"),
        ("idefics3", "max_pixels", "images of the model family idefics3 are limited by --longest_edge: give that"),
    ],
)
def test_a_budget_in_the_terms_of_another_family_ends_the_command(
    cli: Cli, data_dir: Path, tmp_path: Path, name: str, option: str, sentence: str
) -> None:
    given = ["--model_name_or_path", f"tiny:{name}", f"--{option}", "300"]
    data = ["--data_dir", data_dir]
    for command in (["run", *data, "--output_dir", tmp_path / "out"], ["plan", *data], ["inspect", data_dir]):
        code, _, err = cli(*command, *given)
        assert code == 2
        assert sentence in err
        assert "Traceback" not in err


def test_pan_and_scan_of_gemma3_ends_the_command(cli: Cli, data_dir: Path, base_of: Bases, tmp_path: Path) -> None:
    model = copy_of(base_of("gemma3"), tmp_path)
    values = json.loads((model / "preprocessor_config.json").read_text())
    (model / "preprocessor_config.json").write_text(json.dumps({**values, "do_pan_and_scan": True}))
    code, _, err = cli("plan", "--data_dir", data_dir, "--model_name_or_path", model)
    assert code == 2
    assert "do_pan_and_scan is not supported: set it to false in preprocessor_config.json" in err
    assert "Traceback" not in err
