"""Speed of `validate`, each figure with a comparison: `python benchmarks/validate.py [PART ...] [--no-save]`.

rows       checks of single rows, ids and keys given twice among them, against `json.loads` and the model in a loop
images     full checks of JPEGs and PNGs per CPU second, against Pillow's `load()`
unchanged  a directory that was validated before and has not changed, against the first time
whole      all of `validate` on one small image per row, against `datasets`' imagefolder (load, decode every row)
large      line numbers and memory in a file of several GB, and behind a line of 64 MB
near       near-duplicate search over a million hashes

Every part runs in its own processes; compared variants run alternately in one run of this script.
"""

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import machine, peak_bytes, save

PACKAGES = ("phi3v", "numpy", "msgspec", "pydantic", "pillow", "simplejpeg", "datasets")


def vqa_row(n: int) -> str:
    """One image, one question; 5,000 images are used in turn."""
    turn = {
        "images": [f"train/{n % 50:02d}/image_{n % 5000:06d}.jpg"],
        "user": f"What is the name of the person in chapter {n}, and in which year was the document signed?",
        "assistant": f"It is person {n * 7919 % 100003}, in {1900 + n % 120}.",
    }
    return json.dumps({"id": f"train-{n:010d}", "source": "documents", "conversations": [turn]}) + "\n"


def clip_row(n: int) -> str:
    """Eight frames and a list of classes, as video classification has them; 625 clips are used in turn."""
    classes = (
        "ApplyEyeMakeup, ApplyLipstick, Archery, BabyCrawling, BalanceBeam, BandMarching, BaseballPitch, Basketball"
    )
    clip = f"train/BabyCrawling/v_BabyCrawling_g{n % 25:02d}_c{n % 625 // 25:02d}"
    turn = {
        "images": [f"{clip}.{k}.jpg" for k in range(8)],
        "user": f"Classify the video into one of the following classes: {classes}.",
        "assistant": "BabyCrawling",
    }
    return json.dumps({"id": f"train-{n:010d}", "source": "ucf101", "conversations": [turn]}) + "\n"


ROW_SHAPES: dict[str, Callable[[int], str]] = {"one_picture": vqa_row, "eight_pictures": clip_row}


def in_process(part: str, *args: str) -> dict[str, Any]:
    """Run one measurement of this script in a fresh interpreter."""
    command = [sys.executable, __file__, "--measure", part, *args]
    result = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    value: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return value


