"""vLLM's own phi3v processor on ours: `DIR/bin/python benchmarks/serving/vllm_processor.py`.

DIR is made by `environment.sh vllm DIR`. For each prompt vLLM tokenizes the text, decodes it, splits it at the tags
and puts the image tokens in (`Phi3VMultiModalProcessor._apply_prompt_updates`); the ids are compared with those of
`Phi3VProcessor`, by which the model was trained. With the tiny tokenizer, whose special tokens behave as the released
one's; vLLM's id of the image token, 32044, is replaced by that of the tiny tokenizer. No engine is started.
"""

import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image

from phi3v_train.models.phi3v.register import register_with_transformers

register_with_transformers()

PROMPTS: dict[str, tuple[str, int]] = {
    "one image": ("<|user|>\n<|image_1|>\nWhat is this?<|end|>\n<|assistant|>\n", 1),
    "two images, newline between": ("<|user|>\n<|image_1|>\n<|image_2|>\nCompare.<|end|>\n<|assistant|>\n", 2),
    "two images, nothing between": ("<|user|>\n<|image_1|><|image_2|>Compare.<|end|>\n<|assistant|>\n", 2),
    "an image first": ("<|image_1|>What?", 1),
    "an image alone": ("<|image_1|>", 1),
    "images within the text, three turns": (
        "<|user|>\nLook: <|image_1|>  here  <|image_2|>.<|end|>\n<|assistant|>\nYes.<|end|>\n<|user|>\nAnd?<|end|>\n"
        "<|assistant|>\n",
        2,
    ),
    "system message, other scripts, </s> in the text": (
        "<|system|>\nBe brief.<|end|>\n<|user|>\n<|image_1|>\nÜber 日本 what</s>?<|end|>\n<|assistant|>\n",
        1,
    ),
    "an image last": ("<|user|>\n Hi<|end|> \n<|assistant|>\n<|image_1|>", 1),
    "text that begins with spaces behind an image": ("<|user|>\n<|image_1|>   Hi<|end|>\n<|assistant|>\n", 1),
    "a blank behind a special token": ("<|user|> <|image_1|>\nHi<|end|> <|assistant|> \n", 1),
    "no image": ("<|user|>\nHello<|end|>\n<|assistant|>\n", 0),
}


def make_processors(directory: Path) -> tuple[Any, Any, int]:
    """vLLM's multimodal processor over ours, ours, and the id of the image token."""
    from transformers import AutoConfig, AutoProcessor, AutoTokenizer
    from vllm.config.multimodal import MultiModalConfig
    from vllm.model_executor.models import phi3v as theirs
    from vllm.multimodal.processing.context import InputProcessingContext

    processor, tokenizer = AutoProcessor.from_pretrained(directory), AutoTokenizer.from_pretrained(directory)

    class Context(InputProcessingContext):
        """vLLM's context without an engine: the model's settings, the tokenizer, and our processor."""

        def __init__(self) -> None:
            multimodal = MultiModalConfig()
            settings = {
                "model": str(directory),
                "hf_config": AutoConfig.from_pretrained(directory),
                "multimodal_config": multimodal,
                "get_multimodal_config": lambda: multimodal,
                "max_model_len": 4096,
                "encoder_config": None,
                "dtype": torch.float32,
            }
            object.__setattr__(self, "tokenizer", tokenizer)
            object.__setattr__(self, "model_config", SimpleNamespace(**settings))

        def get_hf_processor(self, *args: Any, **kwargs: Any) -> Any:
            return processor

    theirs._IMAGE_TOKEN_ID = tokenizer.convert_tokens_to_ids("<|image|>")
    info = theirs.Phi3VProcessingInfo(Context())
    return (
        theirs.Phi3VMultiModalProcessor(info, theirs.Phi3VDummyInputsBuilder(info)),
        processor,
        theirs._IMAGE_TOKEN_ID,
    )


def compare(theirs: Any, ours: Any, image_token: int, text: str, images: list[Image.Image]) -> dict[str, Any]:
    """Whether ids, places of images and arrays are the same."""
    items = theirs.info.parse_mm_data({"image": images} if images else {}, validate=False)
    output = theirs(text, items)
    inputs = ours(text, images or None)
    ids = inputs["input_ids"][0].tolist()
    expected = [image_token if token < 0 else token for token in ids]
    places = [(each.offset, each.length) for each in output.get("mm_placeholders", {}).get("image", ())]
    runs = [(ids.index(-number), ids.count(-number)) for number in range(1, len(images) + 1)]
    same_arrays = True
    if images:
        data = output["mm_kwargs"].get_data()
        same_arrays = all(bool((data[name] == inputs[name]).all()) for name in ("pixel_values", "image_sizes"))
    got = output["prompt_token_ids"]
    return {
        "tokens": len(ids),
        "same_ids": got == expected,
        "same_places": places == runs,
        "same_arrays": same_arrays,
        **({} if got == expected else {"ours": squeezed(expected), "vllm": squeezed(got)}),
    }


def squeezed(ids: list[int]) -> list[str]:
    """Ids with runs of one id as `ID*COUNT`."""
    runs: list[list[int]] = []
    for token in ids:
        if runs and runs[-1][0] == token:
            runs[-1][1] += 1
        else:
            runs.append([token, 1])
    return [str(token) if count == 1 else f"{token}*{count}" for token, count in runs]


def main() -> None:
    """Compare all prompts and print the result as JSON; exit 1 if one differs."""
    from phi3v_train.models.phi3v.tiny import save_tiny

    images = [Image.effect_noise((400, 300), 80).convert("RGB"), Image.linear_gradient("L").resize((300, 600))]
    with tempfile.TemporaryDirectory() as folder:
        save_tiny(folder)
        theirs, ours, image_token = make_processors(Path(folder))
        results = {
            name: compare(theirs, ours, image_token, text, [each.convert("RGB") for each in images[:count]])
            for name, (text, count) in PROMPTS.items()
        }
        profile = Image.new("RGB", (50, 8000))  # with which vLLM measures its memory
        results["vLLM's profiling image, 50 x 8000"] = compare(theirs, ours, image_token, "<|image_1|>", [profile])
    versions = {name: version(name) for name in ("vllm", "transformers", "torch")}
    print(json.dumps({"versions": versions, "prompts": results}, indent=2, ensure_ascii=False))
    sys.exit(not all(all(each[name] for name in each if name.startswith("same_")) for each in results.values()))


if __name__ == "__main__":
    main()
