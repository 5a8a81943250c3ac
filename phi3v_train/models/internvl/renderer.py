"""Inputs of InternVL.

pixel_values  (tiles of all images, 3, height, width) float32
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from phi3v_train.models.huggingface.renderer import HubRenderer


class InternVLRenderer(HubRenderer):
    """Encodes tiles; `InternVLProcessor` cuts images although released files say `crop_to_patches: false`."""

    image_options: ClassVar[Mapping[str, Any]] = {"crop_to_patches": True}
