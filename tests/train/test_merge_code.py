"""`merge --with_code`: a Phi-3-vision directory that loads where this package is not installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_dirs import command
from sample_dirs import make_image

from phi3v_train.models.loading import load_model, load_processor
from phi3v_train.models.locate import locate
from phi3v_train.models.machine import Chosen, Compute
from phi3v_train.training.merging import merge_to

FP32 = Compute(Chosen("cpu", ""), Chosen("fp32", ""), Chosen("sdpa", ""), 0)
PROMPT = "<|user|>\n<|image_1|>\nWhich colour?<|end|>\n<|assistant|>\n"
SETTINGS = ("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json")

ELSEWHERE = """
import contextlib, io, json, os, pathlib, sys
from importlib.abc import MetaPathFinder

class Blocker(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("phi3v_train", "phi3v_data"):
            raise ModuleNotFoundError(f"blocked: {name}")

sys.meta_path.insert(0, Blocker())
from PIL import Image
from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor
directory, image, prompt = sys.argv[1:]
config = AutoConfig.from_pretrained(directory, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(directory, trust_remote_code=True)
inputs = processor(prompt, Image.open(image))
answer = model.generate(**inputs, max_new_tokens=6, do_sample=False)
chat = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which colour?"}]}]
os.chdir(directory)
code = pathlib.Path("README.md").read_text().partition("```python\\n")[2].partition("```")[0]
with contextlib.redirect_stdout(io.StringIO()) as printed:
    exec(code, {})
print(json.dumps({
    "card": printed.getvalue(),
    "trusting": code.count("trust_remote_code=True"),
    "config": type(config).__name__,
    "same_class": isinstance(model.config, type(config)),
    "inputs": inputs["input_ids"].tolist(),
    "answer": answer.tolist(),
    "chat": processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True),
    "ours": [name for name in sys.modules if name.split(".")[0] in ("phi3v_train", "phi3v_data")],
}))
"""


@pytest.fixture(scope="module")
def merged(base: Path) -> Path:
    out = base.with_name("merged")
    merge_to(locate(str(base)), out, with_code=True)
    return out


@pytest.mark.slow
def test_a_merged_directory_with_code_answers_the_same_without_this_package(merged: Path, tmp_path: Path) -> None:
    image = tmp_path / "image.png"
    make_image(0).save(image)
    make_image(0).save(merged / "image.jpg")  # that of the card
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(merged), str(image), PROMPT],
        capture_output=True, text=True, env=environment, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    there = json.loads(done.stdout)
    assert there["ours"] == []
    assert there["trusting"] == 2
    assert there["card"].endswith("\n")
    assert there["config"] == "Phi3VConfig"
    assert there["same_class"]
    place = locate(str(merged))
    model, processor = load_model(place, FP32).eval(), load_processor(place)
    inputs = processor(PROMPT, make_image(0))
    assert there["inputs"] == inputs["input_ids"].tolist()
    with torch.no_grad():
        answer = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    assert there["answer"] == answer.tolist()
    assert there["chat"] == PROMPT


def test_every_settings_file_names_the_code_and_the_code_nothing_of_this_project(merged: Path) -> None:
    assert sorted(path.name for path in merged.glob("*.py")) == ["modeling_phi3_v.py"]
    source = (merged / "modeling_phi3_v.py").read_text()
    assert not [line for line in source.splitlines() if line.lstrip().startswith(("from phi3v", "import phi3v"))]
    assert "fcntl" not in source  # Windows has none
    for name in SETTINGS:
        if (merged / name).exists():
            for target in json.loads((merged / name).read_text())["auto_map"].values():
                target = target[1] if isinstance(target, list) else target
                assert f"class {target.removeprefix('modeling_phi3_v.')}(" in source
    assert (merged / "processor_config.json").exists()


def test_merged_again_without_code_it_names_none(merged: Path, tmp_path: Path) -> None:
    merge_to(locate(str(merged)), tmp_path / "plain")
    assert not list((tmp_path / "plain").glob("*.py"))
    for name in SETTINGS:
        path = tmp_path / "plain" / name
        assert not path.exists() or "auto_map" not in json.loads(path.read_text())


def test_a_family_of_transformers_needs_no_code(tmp_path: Path) -> None:
    done = command("merge", "tiny:smolvlm", str(tmp_path / "out"), "--with_code")
    assert done.returncode == 2
    assert "--with_code is not needed for" in done.stderr
    assert not (tmp_path / "out").exists()
