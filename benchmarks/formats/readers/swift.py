"""ms-swift's samples of exports, by its preprocessor and template. Run by consumers.py and bad_rows.py."""
# ruff: noqa: E402 - the consumer is imported once its modules can be found

import os
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

sys.path.append(sys.path.pop(0))  # this file has the name of the package
import transformers
from qwen_processor import images_only
from reading import Row, digest, run
from transformers.utils import is_torchvision_available

assert not is_torchvision_available()
for name in ("torchvision", "torchvision.io", "torchvision.transforms"):  # qwen_vl_utils imports it for videos only
    sys.modules[name] = ModuleType(name)
    sys.modules[name].__spec__ = ModuleSpec(name, None)
sys.modules["torchvision"].io = sys.modules["torchvision.io"]  # type: ignore[attr-defined]
sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]  # type: ignore[attr-defined]
sys.modules["torchvision"].__version__ = "0.0.0"  # type: ignore[attr-defined]
sys.modules["torchvision.transforms"].InterpolationMode = None  # type: ignore[attr-defined]

model, out, *exports = map(os.path.abspath, sys.argv[1:])
transformers.AutoProcessor.from_pretrained = lambda *_, **__: images_only(model)
from swift import get_processor, get_template
from swift.dataset import LazyLLMDataset, load_dataset

template = get_template(get_processor(model, model_type="qwen2_5_vl"), max_length=100_000, template_type="qwen2_5_vl")
template.set_mode("train")


def read(export: Path) -> Iterator[Row]:
    os.chdir(export)
    [name] = [path.name for path in export.iterdir() if path.is_file()]
    rows, _ = load_dataset(name, load_from_cache_file=False)
    encoded = LazyLLMDataset(rows, template.encode, strict=False, random_state=0)
    for place, row in enumerate(rows):
        found = encoded[place]
        yield {
            "input_ids": list(found["input_ids"]),
            "labels": list(found["labels"]),
            "images": [digest(image["path"]) for image in row.get("images") or ()],
        }


run(read, out, exports)
