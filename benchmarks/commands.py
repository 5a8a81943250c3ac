"""Whole commands against the usual ways to the same result: `python benchmarks/commands.py [PART ...] [--runs N]`.

clips   `convert ucf101` of 120 XviD clips of 180 frames, 320x240, against scripts that save the same eight frames:
        all frames decoded (PyAV and Pillow), decord2, OpenCV's `grab`. `bound`: the needed frames decoded and eight
        JPEGs encoded, by our own functions, without plan, journal or rows. `imports`: what the command imports
jpegs   `validate` of 4,000 JPEGs of 320x240, and again unchanged, against `datasets`' imagefolder (load, decode)
pngs    the same of 6,000 PNGs of 64x64
rows    `validate --level quick` of 300,000 rows against `json.loads` and a Pydantic model in a loop
second  wall time of `convert ucf101` with one and with two workers, and of two processes with a half each

Each is a process of its own with its start-up, in turn, median of the runs; CPU seconds of it and its children.
Bytecode is found, as that of an installed package is: without, each command of ours compiles 130 modules, 0.2 s.
`ratio` is how many times less our command takes, beside the project's aim.
"""

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent / "formats"))

import PIL.Image
from common import RESULTS, machine, save, with_bytecode
from convert_ucf101 import make_clips
from import_rows import measured
from validate import vqa_row, write_directory

PACKAGES = ("phi3v", "numpy", "av", "opencv-python-headless", "decord2", "pillow", "simplejpeg", "datasets", "pydantic")
CLI = (sys.executable, "-c", "from phi3v_data.cli.app import main; main()")
AIMS = {
    "clips": {"all_frames": 6.5, "decord2": 1.5},
    "jpegs": {"imagefolder": 8.0},
    "pngs": {"imagefolder": 4.0},
    "rows": {"loop": 4.0},
    "second": {"two_workers": 1.8},
}

WALK = """
import sys
from pathlib import Path
def clips():
    for path in sorted(Path(sys.argv[1]).rglob("*.avi")):
        out = Path(sys.argv[2], path.parent.name)
        out.mkdir(parents=True, exist_ok=True)
        yield path, out
"""
ALL_FRAMES = """
import av
for path, out in clips():
    with av.open(str(path)) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    for k in range(8):
        frames[k * len(frames) // 8].save(out / f"{path.stem}.{k}.jpg")
"""
DECORD2 = """
import decord
from PIL import Image
for path, out in clips():
    reader = decord.VideoReader(str(path), num_threads=1)
    frames = reader.get_batch([k * len(reader) // 8 for k in range(8)]).asnumpy()
    for k, frame in enumerate(frames):
        Image.fromarray(frame).save(out / f"{path.stem}.{k}.jpg")
"""
GRAB = """
import cv2
from PIL import Image
cv2.setNumThreads(1)
for path, out in clips():
    video = cv2.VideoCapture(str(path))
    total = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    wanted = {k * total // 8: k for k in range(8)}
    for place in range(max(wanted) + 1):
        video.grab()
        if place in wanted:
            frame = video.retrieve()[1]
            Image.fromarray(frame[..., ::-1]).save(out / f"{path.stem}.{wanted[place]}.jpg")
"""
BOUND = """
from phi3v_data.media.encoding import encode
from phi3v_data.media.video import read_clip
for path, out in clips():
    for k, frame in enumerate(read_clip(path).frames):
        (out / f"{path.stem}.{k}.jpg").write_bytes(encode(frame, "jpeg"))
"""
IMPORTS = "import phi3v_data.cli.app, phi3v_data.conversion, phi3v_data.converters.ucf101, phi3v_data.media.video"
IMAGEFOLDER = """
import sys
import datasets
datasets.disable_progress_bars()
for row in datasets.load_dataset("imagefolder", data_dir=sys.argv[1], split="train", cache_dir=sys.argv[2]):
    row["image"].load()
"""
LOOP = """
import json, sys
from pydantic import BaseModel
class Turn(BaseModel):
    images: list[str] = []
    user: str
    assistant: str
class Row(BaseModel):
    id: str
    source: str
    conversations: list[Turn]
with open(sys.argv[1]) as file:
    for line in file:
        Row.model_validate(json.loads(line))
"""

Commands = Mapping[str, Sequence[str]]


def cpu_seconds(commands: Commands, runs: int, work: Path, before: Callable[[str], None]) -> dict[str, float]:
    """Median CPU seconds of each command; they take turns, and `before` is called before each with its name."""
    found: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, command in commands.items():
            before(name)
            result = measured(list(command), work / "unused")
            assert result is not None, f"{name} failed"
            found[name].append(result["cpu_seconds"])
    return {name: round(statistics.median(values), 2) for name, values in found.items()}


def compared(part: str, seconds: Mapping[str, float], **more: Any) -> dict[str, Any]:
    """The figures of a part, with the ratio to each other way beside its aim."""
    others = [name for name in seconds if name not in ("ours", "again", "bound", "imports")]
    ratios = {name: round(seconds[name] / seconds["ours"], 2) for name in others}
    return {**more, "cpu_seconds": dict(seconds), "ratio": ratios, "aim": AIMS[part]}


