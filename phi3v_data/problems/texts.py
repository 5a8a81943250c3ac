"""Problems of texts and of lengths, and checks that could not run."""

from phi3v_data.problems.example import Example, Picture, Text, row
from phi3v_data.problems.model import Problem

TEXT = (
    Problem(
        "control-token",
        "text",
        "error",
        "a text holds a control token",
        "The model's own special tokens (`<|end|>`, `<|user|>`, `</s>`) and image tags (`<|image_1|>`) take "
        "effect wherever they stand; tags are added when a sample is encoded, from its `images`. Markers of "
        "other models (`<image>`, `[INST]`, `<|im_end|>`) are plain letters to this one.",
        "An `<|end|>` inside a question ends it there; a stray image tag shifts every picture after it. Other models' "
        "markers teach the model to write them.",
        Example({"train.jsonl": Text(row("a", user="<|image_1|>\nWhat is shown?"))}),
        "Remove it from the text; `phi3v-data import` does so when it reads other formats.",
        severity_note="a warning for markers of other models",
    ),
    Problem(
        "invalid-text",
        "text",
        "error",
        "a text holds a character that cannot be written",
        "Half of a surrogate pair (`\\ud83d` alone), left over when a text was cut inside an emoji; or a NUL.",
        "The tokenizer raises an error on it, or the text ends at the NUL in software written in C.",
        Example({"train.jsonl": Text(row("a").replace("A shape.", "A smile \\ud83d"))}),
        "Remove the character, and cut texts by characters, not by UTF-16 units.",
    ),
)

TOKENS = (
    Problem(
        "too-long",
        "tokens",
        "error",
        "a sample is longer than --max_tokens",
        "Image tokens are exact, from the picture's size and num_crops; text tokens are exact with --tokenizer.",
        "The sample is cut, loses its answer, or does not fit into memory.",
        Example(
            {"train.jsonl": Text(row("a", "a.png")), "images/a.png": Picture(336, 336)},
            {"max_tokens": 2000, "num_crops": 16},
        ),
        "Lower num_crops, shorten the text, use fewer pictures, or raise the limit.",
        severity_note="a warning where text tokens are estimated",
    ),
    Problem(
        "rope-switch",
        "tokens",
        "info",
        "a sample is longer than 4096 tokens",
        "Past its original context of 4096 tokens the model takes another set of rotary factors for the "
        "whole sequence.",
        "Nothing is wrong; but short and long samples are then seen through different factors, and two square pictures "
        "at num_crops 16 are past the switch.",
        Example(
            {
                "train.jsonl": Text(row("a", "a.png", "b.png")),
                "images/a.png": Picture(336, 336),
                "images/b.png": Picture(336, 336, seed=1),
            },
            {"num_crops": 16},
        ),
        "For several pictures a sample, num_crops 4 is what the model was trained with.",
    ),
)

RUNS = (
    Problem(
        "check-skipped",
        "runs",
        "warning",
        "a check could not run",
        "A folder that cannot be read, a tokenizer that does not load, a directory in which no receipt can be left. "
        "The message says which check and why.",
        "What was not checked may be wrong.",
        Example(
            {"train.jsonl": Text(row("a")), "model/tokenizer.json": Text("{}\n")},
            {"tokenizer": "model"},
        ),
        "Make the file readable or install what is missing, and validate again.",
    ),
)
