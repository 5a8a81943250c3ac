"""Trainers of others over the port: transformers' own and TRL's, a few steps each, from our sets and our processor."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from phi3v_data.schema import Sample, Turn
from phi3v_train.data.encode import Encoder, Provenance
from phi3v_train.models.phi3v.family import PHI3V
from phi3v_train.models.phi3v.tiny import tiny_model, tiny_processor

COLOURS = {"red": (200, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 210)}
PROCESSOR = tiny_processor(num_crops=1)


def samples() -> list[tuple[Sample, list[Image.Image]]]:
    """Three conversations with an image, the last of two turns."""
    result = []
    for number, (name, rgb) in enumerate(COLOURS.items()):
        turns = [Turn(images=(f"{name}.png",), user="Which colour?", assistant=name)]
        if number == 2:
            turns.append(Turn(user="Sure?", assistant="yes"))
        result.append((Sample(id=name, source="s", conversations=tuple(turns)), [Image.new("RGB", (64, 64), rgb)]))
    return result


def our_rows() -> list[dict[str, Tensor]]:
    """The samples as our encoder makes them."""
    rows = []
    for sample, images in samples():
        encoded = Encoder(PHI3V.renderer(PROCESSOR)).encode(
            sample, images, num_crops=1, provenance=Provenance("d", "train", 0, sample.id)
        )
        rows.append(
            {
                "input_ids": torch.from_numpy(encoded.input_ids),
                "labels": torch.from_numpy(encoded.labels),
                "canvases": torch.cat([torch.tensor(image["canvases"]).flatten() for image in encoded.images]),
                "image_sizes": torch.tensor(np.array([image["image_sizes"] for image in encoded.images])),
            }
        )
    return rows


def padded(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """A batch for any trainer."""
    pad = torch.nn.utils.rnn.pad_sequence
    return {
        "input_ids": pad([row["input_ids"] for row in rows], batch_first=True),
        "labels": pad([row["labels"] for row in rows], batch_first=True, padding_value=-100),
        "attention_mask": pad([torch.ones_like(row["input_ids"]) for row in rows], batch_first=True),
        "canvases": torch.cat([row["canvases"] for row in rows]),
        "image_sizes": torch.cat([row["image_sizes"] for row in rows]),
    }


def losses(trainer: Any) -> list[float]:
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def options(folder: Path, **changes: Any) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "per_device_train_batch_size": 3,
        "max_steps": 3,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 0.0,
        "weight_decay": 0.0,
        "logging_steps": 1,
        "report_to": "none",
        "save_strategy": "no",
        "seed": 0,
        "disable_tqdm": True,
        **changes,
    }


@pytest.mark.parametrize("accumulation", [1, 3])
def test_transformers_trainer(tmp_path: Path, accumulation: int) -> None:
    """Its losses are those of a plain loop on the whole batch, however the batch is divided."""
    from transformers import Trainer, TrainingArguments

    arguments = TrainingArguments(
        **options(
            tmp_path,
            per_device_train_batch_size=3 // accumulation,
            gradient_accumulation_steps=accumulation,
            remove_unused_columns=False,
            save_strategy="steps",
            save_steps=3,
            gradient_checkpointing=accumulation == 3,
        )
    )
    rows = our_rows()
    trainer = Trainer(model=tiny_model(), args=arguments, train_dataset=rows, data_collator=padded)
    found = losses(trainer)
    model = tiny_model().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    expected = []
    for _ in range(3):
        loss = model(**padded(rows)).loss
        expected.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert found == pytest.approx(expected, abs=2e-3)
    assert found[-1] < found[0]
    assert set(trainer.evaluate(rows)) >= {"eval_loss"}
    reloaded = type(trainer.model).from_pretrained(tmp_path / "checkpoint-3")
    assert all(torch.equal(*pair) for pair in zip(reloaded.parameters(), trainer.model.parameters(), strict=True))


def chat_rows() -> list[dict[str, Any]]:
    rows = []
    for sample, images in samples():
        messages = []
        for turn in sample.conversations:
            messages += [{"role": "user", "content": turn.user}, {"role": "assistant", "content": turn.assistant}]
        rows.append({"messages": messages, "images": images})
    return rows


@pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 18),
    reason="TRL refuses assistant_only_loss on images before transformers 5.18",
)
def test_trl_trains_on_answers_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`assistant_only_loss`: TRL's labels are our encoder's but for `<|endoftext|>`, and its loss is the port's own."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(**options(tmp_path, assistant_only_loss=True, max_length=None, bf16=False))
    trainer = SFTTrainer(
        model=tiny_model(), args=arguments, train_dataset=Dataset.from_list(chat_rows()), processing_class=PROCESSOR
    )
    assert "end-of-turn" not in caplog.text
    batch = trainer.data_collator(chat_rows())
    for row, ours in enumerate(our_rows()):
        length = len(ours["input_ids"]) - 1
        assert torch.equal(batch["input_ids"][row, :length], ours["input_ids"][:-1])
        assert torch.equal(batch["labels"][row, :length], ours["labels"][:-1])
        assert set(batch["labels"][row, length:].tolist()) <= {-100}
    with torch.no_grad():
        expected = tiny_model().train()(**batch).loss.item()
    found = losses(trainer)
    assert found[0] == pytest.approx(expected, abs=1e-4)
    assert found[-1] < found[0]


def test_trl_packs_without_padding(tmp_path: Path) -> None:
    """Text alone, packed into one row: every sample sees itself only, so the loss is that of samples side by side."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [{"messages": row["messages"]} for row in chat_rows()]
    arguments = SFTConfig(
        **options(
            tmp_path,
            assistant_only_loss=True,
            packing=True,
            max_length=256,
            per_device_train_batch_size=1,
            max_steps=1,
            bf16=False,
        )
    )
    model = tiny_model()
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=PROCESSOR)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape[0] == 1
    assert {"position_ids", "cu_seq_lens_q", "max_length_q"} & set(batch)
    texts = [
        PROCESSOR.apply_chat_template(
            row["messages"], tokenize=True, return_dict=True, return_assistant_tokens_mask=True, return_tensors="pt"
        )
        for row in rows
    ]
    total, count = 0.0, 0
    with torch.no_grad():
        for text in texts:
            labels = text["input_ids"].masked_fill(text["assistant_masks"] == 0, -100)
            number = int((labels >= 0).sum())
            total += tiny_model()(input_ids=text["input_ids"], labels=labels).loss.item() * number
            count += number
    assert losses(trainer)[0] == pytest.approx(total / count, abs=1e-4)
