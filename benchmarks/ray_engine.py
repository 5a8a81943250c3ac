"""Ray against the local engine: `python benchmarks/ray_engine.py [PART ...] [--images N] [--dir DIR]`.

validate    `phi3v-data validate` (every image decoded) of N JPEGs of 640 x 480 with two workers
webdataset  `phi3v-data export webdataset` of them
speedup     `validate` with one worker and with two

Whole commands, with `--engine local` and with `--engine ray`, which starts a Ray on this machine. Reported of each:

cpu_s       processor time of all processes that the command started, Ray's own among them, read from /proc ten times a
            second, so that up to 0.1 s of each process is missing (Linux)
wall_s      from start to end; says little on a machine that does other work, whose load is in the result
start_cpu_s the same command on 600 images, for which all workers are started: the cost of interpreters, and of Ray
overhead    (cpu_s - start_cpu_s) on Ray over that of the local engine, less 1
faster      (wall_s - start_wall_s) with one worker over that with two

The images are 64 files with noise, hard-linked N times: a decoder takes no less time for a file that it had before.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import RESULTS, machine, save
from PIL import Image

DISTINCT, SMALL = 64, 600
ENGINES = ("local", "ray")
PARTS = ("validate", "webdataset", "speedup")
COMMAND = [sys.executable, "-c", "from phi3v_data.cli.app import main; main()"]


def make_set(folder: Path, images: int) -> Path:
    """A directory with one row per image."""
    files = folder / "images"
    files.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(min(DISTINCT, images)):
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((640, 480))
        noise = rng.integers(-12, 13, (480, 640, 3))
        pixels = np.clip(np.asarray(coarse, np.int16) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(files / f"{number:07}.jpg", quality=90)
    with (folder / "pages_train.jsonl").open("w") as rows:
        for number in range(images):
            if number >= DISTINCT:
                os.link(files / f"{number % DISTINCT:07}.jpg", files / f"{number:07}.jpg")
            turn = {"user": f"What is on page {number}?", "assistant": "a", "images": [f"{number:07}.jpg"]}
            rows.write(json.dumps({"id": str(number), "source": "s", "conversations": [turn]}) + "\n")
    return folder


class Meter:
    """Processor time of a process and of all that it starts, also of those that leave it."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.ticks: dict[tuple[int, str], int] = {}  # by process id and start
        self.pids = {process.pid}
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()

    def watch(self) -> None:
        while not self.ended.wait(0.1):
            for pid in list(self.pids):
                self.look(pid)

    def look(self, pid: int) -> None:
        """Note the time of a process, then look at those that it started."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            started = [int(each) for file in Path(f"/proc/{pid}/task").iterdir() for each in read(file / "children")]
        except (FileNotFoundError, ProcessLookupError):
            self.pids.discard(pid)
            return
        self.ticks[pid, fields[19]] = int(fields[11]) + int(fields[12])
        for child in started:
            if child not in self.pids:
                self.pids.add(child)
                self.look(child)

    def stop(self) -> float:
        self.ended.set()
        self.thread.join()
        return sum(self.ticks.values()) / os.sysconf("SC_CLK_TCK")


def read(file: Path) -> list[str]:
    """The words of a file of a thread, which may have ended."""
    try:
        return file.read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def measure(args: list[str]) -> dict[str, float]:
    """Run a command of phi3v-data."""
    begin = time.monotonic()
    process = subprocess.Popen([*COMMAND, *args, "--quiet"], stdout=subprocess.DEVNULL)
    meter = Meter(process)
    code = process.wait()
    wall, cpu = time.monotonic() - begin, meter.stop()
    if code:
        raise SystemExit(f"{args}: exit code {code}")
    return {"cpu_s": round(cpu, 2), "wall_s": round(wall, 2)}


def run(name: str, engine: str, workers: int, whole: Path, small: Path) -> dict[str, float]:
    """One command on one engine, and its start."""
    found: dict[str, float] = {}
    for prefix, directory in (("start_", small), ("", whole)):
        out = directory.parent / "out"
        args = ["validate", str(directory), "--fresh"] if name == "validate" else ["export", name, str(directory)]
        args += [] if name == "validate" else ["--out", str(out)]
        seconds = measure([*args, "--engine", engine, "--workers", str(workers)])
        found |= {prefix + key: value for key, value in seconds.items()}
        shutil.rmtree(out, ignore_errors=True)
    return found


def compare(name: str, whole: Path, small: Path) -> dict[str, Any]:
    """One command on both engines, with two workers."""
    found = {engine: run(name, engine, 2, whole, small) for engine in ENGINES}
    net = {engine: each["cpu_s"] - each["start_cpu_s"] for engine, each in found.items()}
    return {**found, "overhead": round(net["ray"] / net["local"] - 1, 3)}


def speedup(whole: Path, small: Path) -> dict[str, Any]:
    """`validate` on both engines, with one worker and with two."""
    found: dict[str, Any] = {}
    for engine in ENGINES:
        one, two = (run("validate", engine, workers, whole, small) for workers in (1, 2))
        net = [each["wall_s"] - each["start_wall_s"] for each in (one, two)]
        found[engine] = {"one_worker": one, "two_workers": two, "faster": round(net[0] / net[1], 2)}
    return found


def main() -> None:
    """Measure, print and save; parts that are not measured again keep their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; default: all")
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--dir", type=Path, help="where the set is made; default: the system's temporary folder")
    args = parser.parse_args()
    known = RESULTS / "ray.json"
    result: dict[str, Any] = json.loads(known.read_text()) if known.is_file() else {}
    about = {"machine": machine("phi3v", "ray", "pillow", "simplejpeg"), "images": args.images}
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        whole, small = make_set(Path(folder, "whole"), args.images), make_set(Path(folder, "small"), SMALL)
        for name in args.parts or PARTS:
            load = os.getloadavg()[0]
            found = speedup(whole, small) if name == "speedup" else compare(name, whole, small)
            command = f"python benchmarks/ray_engine.py {name} --images {args.images}"
            loads = [round(load, 1), round(os.getloadavg()[0], 1)]
            result[name] = {"command": command, **about, "load_before_and_after": loads, **found}
    save("ray", result)


if __name__ == "__main__":
    main()