def timed(function: Callable[[], Any]) -> dict[str, float]:
    """Wall and CPU seconds of a call."""
    cpu, wall = time.process_time(), time.perf_counter()
    function()
    return {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def measure_rows_model(directory: str) -> dict[str, Any]:
    """`json.loads` and the model in a loop."""
    from phi3v_data.schema import Sample

    def loop() -> None:
        with open(Path(directory, "train.jsonl"), encoding="utf-8") as file:
            for line in file:
                Sample.model_validate(json.loads(line))

    return {**timed(loop), "peak_bytes": peak_bytes()}


def measure_rows_ours(directory: str, workers: str) -> dict[str, Any]:
    """The row checks of `validate`: schema, keys and ids given twice, control tokens, texts, and the table of rows."""
    import gc

    from phi3v_data.validate.batch import text_bytes
    from phi3v_data.validate.control import control_tokens
    from phi3v_data.validate.findings import Findings
    from phi3v_data.validate.repeats import report_duplicate_ids
    from phi3v_data.validate.rows import RowScan
    from phi3v_data.validate.table import RowTable
    from phi3v_data.validate.tree import ImageTree

    findings = Findings(1000)
    tree = ImageTree(Path(directory, "images"))
    table = RowTable(Path(directory))

    def check() -> None:
        gc.disable()
        bytes(8 << 20)  # as the runner does
        scan = RowScan(table, tree, findings, text_bytes, frozenset(), control_tokens())
        scan.scan("train.jsonl", "train", labelled=True, workers=int(workers))
        table.finish()
        report_duplicate_ids(table, findings)
        gc.enable()

    result = timed(check)
    return {**result, "peak_bytes": peak_bytes(), "findings": dict(findings.counts)}


def bench_rows(num_rows: int) -> dict[str, Any]:
    """Both shapes of row, in one process and in two; then with a key and an id given twice and a control token.

    Memory a row is the difference between all rows and a tenth of them; the base is what that leaves.
    """
    results: dict[str, Any] = {}
    for name, make in ROW_SHAPES.items():
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as tenth:
            for place, count in ((folder, num_rows), (tenth, num_rows // 10)):
                with open(Path(place, "train.jsonl"), "w") as file:
                    file.writelines(map(make, range(count)))
            runs: dict[str, list[dict[str, Any]]] = {"model": [], "ours": [], "ours_2": []}
            for _ in range(3):
                runs["ours"].append(in_process("rows_ours", folder, "1"))
                runs["ours_2"].append(in_process("rows_ours", folder, "2"))
                runs["model"].append(in_process("rows_model", folder))
            few = in_process("rows_ours", tenth, "1")
            wall = {key: min(run["wall_s"] for run in values) for key, values in runs.items()}
            cpu = {key: min(run["cpu_s"] for run in values) for key, values in runs.items()}
            with open(Path(folder, "train.jsonl"), "a") as file:
                file.write(make(5))
                file.write(make(num_rows).replace('"source"', '"source": "x", "source"'))
                file.write(make(num_rows + 1).replace('"user": "', '"user": "<|end|> '))
            caught = in_process("rows_ours", folder, "2")["findings"]
        per_row = (runs["ours"][0]["peak_bytes"] - few["peak_bytes"]) / (num_rows - num_rows // 10)
        results[name] = {
            "rows": num_rows,
            "model_rows_per_s": round(num_rows / wall["model"]),
            "ours_rows_per_s": round(num_rows / wall["ours"]),
            "ratio": round(wall["model"] / wall["ours"], 2),
            "ratio_cpu": round(cpu["model"] / cpu["ours"], 2),
            "ours_two_processes_rows_per_s": round(num_rows / wall["ours_2"]),
            "ratio_two_processes": round(wall["model"] / wall["ours_2"], 2),
            "bytes_per_row": round(per_row, 1),
            "base_mb": round((few["peak_bytes"] - per_row * (num_rows // 10)) / 1e6, 1),
            "caught": {code: caught.get(code, 0) for code in ("duplicate-id", "duplicate-key", "control-token")},
        }
    return results


def frames(count: int) -> "list[Any]":
    """Images of 320 x 240: smooth shapes with a little grain, a compressed size like that of video frames."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    result = []
    for _ in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(
            (320, 240), Image.Resampling.BICUBIC
        )
        noise = random.normal(0, 2.5, (240, 320, 3))
        result.append(Image.fromarray(np.clip(np.asarray(coarse) + noise, 0, 255).astype(np.uint8)))
    return result


def save_images(folder: Path, fmt: str, images: "list[Any]", size: tuple[int, int]) -> list[str]:
    """Files of one format and size; their names."""
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for n, image in enumerate(images):
        name = f"{n:06d}.{'jpg' if fmt == 'JPEG' else 'png'}"
        image.resize(size, Image.Resampling.BICUBIC).save(folder / name, fmt)
        names.append(name)
    return names


def measure_images(directory: str, which: str) -> dict[str, Any]:
    """CPU seconds over all files, ours or Pillow's."""
    from PIL import Image

    from phi3v_data.media.integrity import check_images

    names = sorted(os.listdir(directory))

    def pillow() -> None:
        for name in names:
            with Image.open(os.path.join(directory, name)) as image:
                image.load()

    def ours() -> None:
        check_images(directory, names, pixels=True)

    run = ours if which == "ours" else pillow
    run()
    return min((timed(run) for _ in range(3)), key=lambda result: result["cpu_s"])


def bench_images(count: int) -> dict[str, Any]:
    """Per CPU second; and which damage each sees."""
    results: dict[str, Any] = {}
    images = frames(count)
    for fmt in ("JPEG", "PNG"):
        for size in ((320, 240), (1280, 960)):
            with tempfile.TemporaryDirectory() as folder:
                save_images(Path(folder), fmt, images[: count // (1 if size[0] < 500 else 8)], size)
                number = len(os.listdir(folder))
                ours, pillow = in_process("images", folder, "ours"), in_process("images", folder, "pillow")
                results[f"{fmt} {size[0]}x{size[1]}"] = {
                    "files": number,
                    "ours_per_cpu_s": round(number / ours["cpu_s"]),
                    "pillow_load_per_cpu_s": round(number / pillow["cpu_s"]),
                    "ratio": round(pillow["cpu_s"] / ours["cpu_s"], 2),
                }
    results["damage"] = damage(images[:40])
    return results


def damage(images: "list[Any]") -> dict[str, dict[str, str]]:
    """Number of damaged JPEGs and PNGs that each variant detects."""
    import numpy as np
    from PIL import Image

    from phi3v_data.media import integrity

    random = np.random.default_rng(1)
    results: dict[str, dict[str, str]] = {}
    for kind in ("cut", "zeroed block", "flipped byte"):
        for fmt in ("JPEG", "PNG"):
            seen = {"ours": 0, "pillow_load": 0}
            with tempfile.TemporaryDirectory() as folder:
                for image in images:
                    stream = io.BytesIO()
                    image.save(stream, fmt)
                    data = bytearray(stream.getvalue())
                    place = int(random.integers(len(data) // 3, len(data) - 700))
                    if kind == "cut":
                        del data[place:]
                    elif kind == "zeroed block":
                        data[place : place + 512] = bytes(512)
                    else:
                        data[place] ^= 0x55
                    path = Path(folder, "x." + ("jpg" if fmt == "JPEG" else "png"))
                    path.write_bytes(data)
                    facts, _ = integrity.check_image(path, pixels=True)
                    seen["ours"] += bool(facts[2] & integrity.UNREADABLE)
                    try:
                        with Image.open(path) as image:
                            image.load()
                    except Exception:  # whatever Pillow raises counts as noticed
                        seen["pillow_load"] += 1
            results[f"{kind}, {fmt}"] = {name: f"{value} of {len(images)}" for name, value in seen.items()}
    return results


def write_directory(folder: Path, fmt: str, count: int, size: tuple[int, int]) -> None:
    """Write a set with one image per row, also in the layout of `datasets`' imagefolder (metadata.jsonl)."""
    import numpy as np

    images = frames(200)
    small = [image.resize(size) for image in images]
    suffix = "jpg" if fmt == "JPEG" else "png"
    (folder / "images/train").mkdir(parents=True)
    random = np.random.default_rng(2)
    from PIL import Image

    with open(folder / "train.jsonl", "w") as rows, open(folder / "images/train/metadata.jsonl", "w") as metadata:
        for n in range(count):
            name = f"{n:06d}.{suffix}"
            pixels = np.asarray(small[n % 200]).astype(np.int16) + random.integers(-9, 10, 3)
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(folder / "images/train" / name, fmt)
            turn = {"images": [f"train/{name}"], "user": f"What is in image {n}?", "assistant": f"Thing {n % 7}."}
            rows.write(json.dumps({"id": f"train-{n:010d}", "source": "bench", "conversations": [turn]}) + "\n")
            metadata.write(json.dumps({"file_name": name, "user": turn["user"], "assistant": turn["assistant"]}) + "\n")
    os.replace(folder / "images/train/metadata.jsonl", folder / "metadata.jsonl.aside")


def measure_validate(directory: str, *options: str) -> dict[str, Any]:
    """All of `validate`, imports aside."""
    from phi3v_data.validate import validate

    reports = []
    result = timed(lambda: reports.append(validate(directory, use_receipt="receipt" in options)))
    return {**result, "peak_bytes": peak_bytes(), "problems": reports[0].summary.problems}


def measure_imagefolder(directory: str, cache: str) -> dict[str, Any]:
    """`datasets`: load, then decode every row."""
    import datasets

    datasets.disable_progress_bars()

    def run() -> None:
        rows = datasets.load_dataset("imagefolder", data_dir=directory, split="train", cache_dir=cache)
        for row in rows:
            row["image"].load()

    return {**timed(run), "peak_bytes": peak_bytes()}


def bench_whole(count: int) -> dict[str, Any]:
    """`validate` and imagefolder, one process each, in turn."""
    results: dict[str, Any] = {}
    for fmt in ("PNG", "JPEG"):
        with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory() as cache:
            directory = Path(folder, "dir")
            write_directory(directory, fmt, count, (64, 64))
            aside = directory / "metadata.jsonl.aside"
            ours = min((in_process("validate", str(directory)) for _ in range(2)), key=lambda run: run["wall_s"])
            os.replace(aside, directory / "images/train/metadata.jsonl")
            theirs = min(
                (in_process("imagefolder", str(directory / "images"), str(Path(cache, str(n)))) for n in range(2)),
                key=lambda run: run["wall_s"],
            )
            results[fmt] = {
                "rows": count,
                "picture": "64x64",
                "ours_rows_per_s": round(count / ours["wall_s"]),
                "imagefolder_rows_per_s": round(count / theirs["wall_s"]),
                "ratio": round(theirs["wall_s"] / ours["wall_s"], 2),
                "ratio_cpu": round(theirs["cpu_s"] / ours["cpu_s"], 2),
                "ours_peak_mb": round(ours["peak_bytes"] / 1e6, 1),
                "imagefolder_peak_mb": round(theirs["peak_bytes"] / 1e6, 1),
            }
    return results


def bench_unchanged(count: int) -> dict[str, Any]:
    """First and second `validate` of one directory, one worker."""
    results: dict[str, Any] = {}
    for fmt, size in (("JPEG", (320, 240)), ("PNG", (320, 240)), ("JPEG", (64, 64))):
        with tempfile.TemporaryDirectory() as folder:
            directory = Path(folder, "dir")
            write_directory(directory, fmt, count, size)
            (directory / "metadata.jsonl.aside").unlink()
            first = in_process("validate", str(directory), "receipt")
            again = min(
                (in_process("validate", str(directory), "receipt") for _ in range(3)), key=lambda run: run["wall_s"]
            )
            results[f"{fmt} {size[0]}x{size[1]}"] = {
                "rows": count,
                "first_s": round(first["wall_s"], 3),
                "again_s": round(again["wall_s"], 4),
                "ratio": round(first["wall_s"] / again["wall_s"], 1),
                "ratio_cpu": round(first["cpu_s"] / again["cpu_s"], 1),
            }
    return results


def measure_large(directory: str) -> dict[str, Any]:
    """Rows check of a large file with mistakes at known lines."""
    from phi3v_data.validate import validate

    reports = []
    result = timed(lambda: reports.append(validate(directory, level="quick", use_receipt=False)))
    lines = {found.code: found.line for found in reports[0].problems if found.code in ("json-syntax", "line-too-long")}
    return {
        **result,
        "peak_bytes": peak_bytes(),
        "lines": lines,
        "rows": reports[0].summary.samples,
    }


def bench_large(num_rows: int) -> dict[str, Any]:
    """A line of 65 MB after a tenth of the rows, a broken line at the end."""
    padding = "x" * 2900
    with tempfile.TemporaryDirectory() as folder:
        with open(Path(folder, "train.jsonl"), "w") as file:
            for n in range(num_rows):
                if n == num_rows // 10:
                    file.write("y" * (65 << 20) + "\n")
                turn = {"images": [], "user": f"{n} {padding}", "assistant": "yes"}
                file.write(json.dumps({"id": str(n), "source": "large", "conversations": [turn]}) + "\n")
            file.write("{broken\n")
        size = Path(folder, "train.jsonl").stat().st_size
        run = in_process("large", folder)
    return {
        "file_gb": round(size / 1e9, 2),
        "rows": run["rows"],
        "expected_lines": {"line-too-long": num_rows // 10 + 1, "json-syntax": num_rows + 2},
        "found_lines": run["lines"],
        "gb_per_s": round(size / 1e9 / run["wall_s"], 2),
        "peak_mb": round(run["peak_bytes"] / 1e6, 1),
    }


def measure_near() -> dict[str, Any]:
    """A million hashes of one split against a million of another."""
    import numpy as np

    from phi3v_data.validate.near import near_pairs

    random = np.random.default_rng(0)
    left = np.unique(random.integers(0, 2**64 - 1, 1_000_000, dtype=np.uint64))
    right = np.unique(random.integers(0, 2**64 - 1, 1_000_000, dtype=np.uint64))
    right[:1000] = left[:1000] ^ np.uint64(1 << 40)
    base = peak_bytes()
    pairs = []
    result = timed(lambda: pairs.append(near_pairs(left, np.unique(right))))
    return {**result, "pairs": len(pairs[0][0]), "bytes_per_hash": round((peak_bytes() - base) / 2e6, 1)}


def bench_near() -> dict[str, Any]:
    """See `measure_near`."""
    run = in_process("near")
    return {
        "hashes": 2_000_000,
        "wall_s": round(run["wall_s"], 2),
        "pairs": run["pairs"],
        "bytes_per_hash": run["bytes_per_hash"],
    }


MEASURES: dict[str, Callable[..., dict[str, Any]]] = {
    "rows_model": measure_rows_model,
    "rows_ours": measure_rows_ours,
    "images": measure_images,
    "validate": measure_validate,
    "imagefolder": measure_imagefolder,
    "large": measure_large,
    "near": measure_near,
}


def main() -> None:
    """Measure, print and save."""
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(MEASURES[sys.argv[2]](*sys.argv[3:])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=[])
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows of the `rows` part")
    parser.add_argument("--images", type=int, default=20_000, help="rows of the `whole` part; a fifth for `unchanged`")
    parser.add_argument("--large-rows", type=int, default=1_000_000, help="rows of the `large` part, 3 KB each")
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "rows": lambda: bench_rows(args.rows),
        "images": lambda: bench_images(800),
        "unchanged": lambda: bench_unchanged(args.images // 5),
        "whole": lambda: bench_whole(args.images),
        "large": lambda: bench_large(args.large_rows),
        "near": bench_near,
    }
    result: dict[str, Any] = {
        "command": " ".join(["python benchmarks/validate.py", *sys.argv[1:]]),
        "machine": machine(*PACKAGES),
        "load_average_before": round(os.getloadavg()[0], 1),
        "limits": {
            "rows.ratio": 4,
            "rows.bytes_per_row": 100,
            "rows.base_mb": 250,
            "images.ratio (JPEG)": 2,
            "unchanged.ratio": 20,
            "whole.PNG.ratio": 2,
            "whole.JPEG.ratio": 5,
        },
    }
    for part in args.parts or parts:
        result[part] = parts[part]()
        print(json.dumps({part: result[part]}, indent=2), file=sys.stderr)
    if args.no_save:
        print(json.dumps(result, indent=2))
    else:
        save("validate", result)


if __name__ == "__main__":
    main()
