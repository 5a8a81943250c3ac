"""Load model directories with transformers and peft alone: `python plain_loads.py JOBS.json`.

A job has `directory`, `inputs` and `logits` (torch files, read and written), `base` of an adapter, and may ask for
`pixels` of `image` and for `ids` of `text` by the directory's own processor.
"""

import json
import sys
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, AutoTokenizer
from transformers.models.auto.image_processing_auto import AutoImageProcessor

for job in json.loads(Path(sys.argv[1]).read_text()):
    if job.get("base"):
        from peft import PeftModel

        base = AutoModelForImageTextToText.from_pretrained(job["base"], dtype="auto")
        model = PeftModel.from_pretrained(base, job["directory"])
    else:
        model = AutoModelForImageTextToText.from_pretrained(job["directory"], dtype="auto")
    with torch.no_grad():
        found = {"logits": model.eval()(**torch.load(job["inputs"]), use_cache=False).logits}
    if "image" in job:
        image = Image.open(job["image"])
        options = {**job["image_options"], "return_tensors": "np"}
        pixels = AutoImageProcessor.from_pretrained(job["directory"], backend="pil")(image, **options)["pixel_values"]
        found["pixels"] = torch.tensor(pixels)
        tokenizer = AutoTokenizer.from_pretrained(job["directory"])
        found["text_ids"] = tokenizer(job["text"], add_special_tokens=False, return_tensors="pt")["input_ids"]
        if job["has_processor"]:
            processor = AutoProcessor.from_pretrained(job["directory"])
            add = not job["text"].startswith(tokenizer.bos_token)
            found["ids"] = processor(text=job["text"], images=image, add_special_tokens=add)["input_ids"]
            found["prompt"] = processor.apply_chat_template(job["messages"], add_generation_prompt=True)
    torch.save(found, job["logits"])
assert not [name for name in sys.modules if name.partition(".")[0] in ("phi3v_train", "phi3v_data")]
