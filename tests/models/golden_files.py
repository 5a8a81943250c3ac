"""Golden outputs of Microsoft's code that several tests of the model compare with: their paths, and how they are read.

They were made with the released code on transformers 4.43 and a tiny random checkpoint: tests/data/golden/README.md.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from phi3v_train.models.phi3v.image_processing_phi3_v import Phi3VImageProcessor
from phi3v_train.models.phi3v.processing_phi3_v import Phi3VProcessor
from phi3v_train.models.phi3v.tokenization_phi3_v import Phi3VTokenizer

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


@cache
def golden_json(name: str) -> Any:
    """A JSON file of the golden directory."""
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def golden_image(name: str) -> Image.Image:
    """An input image, by name without ending."""
    image = Image.open(GOLDEN / "images" / f"{name}.png")
    image.load()
    return image


def golden_processor(num_crops: int = 4) -> Phi3VProcessor:
    """A processor with the golden tokenizer."""
    return Phi3VProcessor(
        Phi3VImageProcessor(num_crops=num_crops), Phi3VTokenizer.from_pretrained(GOLDEN / "tiny_tokenizer")
    )
