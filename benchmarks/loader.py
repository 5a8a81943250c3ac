"""Images per second of one loader worker: `python benchmarks/loader.py [--images N] [--rounds N] [--no-save]`.

Ours (rows to ids, labels and canvases in bytes) against the straightforward path of the released processor: Pillow
decodes, fp32 tiles with their global view are made in the worker and padded to num_crops + 1. Both read the same rows,
tokenize them the same way and collate one sample; both give the model the same tiles, bit for bit, which is checked
first. Times are CPU times of one process on one thread, best of interleaved rounds; bytes are what is handed over.
"""

import argparse
import json
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import machine, save
from PIL import Image, ImageDraw
from torch.nn import functional

from phi3v_data.schema import Sample, Turn
from phi3v_data.tokens.phi3v_geometry import crop_geometry
from phi3v_train.data.collate import collate_arrays
from phi3v_train.data.encode import Encoder
from phi3v_train.data.order import SampleRef
from phi3v_train.data.reader import Reader
from phi3v_train.data.sources import open_source
from phi3v_train.models.phi3v.family import PHI3V
from phi3v_train.models.phi3v.tiles import CLIP_MEAN, CLIP_STD, pad_tiles, tiles_from_canvases
from phi3v_train.models.phi3v.tiny import tiny_processor

MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))


def page(seed: int) -> Image.Image:
    """A letter page at 200 dpi: lines of words, ruled boxes, scanner noise."""
    rng = np.random.default_rng(seed)
    image = Image.new("L", (1700, 2200), 250)
    draw = ImageDraw.Draw(image)
    for y in range(120, 2080, 34):
        words = [rng.choice(["total", "amount", "1,204.50", "invoice", "to be paid", "date"]) for _ in range(14)]
        draw.text((140, y), "  ".join(words), fill=int(rng.integers(0, 90)), font_size=22)
    draw.rectangle((120, 300, 1580, 900), outline=0, width=3)
    noise = rng.integers(-6, 6, (2200, 1700))
    return Image.fromarray(np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8))


def photo(seed: int, width: int, height: int) -> Image.Image:
    """Soft shapes with grain, as compressible as a photograph."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 12, 3)).astype(np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    return Image.fromarray(
        np.clip(np.asarray(coarse) + rng.integers(-9, 9, (height, width, 3)), 0, 255).astype(np.uint8)
    )


KINDS: dict[str, tuple[int, Callable[[int], Image.Image]]] = {
    "grey page 1700x2200, num_crops 16": (16, page),
    "colour page 1700x2200, num_crops 16": (16, lambda seed: page(seed).convert("RGB")),
    "photo 1024x768, num_crops 16": (16, lambda seed: photo(seed, 1024, 768)),
    "frame 320x240, num_crops 4": (4, lambda seed: photo(seed, 320, 240)),
}


def write_set(directory: Path, make: Callable[[int], Image.Image], ending: str, images: int) -> None:
    """Write a set with one image per row."""
    (directory / "images").mkdir(parents=True)
    with open(directory / "bench_train.jsonl", "w", encoding="utf-8") as file:
        for n in range(images):
            make(n).save(directory / "images" / f"{n}.{ending}")
            turn = Turn(images=(f"{n}.{ending}",), user="What is the total amount?", assistant="1,204.50")
            file.write(Sample(id=str(n), source="bench", conversations=(turn,)).to_json() + "\n")


def ours(reader: Reader, ref: SampleRef) -> dict[str, Any]:
    """Encode one sample as a loader worker does."""
    return collate_arrays([reader.encode(ref)], reader.encoder.renderer)


def straightforward(reader: Reader, ref: SampleRef) -> dict[str, Any]:
    """The same sample with Pillow and fp32 tiles."""
    source = reader.sources[ref.source]
    sample = source.split[ref.row]
    num_crops = source.num_crops or 1
    tiles, sizes, pixels = [], [], []
    for name in sample.images:
        with Image.open(source.split.image_path(name)) as image:
            sizes.append(image.size)
            view = fp32_tiles(image.convert("RGB"), num_crops)
        tiles.append(view)
        geometry = crop_geometry(*sizes[-1], num_crops)
        pixels.append(geometry.image_size)
    tokens = reader.encoder.tokenize(sample, sizes, num_crops=source.num_crops)
    return {
        "input_ids": tokens.input_ids[None],
        "attention_mask": np.ones_like(tokens.input_ids)[None],
        "labels": tokens.labels[None],
        "pixel_values": torch.stack(tiles).numpy(),
        "image_sizes": np.array(pixels),
    }


def fp32_tiles(image: Image.Image, num_crops: int) -> torch.Tensor:
    """(num_crops + 1, 3, 336, 336): the released processor's steps, one after another."""
    geometry = crop_geometry(*image.size, num_crops)
    size, corner = (geometry.width, geometry.height), (geometry.left, geometry.top)
    padded = (geometry.padded_width, geometry.padded_height)
    if geometry.turned:
        image = image.transpose(Image.Transpose.TRANSPOSE)
        size, corner, padded = size[::-1], corner[::-1], padded[::-1]
    canvas = Image.new("RGB", padded, (255, 255, 255))
    canvas.paste(image.resize(size, Image.Resampling.BILINEAR), corner)
    if geometry.turned:
        canvas = canvas.transpose(Image.Transpose.TRANSPOSE)
    pixels = torch.from_numpy(np.array(canvas)).permute(2, 0, 1).contiguous().float().div(255)
    pixels = (pixels - MEAN) / STD
    overview = functional.interpolate(pixels[None], size=(336, 336), mode="bicubic", align_corners=False)
    rows, cols = geometry.rows, geometry.cols
    tiles = pixels.view(3, rows, 336, cols, 336).permute(1, 3, 0, 2, 4).reshape(rows * cols, 3, 336, 336)
    tiles = torch.cat([overview, tiles])
    empty = tiles.new_zeros((num_crops + 1 - len(tiles), 3, 336, 336))
    return torch.cat([tiles, empty])


