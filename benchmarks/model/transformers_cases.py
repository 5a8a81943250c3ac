"""transformers' own common model and generation tests over the port; `transformers_suite.py` runs this file.

The package `tests` imported here is that of a transformers checkout, not ours.
"""

import unittest
from typing import Any

import torch
from tests.generation.test_utils import GenerationTesterMixin
from tests.test_modeling_common import ModelTesterMixin, ids_tensor
from transformers.models.auto import modeling_auto

import phi3v_train  # noqa: F401  # registers the model with transformers' Auto classes
from phi3v_train.models.phi3v.backbone import Phi3VModel
from phi3v_train.models.phi3v.configuration_phi3_v import Phi3VConfig
from phi3v_train.models.phi3v.modeling_phi3_v import Phi3VForConditionalGeneration

# The tests find out by class names, from these tables, which classes take labels and which is a base model.
modeling_auto.MODEL_MAPPING_NAMES["phi3_v"] = "Phi3VModel"
modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES["phi3_v"] = "Phi3VForConditionalGeneration"

IMAGE_TOKENS = 313
"""Tokens of an image of one tile and its global view, the least there is."""

TEXT_TOKENS = 7


class UnwindowedConfig(Phi3VConfig):
    """A configuration that keeps its window: the tests shorten every `sliding_window`, which this model refuses."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "sliding_window" or value is None or value >= self.max_position_embeddings:
            super().__setattr__(name, value)


class Phi3VTester:
    """A small configuration and a batch in which every sample has one image and some text behind it."""

    batch_size = 3
    seq_length = IMAGE_TOKENS + TEXT_TOKENS
    vocab_size = 99
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    num_key_value_heads = 2
    is_training = True

    def __init__(self, parent: unittest.TestCase) -> None:
        self.parent = parent

    def get_config(self) -> Phi3VConfig:
        """Two decoder layers, three of the tower, of which two run."""
        return UnwindowedConfig(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=48,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            max_position_embeddings=4096,
            original_max_position_embeddings=2048,
            rope_scaling={"type": "su", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.0, 4.0]},
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            img_processor={
                "image_dim_out": 16,
                "vision_config": {
                    "hidden_size": 16,
                    "intermediate_size": 24,
                    "num_hidden_layers": 3,
                    "num_attention_heads": 2,
                },
            },
        )

    def prepare_config_and_inputs_for_common(self) -> tuple[Phi3VConfig, dict[str, torch.Tensor]]:
        """The configuration and a batch."""
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size - 3) + 3
        input_ids[:, 1 : 1 + IMAGE_TOKENS] = -1
        return self.get_config(), {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "pixel_values": torch.rand(self.batch_size, 2, 3, 336, 336),
            "image_sizes": torch.full((self.batch_size, 2), 336),
        }


class Phi3VTextTester(Phi3VTester):
    """The same configuration and text alone: many tests make or change inputs without a look at images."""

    seq_length = TEXT_TOKENS

    def prepare_config_and_inputs_for_common(self) -> tuple[Phi3VConfig, dict[str, torch.Tensor]]:
        """The configuration and a batch."""
        input_ids = ids_tensor([self.batch_size, self.seq_length], self.vocab_size - 3) + 3
        return self.get_config(), {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


class ImageTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):  # type: ignore[misc]
    """Every common model and generation test on samples with images."""

    all_model_classes: Any = (Phi3VModel, Phi3VForConditionalGeneration)
    skip_test_image_features_output_shape = True  # the tiles of all images are along one dimension

    def setUp(self) -> None:
        self.model_tester = Phi3VTester(self)


class TextTest(ModelTesterMixin, GenerationTesterMixin, unittest.TestCase):  # type: ignore[misc]
    """Every common model and generation test on text."""

    all_model_classes: Any = (Phi3VModel, Phi3VForConditionalGeneration)

    def setUp(self) -> None:
        self.model_tester = Phi3VTextTester(self)

    def _image_features_prepare_config_and_inputs(self) -> Any:
        self.skipTest("there are no images")
