"""axolotl's samples of exports, by its processing strategy and collator. Run by consumers.py and bad_rows.py."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.append(sys.path.pop(0))  # this file has the name of the package
from axolotl.processing_strategies import Qwen2VLProcessingStrategy
from axolotl.utils.collators.mm_chat import MultiModalChatDataCollator
from datasets import load_dataset
from qwen_processor import images_only
from reading import Row, digest, run

model, out, *exports = map(os.path.abspath, sys.argv[1:])
processor = images_only(model)
strategy = Qwen2VLProcessingStrategy(processor, roles_to_train=["assistant"], train_on_eos="turn")
collate = MultiModalChatDataCollator(processor.tokenizer, strategy)


def read(export: Path) -> Iterator[Row]:
    os.chdir(export)
    for row in load_dataset("json", data_files="train.jsonl", split="train", cache_dir=f"{out}.cache"):
        batch = collate([row])
        messages = strategy([row])[0]["messages"]
        blocks = [block for message in messages for block in message["content"] if block["type"] == "image"]
        yield {
            "input_ids": batch["input_ids"][0].tolist(),
            "labels": batch["labels"][0].tolist(),
            "images": [digest(block["path"]) for block in blocks if "path" in block],
        }


run(read, out, exports)
