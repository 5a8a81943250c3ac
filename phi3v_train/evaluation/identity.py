"""All that predictions of a model on a split depend on, by content; of the model also its last name."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import xxhash

from phi3v_data.media.formats import UnreadableImageError
from phi3v_data.media.images import read_image_file
from phi3v_train.config import EvalConfig
from phi3v_train.data.identity import data_identity
from phi3v_train.data.sources import Source
from phi3v_train.device import with_fp64
from phi3v_train.models.content import content_of
from phi3v_train.models.directory import ModelFiles


def make_identity(source: Source, config: EvalConfig, *, model: str, dtype: str, rows: int) -> dict[str, Any]:
    """The identity of an evaluation. Batch size, workers, device and metrics may change between two starts."""
    (data,) = data_identity([source])
    settings = {
        "eval_turns": config.eval_turns,
        "max_new_tokens": config.max_new_tokens,
        "rows": rows,
        "dtype": dtype,
    }
    return {"format": 1, "model": model, "data": data, "settings": settings}


def images_identity(source: Source, rows: int) -> str:
    """Digest of the content of all images of the first `rows` rows; each is read once.

    One that cannot be read counts as absent: whatever reads it next says so, with its row.
    """
    digest = xxhash.xxh3_128()
    for name in sorted({name for sample in source.split[:rows] for name in sample.images}):
        content = bytes(16)
        with suppress(OSError, UnreadableImageError):
            content = xxhash.xxh3_128_digest(read_image_file(source.split.image_path(name)))
        digest.update(content)
    return digest.hexdigest()


def model_identity(files: ModelFiles, *, seed: int = 0) -> str:
    """Name and content of a model in files: `merged (content 1a2b3c4d5e6f7081)`."""
    content = content_of(files)
    if not content:
        return f"{files.name} (seed {seed})"
    folder = Path(files.name)
    name = folder.resolve().name if folder.is_dir() else files.name
    return f"{name} (content {content})"


def weights_identity(model: Any) -> str:
    """Content of a model in memory: a digest of the sum of every parameter, exact for equal weights on one machine."""
    import torch

    digest = xxhash.xxh3_64()
    with torch.no_grad():
        sums: Mapping[str, Any] = {
            name: with_fp64(parameter).sum(dtype=torch.float64) for name, parameter in model.named_parameters()
        }
    for name, total in sums.items():
        digest.update(f"{name} {float(total).hex()}\n".encode())
    return f"(content {digest.hexdigest()})"