def clips(work: Path, runs: int) -> dict[str, Any]:
    source, out = work / "clips", work / "out"
    make_clips(source, 120, 180)
    script = (sys.executable, "-c")
    ways = {"all_frames": ALL_FRAMES, "decord2": DECORD2, "opencv_grab": GRAB, "bound": BOUND}
    commands: dict[str, Sequence[str]] = {
        name: (*script, WALK + text, str(source), str(out / name)) for name, text in ways.items()
    }
    commands["imports"] = (*script, IMPORTS)
    convert = (
        "convert",
        "ucf101",
        "--source",
        str(source),
        "--out_dir",
        str(out / "ours"),
        "--workers",
        "0",
        "--quiet",
    )
    commands["ours"] = (*CLI, *convert)
    seconds = cpu_seconds(commands, runs, work, lambda name: shutil.rmtree(out / name, ignore_errors=True))
    ours = {path.name: path.read_bytes() for path in (out / "ours/images").rglob("*.jpg")}
    usual = {path.name: path.read_bytes() for path in (out / "all_frames").rglob("*.jpg")}
    assert len(ours) == 960
    assert ours == usual, "other images than those of all frames decoded"
    most = round(seconds["all_frames"] / (seconds["bound"] + seconds["imports"]), 2)
    return compared("clips", seconds, clips=120, frames=180, identical_images=960, most_with_start_up=most)


def images(part: str, work: Path, runs: int, kind: str, count: int, size: tuple[int, int]) -> dict[str, Any]:
    directory, folder = work / part, work / f"{part}-folder"
    write_directory(directory, kind, count, size)
    shutil.copytree(directory / "images", folder)
    shutil.copy(directory / "metadata.jsonl.aside", folder / "train/metadata.jsonl")
    (directory / "metadata.jsonl.aside").unlink()
    check = (*CLI, "validate", str(directory), "--workers", "1", "--quiet")
    commands = {
        "ours": (*check, "--fresh"),
        "again": check,
        "imagefolder": (sys.executable, "-c", IMAGEFOLDER, str(folder), str(work / "cache")),
    }
    seconds = cpu_seconds(commands, runs, work, lambda name: shutil.rmtree(work / "cache", ignore_errors=True))
    unchanged = round(seconds["ours"] / seconds["again"], 2)
    return compared(part, seconds, images=count, size=list(size), again_times_faster=unchanged)


def rows(work: Path, runs: int) -> dict[str, Any]:
    directory, count = work / "rows", 300_000
    directory.mkdir()
    with open(directory / "train.jsonl", "w") as file:
        file.writelines(map(vqa_row, range(count)))
    PIL.Image.new("RGB", (64, 48), (90, 120, 30)).save(image := io.BytesIO(), "JPEG")
    for place in range(5000):
        path = directory / f"images/train/{place % 50:02d}/image_{place:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image.getvalue())
    commands = {
        "ours": (*CLI, "validate", str(directory), "--level", "quick", "--workers", "1", "--fresh", "--quiet"),
        "loop": (sys.executable, "-c", LOOP, str(directory / "train.jsonl")),
    }
    return compared("rows", cpu_seconds(commands, runs, work, lambda name: None), rows=count)


def second(work: Path, runs: int) -> dict[str, Any]:
    """The clips of each class four times, so that the start-up is a small part."""
    source = work / "many"
    if not (work / "clips").exists():
        make_clips(work / "clips", 120, 180)
    halves = [work / "half0", work / "half1"]
    for number, path in enumerate(sorted((work / "clips").rglob("*.avi"))):
        for copy in range(4):
            name = f"{path.stem.rpartition('_')[0]}_c{int(path.stem[-2:]) + 10 * copy:02d}.avi"
            for root in (source, halves[number % 2]):
                target = root / path.parent.relative_to(work / "clips") / name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(path)

    def start(root: Path, workers: int) -> "subprocess.Popen[bytes]":
        out = work / f"out-{root.name}"
        shutil.rmtree(out, ignore_errors=True)
        words = ("convert", "ucf101", "--source", root, "--out_dir", out, "--workers", workers, "--quiet")
        return subprocess.Popen([*CLI, *map(str, words)], stdout=subprocess.DEVNULL)

    ways: dict[str, Callable[[], list[subprocess.Popen[bytes]]]] = {
        "one_worker": lambda: [start(source, 1)],
        "two_workers": lambda: [start(source, 2)],
        "two_processes": lambda: [start(half, 1) for half in halves],
    }
    wall: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            begin = time.perf_counter()
            assert [process.wait() for process in way()] in ([0], [0, 0])
            wall[name].append(time.perf_counter() - begin)
    median = {name: round(statistics.median(values), 2) for name, values in wall.items()}
    ratios = {name: round(median["one_worker"] / median[name], 2) for name in ways if name != "one_worker"}
    return {"clips": 480, "wall_seconds": median, "times_faster_than_one_worker": ratios, "aim": AIMS["second"]}


def main() -> None:
    """Measure, print and save; parts that are not measured again keep their figures."""
    parts: dict[str, Callable[[Path, int], dict[str, Any]]] = {
        "clips": clips,
        "jpegs": lambda work, runs: images("jpegs", work, runs, "JPEG", 4000, (320, 240)),
        "pngs": lambda work, runs: images("pngs", work, runs, "PNG", 6000, (64, 64)),
        "rows": rows,
        "second": second,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(parts)}; default: all")
    parser.add_argument("--runs", type=int, default=3)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    known = RESULTS / "commands.json"
    result: dict[str, Any] = json.loads(known.read_text()) if known.is_file() else {}
    result |= {"machine": machine(*PACKAGES), "load_average_before": round(os.getloadavg()[0], 2)}
    result |= {"command": "python benchmarks/commands.py", "runs": args.runs}
    with with_bytecode(), tempfile.TemporaryDirectory() as work:
        for name in args.parts or parts:
            result[name] = parts[name](Path(work), args.runs)
            print(name, result[name], file=sys.stderr, flush=True)
    save("commands", result)


if __name__ == "__main__":
    main()
