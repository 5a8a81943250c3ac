"""Frames of clips against the straightforward way: `python benchmarks/convert_ucf101.py [--runs N] [--no-save]`.

straightforward             plain PyAV: every frame decoded and converted by `to_image()`, Pillow saves the eight
straightforward_ndarray     the same with `to_ndarray(format="rgb24")` and `Image.fromarray`
straightforward_one_thread  tuned: one scaler object for all frames, decoder and scaler limited to one thread
ours                        the converter's plan, its `convert` and the encoding of its frames, as in a worker

20 clips of 186 frames (the mean of UCF-101), 320x240, XviD with B-frames, made here; and the mini set under
examples/data. CPU time of the process (all threads, user and system), the ways in turn, medians over the runs. Making
the JPEG bytes and writing them are measured apart, because the system time of writing the very same files varies up to
twentyfold on a shared disk; `ratio` counts both. All ways must give the same bytes. Last the whole command, with 1 and
with 2 workers; the load of the machine stands beside it, for on a busy one two workers have nothing to gain.
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
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from common import machine, save
from PIL import Image

from phi3v_data.converters.ucf101 import Ucf101, Ucf101Options
from phi3v_data.draft import DraftImage
from phi3v_data.media.encoding import encode
from phi3v_data.sources.source import Source

EXAMPLES = Path(__file__).parent.parent / "examples"
Images: TypeAlias = dict[str, bytes]
CLIPS, FRAMES, WIDTH, HEIGHT = 20, 186, 320, 240


def make_clips(root: Path, clips: int = CLIPS, frames: int = FRAMES) -> None:
    """Write clips: moving windows of Big Buck Bunny, played forwards and backwards."""
    sys.path.insert(0, str(EXAMPLES))
    from make_data import film_path, read_film

    film = read_film(film_path())
    for number in range(clips):
        kind = f"Class{number % 4}"
        path = root / "train" / kind / f"v_{kind}_g{number % 25:02d}_c{number // 25 + 1:02d}.avi"
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            stream.codec_context.codec_tag = "XVID"
            stream.codec_context.time_base = Fraction(1, 25)
            stream.codec_context.options = {"bf": "2", "g": "250", "qmin": "4", "qmax": "4"}
            for place in range(frames):
                at = (place + number * 6) % (2 * len(film) - 2)
                image = film[at if at < len(film) else 2 * len(film) - 2 - at]
                x, y = 40 * number % 600 + place, 11 * number % 220
                frame = av.VideoFrame.from_ndarray(
                    np.ascontiguousarray(image[y : y + 360, x : x + 480]), format="rgb24"
                ).reformat(width=WIDTH, height=HEIGHT, format="yuv420p", interpolation="AREA")
                frame.pts = place
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))


def straightforward(root: Path, *, how: str = "to_image") -> Images:
    """Decode and convert all frames, save eight."""
    reformatter = VideoReformatter()
    saved: Images = {}
    for path in sorted(root.rglob("*.avi")):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            if how == "one_thread":
                stream.codec_context.thread_count = 1
                frames = [
                    Image.fromarray(reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray())
                    for frame in container.decode(stream)
                ]
            elif how == "ndarray":
                frames = [Image.fromarray(f.to_ndarray(format="rgb24")) for f in container.decode(stream)]
            else:
                frames = [frame.to_image() for frame in container.decode(stream)]
        for k in range(8):
            buffer = io.BytesIO()
            frames[k * len(frames) // 8].save(buffer, "JPEG")
            saved[path.relative_to(root).with_suffix(f".{k}.jpg").as_posix()] = buffer.getvalue()
    return saved


def ours(root: Path) -> Images:
    """Convert the clips as a worker does."""
    converter, options = Ucf101(), Ucf101Options()
    saved: Images = {}
    for item in converter.plan(Source.open(root), options):
        for image in converter.convert(item, options).images:
            assert isinstance(image, DraftImage)
            assert isinstance(image.content, np.ndarray)
            saved[image.name] = encode(image.content, "jpeg", image.quality)
    return saved


def write(images: Images, out: Path) -> None:
    """Write the files, in the same way for all variants."""
    folders = {(out / name).parent for name in images}
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    for name, data in images.items():
        (out / name).write_bytes(data)


WAYS: dict[str, Callable[[Path], Images]] = {
    "straightforward": straightforward,
    "straightforward_ndarray": partial(straightforward, how="ndarray"),
    "straightforward_one_thread": partial(straightforward, how="one_thread"),
    "ours": ours,
}


def compare(root: Path, work: Path, runs: int) -> dict[str, Any]:
    """CPU milliseconds per clip of each variant, measured alternately."""
    clips = len(list(root.rglob("*.avi")))
    making: dict[str, list[float]] = {name: [] for name in WAYS}
    writing: dict[str, list[float]] = {name: [] for name in WAYS}
    images: dict[str, Images] = {}
    for _ in range(runs + 1):  # the first only warms the caches
        for name, way in WAYS.items():
            shutil.rmtree(work / name, ignore_errors=True)
            start = time.process_time()
            images[name] = way(root)
            made = time.process_time()
            write(images[name], work / name)
            making[name].append((made - start) / clips * 1000)
            writing[name].append((time.process_time() - made) / clips * 1000)
        assert all(images[name] == images["ours"] for name in WAYS)
    make = {name: statistics.median(times[1:]) for name, times in making.items()}
    both = {name: make[name] + statistics.median(times[1:]) for name, times in writing.items()}
    each = [a / b for a, b in zip(making["straightforward"][1:], making["ours"][1:], strict=True)]
    return {
        "clips": clips,
        "identical_pictures": len(images["ours"]),
        "cpu_ms_a_clip": {name: round(value, 2) for name, value in both.items()},
        "of_it_writing": {name: round(both[name] - make[name], 2) for name in WAYS},
        "ratio": round(both["straightforward"] / both["ours"], 2),
        "ratio_to_ndarray": round(both["straightforward_ndarray"] / both["ours"], 2),
        "ratio_to_one_thread": round(both["straightforward_one_thread"] / both["ours"], 2),
        "ratio_without_writing": round(make["straightforward"] / make["ours"], 2),
        "ratio_without_writing_each_run": [round(value, 2) for value in each],
    }


def command_seconds(root: Path, out: Path, workers: int) -> float:
    """Wall time of the whole command in a new process."""
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, "-c", "from phi3v_data.cli.app import main; main()", "convert", "ucf101", "--quiet"]
    start = time.perf_counter()
    subprocess.run(
        [*command, "--source", str(root), "--out_dir", str(out), "--workers", str(workers)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - start


def workers(root: Path, work: Path, runs: int) -> dict[str, Any]:
    """Run the command on each clip twenty times (links), alternately with 1 and with 2 workers."""
    many = work / "many"
    for path in root.rglob("*.avi"):
        for copy in range(20):
            target = many / path.relative_to(root).with_name(f"{path.stem[:-2]}{copy + 1:02d}.avi")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    load = os.getloadavg()[0]
    wall: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(runs):
        for number in wall:
            wall[number].append(command_seconds(many, work / f"out{number}", number))
    one_out, two_out = (work / f"out{number}" for number in wall)
    for path in one_out.rglob("*.jp*g*"):
        assert path.read_bytes() == (two_out / path.relative_to(one_out)).read_bytes()
    one, two = (statistics.median(wall[number]) for number in (1, 2))
    return {
        "clips": len(list(many.rglob("*.avi"))),
        "wall_s_1_worker": round(one, 2),
        "wall_s_2_workers": round(two, 2),
        "speedup": round(one / two, 2),
        "load_average_before": round(load, 2),
    }


def main() -> None:
    """Measure, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        make_clips(work / "clips")
        result = {
            "command": f"python benchmarks/convert_ucf101.py --runs {args.runs}",
            "machine": machine("av", "opencv-python-headless", "pillow", "numpy"),
            "runs": args.runs,
            "ucf101_like": {"frames_a_clip": FRAMES, "limit": 6.0, **compare(work / "clips", work, args.runs)},
            "mini_set": {"frames_a_clip": 24, **compare(EXAMPLES / "data" / "UCF101_subset", work, args.runs)},
            "workers": workers(work / "clips", work, min(args.runs, 3)),
        }
    if args.no_save:
        print(json.dumps(result, indent=2))
    else:
        save("convert_ucf101", result)


if __name__ == "__main__":
    main()
