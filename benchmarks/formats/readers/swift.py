"""ms-swift's samples of an export, as JSON Lines: its preprocessor and template. Run by consumers.py."""
# ruff: noqa: E402 - the consumer is imported once its modules can be found

import json
import os
import sys
from hashlib import sha256
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

sys.path.append(sys.path.pop(0))  # this file has the name of the package
import transformers
from qwen_processor import images_only
from transformers.utils import is_torchvision_available

assert not is_torchvision_available()
for name in ("torchvision", "torchvision.io", "torchvision.transforms"):  # qwen_vl_utils imports it for videos only
    sys.modules[name] = ModuleType(name)
    sys.modules[name].__spec__ = ModuleSpec(name, None)
sys.modules["torchvision"].io = sys.modules["torchvision.io"]  # type: ignore[attr-defined]
sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]  # type: ignore[attr-defined]
sys.modules["torchvision"].__version__ = "0.0.0"  # type: ignore[attr-defined]
sys.modules["torchvision.transforms"].InterpolationMode = None  # type: ignore[attr-defined]

export, model, out = map(os.path.abspath, sys.argv[1:])
os.chdir(export)
transformers.AutoProcessor.from_pretrained = lambda *_, **__: images_only(model)
from swift import get_processor, get_template
from swift.dataset import load_dataset

template = get_template(get_processor(model, model_type="qwen2_5_vl"), max_length=100_000, template_type="qwen2_5_vl")
template.set_mode("train")
rows, _ = load_dataset("train.jsonl", load_from_cache_file=False)
with open(out, "w", encoding="utf-8") as file:
    for row in rows:
        found = template.encode(dict(row))
        images = [sha256(Path(image["path"]).read_bytes()).hexdigest() for image in row["images"] or ()]
        json.dump({"input_ids": list(found["input_ids"]), "labels": list(found["labels"]), "images": images}, file)
        file.write("\n")
