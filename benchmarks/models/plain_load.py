"""Load models with plain transformers, in a process that never imports phi3v_train: `plain.py JOBS.json`.

Each job has a model directory, perhaps an adapter on it, and a file of inputs and logits; printed is the largest
difference of the logits of each, or the error.
"""

import json
import sys
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText


def difference(job: dict[str, str]) -> float:
    """The largest difference of the logits."""
    model: Any = AutoModelForImageTextToText.from_pretrained(job["model"], dtype=torch.float32)
    if job.get("adapter"):
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, job["adapter"])
    model.eval()
    held = load_file(job["inputs"])
    expected = held.pop("logits")
    with torch.no_grad():
        found = model(**held).logits
    return float((found - expected).abs().max())


def main() -> None:
    """Go through the jobs."""
    with open(sys.argv[1], encoding="utf-8") as file:
        jobs = json.load(file)
    results: dict[str, float | str] = {}
    for name, job in jobs.items():
        try:
            results[name] = difference(job)
        except Exception as error:  # to be reported
            results[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    assert "phi3v_train" not in sys.modules
    print(json.dumps(results))


if __name__ == "__main__":
    main()
