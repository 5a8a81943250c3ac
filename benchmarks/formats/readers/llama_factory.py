"""LLaMA-Factory's samples of exports: run in its own environment by consumers.py and bad_rows.py."""
# ruff: noqa: E402 - the consumer is imported once its modules can be found

import json
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

sys.modules["torchaudio"] = ModuleType("torchaudio")  # its builds are for other versions of torch; images need none
sys.modules["torchaudio"].__spec__ = ModuleSpec("torchaudio", None)

from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from llamafactory.model import load_tokenizer
from llamafactory.model.patcher import patch_processor
from reading import Row, digest, run
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

model, out, *exports = sys.argv[1:]


def read(export: Path) -> Iterator[Row]:
    name = next(iter(json.loads((export / "dataset_info.json").read_text())))
    model_args, data_args, training_args, _, _ = get_train_args(
        {
            "model_name_or_path": model,
            "stage": "sft",
            "do_train": True,
            "dataset": name,
            "dataset_dir": str(export),
            "template": "qwen2_vl",
            "output_dir": "lf_out",
            "cutoff_len": 100_000,
            "use_cpu": True,
            "report_to": "none",
            "bf16": False,
            "trust_remote_code": False,
            "overwrite_cache": True,
            "use_fast_tokenizer": True,
        }
    )
    tokenizer = load_tokenizer(model_args)["tokenizer"]
    processor = SimpleNamespace(  # transformers' own class also loads a video processor, which needs torchvision
        image_processor=Qwen2VLImageProcessorPil.from_pretrained(model), tokenizer=tokenizer
    )
    patch_processor(processor, tokenizer, model_args)
    template = get_template_and_fix_tokenizer(tokenizer, data_args)
    rows = get_dataset(template, model_args, data_args, training_args, "sft", tokenizer, processor)["train_dataset"]
    for row in rows:
        yield {
            "input_ids": row["input_ids"],
            "labels": row["labels"],
            "images": [digest(image) for image in row.get("images") or ()],
        }


run(read, out, exports)
