"""The samples that MosaicML streaming gives of exports. Run by consumers.py."""
# ruff: noqa: E402 - the consumer is imported once its modules can be found

import io
import sys
import types
from collections.abc import Iterator
from hashlib import sha256
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

sys.path.append(sys.path.pop(0))  # this file has the name of the package

NOT_USED: dict[str, dict[str, Any]] = {
    "torchvision": {},
    "torchvision.datasets": {"VisionDataset": object},
    "torchvision.transforms": {},
    "torchvision.transforms.functional": {"to_tensor": None},
}
"""Modules that `import streaming` needs for its own classes of image sets."""

for name, values in NOT_USED.items():
    module = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)
    module.__dict__.update(values)
    sys.modules[name] = module

from reading import Row, run
from streaming import StreamingDataset
from streaming.base.format.mds.encodings import mds_decode


def read(export: Path) -> Iterator[Row]:
    for row in StreamingDataset(local=str(export), split="train", batch_size=1, shuffle=False, validate_hash="sha256"):
        images = row["images"]
        if isinstance(images, bytes):
            images = mds_decode("list[jpeg]", images)
        digests, pixels = [], []
        for image in images:
            assert isinstance(image.fp, io.BytesIO)
            digests.append(sha256(image.fp.getvalue()).hexdigest())
            pixels.append(image.convert("RGB").tobytes().hex())
        yield {"id": row["id"], "messages": row["messages"], "images": digests, "pixels": pixels}


run(read, sys.argv[1], sys.argv[2:])
