"""Import of ShareGPT rows against readers of others, which check less and keep nothing beside the rows.

    python benchmarks/formats/import_rows.py [--rows 200000 1000000] [--image_rows 20000] [--envs /tmp/consumers]

The same generated rows in a JSON array, without images and with one of 2,000 small JPEG files in each, go through

    import           `phi3v-data import sharegpt FILE --workers 1`: plan, checks, journal, rows, `dataset.json`; images
                     are read, verified, digested and stored
    import_here      `import_rows(..., workers=0)`
    datasets_map     `datasets` loads the file and maps each row to prompt and response, by the few lines of
                     LLaMA-Factory's converter that plain rows need; paths of images are looked for, not read
    llama_factory    the same with LLaMA-Factory's own converter
    swift            `datasets` loads the file, and ms-swift's preprocessor maps it

each in a process of its own. `cpu_seconds`: of the process and its children, with all imports; `work_seconds`: without
imports; `peak_mib`: of the largest process. `--envs` holds the environments of `consumers.py`, which installs them;
a peer that is not there is named.
"""

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import machine, save

ROOT = Path(__file__).parents[2]
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "while",
    "one",
    "dog",
    "barked",
    "at",
    "passing",
    "cars",
    "and",
    "nobody",
    "seemed",
]

HERE = """
import sys, time
from phi3v_data.importing import import_rows
file, folder, out = sys.argv[1:]
before = time.process_time()
import_rows("sharegpt", file, f"{folder}/here", workers=0)
open(out, "w").write(str(time.process_time() - before))
"""

LOAD = """
import sys, time
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
import datasets
datasets.disable_progress_bars()
file, folder, out = sys.argv[1:]
def stub(name):
    sys.modules[name] = ModuleType(name)
    sys.modules[name].__spec__ = ModuleSpec(name, None)
    return sys.modules[name]
def load():
    return datasets.load_dataset("json", data_files=file, split="train", cache_dir=f"{folder}/cache")
def mapped(convert):
    data = load()
    data.map(convert, batched=False, remove_columns=data.column_names, load_from_cache_file=False)
def timed(call):
    before = time.process_time()
    call()
    open(out, "w").write(str(time.process_time() - before))
"""

PEERS = {
    "datasets_map": """
import os
ROLES = {"human": "user", "gpt": "assistant"}
def convert(row):
    aligned, broken = [], False
    for number, message in enumerate(row["conversations"]):
        if message["from"] not in (("human", "observation"), ("gpt", "function_call"))[number % 2]:
            broken = True
        aligned.append({"role": ROLES[message["from"]], "content": message["value"]})
    prompt, response = ([], []) if broken or len(aligned) % 2 else (aligned[:-1], aligned[-1:])
    images = None
    if row.get("images"):
        paths = [(os.path.join(folder, path), path) for path in row["images"]]
        images = [full if os.path.isfile(full) else path for full, path in paths]
    return {"_prompt": prompt, "_response": response, "_system": "", "_tools": "", "_images": images,
            "_videos": None, "_audios": None}
timed(lambda: mapped(convert))
""",
    "llama_factory": """
stub("torchaudio")  # its builds are for other versions of torch
from llamafactory.data.converter import SharegptDatasetConverter
from llamafactory.data.parser import DatasetAttr
images = "images" if '"images"' in open(file).read(4096) else None
attr = DatasetAttr("file", dataset_name="demo", formatting="sharegpt", images=images)
timed(lambda: mapped(SharegptDatasetConverter(dataset_attr=attr, data_args=SimpleNamespace(media_dir=folder))))
""",
    "swift": """
from transformers.utils import is_torchvision_available
is_torchvision_available()
for name in ("torchvision", "torchvision.io", "torchvision.transforms"):  # qwen_vl_utils imports it for videos only
    stub(name)
sys.modules["torchvision"].io = sys.modules["torchvision.io"]
sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
sys.modules["torchvision"].__version__ = "0.0.0"
sys.modules["torchvision.transforms"].InterpolationMode = None
from swift.dataset.preprocessor import AutoPreprocessor
timed(lambda: AutoPreprocessor()(load(), num_proc=1, load_from_cache_file=False, enable_auto_mapping=True))
""",
}
"""Peer -> its program, after `LOAD`; those but the first have an environment of their own, which has their name."""

NUM_IMAGES = 2000


