"""Problems of texts and lengths, and checks that could not run."""

from phi3v_data.problems.example import Example, ImageFile, Text, row
from phi3v_data.problems.model import Problem

TEXT = (
    Problem(
        "control-token",
        "text",
        "error",
        "a text contains a control token",
        "The model's own special tokens (`<|end|>`, `<|user|>`, `</s>` of phi3v) and image tags (`<|image_1|>`) take "
        "effect anywhere in a text; tags are added from `images` when a sample is encoded. Markers of other models "
        "(`<image>`, `[INST]`, `<|im_end|>`) are plain text to this one. `--model` says which model it is.",
        "An `<|end|>` inside a question ends it there; a stray image tag shifts every image after it. Other models' "
        "markers teach the model to write them.",
        Example({"train.jsonl": Text(row("a", user="<|image_1|>\nWhat is shown?"))}),
        "Remove it from the text; `phi3v-data import` does so for other formats.",
        severity_note="a warning for markers of other models",
    ),
    Problem(
        "invalid-text",
        "text",
        "error",
        "a text contains a character that cannot be written",
        "Half of a surrogate pair (`\\ud83d` alone), left over when a text was cut inside an emoji; or a NUL.",
        "The tokenizer raises an error on it, or software written in C ends the text at the NUL.",
        Example({"train.jsonl": Text(row("a").replace("A shape.", "A smile \\ud83d"))}),
        "Remove the character, and cut texts by characters, not by UTF-16 code units.",
    ),
)

TOKENS = (
    Problem(
        "too-long",
        "tokens",
        "error",
        "a sample is longer than --max_tokens",
        "Image tokens are exact, from the image's size and num_crops; text tokens are exact with a "
        "tokenizer (--tokenizer, or a folder as --model).",
        "The sample is truncated, loses its answer, or does not fit into memory.",
        Example(
            {"train.jsonl": Text(row("a", "a.png")), "images/a.png": ImageFile(336, 336)},
            {"max_tokens": 2000, "num_crops": 16},
        ),
        "Lower num_crops, shorten the text, use fewer images, or raise the limit.",
        severity_note="a warning if text tokens are estimated",
    ),
    Problem(
        "rope-switch",
        "tokens",
        "info",
        "a sample is longer than the original context of the model",
        "Beyond its original context (4096 tokens in phi3v) the model uses its long-context rotary factors for the "
        "whole sequence.",
        "This is not an error, but short and long samples are then computed with different factors; two square images "
        "at num_crops 16 are already beyond the limit.",
        Example(
            {
                "train.jsonl": Text(row("a", "a.png", "b.png")),
                "images/a.png": ImageFile(336, 336),
                "images/b.png": ImageFile(336, 336, seed=1),
            },
            {"num_crops": 16},
        ),
        "Nothing has to be fixed. To stay below the limit give a smaller --num_crops; for several images per sample, "
        "phi3v was trained with 4.",
    ),
)

RUNS = (
    Problem(
        "check-skipped",
        "runs",
        "warning",
        "a check could not run",
        "A folder cannot be read, a tokenizer cannot be loaded, or the receipt cannot be written. The message names "
        "the check and the reason.",
        "Data that was not checked may be wrong.",
        Example(
            {"train.jsonl": Text(row("a")), "model/tokenizer.json": Text("{}\n")},
            {"tokenizer": "model"},
        ),
        "Make the file readable or install what is missing, and validate again.",
    ),
)
