"""The samples that Energon's loader gives of an export, with its cooker, as JSON Lines. Run by consumers.py."""
# ruff: noqa: E402 - the consumer is imported once its modules can be found

import json
import os
import subprocess
import sys
from typing import Any

export, out = map(os.path.abspath, sys.argv[1:])
sys.path.insert(0, export)
from cooker import cook
from megatron.energon import Cooker, DefaultTaskEncoder, WorkerConfig, get_loader, get_train_dataset

last = sorted(name for name in os.listdir(export) if name.endswith(".tar"))[-1].removesuffix(".tar")[-6:]
command = [f"{os.path.dirname(sys.executable)}/energon", "prepare", export, "--non-interactive", "--skip-dataset-yaml"]
shards = f"train:train-{{000000..{last}}}.tar"
subprocess.run([*command, "--split-parts", shards], check=True, stdout=subprocess.DEVNULL)


class Encoder(DefaultTaskEncoder):  # type: ignore[misc]
    """Samples as the cooker gives them."""

    cookers = [Cooker(cook)]  # noqa: RUF012 - as Energon wants it

    def batch(self, samples: list[Any]) -> Any:
        return samples

    def encode_batch(self, batch: Any) -> Any:
        return batch


rows = get_train_dataset(
    export,
    batch_size=1,
    shuffle_buffer_size=None,
    max_samples_per_sequence=None,
    repeat=False,
    task_encoder=Encoder(),
    worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
)
with open(out, "w", encoding="utf-8") as file:
    for (sample,) in get_loader(rows):
        images = [(image.permute(1, 2, 0) * 255).round().byte().numpy().tobytes().hex() for image in sample.images]
        json.dump({"id": sample.id, "messages": sample.messages, "pixels": images}, file)
        file.write("\n")