def write_rows(path: Path, count: int, *, images: bool = False) -> None:
    """A JSON array of conversations of one to three turns, about 600 bytes each."""
    rng = random.Random(0)
    with path.open("w") as file:
        for number in range(count):
            messages = [
                {"from": role, "value": " ".join(rng.choices(WORDS, k=rng.randint(5, 40)))}
                for _ in range(rng.randint(1, 3))
                for role in ("human", "gpt")
            ]
            row: dict[str, Any] = {"id": f"row-{number}", "conversations": messages}
            if images:
                messages[0]["value"] = f"<image>\n{messages[0]['value']}"
                row["images"] = [f"images/{number % NUM_IMAGES}.jpg"]
            file.write(("[\n" if not number else ",\n") + json.dumps(row))
        file.write("\n]\n")


def write_images(folder: Path) -> None:
    """JPEG files of 224 x 168 pixels."""
    folder.mkdir()
    rng = random.Random(0)
    for number in range(NUM_IMAGES):
        small = Image.frombytes("RGB", (16, 12), rng.randbytes(16 * 12 * 3))
        small.resize((224, 168)).save(folder / f"{number}.jpg")


def measured(command: list[str], work: Path) -> dict[str, float] | None:
    """CPU seconds of a command and its children, peak of its largest process in MiB, and what it wrote to `work`.

    None if it fails.
    """
    script = (
        "import json, resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], stdout=sys.stderr)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(json.dumps([done.returncode, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))\n"
    )
    work.unlink(missing_ok=True)
    env = {**os.environ, "HF_HUB_OFFLINE": "1"} | ({"PYTHONPATH": str(ROOT)} if command[0] == sys.executable else {})
    done = subprocess.run(
        [sys.executable, "-c", script, *command], stdout=subprocess.PIPE, env=env, cwd=work.parent, check=False
    )
    code, cpu, peak = json.loads(done.stdout)
    if code:
        return None
    found = {"cpu_seconds": round(cpu, 2), "peak_mib": round(peak, 1)}
    if work.exists():
        found["work_seconds"] = round(float(work.read_text()), 2)
    return found


def measure(count: int, envs: Path | None, *, images: bool) -> dict[str, Any]:
    """Figures of each reader on the same rows; `ratio` is the CPU time of the reader divided by that of the import."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file, work = folder / "rows.json", folder / "work"
        write_rows(file, count, images=images)
        if images:
            write_images(folder / "images")
        cli = [sys.executable, "-c", "from phi3v_data.cli.app import main; main()", "import", "sharegpt", str(file)]
        arguments = [str(file), name, str(work)]
        ways = {
            "import": [*cli, "--quiet", "--out_dir", f"{name}/out", "--workers", "1"],
            "import_here": [sys.executable, "-c", HERE, *arguments],
        }
        missing = []
        for peer, code in PEERS.items():
            own = peer != "datasets_map"
            python = str((envs or Path()) / peer / "bin" / "python") if own else sys.executable
            if not own or (envs is not None and Path(python).exists()):
                ways[peer] = [python, "-c", LOAD + code, *arguments]
            else:
                missing.append(peer)
        result: dict[str, Any] = {"rows": count, "file_mb": round(file.stat().st_size / 1e6, 1)}
        for way, command in ways.items():
            found = measured(command, work)
            shutil.rmtree(folder / "cache", ignore_errors=True)
            if found is None:
                missing.append(way)
                continue
            result[way] = {**found, "rows_per_cpu_second": round(count / found["cpu_seconds"])}
        ours = result["import"]["cpu_seconds"], result["import_here"]["work_seconds"]
        result["ratio_of_processes"] = {
            way: round(result[way]["cpu_seconds"] / ours[0], 2) for way in PEERS if way in result
        }
        result["ratio_of_work"] = {
            way: round(result[way]["work_seconds"] / ours[1], 2) for way in PEERS if way in result
        }
        if missing:
            result["not_measured"] = missing
    print(json.dumps(result, indent=1), file=sys.stderr)
    return result


def main() -> None:
    """Measure each number of rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[200_000, 1_000_000])
    parser.add_argument("--image_rows", type=int, default=20_000)
    parser.add_argument("--envs", type=Path, help="environments of consumers.py")
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    result = {
        "machine": machine("datasets", "msgspec", "pydantic"),
        "load_average": os.getloadavg()[1],  # of other work, which slows each program
        "peers": {"llama_factory": "LLaMA-Factory 0.9.5", "swift": "ms-swift 4.6.0"},
        "texts": [measure(count, args.envs, images=False) for count in args.rows],
        "images": measure(args.image_rows, args.envs, images=True),
    }
    if args.no_save:
        print(json.dumps(result, indent=2))
    else:
        save("import_rows", result)


if __name__ == "__main__":
    main()
