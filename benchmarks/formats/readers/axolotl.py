"""axolotl's samples of an export, as JSON Lines: its processing strategy and collator. Run by consumers.py."""

import json
import os
import sys
from hashlib import sha256
from pathlib import Path

sys.path.append(sys.path.pop(0))  # this file has the name of the package
from axolotl.processing_strategies import Qwen2VLProcessingStrategy
from axolotl.utils.collators.mm_chat import MultiModalChatDataCollator
from datasets import load_dataset
from qwen_processor import images_only

export, model, out = map(os.path.abspath, sys.argv[1:])
os.chdir(export)
processor = images_only(model)
strategy = Qwen2VLProcessingStrategy(processor, roles_to_train=["assistant"], train_on_eos="turn")
collate = MultiModalChatDataCollator(processor.tokenizer, strategy)
rows = load_dataset("json", data_files="train.jsonl", split="train", cache_dir=f"{out}.cache")
with open(out, "w", encoding="utf-8") as file:
    for row in rows:
        batch = collate([row])
        messages = strategy([row])[0]["messages"]
        blocks = [block for message in messages for block in message["content"] if block["type"] == "image"]
        images = [sha256(Path(block["path"]).read_bytes()).hexdigest() for block in blocks]
        ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
        json.dump({"input_ids": ids, "labels": labels, "images": images}, file)
        file.write("\n")
