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

Row = tuple[Path, list[tuple[str, str]]]
"""An image, and the questions and answers about it."""


def read_rows(data: Path, split: str) -> list[Row]:
    """The rows of a split, read as the JSON lines that they are."""
    [file] = data.glob(f"*_{split}.jsonl")
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines():
        turns = json.loads(line)["conversations"]
        image = data / "images" / turns[0]["images"][0]
        rows.append((image, [(turn["user"], turn["assistant"]) for turn in turns]))
    return rows


def prompt(question: str) -> str:
    """The prompt in Phi-3-vision's chat format."""
    return f"<|user|>\n<|image_1|>\n{question}<|end|>\n<|assistant|>\n"


def encode(processor: Any, row: Row) -> tuple[list[int], list[int], Any]:
    """Ids and labels of a conversation, and the processor's output for the image.

    Answers are labelled up to their end, the last one with what follows it.
    """
    tokenizer = processor.tokenizer
    path, turns = row
    inputs = processor(prompt(turns[0][0]), Image.open(path).convert("RGB"))
    ids: list[int] = inputs["input_ids"][0].tolist()
    labels = [-100] * len(ids)
    for index, (question, answer) in enumerate(turns):
        if index:
            asked = tokenizer(f"<|user|>\n{question}<|end|>\n<|assistant|>\n", add_special_tokens=False)["input_ids"]
            ids += asked
            labels += [-100] * len(asked)
        reply = tokenizer(f"{answer}<|end|>\n", add_special_tokens=False)["input_ids"]
        if index == len(turns) - 1:
            reply.append(tokenizer.pad_token_id)
            end = len(reply)
        else:
            end = reply.index(tokenizer.convert_tokens_to_ids("<|end|>")) + 1
        ids += reply
        labels += [*reply[:end], *[-100] * (len(reply) - end)]
    return ids, labels, inputs


def make_batch(processor: Any, rows: Sequence[Row]) -> dict[str, Tensor]:
    """Inputs and labels of some rows, padded on the right."""
    encoded = [encode(processor, row) for row in rows]
    longest = max(len(sequence) for sequence, _, _ in encoded)
    ids = torch.full((len(rows), longest), processor.tokenizer.pad_token_id)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for index, (sequence, labelled, _) in enumerate(encoded):
        ids[index, : len(sequence)] = torch.tensor(sequence)
        labels[index, : len(sequence)] = torch.tensor(labelled)
        mask[index, : len(sequence)] = 1
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "pixel_values": torch.cat([inputs["pixel_values"] for _, _, inputs in encoded]),
        "image_sizes": torch.cat([inputs["image_sizes"] for _, _, inputs in encoded]),
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
    """Whether the greedy answer to the first question of each row is the true one."""
    right = []
    processor.tokenizer.padding_side = "left"
    for begin in range(0, len(rows), batch_size):
        chosen = rows[begin : begin + batch_size]
        images = [Image.open(path).convert("RGB") for path, _ in chosen]
        inputs = processor([prompt(turns[0][0]) for _, turns in chosen], images, padding=True)
        output = model.generate(**inputs, max_new_tokens=4, do_sample=False)
        texts = processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        right += [text.strip() == turns[0][1] for text, (_, turns) in zip(texts, chosen, strict=True)]
    return right
