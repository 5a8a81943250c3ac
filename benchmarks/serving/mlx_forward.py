"""mlx-vlm's phi3_v against ours on a CPU: `DIR/bin/python benchmarks/serving/mlx_forward.py`.

DIR is made by `environment.sh mlx DIR`. A model with a tiny decoder and CLIP's tower (random weights, fp32) is written
by our code, loaded by mlx-vlm with its strict check of names, and given our processor's inputs; the ids of its own
processor are compared with ours, too. Prints JSON.

mlx computes about 2 GFLOP/s on a CPU, so the tower of 24 layers takes three minutes per tile: `--layers N` gives both
towers N layers (mlx-vlm's has 24 whatever config.json says), `--images N` asks for fewer images than two.
"""

import argparse
import json
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from mlx_vlm.models.phi3_v.processing_phi3_v import Phi3VProcessor as TheirProcessor
from mlx_vlm.models.phi3_v.vision import VisionModel
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
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--images", type=int, choices=(1, 2), default=2)
    options = parser.parse_args()
    VisionModel.CLIP_VIT_LARGE_PATCH14_336_CONFIG.num_hidden_layers = options.layers
    config = tiny_config().to_dict()
    tower = {"image_dim_out": 1024, "num_img_tokens": 144, "name": "clip_vision_model"}
    config["img_processor"] = {**tower, "vision_config": {"num_hidden_layers": options.layers}}
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
        their_processor = TheirProcessor.from_pretrained(folder)
        here = [token for token in processor(ONE, images[:1])["input_ids"][0].tolist() if token >= 0]
        there = np.array(their_processor(images=images[:1], text=ONE)["input_ids"])[0].tolist()
        results: dict[str, Any] = {
            "tower layers": options.layers,
            "ids without image tokens": {"ours": here, "mlx": [token for token in there if token >= 0]},
        }
        prompts = {"text": (TEXT, 0), "one image": (ONE, 1), "two images": (TWO, 2)}
        for name, (text, number) in prompts.items():
            if number <= options.images:
                results[name] = compare(ours, theirs, processor(text, images[:number] or None))
                print(json.dumps({name: results[name]}), file=sys.stderr, flush=True)
    versions = {name: version(name) for name in ("mlx", "mlx-vlm", "transformers", "torch")}
    print(json.dumps({"versions": versions, "results": results}, indent=2))


if __name__ == "__main__":
    main()
