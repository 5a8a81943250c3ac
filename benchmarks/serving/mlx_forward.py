"""mlx-vlm's phi3_v against ours on a CPU: `DIR/bin/python benchmarks/serving/mlx_forward.py`.

DIR is made by `environment.sh mlx DIR`. A model with a tiny decoder and CLIP's tower at full size (random weights,
fp32) is written by our code, loaded by mlx-vlm with its strict check of names, and given our processor's inputs; then
the ids of its own processor are compared with ours. Prints JSON.
"""

import json
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from mlx_vlm.models.phi3_v.processing_phi3_v import Phi3VProcessor as TheirProcessor
from mlx_vlm.utils import load_model
from PIL import Image

from phi3v_train.models.phi3v.configuration_phi3_v import Phi3VConfig
from phi3v_train.models.phi3v.modeling_phi3_v import Phi3VForConditionalGeneration
from phi3v_train.models.phi3v.tiny import tiny_config, tiny_processor

TEXT = "<|user|>\nHello there<|end|>\n<|assistant|>\n"
ONE = "<|user|>\n<|image_1|>\nWhat is this?<|end|>\n<|assistant|>\n"
TWO = "<|user|>\n<|image_1|>\n<|image_2|>\nCompare.<|end|>\n<|assistant|>\n"


def compare(ours: Any, theirs: Any, inputs: Any) -> dict[str, Any]:
    """The largest difference of the logits, their spread, and how often the most likely token is the same."""
    start = time.perf_counter()
    with torch.no_grad():
        expected = ours(**inputs).logits[0].numpy()
    images = {name: mx.array(inputs[name].numpy()) for name in ("pixel_values", "image_sizes") if name in inputs}
    logits = theirs(mx.array(inputs["input_ids"].numpy()), **images).logits[0]
    found = np.array(logits.astype(mx.float32))
    return {
        "tokens": len(expected),
        "largest_difference": float(np.abs(found - expected).max()),
        "standard_deviation": float(expected.std()),
        "same_most_likely": float((found.argmax(-1) == expected.argmax(-1)).mean()),
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    """Write the model, compare, and print."""
    config = tiny_config().to_dict()
    config["img_processor"] = {"image_dim_out": 1024, "num_img_tokens": 144, "name": "clip_vision_model"}
    images = [Image.effect_noise((400, 300), 80).convert("RGB"), Image.linear_gradient("L").resize((300, 600))]
    images[1] = images[1].convert("RGB")
    processor = tiny_processor(num_crops=1)
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        ours = Phi3VForConditionalGeneration(Phi3VConfig.from_dict(config)).eval()
        ours.save_pretrained(folder)
        processor.save_pretrained(folder)
        loaded = load_model(Path(folder))
        theirs = loaded[0] if isinstance(loaded, tuple) else loaded
        results = {"text": compare(ours, theirs, processor(TEXT, None))}
        print(json.dumps(results), flush=True)
        results["one image"] = compare(ours, theirs, processor(ONE, images[:1]))
        print(json.dumps(results), flush=True)
        results["two images"] = compare(ours, theirs, processor(TWO, images))
        their_processor = TheirProcessor.from_pretrained(folder)
        here = [token for token in processor(ONE, images[:1])["input_ids"][0].tolist() if token >= 0]
        there = np.array(their_processor(images=images[:1], text=ONE)["input_ids"])[0].tolist()
        results["ids without image tokens"] = {"ours": here, "mlx": [token for token in there if token >= 0]}
    versions = {name: version(name) for name in ("mlx", "mlx-vlm", "transformers", "torch")}
    print(json.dumps({"versions": versions, "results": results}, indent=2))


if __name__ == "__main__":
    main()
