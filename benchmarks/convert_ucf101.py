"""Clips to frames against the straightforward way: `python benchmarks/convert_ucf101.py [--runs N] [--no-save]`.

The straightforward way: PyAV decodes every frame, each is converted to RGB, Pillow saves the eight at their indices.
Ours: the converter's plan, its `convert` and the encoding of its frames, in one process, as a worker does it; the
files are written in both. 20 clips of 186 frames (the mean of UCF-101), 320x240, XviD with B-frames, made here; and
the mini set under examples/data. CPU time of the process, the two ways in turn, median of the runs; every JPEG file of
both must be the same bytes. Last the whole command, with 1 and with 2 workers.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from common import machine, save
from PIL import Image

from phi3v_data.converters.source import Source
from phi3v_data.converters.ucf101 import Ucf101, Ucf101Options
from phi3v_data.media.image import encode

EXAMPLES = Path(__file__).parent.parent / "examples"
CLIPS, FRAMES, WIDTH, HEIGHT = 20, 186, 320, 240


def make_clips(root: Path) -> None:
    """Pieces of Big Buck Bunny, drifting, played to and fro to make up 186 frames."""
    sys.path.insert(0, str(EXAMPLES))
    from make_data import film_path, read_film

    film = read_film(film_path())
    for number in range(CLIPS):
        path = root / "train" / f"Class{number % 4}" / f"v_Class{number % 4}_g{number:02d}_c01.avi"
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=25)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            stream.codec_context.codec_tag = "XVID"
            stream.codec_context.time_base = Fraction(1, 25)
            stream.codec_context.options = {"bf": "2", "g": "250", "qmin": "4", "qmax": "4"}
            for place in range(FRAMES):
                at = (place + number * 6) % (2 * len(film) - 2)
                picture = film[at if at < len(film) else 2 * len(film) - 2 - at]
                x, y = 40 * number % 600 + place, 11 * number % 220
                frame = av.VideoFrame.from_ndarray(
                    np.ascontiguousarray(picture[y : y + 360, x : x + 480]), format="rgb24"
                ).reformat(width=WIDTH, height=HEIGHT, format="yuv420p", interpolation="AREA")
                frame.pts = place
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))


def straightforward(root: Path, out: Path) -> None:
    """Decode all, convert all, save eight."""
    for path in sorted(root.rglob("*.avi")):
        with av.open(str(path)) as container:
            images = [frame.to_image() for frame in container.decode(video=0)]
        (out / path.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
        for k in range(8):
            target = out / path.relative_to(root).with_suffix(f".{k}.jpg")
            images[k * len(images) // 8].save(target)


def ours(root: Path, out: Path) -> None:
    """What a worker does."""
    converter, options = Ucf101(), Ucf101Options()
    for item in converter.plan(Source.open(root), options):
        images = converter.convert(item, options).images
        (out / images[0].name).parent.mkdir(parents=True, exist_ok=True)
        for image in images:
            (out / image.name).write_bytes(encode(image.content, image.format, image.quality))


def same_files(one: Path, two: Path) -> int:
    """Number of pictures, all of the same bytes and the same pixels."""
    names = sorted(path.relative_to(one) for path in one.rglob("*.jpg"))
    assert names == sorted(path.relative_to(two) for path in two.rglob("*.jpg"))
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
        with Image.open(one / name) as first, Image.open(two / name) as second:
            assert np.array_equal(np.asarray(first), np.asarray(second)), name
    return len(names)


def compare(root: Path, work: Path, runs: int) -> dict[str, Any]:
    """CPU milliseconds a clip of both ways, in turn."""
    clips = len(list(root.rglob("*.avi")))
    spent: dict[str, list[float]] = {"straightforward": [], "ours": []}
    ways: tuple[tuple[str, Callable[[Path, Path], None]], ...] = (("straightforward", straightforward), ("ours", ours))
    pictures = 0
    for _ in range(runs + 1):  # the first warms the caches and does not count
        for name, way in ways:
            shutil.rmtree(work / name, ignore_errors=True)
            start = time.process_time()
            way(root, work / name)
            spent[name].append((time.process_time() - start) / clips * 1000)
        pictures = same_files(work / "straightforward", work / "ours")
    medians = {name: statistics.median(times[1:]) for name, times in spent.items()}
    ratios = [a / b for a, b in zip(spent["straightforward"][1:], spent["ours"][1:], strict=True)]
    return {
        "clips": clips,
        "identical_pictures": pictures,
        "straightforward_cpu_ms_a_clip": round(medians["straightforward"], 2),
        "ours_cpu_ms_a_clip": round(medians["ours"], 2),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_lowest_run": round(min(ratios), 2),
    }


def command_seconds(root: Path, out: Path, workers: int) -> float:
    """Wall time of the whole command in a fresh process."""
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
    """The command over each clip twenty times (links), with 1 and with 2 workers in turn."""
    many = work / "many"
    for path in root.rglob("*.avi"):
        for copy in range(20):
            target = many / path.relative_to(root).with_name(f"{path.stem[:-2]}{copy + 1:02d}.avi")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(path)
    wall: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(runs):
        for number in wall:
            wall[number].append(command_seconds(many, work / f"out{number}", number))
    same_files(work / "out1" / "images", work / "out2" / "images")
    one, two = (statistics.median(wall[number]) for number in (1, 2))
    return {
        "clips": len(list(many.rglob("*.avi"))),
        "wall_s_1_worker": round(one, 2),
        "wall_s_2_workers": round(two, 2),
        "speedup": round(one / two, 2),
    }


def main() -> None:
    """Measure, print, save."""
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
