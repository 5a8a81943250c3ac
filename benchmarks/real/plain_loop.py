"""The same model trained by a plain PyTorch loop: transformers' own interface, `torch.optim.AdamW`, no code of a run.

It reads the rows of the same directory, starts from the same weights and uses the same number of epochs, batch size,
learning rate, warm-up and schedule. Its order of rows is its own.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from small_model import Recipe
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoProcessor

import phi3v_train  # noqa: F401  # registers the model

SAVE_SECONDS = 300.0
LOG_STEPS = 10
BETAS, EPSILON, MAX_NORM = (0.9, 0.95), 1e-7, 1.0
STATE, LOG, RESULT = "state.pt", "log.json", "eval.json"

Row = tuple[Path, str, str]
"""Image, question, answer."""


def read_rows(data: Path, split: str) -> list[Row]:
    """The rows of a split, read as the JSON lines that they are."""
    [file] = data.glob(f"*_{split}.jsonl")
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        [turn] = json.loads(line)["conversations"]
        rows.append((data / "images" / turn["images"][0], turn["user"], turn["assistant"]))
    return rows


def prompt(question: str) -> str:
    """The prompt in Phi-3-vision's chat format."""
    return f"<|user|>\n<|image_1|>\n{question}<|end|>\n<|assistant|>\n"


def make_batch(processor: Any, rows: Sequence[Row]) -> dict[str, Tensor]:
    """Inputs and labels of some rows, padded on the right."""
    tokenizer = processor.tokenizer
    images = [Image.open(path).convert("RGB") for path, _, _ in rows]
    sequences, starts, pixels = [], [], []
    for image, (_, question, answer) in zip(images, rows, strict=True):
        inputs = processor(prompt(question), image)
        ids = inputs["input_ids"][0].tolist()
        reply = tokenizer(f"{answer}<|end|>\n", add_special_tokens=False)["input_ids"] + [tokenizer.pad_token_id]
        sequences.append(ids + reply)
        starts.append(len(ids))
        pixels.append((inputs["pixel_values"], inputs["image_sizes"]))
    longest = max(map(len, sequences))
    ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for index, (sequence, start) in enumerate(zip(sequences, starts, strict=True)):
        ids[index, : len(sequence)] = torch.tensor(sequence)
        labels[index, start : len(sequence)] = torch.tensor(sequence[start:])
        mask[index, : len(sequence)] = 1
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "pixel_values": torch.cat([values for values, _ in pixels]),
        "image_sizes": torch.cat([sizes for _, sizes in pixels]),
    }


def rate(recipe: Recipe, step: int, total: int) -> float:
    """Learning rate of a step: it rises in a line, then falls in half a cosine."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * step / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, total - recipe.warmup_steps)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def train_plain(folder: Path, data: Path, start: Path, recipe: Recipe, seed: int, stop: Callable[[], bool]) -> None:
    """Train from the weights in `start`, then score all test questions; `folder` gets the state, log and result.

    With `stop` true, or killed, the same call resumes from the last state.
    """
    if (folder / RESULT).is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    processor = AutoProcessor.from_pretrained(start)
    model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    vectors = [value for value in model.parameters() if value.dim() < 2]
    matrices = [value for value in model.parameters() if value.dim() >= 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=BETAS, eps=EPSILON)
    log: list[dict[str, float]] = []
    begin = 0
    if (folder / STATE).is_file():
        state = torch.load(folder / STATE, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        begin, log = state["step"], state["log"]
    rows = read_rows(data, "train")
    per_epoch = math.ceil(len(rows) / recipe.batch_size)
    total = math.ceil(per_epoch * recipe.epochs)

    def save(step: int) -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "log": log}
        torch.save(state, folder / f".{STATE}")
        (folder / f".{STATE}").replace(folder / STATE)
        (folder / LOG).write_text(json.dumps({"step": step, "total": total, "steps": log}), encoding="utf-8")

    model.train()
    saved = time.monotonic()
    for step in range(begin, total):
        if stop():
            save(step)
            return
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1000 * seed + epoch)).tolist()
        chosen = order[place * recipe.batch_size : (place + 1) * recipe.batch_size]
        for group in optimizer.param_groups:
            group["lr"] = rate(recipe, step, total)
        loss = model(**make_batch(processor, [rows[index] for index in chosen])).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % LOG_STEPS == 0:
            log.append({"step": step + 1, "loss": loss.item()})
        if time.monotonic() - saved > SAVE_SECONDS:
            save(step + 1)
            saved = time.monotonic()
    save(total)
    model.eval()
    right = score(model, processor, read_rows(data, "test"), recipe.batch_size)
    result = {"num_right": sum(right), "num_rows": len(right)}
    (folder / RESULT).write_text(json.dumps(result), encoding="utf-8")


@torch.no_grad()
def score(model: Any, processor: Any, rows: Sequence[Row], batch_size: int) -> list[bool]:
    """Whether the greedy answer to each question is the true one."""
    right = []
    processor.tokenizer.padding_side = "left"
    for begin in range(0, len(rows), batch_size):
        chosen = rows[begin : begin + batch_size]
        images = [Image.open(path).convert("RGB") for path, _, _ in chosen]
        inputs = processor([prompt(question) for _, question, _ in chosen], images, padding=True)
        output = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        texts = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        right += [text.strip() == answer for text, (_, _, answer) in zip(texts, chosen, strict=True)]
    return right
