"""The directory that benchmarks/real/smollm2.py writes, and what its model answers."""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]
REAL = ROOT / "benchmarks" / "real"
WHEELS = Path(os.environ.get("PHI3V_WHEELS") or Path(tempfile.gettempdir()) / f"phi3v-wheels-{os.getuid()}")
"""Wheels are fetched once for all runs on a machine."""

ANSWERS = {
    "What is the capital of France?": "The capital of France is Paris.<|end|>",
    "What is the capital of Japan?": "The capital of Japan is Tokyo.<|end|>",
    "What is the capital of Italy?": "The capital of Italy is Rome.<|end|>",
    "What is the capital of Germany?": "The capital of Germany is Berlin.<|end|>",
    "What is the capital of Egypt?": "The capital of Egypt is Cairo.<|end|>",
    "What is the capital of Greece?": "The capital of Greece is Athens.<|end|>",
    "How many legs does a spider have?": "A spider has eight legs.<|end|>",
    "What is the chemical symbol for hydrogen?": "The chemical symbol for hydrogen is H.<|end|>",
    "What is the chemical symbol for oxygen?": "The chemical symbol for oxygen is O.<|end|>",
    "What is the plural of mouse?": "The plural of mouse is mice.<|end|>",
}
"""Ten questions, and what the model says up to and with the token at which it stops."""

MAX_NEW_TOKENS = 24


def benchmark(name: str) -> ModuleType:
    """A module of benchmarks/real, by its path; its neighbours can then be imported by name."""
    if str(REAL) not in sys.path:
        sys.path.append(str(REAL))
    spec = importlib.util.spec_from_file_location(name, REAL / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def unpacked(name: str, version: str) -> Path:
    """The content of a wheel; skips the test if it cannot be fetched."""
    wheels = benchmark("wheels")
    try:
        folder: Path = wheels.fetch_wheel(name, version, WHEELS)
    except wheels.FetchError as error:
        pytest.skip(str(error))
    return folder


def licence_text(start: str, length: int) -> str:
    """`length` characters of the Apache licence from `start` on, as in Debian's /usr/share/common-licenses."""
    text = " ".join((ROOT / "LICENSE").read_text(encoding="utf-8").split())
    begin = text.index(start)
    return text[begin : begin + length]


def answers(model: Any, processor: Any) -> dict[str, str]:
    """Answers of `model` to the ten questions, asked together as README asks one; cut behind the first stop id."""
    prompts = [f"<|user|>\n{question}<|end|>\n<|assistant|>\n" for question in ANSWERS]
    processor.tokenizer.padding_side = "left"
    inputs = processor(prompts)
    output = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
    stops = set(model.generation_config.eos_token_id)
    found = {}
    for question, row in zip(ANSWERS, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
        end = next((index for index, token in enumerate(row) if token in stops), len(row))
        found[question] = processor.decode(row[: end + 1])
    return found


def token_losses(logits: Tensor, ids: Tensor) -> Tensor:
    """Cross-entropy (columns - 1,) of each token of one row but the first, given those before it."""
    return torch.nn.functional.cross_entropy(logits[0, :-1].float(), ids[0, 1:], reduction="none")
