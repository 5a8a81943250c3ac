"""TRL trains on the exports of a set: every row's tokens and supervised tokens are those of our own encoder."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "exporting"))
from five_samples import FIVE, write_set

from phi3v_data.exporting import export_set
from phi3v_train.data.encode import Encoder, Provenance
from phi3v_train.models.phi3v.family import PHI3V
from phi3v_train.models.phi3v.tiny import tiny_model, tiny_processor

PROCESSOR = tiny_processor(num_crops=1)


def our_rows(source: Path) -> list[dict[str, Any]]:
    encoder = Encoder(PHI3V.renderer(PROCESSOR))
    rows = []
    for sample in FIVE:
        images = [Image.open(source / "images" / name) for name in sample.images]
        rows.append(encoder.encode(sample, images, num_crops=1, provenance=Provenance("d", "train", 0, sample.id)))
    return rows


@pytest.mark.skipif(
    tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 18),
    reason="TRL refuses assistant_only_loss on images before transformers 5.18",
)
@pytest.mark.parametrize("name", ["trl", "hub"])
def test_trl_trains_one_step_on_an_export_of_the_five_samples(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import load_dataset
    from trl import SFTConfig, SFTTrainer
    from trl.data_utils import is_conversational

    source = write_set(tmp_path / "set")
    export_set(name, source, tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")  # paths of images are relative to the export
    cache = str(tmp_path / "cache")
    rows = (
        load_dataset("json", data_files="train.jsonl", split="train", cache_dir=cache)
        if name == "trl"
        else load_dataset(str(tmp_path / "out"), split="train", cache_dir=cache)
    )
    assert all(map(is_conversational, rows))
    arguments = SFTConfig(
        output_dir=str(tmp_path / "run"), use_cpu=True, per_device_train_batch_size=5, max_steps=1, report_to="none",
        save_strategy="no", assistant_only_loss=True, max_length=None, bf16=False, disable_tqdm=True, logging_steps=1,
    )  # fmt: skip
    trainer = SFTTrainer(model=tiny_model(), args=arguments, train_dataset=rows, processing_class=PROCESSOR)
    batch = trainer.data_collator(list(rows))
    for row, ours in enumerate(our_rows(source)):
        length = len(ours.input_ids) - 1  # without <|endoftext|>
        assert batch["input_ids"][row, :length].tolist() == ours.input_ids[:-1].tolist()
        assert batch["labels"][row, :length].tolist() == ours.labels[:-1].tolist()
        assert set(batch["labels"][row, length:].tolist()) <= {-100}
        assert max(batch["labels"][row].tolist()) >= 0
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    with torch.no_grad():
        expected = tiny_model().train()(**batch).loss.item()
    assert losses == pytest.approx([expected], abs=1e-4)
