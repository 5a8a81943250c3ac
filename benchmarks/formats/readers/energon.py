"""The samples that Energon's loader gives of an export, with its cooker. Run by consumers.py."""
# ruff: noqa: E402 - the cooker is in the export

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

out, export = map(os.path.abspath, sys.argv[1:])
sys.path.insert(0, export)
from cooker import cook
from megatron.energon import Cooker, DefaultTaskEncoder, WorkerConfig, get_loader, get_train_dataset
from reading import Row, run


class Encoder(DefaultTaskEncoder):  # type: ignore[misc]
    """Samples as the cooker gives them."""

    cookers = [Cooker(cook)]  # noqa: RUF012 - as Energon wants it

    def batch(self, samples: list[Any]) -> Any:
        return samples

    def encode_batch(self, batch: Any) -> Any:
        return batch


def read(export: Path) -> Iterator[Row]:
    last = sorted(path.stem for path in export.glob("*.tar"))[-1][-6:]
    command = [f"{os.path.dirname(sys.executable)}/energon", "prepare", export, "--non-interactive"]
    shards = f"train:train-{{000000..{last}}}.tar"
    more = ["--skip-dataset-yaml", "--split-parts", shards]
    subprocess.run([*command, *more], check=True, stdout=subprocess.DEVNULL)
    rows = get_train_dataset(
        export,
        batch_size=1,
        shuffle_buffer_size=None,
        max_samples_per_sequence=None,
        repeat=False,
        task_encoder=Encoder(),
        worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
    )
    for (sample,) in get_loader(rows):
        images = [(image.permute(1, 2, 0) * 255).round().byte().numpy().tobytes().hex() for image in sample.images]
        yield {"id": sample.id, "messages": sample.messages, "pixels": images}


run(read, out, [export])