def check_equal(reader: Reader, ref: SampleRef) -> None:
    """Check that both variants give exactly the same model inputs."""
    left, right = ours(reader, ref), straightforward(reader, ref)
    for name in ("input_ids", "labels", "image_sizes"):
        assert np.array_equal(left[name], right[name]), name
    sizes = torch.from_numpy(left["image_sizes"])
    tiles = pad_tiles(
        tiles_from_canvases(torch.from_numpy(left["canvases"]), sizes), sizes, right["pixel_values"].shape[1]
    )
    assert torch.equal(tiles, torch.from_numpy(right["pixel_values"])), "tiles"


def cpu_seconds(work: Callable[[Reader, SampleRef], dict[str, Any]], reader: Reader, refs: list[SampleRef]) -> float:
    start = time.process_time()
    for ref in refs:
        work(reader, ref)
    return time.process_time() - start


def compare(reader: Reader, rounds: int) -> dict[str, float]:
    """Measure both variants over all rows, alternately."""
    refs = [SampleRef(0, row, 0) for row in range(len(reader.sources[0]))]
    check_equal(reader, refs[0])
    times: dict[str, list[float]] = {"ours": [], "straightforward": []}
    for _ in range(rounds):
        times["straightforward"].append(cpu_seconds(straightforward, reader, refs))
        times["ours"].append(cpu_seconds(ours, reader, refs))
    bytes_of = {
        name: len(pickle.dumps(work(reader, refs[0]))) for name, work in (("ours", ours), ("fp32", straightforward))
    }
    best = {name: len(refs) / min(values) for name, values in times.items()}
    return {
        "images_per_s": round(best["ours"], 1),
        "pillow_fp32_images_per_s": round(best["straightforward"], 1),
        "speed_ratio": round(best["ours"] / best["straightforward"], 2),
        "bytes_handed_over": bytes_of["ours"],
        "pillow_fp32_bytes": bytes_of["fp32"],
        "bytes_ratio": round(bytes_of["ours"] / bytes_of["fp32"], 3),
    }


MILLION = """
import sys, time
start = time.perf_counter()
from phi3v_train.data.encode import Encoder
from phi3v_train.data.loader import TrainLoader
from phi3v_train.data.order import SampleOrder
from phi3v_train.data.reader import Reader
from phi3v_train.data.sources import open_sources
from phi3v_train.models.phi3v.tiny import tiny_processor
encoder = Encoder(PHI3V.renderer(tiny_processor()))
imported = time.perf_counter()
sources = open_sources([sys.argv[1]], "train")
order = SampleOrder((len(sources[0]),), 16)
with TrainLoader(Reader(sources, encoder), order, micro_batch_size=1) as loader:
    step = int(sys.argv[2])
    for batch in loader.steps(step, step + 1):
        list(batch)
print(time.perf_counter() - imported)
"""


def million_rows(scratch: Path) -> dict[str, float]:
    """Seconds from imports to the first step's tensors, each in a fresh process; the first builds the index."""
    directory = scratch / "million"
    directory.mkdir()
    with open(directory / "bench_train.jsonl", "w", encoding="utf-8") as file:
        for n in range(1_000_000):
            turn = Turn(user=f"Which number is this? {n}", assistant=str(n))
            file.write(Sample(id=f"train-{n:010d}", source="bench", conversations=(turn,)).to_json() + "\n")
    result = {}
    for name, step in (("first_step", 0), ("first_step_again", 0), ("resume_past_100000_samples", 100_000 // 16)):
        command = [sys.executable, "-c", MILLION, str(directory), str(step)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        result[name] = round(float(done.stdout), 3)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-save", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    encoder = Encoder(PHI3V.renderer(tiny_processor()))
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for kind, (num_crops, make) in KINDS.items():
            for ending in ("jpg", "png"):
                directory = Path(scratch) / f"{len(results)}"
                write_set(directory, make, ending, arguments.images)
                source = open_source(directory, "train", num_crops=num_crops)
                results[f"{kind}, {ending}"] = compare(Reader([source], encoder), arguments.rounds)
                print(kind, ending, results[f"{kind}, {ending}"], flush=True)
        million = million_rows(Path(scratch))
    report = {
        "command": f"python benchmarks/loader.py --images {arguments.images} --rounds {arguments.rounds}",
        "machine": machine("torch", "Pillow", "simplejpeg", "numpy", "tokenizers"),
        "one_worker": results,
        "million_rows_seconds": million,
    }
    if arguments.no_save:
        print(json.dumps(report, indent=2))
    else:
        save("loader", report)


if __name__ == "__main__":
    main()
